"""Low-rank updates and partial training: what trains, what is saved, and what a plain model makes of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from components.layers import Lora, TrainOnly
from tests.trainer.test_resume import PullThePlug, Unplugged
from tests.trainer.tiny import SGD, VectorTrainer, linear, loader
from trainer import checkpoint as checkpoints
from trainer.callbacks import ExponentialMovingAverage, Freeze, ModelCheckpoint
from trainer.callbacks.summary import summarize
from trainer.loading import begin_with, load_pretrained, load_trained

ADAPTERS = {"lora": Lora(["0"], rank=2, alpha=2), "lora, last whole": Lora(["0"], rank=1, alpha=1, also_train=["1.*"]),
            "train only": TrainOnly(["1.*"])}  # fmt: skip


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1)).double()


@pytest.fixture
def pretrained(tmp_path):
    """A checkpoint of a plain model that took a few updates."""
    VectorTrainer(net(), loader(), SGD, callbacks=[ModelCheckpoint()], exp_dir=tmp_path / "first", epochs=1).fit()
    return tmp_path / "first/checkpoints/last"


def adapted(pretrained, adapt, exp_dir, *callbacks, seed=7, **options):
    model = net(seed)
    begin_with(model, pretrained, adapt)
    options = {"epochs": 2, "log_every_n_steps": 4} | options
    trainer = VectorTrainer(model, loader(), SGD, callbacks=list(callbacks), exp_dir=exp_dir, **options)
    trainer.fit()
    return model


def answers(model):
    x = torch.linspace(-1, 1, 20, dtype=torch.float64).view(5, 4)
    with torch.no_grad():
        return model.eval()(x)


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("only_trainable", [False, True])
@pytest.mark.parametrize("with_average", [False, True])
def test_a_plain_model_reads_what_was_learned(tmp_path, pretrained, name, only_trainable, with_average):
    callbacks = [ModelCheckpoint(only_trainable=only_trainable)]
    if with_average:
        callbacks.insert(0, ExponentialMovingAverage(0.5))
    model = adapted(pretrained, ADAPTERS[name], tmp_path / "run", *callbacks)
    last = tmp_path / "run/checkpoints/last"
    if with_average:
        checkpoints.load_tensors(model, checkpoints.load(last).weights["ema"] | held(model, last), "ema")
    load_trained(plain := net(1), last, pretrained)
    torch.testing.assert_close(answers(plain), answers(model))
    load_pretrained(begun := net(1), pretrained)
    assert (answers(plain) - answers(begun)).abs().max() > 1e-3
    names = set(checkpoints.read_weights(last / "model.safetensors"))
    assert (("1.bias" in names) or ("0.parametrizations.weight.original" in names)) is (
        not only_trainable or name != "lora"
    )


def held(model, folder):
    return checkpoints.held_tensors(model, checkpoints.read_frozen(folder / "ema.safetensors"), "ema")


def test_what_was_learned_is_begun_with_as_plain_weights(tmp_path, pretrained):
    first = adapted(pretrained, ADAPTERS["lora"], tmp_path / "run", ModelCheckpoint())
    last = tmp_path / "run/checkpoints/last"
    report = load_pretrained(plain := net(1), last)
    assert sorted(report.loaded) == sorted(net().state_dict())
    assert (report.skipped, report.fresh) == ({}, [])
    torch.testing.assert_close(answers(plain), answers(first))
    load_pretrained(part := net(1), last, include="0")
    torch.testing.assert_close(part[0].weight, plain[0].weight)
    assert torch.equal(part[1].weight, net(1)[1].weight)
    second = adapted(last, ADAPTERS["lora"], tmp_path / "second", ModelCheckpoint())
    load_trained(again := net(1), tmp_path / "second/checkpoints/last", last)
    torch.testing.assert_close(answers(again), answers(second))


def test_a_model_with_updates_reads_them_as_they_are(tmp_path, pretrained):
    model = adapted(pretrained, ADAPTERS["lora"], tmp_path / "run", ModelCheckpoint())
    ADAPTERS["lora"](other := net(1))
    load_trained(other, tmp_path / "run/checkpoints/last", None)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))


@pytest.mark.parametrize("only_trainable", [False, True])
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path, pretrained, only_trainable):
    def run(name, *more):
        save = ModelCheckpoint(every_n_steps=2, only_trainable=only_trainable)
        average = ExponentialMovingAverage(0.9)
        return adapted(pretrained, ADAPTERS["lora"], tmp_path / name, average, save, *more, auto_resume=True)

    whole = run("whole")
    with pytest.raises(Unplugged):
        run("killed", PullThePlug(5))
    killed = run("killed")
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), killed.state_dict().values()))


def test_it_goes_with_freezing_for_a_while(tmp_path, pretrained):
    adapt = Lora(["0"], rank=2, alpha=2, also_train=["1.weight"])
    load_pretrained(begun := net(1), pretrained)
    early = adapted(pretrained, adapt, None, Freeze([r"0\."], until_step=99), epochs=1)
    assert not early[0].parametrizations.weight[0].up.any()
    assert not torch.equal(early[1].weight, begun[1].weight)
    late = adapted(pretrained, adapt, None, Freeze([r"0\."], until_step=2), epochs=1)
    assert late[0].parametrizations.weight[0].up.any()
    assert torch.equal(late[0].parametrizations.weight.original, begun[0].weight)


def test_only_updates_are_trained_and_counted(pretrained):
    model = net()
    begin_with(model, pretrained, ADAPTERS["lora"])
    assert "33  (14 train)" in summarize(model)  # 12 + 3 + 3 + 1, and 2 x 4 + 3 x 2
    trainer = VectorTrainer(model, loader(), SGD, epochs=1)
    assert sum(p.numel() for p in trainer.parameters_to_optimize(model)) == 14


def test_freezing_what_was_never_trained_is_worth_a_word(caplog):
    begin_with(linear(), None, TrainOnly(["bias"]))
    assert "adapt: without pretrained, what is frozen stays as the model was initialised" in caplog.messages
