"""Transforms of audiomentations named in YAML, as functions of a sample's key alone."""

import logging
import os
import pickle
import random
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from hydra.utils import instantiate
from omegaconf import OmegaConf

from components.augment import Audiomentations
from components.data import AudioDataset
from tests.components.clips import write_clip, write_corpus
from utils.compose import CONFIGS, Request, compose_task
from utils.config import register_omegaconf_resolvers
from utils.errors import BadSample, UserError
from utils.validate import num_targets, validate

audiomentations = pytest.importorskip("audiomentations")
pytest.importorskip("numpy_audio_limiter")

RATE = 16_000
HOSTILE = Path(__file__).resolve().parents[3] / "shared" / "data" / "hostile_audio"


class Tremolo(audiomentations.core.transforms_interface.BaseWaveformTransform):
    """One's own: louder and fainter, from a phase drawn where it is applied, and written into what was given."""

    supports_multichannel = True

    def __init__(self, max_hertz=5.0, p=0.5):
        super().__init__(p)
        self.max_hertz = max_hertz

    def apply(self, samples, sample_rate):
        time = np.arange(samples.shape[-1]) / sample_rate
        samples *= 1 + 0.5 * np.sin(2 * np.pi * (self.max_hertz * time + np.random.uniform()))
        return samples


class Broken(Tremolo):
    def apply(self, samples, sample_rate):
        return samples * np.nan


class Stateful(Tremolo):
    """Uses what the call before left, as a transform should not."""

    def apply(self, samples, sample_rate):
        self.parameters["calls"] = self.parameters.get("calls", 0) + 1
        return samples * self.parameters["calls"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    for i, rate in enumerate((8_000, RATE, 44_100)):
        write_clip(folder / "noise" / f"{i}.wav", 0.6, rate, channels=1 + i % 2, seed=i)
    response = np.random.default_rng(0).standard_normal((2_000, 2)) * np.exp(-np.arange(2_000) / 300)[:, None]
    (folder / "rooms").mkdir()
    soundfile.write(folder / "rooms" / "room.wav", response * 0.1, 48_000, subtype="PCM_24")
    return folder


def seed_recipe(folders, p=0.7):
    """The list of the phoneme recipe, and one's own."""
    text = f"""
    _target_: components.augment.Audiomentations
    transforms:
      gaussian: {{_target_: audiomentations.AddGaussianNoise, min_amplitude: 0.0008, max_amplitude: 0.0043}}
      background:
        _target_: audiomentations.AddBackgroundNoise
        sounds_path: {folders / "noise"}
        min_snr_db: 8
        max_snr_db: 55
      band: {{_target_: audiomentations.BandPassFilter, min_center_freq: 745, max_center_freq: 5463}}
      aliasing: {{_target_: audiomentations.Aliasing, min_sample_rate: 4495, max_sample_rate: 8423}}
      room: {{_target_: audiomentations.ApplyImpulseResponse, ir_path: {folders / "rooms"}}}
      bits: {{_target_: audiomentations.BitCrush}}
      limiter: {{_target_: audiomentations.Limiter, min_threshold_db: -15, max_threshold_db: -7}}
      own: {{_target_: tests.components.test_audiomentations.Tremolo, max_hertz: 4.0}}
    """
    config = OmegaConf.create(yaml.safe_load(text))
    for transform in config.transforms.values():
        transform.p = p
    return config


def build(config):
    return instantiate(config, _convert_="all")


def keyed(step, clip, key):
    random.seed(key)
    np.random.seed(key)
    torch.manual_seed(key)
    return step(clip, RATE)


@pytest.fixture
def clip():
    return torch.randn(1, 5_000, generator=torch.Generator().manual_seed(0)) * 0.1


def test_the_recipe_of_the_yaml_is_valid_and_its_mistakes_are_found(folders):
    config = seed_recipe(folders)
    assert num_targets(config) == 9
    assert validate(config) == []
    config.transforms.gaussian.min_amplitud = 1.0
    config.transforms.bits._target_ = "audiomentations.BitCrusher"
    config.transforms.limiter.p = "often"
    config.transforms.own.max_herz = 3
    problems = validate(config)
    assert any("gaussian.min_amplitud:" in line and "min_amplitude" in line for line in problems)
    assert any("bits._target_" in line and "BitCrush" in line for line in problems)
    assert any("limiter.p" in line for line in problems)
    assert any("own.max_herz" in line and "max_hertz" in line for line in problems)
    assert len(problems) == 4


NAMES = ["gaussian", "background", "band", "aliasing", "room", "bits", "limiter", "own"]


@pytest.mark.parametrize("name", NAMES)
def test_each_is_a_function_of_the_key_in_any_order_of_calls(folders, clip, name):
    config = seed_recipe(folders)
    config.transforms = {name: config.transforms[name]}
    step, before = build(config), clip.clone()
    forward = {key: keyed(step, clip, key) for key in range(12)}
    backward = {key: keyed(step, clip, key) for key in reversed(range(12))}
    fresh = {key: keyed(build(config), clip, key) for key in (0, 5)}
    assert all(torch.equal(forward[key], backward[key]) for key in forward)
    assert all(torch.equal(forward[key], fresh[key]) for key in fresh)
    assert len({made.numpy().tobytes() for made in forward.values()}) >= 2
    assert all(made.dtype == torch.float32 and made.shape == clip.shape for made in forward.values())
    assert torch.equal(clip, before)


def test_the_whole_recipe_and_its_copy_in_another_process_agree(folders, clip):
    step = build(seed_recipe(folders))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a cache that is left behind
        copy = pickle.loads(pickle.dumps(step))
    for key in range(8):
        assert torch.equal(keyed(step, clip, key), keyed(copy, clip, key))


@pytest.mark.parametrize("length", [1, 2, 159, 160, 161])
@pytest.mark.parametrize("level", [0.0, 0.1])
def test_short_and_silent_clips_come_back_finite(folders, length, level):
    step = build(seed_recipe(folders, p=1.0))
    for key in range(10):
        made = keyed(step, torch.full((1, length), level), key)
        assert made.shape == (1, length)
        assert made.isfinite().all()


def test_two_channels_pass_where_a_transform_can_take_them_and_are_named_where_not(folders):
    config, clip = seed_recipe(folders, p=1.0), torch.randn(2, 3_000)
    config.transforms.background = None
    assert build(config)(clip, RATE).shape == (2, 3_000)
    config = seed_recipe(folders, p=1.0)
    with pytest.raises(BadSample, match=r"background can not take \(2, 3000\)"):
        build(config)(clip, RATE)


def test_files_that_do_not_decode_are_left_out_by_name(folders, tmp_path, clip, caplog):
    shutil.copytree(folders / "noise", tmp_path / "noise")
    (tmp_path / "noise" / "text.wav").write_text("not a sound")
    soundfile.write(tmp_path / "noise" / "none.wav", np.zeros(0), RATE)
    flac = write_clip(tmp_path / "noise" / "rot.flac", 2)
    flac.write_bytes(flac.read_bytes()[:200] + bytes(20_000))
    config = seed_recipe(folders, p=1.0)
    config.transforms = {"background": config.transforms.background}
    config.transforms.background.sounds_path = str(tmp_path / "noise")
    with caplog.at_level(logging.WARNING):
        step = build(config)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("3 noises of AddBackgroundNoise left out: ")
    assert all(name in message for name in ("text.wav", "none.wav", "rot.flac"))
    for key in range(20):
        assert keyed(step, clip, key).isfinite().all()
    for path in (tmp_path / "noise").glob("[0-9].wav"):
        path.unlink()
    with pytest.raises(UserError, match=r"none of the 3 noises of AddBackgroundNoise can be read"):
        build_plain(config)


def build_plain(config):
    """Without Hydra's wrapping of errors."""
    return Audiomentations({name: build(node) for name, node in config.transforms.items()})


@pytest.mark.skipif(not HOSTILE.is_dir(), reason="needs the shared hostile audio")
def test_a_folder_of_hostile_files_does_not_hang(clip):
    noise = audiomentations.AddBackgroundNoise(str(HOSTILE), p=1.0)
    step = Audiomentations([noise])
    kept = {Path(path).stem for path in noise.sound_file_paths}
    assert "clip" in kept
    assert not kept & {"zero_frames", "flac_bitrot", "nan_inf_float32", "empty_file", "rate_1hz", "aac", "directory"}
    for key in range(40):
        assert keyed(step, clip, key).isfinite().all()


def test_what_a_transform_remembers_or_was_told_to_keep_is_taken_from_it(clip):
    step = Audiomentations({"stateful": Stateful(p=1.0)})
    assert torch.equal(keyed(step, clip, 0), keyed(step, clip, 0))
    frozen = audiomentations.AddGaussianNoise(p=1.0)
    frozen.freeze_parameters()
    step = Audiomentations([frozen])
    other = keyed(step, clip, 1)
    assert not torch.equal(keyed(step, clip, 2), other)
    assert torch.equal(keyed(step, clip, 1), other)


def test_nested_transforms_are_looked_into(folders, clip):
    nested = audiomentations.SomeOf([1, 2], [
        audiomentations.AddBackgroundNoise(str(folders / "noise"), p=1.0, noise_transform=Tremolo(p=1.0)),
        audiomentations.OneOf([audiomentations.BitCrush(p=1.0), audiomentations.PolarityInversion(p=1.0)]),
    ])  # fmt: skip
    step = Audiomentations({"some": nested, "none": None})
    first = [keyed(step, clip, key) for key in range(8)]
    assert all(torch.equal(keyed(step, clip, key), first[key]) for key in (5, 2, 7, 0))


def test_what_goes_wrong_is_said_by_name(clip, monkeypatch):
    with pytest.raises(BadSample, match="'mine' made NaN"):
        Audiomentations({"mine": Broken(p=1.0)})(clip, RATE)
    with pytest.raises(UserError, match="mine is no transform, but 3"):
        Audiomentations({"mine": 3})
    monkeypatch.setitem(sys.modules, "numpy_audio_limiter", None)
    with pytest.raises(UserError, match=r"numpy_audio_limiter is not installed: pip install -e '\.\[augment\]'"):
        Audiomentations([audiomentations.Limiter()])


def test_probability_zero_leaves_clips_alone(folders, clip):
    assert Audiomentations([Broken(p=1.0)], p=0.0)(clip, RATE) is clip
    assert torch.equal(build(seed_recipe(folders, p=0.0))(clip, RATE), clip)


# -------------------------------------------------------------------------------------------- in a dataset, and shipped


class Keyed(torch.utils.data.Dataset):
    """Items by their key, as the Trainer reads them."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return 12

    def __getitem__(self, key):
        random.seed(key)
        np.random.seed(key)
        torch.manual_seed(key)
        return key, os.getpid(), self.dataset[key % 3]["waveform"]


@pytest.mark.slow
def test_workers_and_their_number_change_nothing(folders, tmp_path):
    dataset = AudioDataset(
        write_corpus(tmp_path), RATE, augment={"all": build(seed_recipe(folders))}, cache_bytes=10**6
    )
    made, processes = {}, {}
    for workers in (0, 1, 3):
        order = torch.randperm(12, generator=torch.Generator().manual_seed(workers)).tolist()
        loader = torch.utils.data.DataLoader(Keyed(dataset), sampler=order, batch_size=None, num_workers=workers)
        items = list(loader)
        made[workers] = {key: waveform for key, _, waveform in items}
        processes[workers] = {process for _, process, _ in items}
    assert [len(processes[workers]) for workers in (0, 1, 3)] == [1, 1, 3]
    for workers in (1, 3):
        assert all(torch.equal(made[0][key], made[workers][key]) for key in range(12))


@pytest.mark.parametrize("group", ["phonemes", "speech"])
def test_the_shipped_lists_compose_are_valid_and_run(folders, clip, group):
    register_omegaconf_resolvers()
    at = "augment@train_dataloader.dataset.augment"
    folder = [f"+noise_dir={folders / 'noise'}", f"+rir_dir={folders / 'rooms'}"]
    config = compose_task(Request(CONFIGS, "default", ("experiment=tagging/spoken_words", f"+{at}={group}", *folder)))
    node = config.train_dataloader.dataset.augment
    assert validate(node) == []
    assert num_targets(node) == {"phonemes": 3 + 8, "speech": 3 + 3}[group]
    for step in build(node).values():
        clip = step(clip, RATE)
    assert clip.isfinite().all()
    without = compose_task(Request(CONFIGS, "default", ("experiment=tagging/spoken_words", f"+{at}={group}")))
    assert any("noise_dir" in problem for problem in validate(without.train_dataloader.dataset.augment))


@pytest.mark.parametrize("experiment", ["spoken_digits", "environmental_sounds"])
def test_the_shipped_lists_go_with_what_an_experiment_has(experiment):
    """A name in both would be a mixture of the two."""
    register_omegaconf_resolvers()
    at = "augment@train_dataloader.dataset.augment"
    chosen = (f"experiment=tagging/{experiment}", f"+{at}=speech", "+noise_dir=a", "+rir_dir=b")
    node = compose_task(Request(CONFIGS, "default", chosen)).train_dataloader.dataset.augment
    assert len(node) >= 3 + 4
    assert validate(node) == []


def test_a_transform_outside_of_the_adapter_is_refused(tmp_path):
    step = audiomentations.AddGaussianNoise()
    with pytest.raises(UserError, match=r"^augment.noise: .* goes inside of components.augment.Audiomentations"):
        AudioDataset(write_corpus(tmp_path), 16_000, augment={"noise": step})
