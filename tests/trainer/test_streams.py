"""Iterable datasets under resume: what they draw at random, and where they stand by their own account."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tests.trainer.test_resume import PullThePlug, Unplugged
from tests.trainer.tiny import SGD, VectorTrainer, linear
from trainer.callbacks import ModelCheckpoint


class NoisyStream(IterableDataset):
    """Vectors made of what is drawn, in an order that is drawn."""

    def __init__(self, num_items: int = 24) -> None:
        self.num_items = num_items

    def __iter__(self):
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for _ in range(first, self.num_items, step):
            x = torch.randn(4).double() + float(np.random.rand()) + random.random()
            yield {"x": x, "y": x.sum(0, keepdim=True)}


class Positioned:
    """A source of batches with a state of its own, as torchdata's StatefulDataLoader is one; counts what it reads."""

    def __init__(self, num_batches: int = 9) -> None:
        self.num_batches, self.position, self.num_read = num_batches, 0, 0

    def __iter__(self):
        while self.position < self.num_batches:
            self.position += 1
            self.num_read += 1
            x = torch.randn(4, 4).double() + self.position % 3
            yield {"x": x, "y": x.sum(1, keepdim=True)}
        self.position = 0

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


def run(exp_dir, source, *more, **options):
    model = torch.nn.Sequential(torch.nn.Dropout(0.2), linear())  # draws from the training's generators meanwhile
    callbacks = {"checkpoint": ModelCheckpoint(every_n_steps=2), **{str(i): c for i, c in enumerate(more)}}
    trainer = VectorTrainer(model, source, SGD, exp_dir=exp_dir, epochs=3, callbacks=callbacks, auto_resume=True,
                            log_every_n_steps=2, **options)  # fmt: skip
    trainer.fit()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


SOURCES = {
    "iterable dataset": lambda: DataLoader(NoisyStream(), batch_size=4),
    "iterable dataset with workers": lambda: DataLoader(NoisyStream(), batch_size=4, num_workers=2),
    "source with a state": Positioned,
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("epoch_length", [None, 5])
@pytest.mark.parametrize("kills", [(2, 9), (6,), (8,)])
def test_a_killed_stream_goes_on_with_the_same_draws(tmp_path, name, epoch_length, kills):
    if name.endswith("workers") and kills != (2, 9):
        pytest.skip("one set of kills is enough with workers")
    whole = run(tmp_path / "whole", SOURCES[name](), epoch_length=epoch_length)
    for kill_at in kills:
        with pytest.raises(Unplugged):
            run(tmp_path / "killed", SOURCES[name](), PullThePlug(kill_at), epoch_length=epoch_length)
    assert torch.equal(whole, run(tmp_path / "killed", SOURCES[name](), epoch_length=epoch_length))


def test_a_source_with_a_state_is_not_read_up_to_its_place(tmp_path):
    with pytest.raises(Unplugged):
        run(tmp_path, Positioned(100), PullThePlug(81))
    source = Positioned(100)
    with pytest.raises(Unplugged):
        run(tmp_path, source, PullThePlug(85))
    assert source.num_read < 10


def test_the_training_draws_the_same_whatever_the_stream_draws(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(2)

    class Look(VectorTrainer):
        def on_train_batch_start(self, batch, batch_idx):
            if self.global_step == 0:
                self.drawn = torch.rand(2)

        def on_train_start(self):
            torch.manual_seed(5)

    trainer = Look(linear(), DataLoader(NoisyStream(), batch_size=4), SGD, epochs=1)
    trainer.fit()
    assert torch.equal(trainer.drawn, expected)
