"""Scores of sounds that lie there: their anchors, what goes into the records, and several tasks in one set."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from omegaconf import OmegaConf

from components.data import AudioDataset, write_manifest
from components.data.generation import InstructedDataset, MultitaskDataset, NormalizeLevel, SuperResolution
from components.models.audio_generator.autoencoders import PatchAutoencoder
from tasks.audio_generation import AudioGenerationPredictor
from tests.components.metric_clips import RATE, tone
from tests.components.test_metrics_embedders import stored_run
from trainer.prediction import MadeSet
from utils.errors import UserError
from utils.results import Output
from utils.stored_run import StoredRun

LABELS = {"word": ["no", "yes", "maybe"], "speaker": ["ann", "ben"]}


def write(folder, seeds, noise=0.01):
    """Tones in a manifest."""
    folder.mkdir(parents=True)
    records = []
    for seed in seeds:
        clip = tone(f"clip{seed}", seconds=0.4, hertz=150 + 10 * seed, noise=noise, seed=seed)
        soundfile.write(folder / f"{clip.id}.wav", clip.samples, RATE)
        labels = {"word": LABELS["word"][seed % 3], "speaker": LABELS["speaker"][seed % 2]}
        records.append({"id": clip.id, "audio_path": f"{clip.id}.wav", "duration": 0.4, "sample_rate": RATE,
                        "labels": labels, "text": labels["word"]})  # fmt: skip
    write_manifest(folder / "clips.jsonl", records)
    return folder / "clips.jsonl"


def instructed(manifest, **more):
    clips = {"_target_": "components.data.AudioDataset", "manifest": str(manifest), "sample_rate": RATE}
    return {"_target_": "components.data.generation.InstructedDataset", "task": "tts", "templates": ["say {text}"],
            "dataset": clips} | more  # fmt: skip


@pytest.fixture
def made(tmp_path):
    """Sounds for twelve clips, the first of them silent; a run that was trained on sixteen others, and its judge."""
    judge, test = stored_run(tmp_path / "judge"), write(tmp_path / "test", range(12))
    config = {"train_dataloader": {"dataset": instructed(write(tmp_path / "train", range(12, 28)))}}
    config["callbacks"] = {"demonstration": {"judges": {"first": str(judge)}}}
    (tmp_path / "run").mkdir()
    run = StoredRun(tmp_path / "run", OmegaConf.create(config))
    dataset = InstructedDataset(AudioDataset(test, RATE), "tts", ["say {text}"], prepare={"level": NormalizeLevel()})
    return a_set(tmp_path, run, dataset, [("tts", record) for record in dataset.records])


def a_set(tmp_path, run, dataset, wanted):
    folder = tmp_path / "predictions" / "test"
    records = []
    for place, (task, record) in enumerate(wanted):
        path = folder / task / f"{record['id']}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        sound = tone(seconds=0.4, hertz=150 + 10 * (place % 12), noise=0.02, seed=100 + place).samples
        soundfile.write(path, sound * (place > 0), RATE)
        records.append({"id": record["id"], "task": task, "labels": record["labels"], "sample_rate": RATE,
                        "seconds": 0.4, "audio_path": f"test/{task}/{path.name}"})  # fmt: skip
    predictor = AudioGenerationPredictor()
    trained = SimpleNamespace(
        run=run, predictor=predictor, model=SimpleNamespace(autoencoder=PatchAutoencoder(RATE, 40))
    )
    summary = {"checkpoint": "step_3", "weights_sha256": "abc", "settings_sha256": "def"}
    output = Output(tmp_path / "predictions" / "test.jsonl")
    return MadeSet("test", records, [], output, summary, None, dataset, trained)


def scores_of(made):
    return json.loads(made.output.scores.read_text())


def test_sounds_are_scored_with_anchors_and_copies_and_nothing_is_made(made):
    told = made.evaluate({})
    scores = scores_of(made)["scores"]["tts"]
    assert {"word_accuracy", "speaker_accuracy", "frechet_distance", "kl", "unpaired_frechet_distance", "memorisation",
            "diversity"} <= set(scores)  # fmt: skip
    accuracy = scores["word_accuracy"]
    assert (accuracy["num_used"], accuracy["details"]["num_reference"]) == (12, 12)
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert accuracy["copies"]["value"] == accuracy["ceiling"]  # this autoencoder loses nothing
    assert scores["frechet_distance"]["copies"]["value"] == pytest.approx(0, abs=1e-3)
    assert scores["frechet_distance"]["floor"] is not None
    assert scores["memorisation"]["details"]["num_training"] == 16
    assert "copies" not in scores["memorisation"]
    assert scores_of(made)["sets"]["tts"]["training"]["num_clips"] == 16
    assert scores_of(made)["checkpoint"] == "step_3"
    assert "95 % interval" in told
    assert str(made.output.scores) in told


def test_records_get_their_own_scores_and_what_was_heard(made):
    made.evaluate({"metrics": "judged", "max_training_clips": 0})
    records = [json.loads(line) for line in made.output.records.read_text().splitlines()]
    assert records[0]["heard"]["word_accuracy"] == ""  # silence is no word
    assert records[0]["scores"]["word_accuracy"] == 0
    for record in records[1:]:
        assert record["heard"]["word_accuracy"] in LABELS["word"]
        assert record["scores"]["word_accuracy"] == (record["heard"]["word_accuracy"] == record["labels"]["word"])
    assert (
        np.mean([r["scores"]["word_accuracy"] for r in records])
        == scores_of(made)["scores"]["tts"]["word_accuracy"]["value"]
    )


def test_several_sounds_of_one_clip_share_their_reference(made):
    for record in made.records:
        record |= {"reference_id": record["id"], "id": f"{record['id']}_0"}
    made.evaluate({"metrics": "judged", "copy_synthesis": False})
    kl = scores_of(made)["scores"]["tts"]["kl"]
    assert kl["num_used"] == 11
    assert "copies" not in kl


def test_tasks_are_scored_apart_each_beside_its_input(made, tmp_path):
    from functools import partial

    make = partial(InstructedDataset, templates=["do it"])
    tasks = {"tts": make, "super_resolution": partial(make, conditions={"source": SuperResolution([4_000])})}
    dataset = MultitaskDataset(AudioDataset(tmp_path / "test" / "clips.jsonl", RATE), tasks)
    wanted = [(task, record) for task in tasks for record in dataset.named[task].records]
    mixed = a_set(tmp_path, made.trained.run, dataset, wanted)
    told = mixed.evaluate({"metrics": {"tts": ["judged"]}, "max_training_clips": 0})
    scores = scores_of(mixed)["scores"]
    assert scores.keys() == {"tts", "super_resolution"}
    assert "log_spectral_distance" not in scores["tts"]
    distance = scores["super_resolution"]["log_spectral_distance"]
    assert distance["num_used"] == 12
    assert distance["input"]["value"] > 1 > distance["copies"]["value"]
    assert told.startswith("tts\n")


def test_what_can_not_be_scored_is_one_sentence(made):
    made.trained.run.config.callbacks.demonstration.judges = None
    made.evaluate({})
    assert "word_accuracy" not in scores_of(made)["scores"]["tts"]
    with pytest.raises(UserError, match=r"evaluation\.judge: name the folder of a tagging run"):
        made.evaluate({"metrics": ["judged"]})
    with pytest.raises(UserError, match="'unpared' is none of control"):
        made.evaluate({"metrics": ["unpared"]})
    made.records.clear()
    with pytest.raises(UserError, match="evaluate: there is no sound in"):
        made.evaluate({})


def test_the_metrics_of_the_run_are_taken_unless_others_are_named(made):
    embedder = {"_target_": "components.metrics.LogMelStatsEmbedder", "sample_rate": RATE}
    own = {"mine": {"_target_": "components.metrics.KernelAudioDistance", "embedder": embedder}}
    made.trained.run.config.metrics = own
    made.evaluate({})
    assert scores_of(made)["scores"]["tts"].keys() == {"mine"}
    made.trained.run.config.metrics.mine["_target_"] = "os.system"
    with pytest.raises(UserError, match=r"'os\.system' is not among"):
        made.evaluate({})
