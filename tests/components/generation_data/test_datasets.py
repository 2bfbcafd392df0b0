"""Instructed datasets: targets, instructions, and the conditions that are made of them."""

from functools import partial

import numpy as np
import pytest
import soundfile
import torch

from components.data import AudioDataset, PadCollate, write_manifest
from components.data.generation import (
    Contour,
    EnergyCurve,
    FixedCanvas,
    InPainting,
    InstructedDataset,
    Instructions,
    MultitaskDataset,
    NormalizeLevel,
    PitchCurve,
    RecordText,
    SuperResolution,
)
from components.data.loader import make_dataloader
from components.data.samplers import Budget, MixtureBatchSampler
from tests.components.generation_data.sounds import HOP, RATE, buzz
from trainer.data import plan_loader
from utils.config import register_omegaconf_resolvers
from utils.errors import BadSample, UserError

TEMPLATES = ["say {text} like {speaker}", "{speaker} says {text}", "let {speaker} say {text}"]


@pytest.fixture
def corpus(tmp_path):
    """Four clips of 0.3 to 0.6 s; the last has no speaker."""
    records = []
    for i, seconds in enumerate((0.3, 0.4, 0.5, 0.6)):
        glide = np.linspace(100 + 40 * i, 200 + 40 * i, round(seconds * RATE))
        soundfile.write(tmp_path / f"{i}.wav", buzz(glide, seconds)[0].numpy(), RATE)
        record = {"id": f"clip{i}", "audio_path": f"{i}.wav", "duration": seconds, "sample_rate": RATE}
        record |= {"text": ["one", "two", "three", "four"][i], "labels": {"word": "w", "size": str(i)}}
        records.append(record | ({"speaker": ["anna", "ben", "anna"][i]} if i < 3 else {}))
    write_manifest(tmp_path / "clips.jsonl", records)
    return tmp_path / "clips.jsonl"


def audio(corpus, training=True, **options):
    return AudioDataset(corpus, RATE, augment={} if training else None, **options)


def test_an_item_has_its_target_instruction_streams_and_flags(corpus):
    dataset = InstructedDataset(
        audio(corpus, labels={"size": ["0", "1", "2"]}), "energy", TEMPLATES,
        {"text": RecordText("text"), "energy": Contour({"energy": EnergyCurve(HOP)})},
        streams={"text": "text", "contour": 1, "mask": "frames", "source_waveform": "waveform", "phonemes": "symbols"},
        wording=0, prepare={"level": NormalizeLevel(0.1)}, canvas=FixedCanvas(0.6), fields=["labels", "word"],
    )  # fmt: skip
    item = dataset[1]
    assert (item["id"], item["task"], item["instruction"]) == ("clip1", "energy", "say two like ben")
    assert item["waveform"].shape == (1, 4800)
    assert item["waveform"][:, 3200:].any().item() is False
    assert item["waveform"][:, :3200].square().mean().sqrt() == pytest.approx(0.1, rel=0.01)
    assert item["targets"] == {"size": 1}
    assert item["contour"].shape == (60, 1)
    assert {name[4:]: there for name, there in item.items() if name.startswith("has_")} == {
        "text": True, "contour": True, "mask": False, "source_waveform": False, "phonemes": False,
    }  # fmt: skip
    assert (item["source_waveform"].shape, item["mask"].shape) == ((1, 0), (0,))
    assert (item["labels"], item["word"]) == ({"word": "w", "size": "1"}, "w")
    assert dataset.durations.tolist() == [0.6] * 4
    assert dataset.fingerprint()["task"] == "energy"


def test_a_clip_whose_record_lacks_what_the_instruction_needs_is_left_out_and_named(corpus):
    dataset = InstructedDataset(audio(corpus), "tts", TEMPLATES)
    with pytest.raises(BadSample, match="clip3 can not be used: it has no 'speaker'") as caught:
        dataset[3]
    assert (caught.value.sample_id, caught.value.reason) == ("clip3", "no speaker")
    loader = plan_loader(make_dataloader(dataset, batch_size=4), seed=0, skip_bad=True)
    loader.start(0)
    (loaded,) = list(loader)
    assert [bad["reason"] for bad in loaded.bad] == ["no speaker"]
    assert len(loaded.batch["id"]) == 3
    refusing = InstructedDataset(audio(corpus), "tts", ["{text}"], canvas=FixedCanvas(0.35, too_long="refuse"))
    with pytest.raises(BadSample, match="does not fit") as caught:
        refusing[1]
    assert caught.value.sample_id == "clip1"


def test_conditions_of_a_crop_are_those_of_the_crop(corpus):
    whole = audio(corpus, training=False)[2]["waveform"]
    curve = EnergyCurve(HOP, window_length=HOP)
    dataset = InstructedDataset(
        audio(corpus), "t", ["x"],
        {"e": Contour({"energy": curve}), "gap": InPainting(HOP, 0.03, 0.05), "low": SuperResolution([4000], "low")},
        canvas=FixedCanvas(0.2, multiple_of=HOP),
    )  # fmt: skip
    starts = set()
    for seed in range(20):
        torch.manual_seed(seed)
        item = dataset[2]
        matches = [s for s in range(0, 2401, HOP) if torch.equal(whole[:, s : s + 1600], item["waveform"])]
        assert len(matches) >= 1
        starts.add(matches[0])
        assert torch.equal(item["contour"][:, 0], curve(item["waveform"], RATE))
        keep = item["mask"].repeat_interleave(HOP) == 0
        assert torch.equal(item["source_waveform"][0, keep], item["waveform"][0, keep])
        assert item["low"].shape == item["waveform"].shape
    assert len(starts) > 5


def test_training_draws_by_the_generators_and_evaluation_by_the_clip(corpus):
    def make(training, seed=0):
        conditions = {"gap": InPainting(HOP, 0.05, 0.2)}
        return InstructedDataset(audio(corpus, training), "t", TEMPLATES, conditions, seed=seed)

    train, evaluation = make(True), make(False)
    assert (train.deterministic, evaluation.deterministic) == (False, True)

    def read(dataset, seed):
        torch.manual_seed(seed)
        return dataset[0]

    same, again, other = read(train, 1), read(train, 1), read(train, 2)
    assert torch.equal(same["mask"], again["mask"])
    assert same["seed"] == again["seed"] != other["seed"]
    first, second = read(evaluation, 1), read(evaluation, 2)
    assert torch.equal(first["mask"], second["mask"])
    assert (first["instruction"], first["seed"]) == (second["instruction"], second["seed"])
    assert first["seed"] != evaluation[1]["seed"]
    assert make(False, seed=1)[0]["seed"] != first["seed"]
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    evaluation[0]
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("conditions", "streams", "sentence"),
    [
        ({"a": RecordText("text")}, {"texts": "text"}, r"streams has no 'text' \(did you mean 'texts'\?\)"),
        ({"a": Contour({"e": EnergyCurve(HOP)})}, {"contour": 2}, "of kind 1, not 2"),
        ({"a": RecordText("text"), "b": RecordText("word", "text")}, None, "two conditions make 'text'"),
        ({}, {"x": "picture"}, "'picture' is neither"),
    ],
)
def test_streams_that_do_not_fit_are_refused(corpus, conditions, streams, sentence):
    with pytest.raises(UserError, match=sentence):
        InstructedDataset(audio(corpus), "t", ["x"], conditions, streams)


def multitask(corpus, training=True, **options):
    tasks = {
        "tts": partial(InstructedDataset, templates=["say {text}"], conditions={"text": RecordText("text")}),
        "gap": partial(InstructedDataset, templates=["fill"], conditions={"gap": InPainting(HOP)}),
        "energy": partial(
            InstructedDataset,
            templates=["as loud"],
            conditions={"text": RecordText("text"), "energy": Contour({"energy": EnergyCurve(HOP)})},
        ),
        "none": None,
    }
    return MultitaskDataset(audio(corpus, training), tasks, canvas=FixedCanvas(0.6), **options)


def test_tasks_share_their_clips_and_every_item_has_every_stream(corpus):
    dataset = multitask(corpus)
    assert list(dataset.named) == ["tts", "gap", "energy"]
    assert len(dataset) == 12
    assert dataset.streams == {"text": "text", "source_waveform": "waveform", "mask": "frames", "contour": 1}
    assert len({id(part.dataset) for part in dataset.datasets}) == 1
    keys = {frozenset(dataset[i]) for i in (0, 4, 8)}
    assert len(keys) == 1
    batch = PadCollate()([dataset[0], dataset[5], dataset[10]])
    assert batch["task"] == ["tts", "gap", "energy"]
    assert batch["text"] == ["one", "", "three"]
    assert batch["has_text"].tolist() == [True, False, True]
    assert batch["has_mask"].tolist() == [False, True, False]
    assert batch["source_waveform"].shape == (3, 1, 4800)
    assert batch["source_waveform_lens"].tolist() == [0, 4800, 0]
    assert (batch["mask"].shape, batch["mask_lens"].tolist()) == ((3, 60), [0, 60, 0])
    assert (batch["contour"].shape, batch["contour_lens"].tolist()) == ((3, 60, 1), [0, 0, 60])
    alone = PadCollate()([dataset[0], dataset[1]])
    assert (alone["contour"].shape, alone["mask"].shape) == ((2, 0, 1), (2, 0))
    assert alone["has_contour"].tolist() == [False, False]


def test_tasks_of_unlike_streams_and_no_tasks_are_refused(corpus):
    curves = {"e": EnergyCurve(HOP), "p": PitchCurve(HOP)}
    make = partial(InstructedDataset, templates=["x"])
    one, two = (partial(make, conditions={"c": Contour(dict(list(curves.items())[:count]))}) for count in (1, 2))
    with pytest.raises(UserError, match="task b: 'contour' is of kind 2, and of another task's 1"):
        MultitaskDataset(audio(corpus), {"a": one, "b": two})
    with pytest.raises(UserError, match="at least one"):
        MultitaskDataset(audio(corpus), {"a": None})


def test_a_mixture_has_tasks_in_given_shares_in_every_batch(corpus):
    sampler = partial(
        MixtureBatchSampler, budget=Budget(max_items=10, jitter=None), mode="sample", unit="samples",
        weights={"tts": 4, "gap": 4, "energy": 2}, num_items=40,
    )  # fmt: skip
    dataset = multitask(corpus)
    dataset.datasets[0].instructions = Instructions(["say {text}", "please say {text}"])
    loader = plan_loader(make_dataloader(dataset, batch_sampler=sampler), seed=0)
    loader.start(0)
    batches = [loaded.batch for loaded in loader]
    assert len(batches) == 4
    for batch in batches:
        assert batch["task"].count("energy") in (1, 2, 3)
        assert torch.equal(batch["has_mask"], torch.tensor([task == "gap" for task in batch["task"]]))
        assert batch["waveform"].shape == (10, 1, 4800)
    loader.start(0)
    again = [loaded.batch for loaded in loader]
    assert [batch["instruction"] for batch in again] == [batch["instruction"] for batch in batches]
    assert all(torch.equal(a["mask"], b["mask"]) for a, b in zip(again, batches))


def test_yaml_makes_a_mixed_dataset(corpus):
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from utils.validate import validate

    register_omegaconf_resolvers()
    home = "components.data.generation"
    task = {"_target_": f"{home}.InstructedDataset", "_partial_": True}
    gap = {"_target_": f"{home}.InPainting", "hop_length": HOP}
    config = OmegaConf.create(
        {
            "templates": TEMPLATES,
            "dataset": {
                "_target_": f"{home}.MultitaskDataset",
                "dataset": {"_target_": "components.data.AudioDataset", "manifest": str(corpus), "sample_rate": RATE},
                "streams": {"mask": "frames", "source_waveform": "waveform", "text": "text", "features": 12},
                "canvas": {"_target_": f"{home}.FixedCanvas", "seconds": 0.6},
                "tasks": {
                    "tts": {**task, "templates": "${templates}", "wording": 2},
                    "gap": {**task, "templates": ["fill"], "conditions": {"gap": gap}},
                },
            },
        }
    )
    assert validate(config) == []
    dataset = instantiate(config.dataset, _convert_="all")
    assert dataset[1]["instruction"] == "let ben say two"
    assert dataset[4]["features"].shape == (0, 12)
    assert dataset[4]["mask"].shape == (60,)
