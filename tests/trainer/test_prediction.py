"""Predictions of a set: every item once and in order, in batches of like length, whatever happens on the way."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from trainer.items import Items
from trainer.prediction import predict_set, predict_with
from utils.errors import BadSample
from utils.results import Output

ALONE = SimpleNamespace(is_main_process=True, num_processes=1, process_index=0)


class Lengths(Dataset):
    """Item i is so many ones as `lengths[i]`; those of `bad` can not be read."""

    deterministic = True

    def __init__(self, lengths=(3, 9, 1, 7, 5), bad=(), named=True) -> None:
        self.lengths, self.bad = list(lengths), set(bad)
        if named:
            self.records = [{"id": f"clip{i}"} for i in range(len(self.lengths))]
            self.durations = [float(length) for length in self.lengths]

    def fingerprint(self):
        return {"sha256": str(self.lengths)}

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int):
        if index in self.bad:
            raise BadSample(f"clip{index} is empty", sample_id=f"clip{index}", source="x.wav", reason="empty")
        return {"id": f"clip{index}", "x": torch.ones(self.lengths[index])}


def collate(items):
    padded = nn.utils.rnn.pad_sequence([item["x"] for item in items], batch_first=True)
    return {"id": [item["id"] for item in items], "x": padded, "lens": torch.tensor([len(item["x"]) for item in items])}


class Adds:
    """The sum of each item; remembers its batches. `refuses` are ids that it can not do, `fits` the most it can."""

    def __init__(self, refuses=(), fits=100, num_each=1) -> None:
        self.refuses, self.fits, self.num_each = set(refuses), fits, num_each
        self.batches, self.phases = [], {"model": 0.25}

    def __call__(self, model, batch):
        self.batches.append(batch["id"])
        if len(batch["id"]) > self.fits:
            raise torch.OutOfMemoryError("too much")
        if wrong := self.refuses.intersection(batch["id"]):
            raise BadSample(f"{min(wrong)} is no use", sample_id=min(wrong), reason="no use")
        return [
            {"id": name if self.num_each == 1 else f"{name}_{k}", "sum": float(row.sum()), "seconds": float(row.sum())}
            for name, row in zip(batch["id"], batch["x"])
            for k in range(self.num_each)
        ]

    def score(self, records):
        return {"count": len(records)}


def loader(dataset=None, batch_size=2, **settings):
    return DataLoader(dataset or Lengths(), batch_size=batch_size, collate_fn=collate, **settings)


def predict(tmp_path, predictor, from_loader=None, overwrite=False, **settings):
    trained = SimpleNamespace(state=ALONE, predictor=predictor, device="cpu", model=nn.Identity())
    chosen, output = loader() if from_loader is None else from_loader, Output(tmp_path / "set.jsonl")
    return predict_set(trained, chosen, output, {"seed": 0} | settings, overwrite)


def sums(records):
    return {record["id"]: record["sum"] for record in records}


def test_the_longest_come_first_and_results_are_in_the_datasets_order():
    predictor = Adds()
    records, bad = predict_with(nn.Identity(), predictor, loader(), "cpu")
    assert predictor.batches == [["clip1", "clip3"], ["clip4", "clip0"], ["clip2"]]
    assert [record["sum"] for record in records] == [3, 9, 1, 7, 5]
    assert bad == []


@pytest.mark.parametrize(
    "settings",
    [{"shuffle": True}, {"drop_last": True}, {"num_workers": 1}, {"sampler": [4, 1, 3, 1, 0, 2], "num_workers": 0}],
)
def test_nothing_is_shuffled_dropped_or_taken_twice(settings):
    records, _ = predict_with(nn.Identity(), Adds(), loader(**settings), "cpu")
    assert sums(records) == {"clip0": 3, "clip1": 9, "clip2": 1, "clip3": 7, "clip4": 5}
    assert len(records) == 5


def test_batches_of_a_sampler_stay_together():
    predictor = Adds()
    batches = DataLoader(Lengths(), batch_sampler=[[0, 1, 2], [3, 4]], collate_fn=collate)
    records, _ = predict_with(nn.Identity(), predictor, batches, "cpu")
    assert predictor.batches == [["clip0", "clip1", "clip2"], ["clip3", "clip4"]]
    assert [record["id"] for record in records] == [f"clip{i}" for i in range(5)]


class Stream(IterableDataset):
    def __iter__(self):
        return iter([{"id": f"s{i}", "x": torch.ones(i)} for i in range(1, 6)])


def test_a_stream_is_walked_to_its_end_and_continued_by_its_batches(tmp_path):
    records, _ = predict_with(nn.Identity(), Adds(), loader(Stream()), "cpu")
    assert [record["sum"] for record in records] == [1, 2, 3, 4, 5]
    predict(tmp_path, Adds(), loader(Stream()))
    again = Adds()
    records, _, summary, _ = predict(tmp_path, again, loader(Stream()))
    assert (again.batches, summary["num_kept"], len(records)) == ([], 3, 5)


def test_items_without_ids_beforehand_go_by_their_place(tmp_path):
    records, *_ = predict(tmp_path, Adds(), loader(Lengths(named=False)))
    assert [record["item"] for record in records] == [f"#{i}" for i in range(5)]
    again = Adds()
    predict(tmp_path, again, loader(Lengths(named=False)))
    assert again.batches == []


def test_equal_ids_are_told_apart_by_their_part_or_number():
    dataset = Lengths()
    dataset.records = [{"id": "same"}] * 5
    assert Items(loader(dataset)).keys == ["same", "same#2", "same#3", "same#4", "same#5"]
    dataset = Lengths()
    dataset.named = {"sing": Lengths((1, 2)), "say": Lengths((3, 4, 5))}
    assert Items(loader(dataset)).keys == ["sing/clip0", "sing/clip1", "say/clip0", "say/clip1", "say/clip2"]


def test_what_can_not_be_read_is_named_and_the_others_are_done():
    records, bad = predict_with(nn.Identity(), Adds(), loader(Lengths(bad={1, 3})), "cpu")
    assert list(sums(records)) == ["clip0", "clip2", "clip4"]
    assert [(one["id"], one["reason"]) for one in bad] == [("clip1", "empty"), ("clip3", "empty")]


def test_what_a_predictor_refuses_is_found_and_the_others_are_done():
    records, bad = predict_with(nn.Identity(), Adds(refuses={"clip2"}), loader(batch_size=5), "cpu")
    assert sums(records) == {"clip0": 3, "clip1": 9, "clip3": 7, "clip4": 5}
    assert bad == [{"id": "clip2", "source": None, "reason": "no use", "detail": "clip2 is no use"}]


def test_a_batch_that_is_too_much_is_done_in_parts():
    predictor = Adds(fits=2)
    records, bad = predict_with(nn.Identity(), predictor, loader(batch_size=5), "cpu")
    assert (len(records), bad) == (5, [])
    assert max(map(len, predictor.batches[1:])) == 3
    records, bad = predict_with(nn.Identity(), Adds(fits=0), loader(), "cpu")
    assert (records, {one["reason"] for one in bad}, len(bad)) == ([], {"out of memory"}, 5)


def test_several_records_of_an_item_stay_together(tmp_path):
    records, *_ = predict(tmp_path, Adds(num_each=2))
    assert [record["id"] for record in records[:4]] == ["clip0_0", "clip0_1", "clip1_0", "clip1_1"]
    assert records[3]["item"] == "clip1"
    again = Adds(num_each=2)
    records, *_ = predict(tmp_path, again)
    assert (again.batches, len(records)) == ([], 10)


def test_a_summary_tells_speed_memory_and_settings(tmp_path):
    _, _, summary, _ = predict(tmp_path, Adds())
    speed = summary["performance"]
    assert (summary["num_items"], summary["num_records"], summary["scores"]) == (5, 5, {"count": 5})
    assert summary["settings"]["seed"] == 0
    assert speed["audio_seconds"] == 25
    assert speed["rtf"]["phases"]["model"] == pytest.approx(3 * 0.25 / 25)
    assert 0 < speed["rtf"]["p50"] <= speed["rtf"]["p95"]
    assert speed["peak_memory_bytes"]["memory"] > 10**7


class Dies(Adds):
    """As a kill would, between two batches."""

    def __call__(self, model, batch):
        if len(self.batches) == 2:
            raise KeyboardInterrupt
        return super().__call__(model, batch)


def test_a_killed_inference_loses_the_batch_in_flight(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        predict(tmp_path, Dies())
    assert not (tmp_path / "set.jsonl").exists()
    again = Adds()
    records, _, summary, _ = predict(tmp_path, again)
    assert again.batches == [["clip2"]]
    assert (summary["num_kept"], [record["sum"] for record in records]) == (4, [3, 9, 1, 7, 5])
    assert json.loads((tmp_path / "set.jsonl").read_text().splitlines()[4])["id"] == "clip4"


def test_more_items_of_the_same_set_are_added_and_other_settings_or_data_make_all_again(tmp_path):
    few = DataLoader(Lengths(), batch_size=2, sampler=[0, 1], collate_fn=collate)
    predict(tmp_path, Adds(), few)
    more = Adds()
    predict(tmp_path, more)
    assert sorted(name for batch in more.batches for name in batch) == ["clip2", "clip3", "clip4"]
    other = Adds()
    *_, redone = predict(tmp_path, other, seed=1)
    assert (redone, len(other.batches)) == ("made again, as settings differ: seed was 0, is 1", 3)
    *_, redone = predict(tmp_path, Adds(), loader(Lengths((3, 9, 1, 7, 6))), seed=1)
    assert redone.startswith("made again, as settings differ: data_sha256 was")
    whole = Adds()
    predict(tmp_path, whole, loader(Lengths((3, 9, 1, 7, 6))), seed=1, overwrite=True)
    assert len(whole.batches) == 3


def test_what_was_bad_is_tried_again(tmp_path):
    dataset = Lengths(bad={1})
    predict(tmp_path, Adds(), loader(dataset))
    assert len((tmp_path / "set.jsonl").read_text().splitlines()) == 4
    dataset.bad = set()
    again = Adds()
    _, bad, _, _ = predict(tmp_path, again, loader(dataset))
    assert (again.batches, bad) == ([["clip1"]], [])


def test_ranks_share_the_items():
    items = Items(loader(Lengths(range(1, 12))))
    shares = [items.batches({"clip3"}, rank, 3) for rank in range(3)]
    taken = sorted(index for share in shares for batch in share for index in batch)
    assert taken == [0, 1, 2, *range(4, 11)]
    longest = [sum(max(items._durations[i] for i in batch) for batch in share) for share in shares]
    assert max(longest) - min(longest) <= 11
