"""The audio generation task: what is logged, what is fitted before it starts, resume, and what it leaves."""

from __future__ import annotations

import json
from functools import partial

import pytest
import soundfile
import torch
from torch.utils.data import DataLoader, Dataset

from components.data import PadCollate
from components.generative import OdeSampler
from tasks.audio_generation import AudioGenerationPredictor, AudioGenerationTrainer, Demonstration
from tasks.audio_generation.inference import item_seed
from tests.components.test_generator import generator
from tests.trainer.test_resume import PullThePlug, Unplugged
from trainer.callbacks import ExponentialMovingAverage, ModelCheckpoint
from trainer.prediction import predict_with
from utils.errors import UserError
from utils.io import file_name

WISHES = ["say seven", "say three", "loud", "quiet"]


class Sounds(Dataset):
    """Item i: a level, and the words for it."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int):
        level = torch.full((1, 400), 3.0 + index % 4)
        return {"id": f"clip/{index}", "task": ["tts", "music"][index % 2], "instruction": WISHES[index % 4],
                "waveform": level + torch.randn(1, 400), "targets": {"word": index % 4}, "seed": index}  # fmt: skip


def loader(**settings) -> DataLoader:
    return DataLoader(Sounds(), batch_size=4, collate_fn=PadCollate(), **settings)


def trainer(exp_dir=None, **options) -> AudioGenerationTrainer:
    options = {"max_steps": 6, "val_dataloader": loader()} | options
    make = partial(torch.optim.AdamW, lr=1e-3)
    return AudioGenerationTrainer(generator(), loader(shuffle=True), make, exp_dir=exp_dir, seed=3, log_every_n_steps=2,
                                  **options)  # fmt: skip


def test_latents_are_brought_to_unit_scale_before_training(caplog):
    run = trainer(max_steps=1)
    run.fit()
    latents, lens = run.model.latents_of(PadCollate()([Sounds()[i] for i in range(16)]))
    assert abs(latents.mean()) < 0.1
    assert latents.std() == pytest.approx(1.0, abs=0.1)
    assert run.model.autoencoder.check_scale(latents, lens) is None
    assert not caplog.messages or "far from" not in caplog.text


def test_a_loss_is_told_apart_by_time_and_task(tmp_path):
    trainer(tmp_path).fit()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if "train/loss" in line)
    told = {name for line in lines for name in line}
    assert {"train/loss_tts", "train/loss_music", *(f"train/loss_t{k}" for k in range(4))} <= told
    assert first["train/loss"] == pytest.approx((first["train/loss_tts"] + first["train/loss_music"]) / 2, rel=0.2)
    assert {"val/loss", "val/loss_tts"} <= set(next(line for line in lines if "val/loss" in line))


def test_task_weights_scale_the_gradient_and_not_what_is_logged():
    weighted = trainer(task_weights={"tts": 0.0})
    torch.manual_seed(0)
    batch = PadCollate()([Sounds()[i] for i in range(4)])
    weighted.unwrapped_model = weighted.model.train()
    torch.manual_seed(0)
    output = weighted.training_step(batch, 0)
    music, count = output.metrics["loss_music"]
    assert output.loss.item() == pytest.approx(music.item(), rel=1e-5)
    assert (count, output.num_items) == (2, 4)


def test_a_killed_training_ends_with_the_same_weights(tmp_path):
    def run(exp_dir, *more):
        callbacks = {"ema": ExponentialMovingAverage(0.9), "checkpoint": ModelCheckpoint(every_n_steps=2)}
        one = trainer(exp_dir, callbacks=callbacks | {str(i): c for i, c in enumerate(more)}, auto_resume=True)
        one.fit()
        return one.model.state_dict()

    whole = run(tmp_path / "whole")
    with pytest.raises(Unplugged):
        run(tmp_path / "killed", PullThePlug(5))
    killed = run(tmp_path / "killed")
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_sounds_and_records_are_left_for_every_item(tmp_path):
    predictor = AudioGenerationPredictor(num_steps=2, num_samples=2, labels={"word": ["a", "b", "c", "d"]})
    where = predictor.write_to(tmp_path / "made.jsonl")
    assert where == tmp_path / "made.jsonl"
    records, bad = predict_with(generator(), predictor, loader(), "cpu")
    assert (len(records), bad) == (32, [])
    assert [record["id"] for record in records[:3]] == ["clip/0_0", "clip/0_1", "clip/1_0"]
    assert (records[1]["reference_id"], records[1]["task"]) == ("clip/0", "tts")
    assert records[0]["labels"] == {"word": "a"}
    assert records[2]["audio_path"].startswith("made/music/")
    assert predictor.phases.keys() == {"model", "decode", "write"}
    info = soundfile.info(tmp_path / records[0]["audio_path"])
    assert (info.samplerate, info.frames) == (8_000, 400)
    assert len({record["seed"] for record in records}) == 32
    assert predictor.score(records)["seconds"] == pytest.approx(32 * 0.05)


def test_a_sound_can_have_a_file_of_its_own(tmp_path):
    predictor = AudioGenerationPredictor(num_steps=2)
    assert predictor.write_to(tmp_path / "one.wav") == tmp_path / "one.jsonl"
    one = DataLoader(Sounds(), batch_sampler=[[3]], collate_fn=PadCollate())
    [record], _ = predict_with(generator(), predictor, one, "cpu")
    assert record["audio_path"] == "one.wav"
    assert soundfile.info(tmp_path / "one.wav").frames == 400
    with pytest.raises(UserError, match=r"one\.wav is one sound, and there are more"):
        predict_with(generator(), predictor, loader(), "cpu")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b"RIFF"),
        lambda path: path.write_bytes(path.read_bytes()[:200]),
        lambda path: soundfile.write(path, torch.zeros(400).numpy(), 16_000),
    ],
)
def test_a_sound_that_is_not_what_its_record_says_is_told(tmp_path, damage):
    predictor = AudioGenerationPredictor(num_steps=2)
    predictor.write_to(tmp_path / "made.jsonl")
    one = DataLoader(Sounds(), batch_sampler=[[3]], collate_fn=PadCollate())
    [record], _ = predict_with(generator(), predictor, one, "cpu")
    assert predictor.problem_of(record) is None
    damage(tmp_path / record["audio_path"])
    assert record["audio_path"] in predictor.problem_of(record)


@pytest.mark.parametrize("sampler", ["euler", "midpoint", "heun", "rk4", "unipc", "dpmsolver++"])
def test_samplers_are_named(sampler):
    pytest.importorskip("diffusers")
    predictor = AudioGenerationPredictor(num_steps=12, sampler=sampler)
    plain = AudioGenerationPredictor(num_steps=64)
    batch = PadCollate()([Sounds()[i] for i in range(2)])
    seeds = torch.tensor([3, 4])
    model = generator().eval()
    found, wanted = (one.make(model, batch, seeds)[0] for one in (predictor, plain))
    assert torch.isfinite(found).all()
    assert (found - wanted).abs().mean() < 0.2 * wanted.abs().mean()
    assert sampler in predictor(model, batch)[0]["sampler"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"sampler": "unipcc"}, r"sampler: 'unipcc' is none of .* \(did you mean 'unipc'\?\)"),
        ({"sampler": "ddim"}, "sampler: ddim can not sample from what was trained for velocity"),
        ({"grid": "swai"}, r"grid: 'swai' is none of uniform, sway, shifted \(did you mean 'sway'\?\)"),
        ({"guidance_interval": [0.5]}, "guidance_interval: expected its begin and its end"),
        ({"num_steps": 0}, "num_steps and num_samples: at least 1 each, not 0 and 1"),
        ({"sampler": OdeSampler(), "grid": "sway"}, "grid: goes with a sampler that is named"),
    ],
)
def test_settings_that_can_not_be_are_one_sentence(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        AudioGenerationPredictor(**settings).prepare(generator())


def test_a_sound_that_is_no_number_is_a_bad_sample_and_the_others_are_made(tmp_path):
    predictor = AudioGenerationPredictor(num_steps=2)
    predictor.write_to(tmp_path / "made.jsonl")
    make = predictor.make

    def spoiled(model, batch, seeds):
        sounds, lens = make(model, batch, seeds)
        sounds[[i for i, name in enumerate(batch["id"]) if name == "clip/6"]] = float("nan")
        return sounds, lens

    predictor.make = spoiled
    records, bad = predict_with(generator(), predictor, loader(), "cpu")
    assert len(records) == 15
    assert [(one["id"], one["reason"]) for one in bad] == [("clip/6", "no finite sound")]


def test_seeds_and_names_belong_to_items():
    assert item_seed(0, "a", 0) == item_seed(0, "a", 0) != item_seed(0, "a", 1) != item_seed(1, "a", 0)
    assert file_name("plain_1.2") == "plain_1.2"
    odd = [file_name(name) for name in ("../../etc", "a/b", "a_b", "say seven")]
    assert len(set(odd)) == 4
    assert all("/" not in name and not name.startswith(".") for name in odd)


def test_a_demonstration_shows_the_same_wishes_at_every_stage(tmp_path):
    show = Demonstration(AudioGenerationPredictor(num_steps=2), share=0.5, num_shown=3, every_n_steps=2)
    trainer(tmp_path, callbacks={"show": show}, val_every_n_steps=2, max_steps=4).fit()
    folders = sorted((tmp_path / "samples").iterdir())
    assert [folder.name for folder in folders] == ["step_00000002", "step_00000004"]
    names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
    assert names[0] == names[1]  # the fewest by key are among any share
    assert len([name for name in names[0] if name.endswith(".wav")]) == 3
    assert {"spectrograms.png", "scores.json"} <= set(names[0])
