"""Plans of batch samplers: last rounds, items that come again, passes of different lengths."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from components.data.samplers import Visit
from trainer.data import BatchStream, PlannedLoader
from utils.errors import UserError


class Draws(Dataset):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[int, float]:
        return int(index), torch.rand(()).item()


class Given:
    """Pass n has the batches of `passes[n]`."""

    def __init__(self, *passes):
        self.passes = passes

    def batches(self, number):
        return self.passes[number]

    def __len__(self):
        return len(self.passes[0])

    def __iter__(self):
        return iter(self.passes[0])


def planned(sampler, rank: int = 0, world_size: int = 1) -> PlannedLoader:
    return PlannedLoader(
        DataLoader(Draws(), batch_sampler=sampler, collate_fn=list), seed=0, rank=rank, world_size=world_size
    )


def read(loader: PlannedLoader, number: int = 0) -> list[list]:
    loader.start(number)
    return [loaded.batch for loaded in loader]


def test_batches_of_a_last_round_are_halved_and_not_mixed():
    sampler = Given([[0, 1], [2, 3], [4, 5], [6], [7, 8, 9, 10], [11]])
    rounds = [[[index for index, _ in batch] for batch in read(planned(sampler, rank, 4))] for rank in range(4)]
    assert [own[0] for own in rounds] == [[0, 1], [2, 3], [4, 5], [6]]
    assert [own[1] for own in rounds] == [[7], [11], [9, 10], [8]]


def test_an_item_that_comes_again_in_a_pass_is_drawn_anew():
    again = Given([[0, 1], [Visit(0, 1), 2], [Visit(0, 2), 3]])
    draws = [draw for batch in read(planned(again)) for index, draw in batch if index == 0]
    assert len(set(draws)) == 3
    once = read(planned(Given([[0, 1]])))
    assert once[0][0][1] == draws[0]


def test_an_epoch_is_as_long_as_its_pass():
    passes = [[[0], [1]], [[2], [3], [4]], [[5]], [[6], [7]]]
    stream = BatchStream(planned(Given(*passes)), lambda batch: batch)
    epochs = [[([index for index, _ in batch], is_last) for batch, is_last in stream.epoch(0)] for _ in passes]
    assert epochs == [[(batch, k == len(own) - 1) for k, batch in enumerate(own)] for own in passes]


def test_a_sampler_that_deals_out_to_ranks_is_refused():
    loader = DataLoader(Draws(), sampler=DistributedSampler(Draws(), num_replicas=2, rank=1))
    with pytest.raises(UserError, match=r"DistributedSampler deals out .* to 2 ranks.* num_replicas=1, rank=0"):
        PlannedLoader(loader, seed=0)
