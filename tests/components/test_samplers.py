"""Plans of batches: budgets, mixtures, tasks and classes."""

import logging
import pickle
import time
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset as TorchConcatDataset
from torch.utils.data import DataLoader, Dataset, Subset

from components.data.concat import ConcatDataset
from components.data.samplers import (
    Budget,
    ClassBalancedBatchSampler,
    DynamicBatchSampler,
    MixtureBatchSampler,
    Visit,
    labels_of,
    lengths_of,
)
from utils.errors import UserError


class Clips(Dataset):
    """Only what samplers look at."""

    def __init__(self, durations, **fields):
        self.durations = np.asarray(durations)
        rows = zip(*fields.values()) if fields else [()] * len(self.durations)
        self.records = [
            {"id": f"c{i}", "duration": float(seconds)} | dict(zip(fields, row))
            for i, (seconds, row) in enumerate(zip(self.durations, rows))
        ]

    def __len__(self):
        return len(self.durations)

    def __getitem__(self, index):
        return {"id": f"c{index}", "index": index}


def clips(num_items: int, shape: float = 4.0, seed: int = 0, **fields) -> Clips:
    """Seconds as in read speech: a gamma distribution of mean `shape`."""
    return Clips(np.random.default_rng(seed).gamma(shape, 1.0, num_items).clip(0.3, 30), **fields)


def corpora() -> ConcatDataset:
    words, sentences = Clips(np.random.default_rng(1).uniform(0.2, 1.0, 1750)), clips(414, 8.0)
    return ConcatDataset({"words": words, "sentences": sentences, "sounds": clips(318, 5.0, seed=2)})


def batches(sampler, number: int = 0, seed: int = 0) -> list[list[int]]:
    torch.manual_seed(seed)
    return list(sampler.batches(number))


def padding(durations, plan) -> float:
    padded = sum(len(batch) * durations[batch].max() for batch in plan)
    return 1 - sum(durations[batch].sum() for batch in plan) / padded


# ------------------------------------------------------------------------------------------------------------ dynamic


def test_every_item_comes_once_and_no_batch_is_over_its_budget():
    data = clips(1000)
    sampler = DynamicBatchSampler(data, max_seconds=60, max_items=20)
    plan = batches(sampler)
    assert sorted(index for batch in plan for index in batch) == list(range(1000))
    assert max(len(batch) * data.durations[batch].max() for batch in plan) <= 60
    assert max(map(len, plan)) == 20
    assert padding(data.durations, plan) < 0.05


def test_a_plan_is_a_function_of_the_generator_and_differs_from_pass_to_pass():
    sampler = DynamicBatchSampler(clips(300), max_seconds=60)
    assert batches(sampler, seed=1) == batches(sampler, seed=1)
    assert batches(sampler, seed=1) != batches(sampler, seed=2)
    together = [{frozenset(batch) for batch in batches(sampler, seed=seed)} for seed in (1, 2)]
    assert len(together[0] & together[1]) < 3


@pytest.mark.parametrize("settings", [{"jitter": 0.3}, {"num_buckets": 5}, {"max_items": 7}, {"quadratic_length": 9}])
def test_every_pass_has_the_same_number_of_batches(settings):
    sampler = DynamicBatchSampler(clips(400), max_seconds=50, **settings)
    assert {len(batches(sampler, seed=seed)) for seed in range(40)} == {len(sampler)}


def test_short_and_long_batches_are_mixed_in_time():
    data = clips(2000)
    mean = [data.durations[batch].mean() for batch in batches(DynamicBatchSampler(data, max_seconds=60))]
    assert abs(np.corrcoef(np.arange(len(mean)), mean)[0, 1]) < 0.3


def test_for_validation_items_are_sorted_and_nothing_is_drawn():
    data = clips(500)
    sampler = DynamicBatchSampler(data, max_seconds=60, shuffle=False)
    before = torch.get_rng_state()
    plan = list(sampler.batches(0))
    assert torch.equal(before, torch.get_rng_state())
    order = [index for batch in plan for index in batch]
    assert (np.diff(data.durations[order]) >= 0).all()
    assert sorted(order) == list(range(500))


def test_the_quadratic_term_makes_long_items_dearer():
    data = Clips([1.0] * 60 + [20.0] * 60)
    linear, quadratic = (
        DynamicBatchSampler(data, max_seconds=60, quadratic_length=q, shuffle=False) for q in (None, 20.0)
    )
    assert [max(map(len, batches(sampler))) for sampler in (linear, quadratic)] == [60, 57]  # 1 + 1/20
    assert [len(batch) for batch in batches(linear)][-1] == 3
    assert [len(batch) for batch in batches(quadratic)][-1] == 1  # 20 + 400/20 = 40


def test_items_over_the_budget_are_dropped_and_told(caplog):
    data = Clips([1.0] * 10 + [70.0, 65.0])
    with caplog.at_level(logging.WARNING):
        sampler = DynamicBatchSampler(data, max_seconds=60)
    assert sampler.dropped == {"over the budget of 60": 2}
    assert "2 of 12 items" in caplog.text
    assert "number 10) has 70" in caplog.text
    assert sorted(index for batch in batches(sampler) for index in batch) == list(range(10))


def test_items_over_the_budget_can_be_alone_or_refused():
    data = Clips([1.0] * 10 + [70.0, 65.0])
    plan = batches(DynamicBatchSampler(data, max_seconds=60, too_long="alone"))
    assert [10] in plan
    assert [11] in plan
    with pytest.raises(UserError, match=r"2 of 12 items .* raise the budget"):
        DynamicBatchSampler(data, max_seconds=60, too_long="raise")
    with pytest.raises(UserError, match="2 of 2 items"):
        DynamicBatchSampler(Clips([70.0, 65.0]), max_seconds=60)


def test_lengths_are_seconds_or_a_field_or_what_a_function_says():
    data = Clips([1.0, 2.0], num_frames=[100, 200], text=["ab", "abcde"], tokens=[[1, 2, 3], [4]])
    assert lengths_of(data).tolist() == [1.0, 2.0]
    assert lengths_of(data, "num_frames").tolist() == [100, 200]
    assert lengths_of(data, "text").tolist() == [2, 5]
    assert lengths_of(data, "tokens").tolist() == [3, 1]
    assert lengths_of(data, lambda record: record["duration"] * 50).tolist() == [50, 100]
    both = TorchConcatDataset([Subset(data, [1]), data])
    assert lengths_of(both, "text").tolist() == [5, 2, 5]
    with pytest.raises(UserError, match=r"'c0' has no 'captoin'"):
        lengths_of(data, "captoin")
    with pytest.raises(UserError, match=r"item 1 .* length nan"):
        lengths_of(Clips([1.0, float("nan")]))
    with pytest.raises(UserError, match="records"):
        lengths_of([1, 2], "text")


def test_a_budget_of_another_length():
    data = Clips(np.ones(100), num_frames=np.arange(1, 101))
    plan = batches(DynamicBatchSampler(data, length="num_frames", max_total=400))
    assert max(len(batch) * (max(batch) + 1) for batch in plan) <= 400
    with pytest.raises(UserError, match="the limit of another length is max_total"):
        DynamicBatchSampler(data, length="num_frames", max_seconds=400)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "needs a limit"),
        ({"max_seconds": 0}, "max_seconds must be positive"),
        ({"max_items": 4, "too_long": "cut"}, "too_long must be one of"),
        ({"max_seconds": 4, "jitter": None}, "needs a sort"),
        ({"max_items": 4, "jitter": -1}, "must not be negative"),
    ],
)
def test_a_budget_without_meaning_is_refused(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        Budget(**settings)


def test_two_million_items_a_second_are_planned_and_kept_in_few_bytes():
    sampler = DynamicBatchSampler(clips(400_000, 8.0), max_seconds=600)
    torch.manual_seed(0)
    started = time.process_time()
    plan = sampler.batches(0)
    assert time.process_time() - started < 0.2  # 7 million a second on a free core
    assert plan.order.nbytes + plan.bounds.nbytes < 400_000 * 10
    assert len(plan) == len(sampler)


def test_in_a_plain_dataloader_every_walk_is_another_pass():
    data = clips(50)
    sampler = DynamicBatchSampler(data, max_seconds=30)
    loader = DataLoader(data, batch_sampler=sampler, collate_fn=lambda items: [item["index"] for item in items])
    walks = [list(loader) for _ in range(2)]
    assert walks[0] != walks[1]
    assert sampler.epoch == 2
    assert len(loader) == len(walks[0])


# ------------------------------------------------------------------------------------------------------------ mixture


SHARES = {"words": 0.5, "sentences": 0.3, "sounds": 0.2}


@pytest.mark.parametrize("unit", ["seconds", "samples"])
@pytest.mark.parametrize("mode", ["batch", "sample"])
@pytest.mark.parametrize("until", ["all", "shortest", "sounds"])
def test_realised_shares_are_the_weights_within_a_hundredth(unit, mode, until):
    data = corpora()
    sampler = MixtureBatchSampler(data, Budget(max_seconds=60), SHARES, unit=unit, mode=mode, until=until)
    for number in range(3):
        indices = np.array([index for batch in batches(sampler, number) for index in batch])
        amount = data.durations if unit == "seconds" else np.ones(len(data))
        first = np.array([0, *data.cumulative_sizes[:-1]])
        for start, end, name in zip(first, data.cumulative_sizes, data.named):
            inside = indices[(indices >= start) & (indices < end)]
            share = amount[inside].sum() / amount[indices].sum()
            assert share == pytest.approx(SHARES[name], abs=0.01)
            assert getattr(sampler.shares(number)[name], unit) == pytest.approx(share, abs=1e-9)


def test_a_corpus_is_met_evenly_over_passes_whatever_its_weight():
    data = corpora()
    sampler = MixtureBatchSampler(data, Budget(max_seconds=60), SHARES, num_items=700)
    seen: Counter[int] = Counter()
    for number in range(12):
        seen.update(index for batch in batches(sampler, number) for index in batch)
        for start, end in ((0, 1750), (1750, 2164), (2164, 2482)):
            counts = [seen[index] for index in range(start, end)]
            assert max(counts) - min(counts) <= 1


def test_a_pass_is_a_function_of_its_number_and_order_of_asking_plays_no_part():
    make = partial(MixtureBatchSampler, corpora(), Budget(max_seconds=60), SHARES, num_items=500)
    sampler = make()
    forwards = [batches(sampler, number) for number in range(4)]
    assert [batches(make(), number) for number in reversed(range(4))][::-1] == forwards
    assert batches(make(seed=5), 0) != forwards[0]
    torch.manual_seed(9)  # who is in a batch is drawn, who is in the pass is not
    other = sampler.batches(1)
    assert list(other) != forwards[1]
    assert Counter(map(int, other.order.tolist())) == Counter(int(i) for batch in forwards[1] for i in batch)


def test_another_corpus_more_leaves_the_order_of_the_others():
    parts = dict(corpora().named)
    two = ConcatDataset({name: parts[name] for name in ("words", "sentences")})
    three = ConcatDataset(parts)
    budget = Budget(max_items=8, jitter=None)
    settings = {"shuffle": False, "until": "words", "unit": "samples"}
    few = MixtureBatchSampler(two, budget, {"words": 1, "sentences": 1}, **settings)
    more = MixtureBatchSampler(three, budget, {"words": 1, "sentences": 1, "sounds": 1}, **settings)
    words = [[i for batch in batches(sampler) for i in batch if i < 1750] for sampler in (few, more)]
    assert words[0] == words[1]


def test_a_batch_is_of_one_corpus_or_of_any():
    data = corpora()

    def parts(mode):
        sampler = MixtureBatchSampler(data, Budget(max_seconds=60), SHARES, mode=mode)
        return [{data.part_of(index) for index in batch} for batch in batches(sampler)]

    assert all(len(names) == 1 for names in parts("batch"))
    assert any(len(names) == 3 for names in parts("sample"))


@pytest.mark.parametrize("settings", [{}, {"mode": "sample"}, {"num_items": 333}, {"consecutive": 3, "alpha": 0.5}])
def test_every_pass_of_a_mixture_has_the_same_number_of_batches_within_the_budget(settings):
    data = corpora()
    sampler = MixtureBatchSampler(data, Budget(max_seconds=60), **({"weights": SHARES} | settings))
    for number in range(8):
        plan = batches(sampler, number, seed=number)
        assert len(plan) == len(sampler)
        assert max(len(batch) * data.durations[batch].max() for batch in plan) <= 60 * 1.0001


def test_without_weights_a_pass_is_every_item_once():
    data = corpora()
    plan = batches(MixtureBatchSampler(data, Budget(max_seconds=60)))
    assert sorted(index for batch in plan for index in batch) == list(range(len(data)))


def test_temperature_brings_small_corpora_up():
    data = corpora()
    natural, flat = (MixtureBatchSampler(data, Budget(max_seconds=60), alpha=alpha).shares() for alpha in (1.0, 0.0))
    assert natural["words"].seconds == pytest.approx(data.durations[:1750].sum() / data.durations.sum(), abs=1e-3)
    assert [share.seconds for share in flat.values()] == pytest.approx([1 / 3] * 3, abs=0.01)


@pytest.mark.parametrize(
    ("until", "visits"), [("words", 1.0), ("sentences", 1.0), ("all", None), ("longest", 1.0), ("shortest", 1.0)]
)
def test_a_pass_ends_when_the_chosen_corpus_has_been_met(until, visits):
    shares = MixtureBatchSampler(corpora(), Budget(max_seconds=60), SHARES, until=until).shares()
    deciding = {"longest": "sentences", "shortest": "words"}.get(until, until)
    if visits is None:
        assert min(share.visits for share in shares.values()) == 1.0
    else:
        assert shares[deciding].visits == visits


def test_copies_of_a_clip_hardly_share_a_batch_and_tell_their_visits():
    data = ConcatDataset({"small": clips(100), "large": clips(4000, seed=3)})
    sampler = MixtureBatchSampler(data, Budget(max_seconds=100), {"small": 0.5, "large": 0.5})
    plan = batches(sampler)
    assert sampler.shares()["small"].visits == pytest.approx(40, rel=0.1)
    assert np.mean([len(set(batch)) / len(batch) for batch in plan]) > 0.9
    visits = Counter((int(index), getattr(index, "visit", 0)) for batch in plan for index in batch)
    assert max(visits.values()) == 1
    assert pickle.loads(pickle.dumps(Visit(3, 2))).visit == 2
    assert [10, 20, 30][Visit(1, 4)] == 20


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"weights": {"words": 1, "sentense": 1, "sounds": 1}}, "no part 'sentense' .did you mean 'sentences'"),
        ({"weights": {"words": 1}}, "no weight for sentences, sounds"),
        ({"weights": {"words": -1, "sentences": 1, "sounds": 1}}, "weights.words: must not be negative"),
        ({"weights": dict.fromkeys(SHARES, 0)}, "every part has weight 0"),
        ({"unit": "hours"}, "unit must be seconds or samples"),
        ({"mode": "smaple"}, "mode must be batch or sample"),
        ({"order": "random"}, "order must be round_robin or shuffled"),
        ({"consecutive": 0}, "consecutive must be at least 1"),
        ({"until": "always"}, "until must be"),
        ({"tasks": {"asr": ["words"]}}, "sentences, sounds belong to no task"),
        ({"tasks": {"asr": ["words", "words"]}}, "named 2 times"),
        ({"tasks": {"asr": ["wrods"]}}, "did you mean 'words'"),
        ({"tasks": {"asr": ["words"]}, "mode": "sample"}, "mode=sample"),
        ({"num_items": 12, "consecutive": 16}, "too few for 16 batches"),
    ],
)
def test_a_mixture_without_meaning_is_refused(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        MixtureBatchSampler(corpora(), Budget(max_seconds=60), **settings)


def test_a_weight_of_zero_or_null_leaves_a_corpus_out():
    data = corpora()
    sampler = MixtureBatchSampler(data, Budget(max_seconds=60), {"words": 1, "sentences": 1, "sounds": 0})
    assert set(sampler.corpora) == {"words", "sentences"}
    two = ConcatDataset(dict(data.named) | {"sounds": None})
    assert MixtureBatchSampler(two, Budget(max_seconds=60), {"words": 1, "sentences": 1, "sounds": None}).num_batches
    with pytest.raises(UserError, match="ConcatDataset of named parts"):
        MixtureBatchSampler(clips(3), Budget(max_seconds=60))


# -------------------------------------------------------------------------------------------------------------- tasks


def tasks_of(data, plan):
    tagging = {"sounds"}
    kinds = [{"tagging" if data.part_of(index) in tagging else "asr" for index in batch} for batch in plan]
    assert all(len(kind) == 1 for kind in kinds)
    return [kind.pop() for kind in kinds]


def test_tasks_take_turns_by_weight():
    data = corpora()
    sampler = MixtureBatchSampler(
        data, Budget(max_seconds=60), {"words": 0.25, "sentences": 0.25, "sounds": 0.5},
        tasks={"asr": ["words", "sentences"], "tagging": ["sounds"]},
    )  # fmt: skip
    kinds = tasks_of(data, batches(sampler))
    for start in range(0, len(kinds) - 10, 10):
        assert 4 <= kinds[start : start + 10].count("asr") <= 6


@pytest.mark.parametrize("order", ["round_robin", "shuffled"])
def test_consecutive_batches_are_of_one_task_so_ranks_agree(order):
    data = corpora()
    sampler = MixtureBatchSampler(
        data, Budget(max_seconds=60), SHARES, tasks={"asr": ["words", "sentences"], "tagging": ["sounds"]},
        consecutive=4, order=order,
    )  # fmt: skip
    assert len(sampler) % 4 == 0
    for number in range(3):
        kinds = tasks_of(data, batches(sampler, number, seed=number))
        assert all(len(set(kinds[start : start + 4])) == 1 for start in range(0, len(kinds), 4))
        assert len(set(kinds)) == 2


# ------------------------------------------------------------------------------------------------------------ classes


def labelled(num_items: int = 3000) -> tuple[Clips, np.ndarray]:
    classes = np.random.default_rng(0).choice(4, num_items, p=[0.7, 0.2, 0.08, 0.02])
    return clips(num_items, labels=[{"kind": f"k{k}"} for k in classes]), classes


@pytest.mark.parametrize("budget", [Budget(max_items=32, jitter=None), Budget(max_seconds=120)])
@pytest.mark.parametrize("exponent", [1.0, 0.5, 0.0])
def test_classes_come_by_their_frequency_to_a_power(budget, exponent):
    data, classes = labelled()
    sampler = ClassBalancedBatchSampler(data, "kind", budget, exponent)
    wanted = np.bincount(classes) ** (1 - exponent)
    for number in range(2):
        plan = batches(sampler, number)
        indices = np.array([index for batch in plan for index in batch])
        assert len(indices) == 3000
        assert len(plan) == len(sampler)
        assert np.bincount(classes[indices]) / 3000 == pytest.approx(wanted / wanted.sum(), abs=1e-3)


def test_plain_batches_hold_every_class_in_its_share():
    data, classes = labelled()
    plan = batches(ClassBalancedBatchSampler(data, "kind", Budget(max_items=32, jitter=None)))
    for batch in plan[:-1]:
        assert np.bincount(classes[batch], minlength=4).min() >= 7 or len(batch) < 32


def test_passes_of_any_size_go_on_without_end_and_repeat_an_item_only_after_its_whole_class():
    data, classes = labelled(400)
    sampler = ClassBalancedBatchSampler(data, "kind", Budget(max_items=16, jitter=None), num_items=50)
    seen: Counter[int] = Counter()
    for number in range(40):
        seen.update(index for batch in batches(sampler, number) for index in batch)
    for kind in range(4):
        counts = [seen[index] for index in np.flatnonzero(classes == kind).tolist()]
        assert max(counts) - min(counts) <= 1


def test_an_item_of_several_classes_counts_as_its_rarest_and_one_of_none_is_counted(caplog):
    data = Clips(np.ones(5), tags=[["a"], ["a", "b"], ["a"], [], "a"])
    assert labels_of(data, "tags") == [["a"], ["a", "b"], ["a"], [], ["a"]]
    with caplog.at_level(logging.WARNING):
        sampler = ClassBalancedBatchSampler(data, "tags", Budget(max_items=2, jitter=None), num_items=6)
    assert {name: corpus.items.tolist() for name, corpus in sampler.classes.items()} == {"a": [0, 2, 4], "b": [1]}
    assert sampler.dropped == {"no tags": 1}
    assert "1 items have no tags" in caplog.text
    with pytest.raises(UserError, match="no item has a label 'tag'"):
        ClassBalancedBatchSampler(data, "tag", Budget(max_items=2))


@pytest.mark.parametrize("make", [MixtureBatchSampler, partial(ClassBalancedBatchSampler, label="word")])
def test_a_budget_that_yaml_did_not_build_is_refused(make):
    dataset = ConcatDataset({"a": Clips([1.0, 2.0], word=["x", "y"])})
    with pytest.raises(UserError, match=r"budget: expected a Budget such as .*_target_"):
        make(dataset, budget={"max_seconds": 60})
