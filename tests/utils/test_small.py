"""The small modules: errors, imports, io, launch, locate, logging, names, seed."""

import json
import logging
import random

import numpy as np
import pytest
import torch

from utils.errors import UserError
from utils.imports import require
from utils.io import write_json, write_jsonl, write_text
from utils.launch import check_world, pick_device
from utils.locate import locate
from utils.logging import _ShortFormatter, is_main_process
from utils.names import nearest
from utils.seed import seed_everything


def test_write_text_leaves_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_and_jsonl_are_utf8_and_take_any_value(tmp_path):
    write_json(tmp_path / "a.json", {"ü": tmp_path})
    write_jsonl(tmp_path / "a.jsonl", [{"a": 1}, {"b": "ü"}])
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"ü": str(tmp_path)}
    assert (tmp_path / "a.jsonl").read_text(encoding="utf-8") == '{"a": 1}\n{"b": "ü"}\n'


def test_require_names_the_extra_that_brings_a_missing_library():
    assert require("json", extra="speak") is json
    with pytest.raises(UserError, match=r"^no_such_lib is not installed: pip install -e '\.\[speak\]'$"):
        require("no_such_lib", extra="speak")


def test_require_does_not_hide_what_a_broken_library_lacks(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        require("half_installed", extra="speak")


def test_check_world_refuses_copies_that_do_not_know_each_other(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    check_world()
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(UserError, match="8 processes were launched but 1 found each other"):
        check_world()


def test_pick_device_names_what_is_wrong():
    assert pick_device("cpu") == "cpu"
    assert pick_device("auto") in ("cpu", "cuda")
    with pytest.raises(UserError, match=r"^device: 'warp' can not be used here: "):
        pick_device("warp")


def test_locate_finds_functions_methods_and_submodules(tmp_path, monkeypatch):
    assert locate("json.dumps") is json.dumps
    assert locate("collections.OrderedDict.fromkeys")("a") == {"a": None}
    assert locate("torch.nn.functional.relu") is torch.nn.functional.relu


def test_locate_tells_a_missing_dependency_from_a_missing_name(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import no_such_dependency\nclass A: ...")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"needs_more\.A: can not be imported: .*No module named 'no_such_dependency'"):
        locate("needs_more.A")
    with pytest.raises(UserError, match="not a dotted name"):
        locate("AdamW")


def test_nearest_prefers_the_same_case_and_knows_when_nothing_is_near():
    assert nearest("AdmW", ["adamw", "AdamW"]) == "AdamW"
    assert nearest("LR", ["lr", "eps"]) == "lr"
    assert nearest("zzz", ["lr", "eps"]) is None


def test_seed_everything_seeds_every_generator():
    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    seed_everything(2**33 + 1)
    first = draw()
    seed_everything(2**33 + 1)
    assert draw() == first
    seed_everything(1)
    assert draw() != first


@pytest.mark.parametrize(
    ("rank", "level", "shown"),
    [
        ("0", logging.INFO, "hello"),
        ("0", logging.WARNING, "WARNING hello"),
        ("3", logging.ERROR, "ERROR [rank 3] hello"),
    ],
)
def test_log_lines_are_short_and_name_the_rank_off_the_main_process(monkeypatch, rank, level, shown):
    monkeypatch.setenv("RANK", rank)
    record = logging.LogRecord("name", level, "file", 1, "%s", ("hello",), None)
    assert _ShortFormatter().format(record).partition(" ")[2] == shown
    assert is_main_process() == (rank == "0")
