"""The plan: order, sharding, keyed randomness, cursor."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, WeightedRandomSampler

from tests.trainer.tiny import loader
from trainer.data import BatchStream, PlannedLoader, plan_loader
from trainer.plan import Plan
from utils.errors import UserError


class Draws(Dataset):
    """Item i: i, and a number from each generator."""

    def __init__(self, num_items: int) -> None:
        self.num_items = num_items

    def __len__(self) -> int:
        return self.num_items

    def __getitem__(self, index: int):
        return index, torch.rand(()).item(), float(np.random.rand()), random.random()


def draws(num_items: int, batch_size: int, **settings) -> DataLoader:
    return DataLoader(Draws(num_items), batch_size=batch_size, collate_fn=list, **settings)


def walk(planned, number: int = 0, cursor: int = 0) -> list:
    planned.start(number, cursor)
    return [loaded.batch for loaded in planned]


def test_a_plan_comes_to_an_end():
    assert list(Plan(range(10), 4, drop_last=False)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert list(Plan(torch.arange(10), 4, drop_last=True)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    for beyond in (2, -1):
        with pytest.raises(IndexError, match=f"batch {beyond} of 2"):
            Plan(range(10), 4, drop_last=True)[beyond]


def test_shuffled_order_is_a_function_of_seed_and_pass():
    first, again, other = (PlannedLoader(draws(20, 3, shuffle=True), seed=s) for s in (1, 1, 2))
    assert walk(first, 0) == walk(again, 0) == walk(first, 0)
    assert walk(first, 0) != walk(first, 1)
    assert walk(first, 0) != walk(other, 0)
    assert sorted(item[0] for batch in walk(first, 5) for item in batch) == list(range(20))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_a_sample_draws_depends_on_neither_workers_nor_batches_nor_cursor(num_workers):
    reference = {item[0]: item for batch in walk(PlannedLoader(draws(12, 3), seed=4), 2) for item in batch}
    torch.manual_seed(99)
    planned = PlannedLoader(draws(12, 4, num_workers=num_workers, shuffle=True), seed=4)
    batches = walk(planned, 2, cursor=1)
    assert len(batches) == 2
    assert all(reference[item[0]] == item for batch in batches for item in batch)


def test_reading_leaves_the_trainings_generators_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    walk(PlannedLoader(draws(8, 2, num_workers=0, shuffle=True), seed=0))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("num_items", "world_size"), [(32, 2), (33, 2), (41, 3), (46, 4), (37, 8)])
def test_every_sample_belongs_to_one_rank_and_all_have_the_same_number_of_batches(num_items, world_size):
    ranks = [
        PlannedLoader(draws(num_items, 4, shuffle=True), seed=0, rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    walks = [walk(planned) for planned in ranks]
    assert len({len(batches) for batches in walks}) == 1
    counted = [
        item[0]
        for planned, batches in zip(ranks, walks)
        for position, batch in enumerate(batches)
        if not planned.is_padding(position)
        for item in batch
    ]
    assert sorted(counted) == list(range(num_items))


def test_the_global_order_does_not_depend_on_the_number_of_ranks():
    alone = walk(PlannedLoader(draws(48, 4, shuffle=True), seed=0))
    ranks = [walk(PlannedLoader(draws(48, 4, shuffle=True), seed=0, rank=r, world_size=3)) for r in range(3)]
    assert [batch for together in zip(*ranks) for batch in together] == alone


def test_a_weighted_sampler_is_asked_under_a_seed_of_its_own():
    def make():
        sampler = WeightedRandomSampler([1.0] * 5 + [9.0] * 5, 10)
        return PlannedLoader(DataLoader(Draws(10), batch_size=2, sampler=sampler, collate_fn=list), seed=3)

    assert walk(make(), 1) == walk(make(), 1)
    assert walk(make(), 1) != walk(make(), 2)


def test_a_batch_sampler_of_ones_own_is_the_plan():
    class Pairs(BatchSampler):
        def __init__(self):
            super().__init__(RandomSampler(range(6)), 2, False)

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __iter__(self):
            return iter([[self.epoch, i] for i in range(3)])

    planned = PlannedLoader(DataLoader(Draws(6), batch_sampler=Pairs(), collate_fn=list), seed=0)
    assert [[item[0] for item in batch] for batch in walk(planned, 4)] == [[4, 0], [4, 1], [4, 2]]


def test_a_sampler_that_hands_out_cuts_is_planned_sharded_and_keyed():
    """As Lhotse's samplers do: whole batches of cuts, and a dataset that makes one batch of them."""

    class Cuts(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, cuts):
            return cuts, torch.rand(()).item()

    class CutSampler(torch.utils.data.Sampler):
        def set_epoch(self, epoch):
            self.epoch = epoch

        def __iter__(self):
            return iter([[f"cut{self.epoch}{i}a", f"cut{self.epoch}{i}b"] for i in range(4)])

        def __len__(self):
            return 4

    def make(rank=0, world_size=1):
        loader = DataLoader(Cuts(), batch_size=None, sampler=CutSampler())
        return PlannedLoader(loader, seed=0, rank=rank, world_size=world_size)

    alone = walk(make(), 3)
    assert [cuts[0] for cuts, _ in alone] == ["cut30a", "cut31a", "cut32a", "cut33a"]
    assert len({draw for _, draw in alone}) == 4
    assert walk(make(), 3, cursor=2) == alone[2:]
    assert [batch for together in zip(walk(make(0, 2), 3), walk(make(1, 2), 3)) for batch in together] == alone


def test_an_empty_dataset_is_refused():
    with pytest.raises(UserError, match="yields no batches: its dataset has 2 items"):
        plan_loader(draws(2, 4, drop_last=True), seed=0)


def take(stream: BatchStream, epochs: int, num_taken: int = 0) -> list[list[int]]:
    walked = []
    for _ in range(epochs):
        walked.append([item[0] for batch, _ in stream.epoch(num_taken) for item in batch])
        num_taken = 0
    return walked


def test_a_stream_cuts_epochs_of_any_length_from_its_passes():
    stream = BatchStream(plan_loader(draws(10, 1), seed=0), lambda batch: batch, epoch_length=4)
    assert take(stream, 5) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1], [2, 3, 4, 5], [6, 7, 8, 9]]


@pytest.mark.parametrize("stop_after", range(1, 12))
def test_a_stream_goes_on_where_its_state_says(stop_after):
    def make():
        return BatchStream(plan_loader(draws(10, 3, shuffle=True), seed=0), lambda batch: batch, epoch_length=5)

    whole = [batch for epoch in range(3) for batch, _ in make_epoch(make, epoch)]
    stream, taken = make(), []
    while len(taken) < stop_after:
        for batch, _ in stream.epoch(0):
            taken.append(batch)
            if len(taken) == stop_after:
                break
    resumed = make()
    resumed.load_state_dict(stream.state_dict())
    rest = [batch for batch, _ in resumed.epoch(stop_after % 5)]
    assert taken + rest == whole[: len(taken) + len(rest)]
    assert rest


def make_epoch(make, epoch: int):
    stream = make()
    for _ in range(epoch):
        list(stream.epoch(0))
    return list(stream.epoch(0))


class Counting(IterableDataset):
    def __iter__(self):
        return iter(range(7))


def test_an_iterable_is_dealt_out_in_complete_rounds():
    source = DataLoader(Counting(), batch_size=None)
    shares = [walk(plan_loader(source, seed=0, rank=r, world_size=2)) for r in range(2)]
    assert shares == [[0, 2, 4], [1, 3, 5]]


def test_the_end_of_a_source_without_length_ends_the_epoch():
    stream = BatchStream(plan_loader((n for n in range(3)), seed=0), lambda batch: batch)
    assert list(stream.epoch(0)) == [(0, False), (1, False), (2, True)]


def test_going_to_a_far_cursor_reads_nothing_before_it():
    read: list[int] = []

    class Watched(Draws):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    planned = PlannedLoader(DataLoader(Watched(1000), batch_size=10, collate_fn=list), seed=0)
    planned.start(0, 99)
    next(iter(planned))
    assert read == list(range(990, 1000))


def test_worker_settings_of_the_given_loader_are_kept():
    planned = PlannedLoader(loader(num_workers=2, prefetch_factor=3, persistent_workers=True), seed=0)
    assert (planned._loader.num_workers, planned._loader.prefetch_factor, planned._loader.persistent_workers) == (
        2,
        3,
        True,
    )
