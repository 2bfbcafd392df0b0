"""The generation experiments: their parts fit, a task of one's own is a few lines, and runs tell what they reach."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hydra.utils import instantiate

from components.data import PadCollate, write_manifest
from tests.components.clips import write_clip
from utils.compose import CONFIGS, Request, compose_task
from utils.config import register_omegaconf_resolvers
from utils.errors import UserError
from utils.validate import validate

ROOT = Path(__file__).resolve().parents[1]
RATE = 8_000
EXPERIMENTS = ("spoken_digits", "multitask", "enhancement", "phonemes")
TASKS = {"text_to_speech", "energy_control", "pitch_control", "super_resolution", "in_painting"}
SMALL = ("model.backbone.dim=32", "model.backbone.depth=2")


@pytest.fixture(autouse=True)
def resolvers():
    register_omegaconf_resolvers()


def compose(*overrides):
    return compose_task(Request(CONFIGS, "default", overrides))


def generation(name, *overrides):
    return compose(f"experiment=audio_generation/{name}", *overrides)


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """Four digits by one speaker, in the layout of the true corpus."""
    folder = tmp_path_factory.mktemp("digits")
    for digit in range(4):
        for take in (0, 1, 10, 11, *range(20, 26)):
            write_clip(folder / "recordings" / f"{digit}_theo_{take}.wav", 0.3 + 0.02 * digit, RATE, seed=digit)
    return folder


def built(config):
    """The training set of a config, once its corpus has been prepared, and a model."""
    recipe = {name: one for name, one in config.recipes.items() if name != "judge" and one is not None}
    for one in recipe.values():
        instantiate(one)
    return instantiate(config.train_dataloader.dataset), instantiate(config.model)


# -------------------------------------------------------------------------------------------------- composition


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_what_a_dataset_makes_has_an_encoder_and_a_slot(name, tmp_path):
    config = generation(name)
    assert validate(config) == []
    encoders, slots = set(config.model.content_encoder), set(config.model.fuser.slots)
    named = {"instruction", *_streams(config.train_dataloader.dataset)}
    assert {stream for stream in named if not stream.endswith("durations")} == encoders
    assert slots == {f"{stream}_frames" if stream == "phonemes" else stream for stream in encoders}
    assert config.test_dataloader == config.val_dataloader
    judged = set(config.callbacks.demonstration.scores)
    asked = config.val_dataloader.dataset
    assert judged - {"text_to_speech"} <= set(asked.get("tasks") or {asked.get("task")})


def _streams(dataset):
    """Names of the streams that a dataset's config makes."""
    parts = list(dataset.tasks.values()) if "tasks" in dataset else [dataset]
    makers = [instantiate(maker) for part in parts for maker in (part.get("conditions") or {}).values()]
    return {stream for maker in makers for stream in maker.kinds}


def test_a_mixture_trains_and_asks_for_the_same_tasks():
    config = generation("multitask")
    shares = config.train_dataloader.batch_sampler.weights
    assert set(shares) == set(config.train_dataloader.dataset.tasks) == TASKS
    assert sum(shares.values()) == pytest.approx(1.0)
    assert set(config.val_dataloader.dataset.tasks) == set(config.callbacks.demonstration.scores) == TASKS
    vocabulary = set(instantiate(config.model.content_encoder.instruction.vocabulary))
    for task in TASKS:
        words = " ".join(config.instructions[task].held_out)
        assert set(re.findall(r"[a-z]+", re.sub(r"\{\w+\}", "", words))) <= vocabulary


def test_guidance_takes_every_stream_of_the_mixture_once():
    config = generation("multitask")
    groups = config.predictor.guidance_groups
    assert sorted(stream for group in groups.values() for stream in group) == sorted(config.model.fuser.slots)
    assert set(config.infer_args.guidance_scale) == set(groups)


# ------------------------------------------------------------------------------------------------- batches and steps


def test_a_batch_of_the_mixture_holds_all_tasks_and_every_parameter_learns(digits, tmp_path):
    dataset, model = built(generation("multitask", f"data_root={digits}", f"cache_dir={tmp_path}", *SMALL))
    size = len(next(iter(dataset.named.values())))
    batch = PadCollate()([dataset[i * size] for i in range(len(TASKS))])
    assert set(batch["task"]) == TASKS
    assert batch["has_energy"].tolist() == [task == "energy_control" for task in batch["task"]]
    assert batch["has_mask"].tolist() == [task == "in_painting" for task in batch["task"]]
    model.train()
    _stir(model)
    model(batch).per_item.sum().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_batch_of_one_task_needs_no_stream_of_another(digits, tmp_path):
    dataset, model = built(generation("multitask", f"data_root={digits}", f"cache_dir={tmp_path}", *SMALL))
    for part in dataset.named.values():
        batch = PadCollate()([part[0], part[1]])
        assert model.train()(batch).per_item.isfinite().all()
        made, _ = model.eval().generate(batch, torch.arange(2), 1)
        assert made.isfinite().all()


def test_enhancement_starts_in_the_noisy_recording(digits, tmp_path):
    dataset, model = built(generation("enhancement", f"data_root={digits}", f"cache_dir={tmp_path}", *SMALL))
    batch = PadCollate()([dataset[0], dataset[1]])
    noise = batch["source_waveform"] - batch["waveform"]
    ratio = batch["waveform"].square().mean((1, 2)) / noise.square().mean((1, 2))
    assert ((10 * ratio.log10() >= -0.1) & (10 * ratio.log10() <= 10.1)).all()
    with pytest.raises(UserError, match="starts in a recording, the field 'source_waveform'"):
        model.generate({"instruction": ["clean this"], "audio_lens": torch.tensor([6_400])}, torch.arange(1), 1)
    model.objective.source_noise = 0.0
    made, _ = model.eval().generate(batch, torch.arange(2), 2)  # an untrained flow goes nowhere
    noisy, _ = model.autoencoder.decode(*model.autoencoder.encode(batch["source_waveform"], batch["audio_lens"]))
    assert torch.allclose(made, noisy, atol=1e-4)


def _stir(model):
    """An untrained network answers zero to everything, and hands no gradient on."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


# --------------------------------------------------------------------------------------------------- tasks of one's own


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> dict[str, Path]:
    """Two sounds with captions, two songs with scores, two films with features."""
    folder = tmp_path_factory.mktemp("corpora")
    rng = np.random.default_rng(0)
    kinds: dict[str, list] = {"captions": [], "scores": [], "films": []}
    for kind, records in kinds.items():
        for i in range(2):
            soundfile.write(folder / f"{kind}{i}.wav", 0.1 * rng.standard_normal(4_000), RATE)
            records.append({"id": f"{kind}{i}", "audio_path": f"{kind}{i}.wav", "duration": 0.5, "sample_rate": RATE})
    for i in range(2):
        np.save(folder / f"{i}.npy", rng.standard_normal((13, 12)).astype(np.float32))
        kinds["captions"][i] |= {"caption": ["a dog barks", "rain on a roof"][i]}
        kinds["scores"][i] |= {"phonemes": ["l", "a", "sil"], "phoneme_durations": [0.1, 0.3, 0.1], "speaker": "ella"}
        kinds["scores"][i] |= {"notes": [60, 64, 0], "slurs": [0, 0, 0], "note_durations": [0.1, 0.3, 0.1]}
        kinds["films"][i] |= {"features_path": f"{i}.npy"}
    for kind, records in kinds.items():
        write_manifest(folder / f"{kind}.jsonl", records)
    return {kind: folder / f"{kind}.jsonl" for kind in kinds}


def example_of_the_docs() -> str:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "generation.md").read_text(), re.DOTALL)
    (example,) = [block for block in blocks if "more_tasks.yaml" in block]
    return example.split("\n", 1)[1]


def test_captions_songs_and_films_join_the_mixture_as_the_docs_say(digits, corpora, tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "more_tasks.yaml").write_text(example_of_the_docs())
    given = [f"{kind}={path}" for kind, path in corpora.items()]
    config = compose(
        f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "experiment=more_tasks", f"data_root={digits}",
        f"cache_dir={tmp_path}", *given, *SMALL,
    )  # fmt: skip
    assert validate(config) == []
    dataset, model = built(config)
    assert set(dataset.named) == TASKS | {"text_to_audio", "singing", "video_to_audio"}
    assert len(dataset.named["singing"]) == 2
    starts = [0, *dataset.cumulative_sizes[:-1]]
    batch = PadCollate()([dataset[start] for start in starts])
    by_task = {task: i for i, task in enumerate(batch["task"])}
    assert batch["caption"][by_task["text_to_audio"]] == "a dog barks"
    assert batch["notes"][by_task["singing"]].tolist() == [60, 64, 0]
    assert batch["has_features"].tolist() == [task == "video_to_audio" for task in batch["task"]]
    model.train()
    _stir(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(12):
        torch.manual_seed(0)  # the same times and noise: what falls is the loss, not the luck
        loss = model(batch).per_item.mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    made, lens = model.eval().generate(batch, torch.arange(len(starts)), 2)
    assert made.isfinite().all()
    assert lens.tolist() == [6_400] * len(starts)


# ------------------------------------------------------------------------------------------------- phonemes in time


def laid_out(model, batch):
    """The frames of the phonemes, as the fuser is given them: `[B, L, E]`."""
    latents, lens = model.latents_of(batch)
    streams, present, adapted = model.encode(batch)
    model._lay_out(streams, present, adapted, batch, lens, latents.shape[1])
    return streams["phonemes_frames"].values, present["phonemes_frames"], streams["phonemes"].values


def timed(seconds, durations):
    """A batch of clips, two phonemes each."""
    count = len(seconds)
    return {
        "id": [str(i) for i in range(count)], "instruction": count * ["say these sounds like anna"],
        "phonemes": torch.tensor(count * [[1, 2]]), "phonemes_lens": torch.full((count,), 2),
        "has_phonemes": torch.ones(count, dtype=torch.bool), "phoneme_durations": torch.tensor(durations),
        "waveform": torch.randn(count, 1, round(max(seconds) * RATE)),
        "audio_lens": torch.tensor([round(one * RATE) for one in seconds]),
    }  # fmt: skip


def test_phonemes_last_as_long_as_they_are_told_and_no_longer_than_they_sound():
    model = instantiate(generation("phonemes", *SMALL).model).eval()
    frames, has_time, tokens = laid_out(model, timed([0.5, 0.8], [[0.1, 0.4], [0.1, 0.4]]))
    assert has_time.all()
    for i in range(2):
        assert torch.equal(frames[i, :10], tokens[i, :1].expand(10, -1))
        assert torch.equal(frames[i, 10:50], tokens[i, 1:].expand(40, -1))
    assert not frames[1, 50:].any()  # the silence behind is nobody's


def test_phonemes_without_times_get_those_of_the_model():
    model = instantiate(generation("phonemes", *SMALL).model).eval()
    together, has_time, tokens = laid_out(model, timed([0.5, 0.5], [[0.1, 0.4], [0.0, 0.0]]))
    assert has_time.all()
    assert torch.equal(together[0, 10:], tokens[0, 1:].expand(40, -1))
    assert together[1].any(dim=-1).all()
    none_has = timed([0.5], [[0.0, 0.0]])
    alone, _, _ = laid_out(model, none_has | {"phoneme_durations": torch.zeros(1, 0)})
    assert torch.allclose(alone[0], together[1], atol=1e-5)
    without = timed([0.5], [[0.0, 0.0]]) | {"phonemes": torch.zeros(1, 0, dtype=torch.int64)}
    without |= {"phonemes_lens": torch.tensor([0]), "has_phonemes": torch.tensor([False])}
    assert model(without | {"phoneme_durations": torch.zeros(1, 0)}).per_item.isfinite().all()


# ------------------------------------------------------------------------------------------------------ real, but small


def run(folder, *overrides):
    """The scores that a run of train.py leaves; it trains for a little while, without a judge."""
    command = [sys.executable, str(ROOT / "train.py"), *overrides, f"cache_dir={folder / 'cache'}"]
    command += [f"exp_dir={folder / 'run'}", "recipes.judge=null", "callbacks.demonstration.judges=null"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    (scores,) = (folder / "run" / "samples").glob("*/scores.json")
    return json.loads(scores.read_text()), done.stderr + done.stdout


@pytest.mark.slow
def test_the_mixture_tells_what_each_task_reaches(digits, tmp_path):
    scores, said = run(tmp_path, "experiment=audio_generation/multitask", f"data_root={digits}", "max_steps=2",
                       "trainer.val_every_n_steps=2", "warmup_params.warmup_steps=null", *SMALL)  # fmt: skip
    for name in ("super_resolution/log_spectral_distance", "in_painting/log_spectral_distance_gap"):
        assert {f"val/{name}{end}" for end in ("", "_of_input", "_of_copy")} <= set(scores)
        assert scores[f"val/{name}_of_copy"] < scores[f"val/{name}_of_input"]
    assert scores["val/energy_control/contour_correlation_of_copy"] > 0.9
    assert "super_resolution log_spectral_distance" in said
    made = [path.name for path in (tmp_path / "run" / "samples").rglob("*.wav")]
    assert {re.sub(r"_\d_theo.*", "", name) for name in made} == TASKS
    assert any(name.startswith("super_resolution") and name.endswith("_input.wav") for name in made)


@pytest.mark.slow
def test_phonemes_are_scored_with_and_without_their_times(tmp_path):
    pytest.importorskip("espeakng_loader")
    scores, _ = run(tmp_path, "experiment=audio_generation/phonemes", "max_steps=2", "trainer.val_every_n_steps=2",
                    "data_dict.spoken_voices.words=[one,two]", "warmup_params.warmup_steps=null",
                    "data_dict.spoken_voices.num_takes={train:3,val:1,test:0,heard:1}", *SMALL)  # fmt: skip
    for task in ("phonemes_to_speech", "untimed_phonemes_to_speech"):
        assert scores[f"val/{task}/mel_cepstral_distortion"] > scores[f"val/{task}/mel_cepstral_distortion_of_copy"]
