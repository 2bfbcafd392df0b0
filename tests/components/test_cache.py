import functools
import logging
import multiprocessing
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from components.data.cache import ArrayCache, content_key, settings_key
from components.features import LogMel
from utils.errors import UserError

MIB = 2**20


def array_of(number: int, size: int = 20_000) -> np.ndarray:
    """A megabyte holds about ten of these."""
    return np.random.default_rng(number).standard_normal(size).astype(np.float32)


def never() -> np.ndarray:
    raise AssertionError("made although it was there")


def fill(cache: ArrayCache, numbers, size: int = 20_000) -> None:
    for number in numbers:
        found = cache.get_or_make(f"clip {number}", functools.partial(array_of, number, size))
        assert np.array_equal(found, array_of(number, size))


def fill_for_ever(folder: Path, first: int) -> None:
    cache, number = ArrayCache(folder, 64 * MIB), first
    while True:
        fill(cache, [number % 500])
        number += 1


# ------------------------------------------------------------------------------------------------------------ contents


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.zeros((0, 80), np.float16),
        np.array(3, np.int64),
        np.array([np.nan, np.inf, -0.0], np.float32),
        np.broadcast_to(np.ones(3), (2, 3)),
    ],
)
def test_what_comes_back_is_what_was_made(tmp_path, array):
    cache = ArrayCache(tmp_path, MIB)
    made = cache.get_or_make("key", lambda: array)
    found = cache.get_or_make("key", never)
    assert (cache.hits, cache.misses) == (1, 1)
    for result in (made, found):
        assert (result.dtype, result.shape) == (array.dtype, array.shape)
        assert result.tobytes() == array.tobytes()
        assert result.flags.writeable
        assert result.flags.c_contiguous


def test_an_entry_does_not_follow_its_caller(tmp_path):
    cache = ArrayCache(tmp_path, MIB)
    cache.get_or_make("key", lambda: np.zeros(3))[:] = 7
    cache.get_or_make("key", never)[:] = 7
    assert cache.get_or_make("key", never).tolist() == [0, 0, 0]


def test_python_objects_are_refused_both_ways(tmp_path):
    cache = ArrayCache(tmp_path, MIB)
    with pytest.raises(UserError, match="numbers, not Python objects"):
        cache.get_or_make("key", lambda: np.array([{}, None]))
    assert cache.totals()["entries"] == 0


def test_what_make_raises_passes_and_leaves_nothing(tmp_path):
    cache = ArrayCache(tmp_path, MIB)
    with pytest.raises(ZeroDivisionError):
        cache.get_or_make("key", lambda: 1 / 0)
    fill(cache, [1])
    assert cache.totals()["entries"] == 1


def test_a_damaged_entry_is_made_anew_and_counted(tmp_path):
    fill(ArrayCache(tmp_path, MIB), [1, 2])
    with sqlite3.connect(tmp_path / "arrays.sqlite3") as database:
        (content,) = database.execute("SELECT content FROM arrays WHERE id = 1").fetchone()
        flipped = content[:5_000] + bytes([content[5_000] ^ 1]) + content[5_001:]
        database.execute("UPDATE arrays SET content = ? WHERE id = 1", (flipped,))
    database.close()
    cache = ArrayCache(tmp_path, MIB)
    fill(cache, [1, 2])
    assert (cache.hits, cache.misses) == (1, 1)
    assert cache.totals()["damaged"] == 1
    fill(cache, [1, 2])
    assert cache.hits == 3


def test_an_entry_that_would_be_unpickled_is_damaged(tmp_path):
    import zlib
    from io import BytesIO

    fill(ArrayCache(tmp_path, MIB), [1])
    file = BytesIO()
    np.save(file, np.array([os.getpid], object), allow_pickle=True)
    with sqlite3.connect(tmp_path / "arrays.sqlite3") as database:
        row = (file.getvalue(), zlib.crc32(file.getvalue()))
        database.execute("UPDATE arrays SET content = ?, checksum = ?", row)
    database.close()
    cache = ArrayCache(tmp_path, MIB)
    fill(cache, [1])
    assert cache.totals()["damaged"] == 1


# ---------------------------------------------------------------------------------------------------------------- size


def test_the_database_stays_within_its_bytes(tmp_path):
    for _ in range(3):
        fill(ArrayCache(tmp_path, 2 * MIB), range(60))
    cache = ArrayCache(tmp_path, 2 * MIB)
    assert (tmp_path / "arrays.sqlite3").stat().st_size <= 2 * MIB
    assert 15 <= cache.totals()["entries"] <= 26


def test_a_corpus_larger_than_the_cache_still_finds_its_share_in_every_pass(tmp_path):
    cache = ArrayCache(tmp_path, 2 * MIB)
    for _ in range(3):
        fill(cache, range(40))
    stored = cache.totals()["stored"]
    assert cache.hits == 2 * stored >= 2 * 15
    assert cache.no_room == 3 * 40 - 3 * stored
    assert cache.totals()["evicted"] == 0


def test_what_was_not_read_for_the_longest_time_goes_first(tmp_path):
    fill(ArrayCache(tmp_path, 2 * MIB), range(15))
    reader = ArrayCache(tmp_path, 2 * MIB)
    fill(reader, range(5))
    reader.close()
    cache = ArrayCache(tmp_path, 2 * MIB)
    fill(cache, range(100, 110))
    assert cache.totals()["evicted"] > 0
    cache.hits = 0
    fill(cache, range(5))
    assert cache.hits == 5


def test_an_entry_without_any_room_throws_out_nothing(tmp_path):
    fill(ArrayCache(tmp_path, MIB), range(5))
    cache = ArrayCache(tmp_path, MIB)
    fill(cache, [7], size=300_000)
    fill(cache, range(5))
    assert (cache.hits, cache.no_room) == (5, 1)


def test_too_small_a_bound_is_refused(tmp_path):
    with pytest.raises(UserError, match="max_bytes must be at least"):
        ArrayCache(tmp_path, 1000)


# ----------------------------------------------------------------------------------------------------------- processes


def test_a_pickled_cache_opens_the_same_folder(tmp_path):
    cache = ArrayCache(tmp_path, MIB)
    fill(cache, [1])
    copy = pickle.loads(pickle.dumps(cache))
    fill(copy, [1])
    assert (copy.hits, copy.misses) == (1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_several_processes_fill_one_cache(tmp_path, method):
    cache = ArrayCache(tmp_path, 64 * MIB)
    fill(cache, [0])  # open, so that a fork has something to get wrong
    context = multiprocessing.get_context(method)
    processes = [context.Process(target=fill, args=(cache, range(i, i + 60))) for i in range(0, 80, 20)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    fill(cache, range(120))
    assert (cache.hits, cache.misses) == (120, 1)
    assert cache.totals()["stored"] == 120


@pytest.mark.slow
def test_writers_killed_at_any_moment_leave_whole_entries(tmp_path):
    context = multiprocessing.get_context("fork")
    for round_ in range(4):
        writers = [context.Process(target=fill_for_ever, args=(tmp_path, 90 * i + 17 * round_)) for i in range(4)]
        for writer in writers:
            writer.start()
        time.sleep(0.2)
        for writer in writers:
            time.sleep(0.03)
            os.kill(writer.pid, signal.SIGKILL)
        for writer in writers:
            writer.join()
    with sqlite3.connect(tmp_path / "arrays.sqlite3") as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("SELECT id FROM entries EXCEPT SELECT id FROM arrays").fetchall() == []
        assert database.execute("SELECT id FROM arrays EXCEPT SELECT id FROM entries").fetchall() == []
    database.close()
    cache = ArrayCache(tmp_path, 64 * MIB)
    before = cache.totals()
    assert before["entries"] == before["stored"] > 20
    fill(cache, range(500))
    assert cache.hits == before["entries"]
    assert cache.totals()["damaged"] == 0


FULL_DISK = """
import logging, resource, sys
logging.basicConfig(format="%(message)s")
from components.data.cache import ArrayCache
from tests.components.test_cache import MIB, fill
cache = ArrayCache(sys.argv[1], 64 * MIB)
fill(cache, range(5))
cache.close()
resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))
fill(cache, range(100))
fill(cache, range(100))
print(cache.hits >= 10, cache.hits < 40)
"""


@pytest.mark.slow
def test_a_full_disk_is_said_once_and_survived(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path / "cache"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "True True\n", done.stderr
    assert done.stderr.count("can not be written") == 1


def test_a_folder_that_is_no_database_is_said_once_and_survived(tmp_path, caplog):
    (tmp_path / "arrays.sqlite3").write_bytes(b"not a database, whatever its name says" * 100)
    cache = ArrayCache(tmp_path, MIB)
    with caplog.at_level(logging.WARNING):
        fill(cache, range(5))
    assert [record.getMessage().count("can not be read") for record in caplog.records] == [1]
    with pytest.raises(UserError, match="can not be read"):
        cache.totals()


# ---------------------------------------------------------------------------------------------------------------- keys


def test_audio_is_the_same_until_its_file_changes(tmp_path):
    clip, twin = tmp_path / "clip.wav", tmp_path / "twin.wav"
    clip.write_bytes(b"1234")
    twin.write_bytes(b"5678")
    for path in (clip, twin):
        os.utime(path, ns=(10**18, 10**18))
    key = content_key(clip)
    assert key == content_key(str(clip))
    pieces = [{"offset": 1.0}, {"duration": 1.0}, {"channel": 0}, {"byte_offset": 512}, {"member": "1.0"}]
    keys = {key, *(content_key(clip, **piece) for piece in pieces), content_key(twin)}
    assert len(keys) == len(pieces) + 2
    time.sleep(0.02)  # two ticks of the kernel's clock
    twin.replace(clip)
    os.utime(clip, ns=(10**18, 10**18))
    assert content_key(clip) != key  # of the same size and date
    with pytest.raises(UserError, match="No such file"):
        content_key(tmp_path / "nowhere.wav")


class Pipeline:
    """A plain callable."""

    def __init__(self, gain: float, steps: dict, table: np.ndarray) -> None:
        self.gain, self.steps, self.table = gain, steps, table

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        return waveform * self.gain

    def scaled(self, waveform: np.ndarray) -> np.ndarray:
        return waveform * self.gain


def with_hook(module: nn.Module) -> nn.Module:
    module.register_forward_hook(array_of)
    return module


def weights(value: float) -> nn.Module:
    module = nn.Conv1d(1, 1, 1)
    nn.init.constant_(module.weight, value)
    nn.init.zeros_(module.bias)
    return module


def test_any_changed_setting_is_another_key():
    table, other = np.zeros(3), np.array([0, 0, 1e-9])
    computes = [
        LogMel(16_000),
        LogMel(16_000, n_mels=65),
        LogMel(16_000, hop_length=161),
        LogMel(16_000, floor=1.0000001e-5),
        LogMel(16_000, f_min=21),
        LogMel(16_000).eval(),
        nn.Sequential(LogMel(16_000)),
        with_hook(LogMel(16_000)),
        weights(0.1),
        weights(0.1).double(),
        weights(0.1 + 1e-7),
        nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
        nn.Linear(2, 2, device="meta"),
        nn.GRU(2, 2, num_layers=2).eval().requires_grad_(False).to(torch.bfloat16),
        Pipeline(1.0, {"a": 1, "b": 2}, table),
        Pipeline(1, {"a": 1, "b": 2}, table),
        Pipeline(1.0, {"b": 2, "a": 1}, table),
        Pipeline(1.0, {"a": 1, "b": 2}, other),
        Pipeline(1.0, {"a": 1, "b": 2}, table).scaled,
        Pipeline(2.0, {"a": 1, "b": 2}, table).scaled,
        array_of,
        functools.partial(array_of, size=1),
        functools.partial(array_of, size=2),
        torch.sin,
        torch.cos,
        np.log,
        np.exp,
        [16_000, array_of],
        [8_000, array_of],
        None,
    ]
    keys = [settings_key(each) for each in computes]
    assert len(set(keys)) == len(keys)
    assert keys == [settings_key(each) for each in computes]
    assert settings_key(LogMel(16_000)) == keys[0]


@pytest.mark.slow
def test_a_key_is_the_same_in_another_process():
    code = "from components.data.cache import settings_key; from components.features import LogMel; "
    code += "print(settings_key({'a': LogMel(16_000), 'b': {'x', 'y', 'z'}}), end='')"
    keys = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True
        ).stdout
        for seed in "12"
    }
    assert keys == {settings_key({"a": LogMel(16_000), "b": {"x", "y", "z"}})}


@pytest.mark.slow
def test_changed_code_is_another_key(tmp_path):
    (tmp_path / "inner.py").write_text("GAIN = 1\n\ndef scale(x):\n    return x * GAIN\n")
    (tmp_path / "outer.py").write_text("from inner import scale\n\ndef frontend(x):\n    return scale(x)\n")
    code = "import outer; from components.data.cache import settings_key; print(settings_key(outer.frontend), end='')"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path.cwd()}", "PYTHONDONTWRITEBYTECODE": "1"}
    keys = []
    for gain in (1, 1, 2):
        (tmp_path / "inner.py").write_text(f"GAIN = {gain}\n\ndef scale(x):\n    return x * GAIN\n")
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        keys.append(done.stdout)
    assert keys[0] == keys[1] != keys[2]


def test_what_can_not_be_told_apart_is_refused():
    def inner(x):
        return x

    class Local(nn.Module):
        pass

    with pytest.raises(UserError, match="is a lambda"):
        settings_key(lambda x: x)
    with pytest.raises(UserError, match="defined inside of a function"):
        settings_key(inner)
    with pytest.raises(UserError, match="defined inside of a function"):
        settings_key(Local())
    with pytest.raises(UserError, match=r"Pipeline\.steps\['a'\] is a lambda"):
        settings_key(Pipeline(1.0, {"a": lambda x: x}, np.zeros(1)))
    with open(os.devnull) as file, pytest.raises(UserError, match="can not be told from another"):
        settings_key([file])
