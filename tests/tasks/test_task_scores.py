"""Scores by task: of what was made, of what was given, of copies; and of gaps alone."""

from __future__ import annotations

import pytest
import torch

from components.metrics import FrechetAudioDistance, LogMelStatsEmbedder, LogSpectralDistance
from components.models.audio_generator import PatchAutoencoder
from tasks.audio_generation import GapMetric, TaskScores
from tasks.audio_generation.task_scores import recognised, table
from utils.errors import UserError

RATE, HOP = 8_000, 80


class Ear:
    """A judge that hears `high` where a clip's first sample is above 0."""

    def classify(self, waveform, lens, sample_rate):
        return {"word": ["high" if one > 0 else "low" for one in waveform[:, 0, 0].tolist()]}


def noise(seed, count=2, length=4_000):
    return 0.1 * torch.randn(count, 1, length, generator=torch.Generator().manual_seed(seed))


def batch(**more):
    lens = torch.full((2,), 4_000)
    return {"id": ["a", "b"], "task": ["clean", "say"], "waveform": noise(0), "audio_lens": lens} | more


def scores_of(scores, whole, made, judges=(), wishes=None):
    found = scores.of(whole, (made, whole["audio_lens"]), PatchAutoencoder(RATE, HOP), judges, wishes or {})
    return {name: (total, count) for name, total, count in found}


def test_what_was_made_is_told_beside_what_was_given_and_a_copy():
    source = torch.stack([noise(1)[0], torch.zeros(1, 4_000)])
    whole = batch(source_waveform=source, source_waveform_lens=torch.tensor([4_000, 0]))
    found = scores_of(TaskScores({"clean": {"lsd": LogSpectralDistance()}}), whole, whole["waveform"].clone())
    assert {name: count for name, (_, count) in found.items()} == {
        "clean/lsd": 1, "clean/lsd_of_copy": 1, "clean/lsd_of_input": 1,
    }  # fmt: skip
    assert found["clean/lsd"][0] == found["clean/lsd_of_copy"][0] == 0.0
    assert found["clean/lsd_of_input"][0] == pytest.approx(
        LogSpectralDistance().score(*_clips(source[:1], whole["waveform"][:1])), rel=1e-5
    )


def _clips(*waveforms):
    from components.metrics import Clip

    return [Clip("x", waveform[0, 0].numpy(), RATE) for waveform in waveforms]


def test_tasks_are_told_apart_and_those_that_are_not_named_left_out():
    whole = batch()
    whole["waveform"][:, 0, 0] = torch.tensor([1.0, -1.0])
    wishes = {"word": ["low", "low"]}
    found = scores_of(TaskScores({"clean": None, "say": {}}), whole, whole["waveform"], [Ear()], wishes)
    assert found["clean/word_recognised"] == (0, 1)
    assert found["say/word_recognised"] == (1, 1)
    assert scores_of(TaskScores({}), whole, whole["waveform"], [Ear()], wishes) == {}
    assert scores_of(TaskScores({"say": {}}), whole, whole["waveform"], [Ear()], {"word": [None, None]}) == {}


def test_a_wish_is_recognised_if_all_judges_hear_it():
    class Deaf(Ear):
        def classify(self, waveform, lens, sample_rate):
            return {"word": ["low"] * len(waveform)}

    sounds = torch.tensor([[[1.0]], [[-1.0]]])
    heard = recognised([Ear(), Deaf()], sounds, torch.ones(2), RATE, {"word": ["high", "low"]})
    assert heard == {"word": [False, True]}


def test_a_gap_is_scored_by_itself():
    made, whole = noise(0), batch(mask=torch.zeros(2, 50))
    whole["mask"][0, 10:20] = 1
    made[0, 0, 2_000:] = 0  # outside of the gap
    gap = TaskScores({"clean": {"gap": GapMetric(LogSpectralDistance(), HOP)}})
    assert scores_of(gap, whole, made)["clean/gap"] == (0.0, 1)
    made[0, 0, 900:1_000] = 0
    assert scores_of(gap, whole, made)["clean/gap"][0] > 1


def test_pairs_without_a_score_are_counted():
    whole = batch()
    metric = LogSpectralDistance(f_min=5_000)  # 8 kHz hold nothing there
    found = scores_of(TaskScores({"clean": {"lsd": metric}}), whole, whole["waveform"])
    assert found == {"clean/lsd_not_scored": (1, 1), "clean/lsd_not_scored_of_copy": (1, 1)}


def test_a_metric_of_sets_is_refused():
    with pytest.raises(UserError, match=r"scores\.clean\.fad: FrechetAudioDistance does not compare pairs"):
        TaskScores({"clean": {"fad": FrechetAudioDistance(LogMelStatsEmbedder())}})


def test_the_table_has_a_line_for_each_task_and_score():
    lines = table(
        {"val/clean/lsd": 3.0, "val/clean/lsd_of_input": 9.5, "val/say/word_recognised": 1.0, "val/loss": 2.0}
    )
    assert [line.split() for line in lines.splitlines()] == [
        ["made", "input", "copy"], ["clean", "lsd", "3.000", "9.500"], ["say", "word_recognised", "1.000"],
    ]  # fmt: skip
    assert table({"val/loss": 2.0}) == ""
