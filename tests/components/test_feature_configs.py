"""The frontends of configs/model/frontend inside the tagger."""

import pytest
import torch

from utils.build import build
from utils.compose import CONFIGS, Request, compose_task
from utils.config import register_omegaconf_resolvers
from utils.validate import validate

# What an experiment sets for its frontend, and how another frontend gets along with it.
IN_MILLISECONDS = ("~model.frontend.n_fft", "~model.frontend.hop_length")
ONE_DOWN = ("~model.frontend.n_mels", "model.frontend.frontend.n_mels=40")
OPTIONS = {
    "log_mel": ((), ()),
    "kaldi_fbank": ((), IN_MILLISECONDS),
    "kaldi_fbank_cmvn": (ONE_DOWN, IN_MILLISECONDS),
    "kaldi_fbank_lfr": (ONE_DOWN, IN_MILLISECONDS),
    "mel": ((), ()),
    "mfcc": ((), IN_MILLISECONDS),
    "whisper": ((), (*IN_MILLISECONDS, "sample_rate=16000")),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def compose(*overrides: str):
    register_omegaconf_resolvers()
    return compose_task(Request(CONFIGS, "default", overrides))


def test_all_frontends_are_tried():
    found = {path.stem for path in (CONFIGS / "model/frontend").glob("*.yaml")}
    assert found - {"samples"} == set(OPTIONS)  # which is no front end for a tagger: tests/test_experiments.py


@pytest.mark.parametrize("name", OPTIONS)
def test_a_tagger_takes_a_step_with_any_frontend(name):
    config = compose(f"model/frontend={name}", "experiment=tagging/debug", *OPTIONS[name][0])
    assert validate(config) == []
    model = build(config, "model")
    logits = model(0.1 * torch.randn(2, 1, 4_000), torch.tensor([4_000, 300]), torch.tensor([1, 2])).logits
    assert logits["word"].shape == (2, 4)
    sum(values.square().mean() for values in logits.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", OPTIONS)
def test_frames_that_an_experiment_sets_in_samples_are_taken_or_taken_out(name):
    config = compose(f"model/frontend={name}", "experiment=tagging/spoken_digits", "data_root=x", *OPTIONS[name][1])
    assert validate(config) == []
    frontend = build(config, "model.frontend")
    features, feature_lens = frontend(torch.randn(1, 1, 8_000), torch.tensor([8_000]))
    assert features.shape == (1, int(feature_lens), frontend.num_features)


def test_frames_in_samples_are_refused_by_name_where_they_mean_nothing():
    config = compose("model/frontend=kaldi_fbank", "experiment=tagging/spoken_digits", "data_root=x")
    assert [problem.split(": ")[0] for problem in validate(config)] == [
        "model.frontend.hop_length",
        "model.frontend.n_fft",
    ]
