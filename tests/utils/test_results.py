"""What is kept of earlier work, and what is told of changes."""

import json

import pytest

from utils.errors import UserError
from utils.results import Done, Output, Part, finish, kept_keys, merge, take_up, what_differs


def done(*names):
    return [Done(name, [{"id": name}], []) for name in names]


@pytest.fixture
def output(tmp_path):
    return Output(tmp_path / "set.jsonl")


def begin(output, settings=None, overwrite=False, problem_of=lambda record: None):
    return take_up(output, settings or {"seed": 0}, problem_of, overwrite)


def work(output, *names, rank=0):
    part = Part(output, rank)
    part.write(done(*names))
    part.close()


def test_what_was_done_before_a_kill_is_kept_but_for_a_line_that_was_cut(output):
    assert begin(output) is None
    work(output, "a", "b")
    work(output, "c", rank=1)
    with (output.parts / "rank_00001.jsonl").open("a") as file:
        file.write('{"item": "d", "rec')
    assert begin(output) is None
    assert kept_keys(output) == {"a", "b", "c"}


def test_parts_become_one_file_in_order_and_what_is_missing_is_told(output):
    begin(output)
    work(output, "b")
    work(output, "a", rank=1)
    with pytest.raises(UserError, match=r"set\.jsonl: 1 of 3 items are missing, 'c' first"):
        merge(output, ["a", "b", "c"])
    work(output, "c")
    records, bad = merge(output, ["c", "a", "b"])
    assert [record["id"] for record in records] == ["c", "a", "b"]
    finish(output, bad, {"settings": {"seed": 0}})
    assert sorted(path.name for path in output.records.parent.iterdir()) == ["set.jsonl", "set.summary.json"]


def test_a_finished_file_is_kept_item_by_item(output):
    begin(output)
    part = Part(output, 0)
    part.write([Done("a", [{"id": "a_0", "item": "a"}, {"id": "a_1", "item": "a"}], []), *done("b")])
    part.close()
    _, bad = merge(output, ["a", "b"])
    finish(output, bad, {"settings": {"seed": 0}})
    assert begin(output) is None
    assert kept_keys(output) == {"a", "b"}
    records, _ = merge(output, ["a"])
    assert [record["id"] for record in records] == ["a_0", "a_1"]


def test_other_settings_keep_nothing_and_say_what_differs(output):
    begin(output)
    work(output, "a")
    _, bad = merge(output, ["a"])
    finish(output, bad, {"settings": {"seed": 0}})
    assert begin(output, {"seed": 1}) == "made again, as settings differ: seed was 0, is 1"
    assert kept_keys(output) == set()
    assert not output.records.exists()


def test_what_can_not_be_kept_or_was_bad_is_made_again(output):
    begin(output)
    part = Part(output, 0)
    part.write([*done("a", "b"), Done("c", [], [{"id": "c", "reason": "empty"}])])
    part.close()
    told = begin(output, problem_of=lambda record: f"{record['id']}.wav is gone" if record["id"] == "b" else None)
    assert told == "1 of 2 earlier results are made again, the first: b.wav is gone"
    assert kept_keys(output) == {"a"}


def test_overwrite_keeps_nothing(output):
    begin(output)
    work(output, "a")
    assert begin(output, overwrite=True) is None
    assert kept_keys(output) == set()


def test_differences_are_told_by_their_keys():
    before = {"a": {"x": 1, "y": [1, 2]}, "gone": 2}
    assert what_differs(before, json.loads(json.dumps(before))) == ""
    assert what_differs(before, {"a": {"x": 1, "y": (1, 2)}, "gone": 2}) == ""
    now = {"a": {"x": 3, "y": [1, 2]}, "new": "z" * 60}
    assert what_differs(before, now) == f"a.x was 1, is 3; new was not set, is {'z' * 37}...; gone was 2, is not set"
    assert what_differs({}, dict.fromkeys("abcd", 1)).endswith("; and 1 more")
