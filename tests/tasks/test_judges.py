"""Judges: what they make of sounds, their ceilings, and how they come to be."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from components.data import AudioDataset, PadCollate, write_manifest
from components.data.audio import resample
from components.data.generation import FixedCanvas, NormalizeLevel
from components.losses import MultiTargetCrossEntropy
from tasks.audio_generation import judges
from tasks.audio_generation.judges import Accuracy, Judge, accuracies, ceiling, prepare_judge
from tasks.tagging import TaggingTrainer
from tests.components.clips import write_clip
from trainer.callbacks import ModelCheckpoint
from utils.compose import CONFIGS, Request, compose_task
from utils.config import register_omegaconf_resolvers
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
RATE = 8000
LABELS = {"word": ["low", "high"], "speaker": ["anna", "ben"]}
PITCHES = {"low": 300, "high": 1500}
HEARING = """
hearing:
  level: {_target_: components.data.generation.NormalizeLevel}
  canvas: {_target_: components.data.generation.FixedCanvas, seconds: 0.4, place: start}
"""


@pytest.fixture(autouse=True)
def resolvers():
    register_omegaconf_resolvers()


def tone(word, seconds=0.3, rate=RATE, phase=0.0):
    time_axis = torch.arange(round(seconds * rate)) / rate
    return 0.1 * torch.sin(2 * np.pi * PITCHES[word] * time_axis + phase).unsqueeze(0)


def batch_of(*clips):
    batch = PadCollate()([{"waveform": clip} for clip in clips])
    return batch["waveform"], batch["audio_lens"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that tells low tones from high ones; whose they are is known of none."""
    folder = tmp_path_factory.mktemp("judge")
    records = []
    for i in range(16):
        word = ["low", "high"][i % 2]
        soundfile.write(folder / f"{i}.wav", tone(word, 0.2 + 0.01 * i, phase=i)[0].numpy(), RATE)
        audio = {"id": f"c{i}", "audio_path": f"{i}.wav", "duration": 0.2 + 0.01 * i, "sample_rate": RATE}
        records.append(audio | {"labels": {"word": word}})
    write_manifest(folder / "clips.jsonl", records)
    home = "components.models.tagger"
    frontend = {"_target_": "components.features.LogMel", "sample_rate": RATE, "n_fft": 256, "n_mels": 16}
    network = {
        "_target_": f"{home}.Tagger",
        "num_classes": {target: len(names) for target, names in LABELS.items()},
        "frontend": frontend | {"hop_length": 160, "subtract_mean": True},
        "backbone": {"_target_": f"{home}.ConvNet", "_partial_": True, "channels": [4]},
        "head": {"_target_": f"{home}.PoolingHead", "_partial_": True, "hidden_dim": 8},
    }
    heard = {"level": NormalizeLevel(), "canvas": FixedCanvas(0.4)}
    loader = partial(DataLoader, batch_size=8, collate_fn=PadCollate())
    torch.manual_seed(0)
    TaggingTrainer(
        model=instantiate(network, _convert_="all"), labels=LABELS, main_target="word", epochs=30,
        train_dataloader=loader(AudioDataset(folder / "clips.jsonl", RATE, LABELS, augment=heard), shuffle=True),
        loss_fn=MultiTargetCrossEntropy(), optimizer=partial(torch.optim.AdamW, lr=2e-2), exp_dir=folder / "run",
        callbacks={"checkpoint": ModelCheckpoint()},
    ).fit()  # fmt: skip
    data = {"_target_": "components.data.AudioDataset", "manifest": str(folder / "clips.jsonl"), "sample_rate": RATE}
    canvas = {"_target_": "components.data.generation.FixedCanvas", "seconds": 0.4, "place": "start"}
    data |= {"labels": LABELS, "augment": {"canvas": canvas}}
    test = {"_target_": "torch.utils.data.DataLoader", "batch_size": 5, "dataset": data}
    test["collate_fn"] = {"_target_": "components.data.PadCollate"}
    config = {"labels": LABELS, "sample_rate": RATE, "model": network, "test_dataloader": test}
    (folder / "run" / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)) + HEARING)
    return folder / "run"


# --------------------------------------------------------------------------------------------------------- judging


def test_a_judge_names_classes_and_gives_probabilities_and_embeddings(run):
    judge = Judge(run)
    verdict = judge.hear(*batch_of(tone("high"), tone("low"), tone("high", 0.1)), RATE)
    assert verdict.classes["word"] == ["high", "low", "high"]
    assert set(verdict.classes) == {"word", "speaker"}
    assert verdict.probs["word"].sum(1).tolist() == pytest.approx([1.0] * 3)
    assert verdict.embedding.shape == (3, 8)
    assert torch.equal(judge.embed(*batch_of(tone("low")), RATE), judge.hear(*batch_of(tone("low")), RATE).embedding)


def test_a_verdict_depends_neither_on_neighbours_nor_on_padding_nor_on_level(run):
    judge = Judge(run, batch_size=2)
    clips = [tone("high", 0.25), tone("low", 0.12), tone("low", 0.38), tone("high", 0.05)]
    together = judge.hear(*batch_of(*clips), RATE)
    for i, clip in enumerate(clips):
        alone = judge.hear(*batch_of(clip), RATE)
        assert torch.allclose(together.probs["word"][i], alone.probs["word"][0], atol=1e-5)
        assert torch.allclose(together.embedding[i], alone.embedding[0], atol=1e-5)
        louder = judge.hear(*batch_of(5 * clip), RATE)
        assert torch.allclose(louder.probs["word"][0], alone.probs["word"][0], atol=1e-4)
    waveform, audio_lens = batch_of(*clips)
    waveform[1, :, audio_lens[1] :] = 7.0
    assert torch.equal(judge.hear(waveform, audio_lens, RATE).probs["word"], together.probs["word"])


def test_other_sample_rates_are_resampled(run):
    clips = [torch.from_numpy(resample(tone(word)[0].numpy(), RATE, 16_000)).unsqueeze(0) for word in ("low", "high")]
    assert Judge(run).classify(*batch_of(*clips), 16_000)["word"] == ["low", "high"]


def test_silence_and_what_is_no_number_are_no_class(run):
    broken = tone("low").clone()
    broken[0, 5] = float("nan")
    verdict = Judge(run).hear(*batch_of(torch.zeros(1, 900), broken, tone("low")), RATE)
    assert verdict.classes["word"] == ["", "", "low"]
    assert verdict.probs["word"][:2].tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert verdict.embedding.isfinite().all()
    assert not verdict.embedding[:2].any()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": {"_target_": "os.system", "command": "true"}}, "not among what a stored config may build"),
        (
            {"hearing": {"x": {"_target_": "subprocess.run", "args": "true"}}},
            "not among what a stored config may build",
        ),
        ({"labels": None}, "its config has no labels"),
    ],
)
def test_a_run_that_is_none_of_ours_is_refused(run, tmp_path, change, sentence):
    config = OmegaConf.load(run / "config.yaml")
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.merge(config, change)))
    with pytest.raises(UserError, match=sentence):
        Judge(tmp_path)


# -------------------------------------------------------------------------------------------------------- ceilings


def test_accuracies_count_what_was_asked_for():
    heard = {"word": ["low", "high", ""], "speaker": ["anna", "ben", ""]}
    found = accuracies(heard, {"word": ["low", "low", "high"], "speaker": ["anna", None, None], "mood": ["glad"] * 3})
    assert found == {"word": Accuracy(1, 3), "speaker": Accuracy(1, 1)}
    assert found["word"].share == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="shorter"):
        accuracies(heard, {"word": ["low"]})


class Codec:
    """Waveforms as latents, at a gain; they come back a little longer."""

    def __init__(self, gain=1.0, sample_rate=RATE):
        self.gain, self.sample_rate = gain, sample_rate

    def encode(self, waveform, audio_lens):
        return waveform * self.gain, audio_lens

    def decode(self, latents, latent_lens):
        return torch.nn.functional.pad(latents, (0, 50)), latent_lens + 50


def test_real_clips_are_at_one_level_and_not_yet_heard(run):
    (batch, *_) = Judge(run).test_loader()
    assert batch["audio_lens"].tolist() == [1600, 1680, 1760, 1840, 1920]
    level = batch["waveform"][4].square().mean().sqrt()
    assert level == pytest.approx(0.1, rel=0.01)


def test_ceilings_are_those_of_real_clips_and_of_copies(run):
    judge = Judge(run)
    assert ceiling(judge) == {"word": Accuracy(16, 16), "speaker": Accuracy(0, 0)}
    assert ceiling(judge, Codec()) == ceiling(judge)
    assert ceiling(judge, Codec(gain=0.0))["word"] == Accuracy(0, 16)
    few = list(judge.test_loader())[:1]
    assert ceiling(judge, batches=few)["word"] == Accuracy(5, 5)
    with pytest.raises(UserError, match="the autoencoder works at 16000 Hz, the judge hears at 8000 Hz"):
        ceiling(judge, Codec(sample_rate=16_000))


# -------------------------------------------------------------------------------------------------------- training


@pytest.fixture
def digits(tmp_path):
    """A tiny corpus in the layout of the true one, and the arguments that train a judge on it in two updates."""
    for i, (digit, take) in enumerate((d, t) for d in range(4) for t in (0, 10, *range(20, 30))):
        write_clip(tmp_path / "digits" / f"{digit}_theo_{take}.wav", 0.3, RATE, seed=i % 5)
    settings = {"cache_dir": str(tmp_path / "cache"), "data_root": str(tmp_path / "digits")}
    overrides = ["max_steps=2", "model.backbone.channels=[4]", "tracker=null"]
    return {"experiment": "tagging/judge_spoken_digits", "overrides": overrides, "settings": settings}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"experiment": "tagging/judge_spoken_digit"}, "did you mean 'tagging/judge_spoken_digits'"),
        ({"overrides": ["epoch=3"]}, "judge tagging/judge_spoken_digits: epoch: .*did you mean 'epochs'"),
        ({"settings": {"data_dict.spoken_digits.wordz": []}}, "settings.data_dict.spoken_digits.wordz: .*no such key"),
    ],
)
def test_a_judge_that_is_not_there_is_named(digits, tmp_path, change, sentence):
    with pytest.raises(UserError, match=sentence):
        prepare_judge(output_dir=str(tmp_path / "judge"), **{**digits, **change})
    assert not (tmp_path / "judge").exists()


def test_what_hydra_knows_of_the_calling_run_stays(digits):
    compose_task(Request(CONFIGS, "default", ("experiment=tagging/debug",)))
    judges._composed(**digits)
    assert HydraConfig.get().runtime.choices["experiment"] == "tagging/debug"


def test_settings_reach_what_points_to_them(digits):
    config = judges._composed(**digits)
    assert config.epochs == 12
    changed = {**digits["settings"], "data_dict.spoken_digits.words": ["one", "two"]}
    config = judges._composed(digits["experiment"], digits["overrides"], changed)
    assert config.labels.word == ["one", "two"]
    assert config.recipes.corpus.data_root == digits["settings"]["data_root"]


@pytest.mark.slow
def test_a_judge_is_trained_once_and_anew_for_other_settings(digits, tmp_path, monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "ACCELERATE_MIXED_PRECISION": "odd"}.items():
        monkeypatch.setenv(name, value)  # as in a process that a launcher started
    folder = tmp_path / "judges" / "digits"
    prepare_judge(output_dir=str(folder), **digits)
    weights = folder / "checkpoints" / "last" / "model.safetensors"
    first = weights.stat().st_mtime_ns
    assert ceiling(Judge(folder))["word"].num_clips == 4
    prepare_judge(output_dir=str(folder), **digits)
    assert weights.stat().st_mtime_ns == first
    prepare_judge(output_dir=str(folder), **{**digits, "overrides": [*digits["overrides"], "seed=3"]})
    assert weights.stat().st_mtime_ns != first
    assert OmegaConf.load(folder / "config.yaml").seed == 3
    assert sorted(path.name for path in folder.parent.iterdir()) == [".digits.lock", "digits"]


@pytest.mark.slow
def test_a_judge_that_was_killed_half_way_is_trained_again(digits, tmp_path):
    folder = tmp_path / "judges" / "digits"
    call = f"prepare_judge(output_dir={str(folder)!r}, **{json.dumps(digits)})"
    code = "from utils.config import register_omegaconf_resolvers as r; r(); "
    code += f"from tasks.audio_generation.judges import prepare_judge; {call}"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(folder.parent.glob(".digits.*/job/judge.yaml")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not folder.exists()
    prepare_judge(output_dir=str(folder), **digits)
    assert Judge(folder).labels["word"][0] == "zero"
    assert sorted(path.name for path in folder.parent.iterdir()) == [".digits.lock", "digits"]


@pytest.mark.slow
def test_a_training_that_fails_leaves_nothing_and_says_why(digits, tmp_path):
    digits["settings"]["data_root"] = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"it could not be trained: .*nowhere is not a folder"):
        prepare_judge(output_dir=str(tmp_path / "judge"), **digits)
    assert not (tmp_path / "judge").exists()
