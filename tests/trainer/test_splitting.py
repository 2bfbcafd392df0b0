"""A batch that does not fit into memory, taken in halves."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from tests.trainer.tiny import SGD, MeanTrainer, VectorTrainer, linear, loader
from tests.trainer.two_processes import Ragged
from trainer import Callback, StepOutput, splitting
from trainer.callbacks import Diagnostics
from trainer.splitting import halves
from utils.errors import UserError

CPU = "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch):
    """A collection takes a while in a process that has imported this much; references alone must do."""
    monkeypatch.setattr(splitting.gc, "collect", lambda: 0)


class Small(nn.Module):
    """A linear layer for at most `most` items at a time: more is too much for the forward, or for the backward."""

    def __init__(self, most: int, where: str = "forward", error: type[Exception] = torch.OutOfMemoryError) -> None:
        super().__init__()
        self.layer, self.most, self.where, self.error = linear(), most, where, error
        self.sizes: list[int] = []

    def forward(self, x):
        self.sizes.append(len(x))
        y = self.layer(x)
        if len(x) > self.most and self.training:
            if self.where == "forward":
                raise self.error(CPU)
            y.register_hook(self._fail)
        return y

    def _fail(self, gradient):
        raise self.error(CPU)


def trained(model: nn.Module, accumulation: int = 1, kind=VectorTrainer, batch_size: int = 8, **options):
    options = {"epochs": 2, "max_grad_norm": 0.5, "log_every_n_steps": 2} | options
    trainer = kind(
        model, loader(32, batch_size, noise=0.3), partial(torch.optim.AdamW, lr=0.01),
        gradient_accumulation_steps=accumulation, **options,
    )  # fmt: skip
    trainer.fit()
    return trainer


# ------------------------------------------------------------------------------------------------------ the same update


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_halves_make_the_update_of_the_whole_batch(where, accumulation, error):
    """Weights, optimizer and logged means, float64: 8 items by 2 at a time."""
    whole = trained(Small(8), accumulation)
    parts = trained(Small(2, where, error), accumulation, split_on_oom=True)
    assert parts.model.sizes[:7] == [8, 4, 2, 2, 4, 2, 2]
    torch.testing.assert_close(parts.model.layer.weight, whole.model.layer.weight, rtol=0, atol=1e-14)
    assert parts.metrics == pytest.approx(whole.metrics, abs=1e-13)
    assert parts.global_step == whole.global_step


def test_the_gradient_of_an_odd_batch_is_equal_to_the_last_bit():
    """Sums of integers have no rounding in float64."""
    gradients: list[torch.Tensor] = []

    class Note(Callback):
        def on_before_optimizer_step(self, trainer, optimizer):
            gradients.append(trainer.model.layer.weight.grad.clone())

    for most in (5, 1):
        model, data = Small(most), loader(5, 5)
        for tensor in (data.dataset.x, data.dataset.y, *model.parameters()):
            tensor.data.mul_(3).round_()
        VectorTrainer(model, data, SGD, max_steps=1, split_on_oom=True, callbacks=[Note()]).fit()
    assert model.sizes == [5, 3, 2, 1, 1, 1, 2, 1, 1]
    assert torch.equal(gradients[0] * 5, gradients[1] * 5)
    assert gradients[0].abs().sum() > 0


def test_where_memory_suffices_nothing_changes():
    """The bits are those of accumulation with a count; nothing is repeated."""
    model = Small(8)
    parts = trained(model, 2, split_on_oom=True)
    assert set(model.sizes) == {8}
    assert torch.equal(parts.model.layer.weight, trained(Small(8), 2).model.layer.weight)


def test_frames_of_ragged_clips_add_up_where_the_trainer_splits_its_own_batch():
    class Frames(VectorTrainer):
        most = 8

        def training_step(self, batch, batch_idx):
            if len(batch) > self.most:
                raise torch.OutOfMemoryError(CPU)
            frames = torch.cat(batch)
            error = self.model(frames) - frames.sum(1, keepdim=True).sin()
            return StepOutput(error.square().sum(), torch.tensor(len(frames)))

        def split_batch(self, batch):
            middle = len(batch) // 2
            return (batch[:middle], batch[middle:]) if middle else None

    class Fewer(Frames):
        most = 3

    weights = []
    for kind in (Frames, Fewer):
        model = linear()
        data = DataLoader(Ragged(32), batch_size=8, collate_fn=list)
        kind(model, data, SGD, epochs=2, split_on_oom=True).fit()
        weights.append(model.weight)
    torch.testing.assert_close(*weights, rtol=0, atol=1e-14)


# --------------------------------------------------------------------------------------- what an attempt leaves behind


def test_a_failed_attempt_leaves_no_trace_in_meters_running_statistics_and_generators():
    """4 batches of 8 in halves log, count and draw what 8 batches of 4 do, however far an attempt had come."""

    class Noisy(Small):
        def __init__(self, most):
            super().__init__(most)
            self.register_buffer("seen", torch.zeros((), dtype=torch.float64))

        def forward(self, x):
            self.seen += len(x)
            torch.rand(100)
            return super().forward(x)

    class Logs(VectorTrainer):
        def training_step(self, batch, batch_idx):
            self.log("drawn", float(torch.rand(())))
            return super().training_step(batch, batch_idx)

    ends = []
    for batch_size in (4, 8):
        model = Noisy(4)
        torch.manual_seed(1)
        trainer = trained(model, 8 // batch_size, Logs, batch_size, split_on_oom=True, epochs=1)
        ends.append((float(model.seen), trainer.metrics["train/drawn"], torch.rand(()).item()))
    assert ends[0] == ends[1]
    assert ends[0][0] == 32


def test_activations_are_free_before_the_halves_are_tried():
    """The error holds on to the frames of the failed attempt: it must be gone by then."""
    alive: list[int] = []
    kept: list[weakref.ref] = []

    class Watched(Small):
        def forward(self, x):
            alive.append(sum(ref() is not None for ref in kept))
            activation = x * 2
            kept.append(weakref.ref(activation))
            return super().forward(activation)

    trained(Watched(4), split_on_oom=True, epochs=1)
    assert alive[:3] == [0, 0, 0]


def test_what_was_split_is_logged_with_ids_and_lengths(caplog):
    class Named(VectorTrainer):
        def training_step(self, batch, batch_idx):
            assert len(batch["id"]) == len(batch["x"]) == len(batch["audio_lens"])
            return super().training_step(batch, batch_idx)

    def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
        batch = torch.utils.data.default_collate(items)
        return batch | {"id": [f"item{i}" for i in batch["index"]], "audio_lens": batch["index"] * 100, "rate": 16000}

    data = loader(8, 4)
    data.collate_fn = collate
    Named(Small(2), data, SGD, max_steps=1, split_on_oom=True).fit()
    assert "update 1: out of memory, taken in halves: ids item0, item1, item2, item3; audio_lens 0, 100, 200, 300" in (
        caplog.text
    )


# ------------------------------------------------------------------------------------------------------------- refusals


def test_one_item_that_does_not_fit_ends_the_run_and_is_named(tmp_path):
    with pytest.raises(UserError, match=r"out of memory on cpu, in epoch 0, update 0, .* x float64\[1, 4\]"):
        trained(Small(0), split_on_oom=True, exp_dir=tmp_path, callbacks=[Diagnostics()])


def test_a_mean_is_refused_once_it_would_be_split():
    assert trained(Small(8), kind=MeanTrainer, split_on_oom=True).global_step == 8
    with pytest.raises(UserError, match=r"a batch whose loss is a mean can not be split: let training_step return"):
        trained(Small(4), kind=MeanTrainer, split_on_oom=True)


def test_another_error_is_no_reason_to_split():
    class Wrong(Small):
        def forward(self, x):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        trained(Wrong(8), split_on_oom=True)


def test_without_the_option_the_error_names_it():
    with pytest.raises(UserError, match=r"out of memory .*trainer.split_on_oom=true"):
        trained(Small(4))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"optimizer": {"a": SGD}}, "trainer.split_on_oom: does not go with several optimizers"),
        ({"sync_batchnorm": True}, "trainer.split_on_oom: does not go with trainer.sync_batchnorm"),
    ],
)
def test_what_it_does_not_go_with_is_said_at_once(options, sentence):
    with pytest.raises(UserError, match=sentence):
        VectorTrainer(linear(), loader(), **{"optimizer": SGD} | options, split_on_oom=True)


# --------------------------------------------------------------------------------------------------------------- halves


def test_halves_cut_tensors_arrays_and_lists_and_leave_the_rest():
    batch = {
        "x": torch.arange(3), "id": ["a", "b", "c"], "targets": {"word": torch.tensor([4, 5, 6])},
        "array": np.arange(3), "scale": torch.tensor(2.0), "rate": 16000, "text": "abc", "none": None,
    }  # fmt: skip
    first, second = halves(batch)
    assert first["x"].tolist() == [0, 1]
    assert (first["id"], second["id"]) == (["a", "b"], ["c"])
    assert second["targets"]["word"].tolist() == [6]
    assert second["array"].tolist() == [2]
    assert first["scale"] == second["scale"] == 2.0
    assert (second["rate"], second["text"], second["none"]) == (16000, "abc", None)
    assert halves(second) is None


@pytest.mark.parametrize(
    "batch", [{"x": torch.zeros(4, 2), "packed": torch.zeros(7)}, [torch.zeros(4), torch.zeros(4)], {"rate": 16000}]
)
def test_what_can_not_be_cut_by_itself_is_refused(batch):
    with pytest.raises(UserError, match=r"this batch can not be cut in two by itself"):
        halves(batch)


def test_joined_outputs_are_the_batch():
    one = StepOutput(torch.tensor(2.0), 3, {"mae": (1.0, 3), "f": 0.5})
    joined = splitting._joined([one, StepOutput(torch.tensor(4.0), 1, {"mae": (2.0, 1), "f": 1.0})])
    assert (float(joined.loss), joined.num_items, joined.metrics) == (6.0, 4, {"mae": (3.0, 4), "f": (1.5, 2)})
