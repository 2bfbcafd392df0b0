import json
import pickle
import time

import numpy as np
import pytest

from components.data.readers import iterate_records, read_records
from components.data.records import Records

RECORDS = [{"id": f"имя {i}", "audio_path": f"/audio/{i}.wav", "duration": i + 0.5, "tags": ["a"]} for i in range(10)]


def test_records_come_back_as_they_went_in():
    records = Records.from_iterable(iter(RECORDS))
    assert len(records) == 10
    assert list(records) == RECORDS
    assert [records[i] for i in range(10)] == RECORDS
    assert records[-1] == RECORDS[-1]
    assert records[np.int64(3)] == RECORDS[3]
    with pytest.raises(IndexError):
        records[10]


def test_a_record_is_a_copy():
    records = Records.from_iterable(RECORDS)
    records[0]["tags"].append("b")
    assert records[0]["tags"] == ["a"]


def test_durations_are_numbers_and_nan_where_unknown():
    records = Records.from_iterable([*RECORDS[:2], {"id": "x"}])
    np.testing.assert_array_equal(records.durations, [0.5, 1.5, np.nan])
    assert records.durations.dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        records.durations[0] = 3


def test_slices_and_selections_are_views():
    records = Records.from_iterable(RECORDS)
    assert list(records[2:8:3]) == RECORDS[2:8:3]
    assert list(records[::-1]) == RECORDS[::-1]
    chosen = records.select([7, 1, 7])
    assert list(chosen) == [RECORDS[7], RECORDS[1], RECORDS[7]]
    np.testing.assert_array_equal(chosen.durations, [7.5, 1.5, 7.5])
    assert list(records.select(records.durations > 8)) == RECORDS[8:]
    assert np.shares_memory(chosen._buffer, records._buffer)
    assert list(chosen[1:].select([])) == []


def test_a_pickled_view_takes_only_its_own_bytes():
    records = Records.from_iterable(RECORDS * 100)
    view = records[5:7]
    assert list(pickle.loads(pickle.dumps(records))) == RECORDS * 100
    assert list(pickle.loads(pickle.dumps(view))) == RECORDS[5:7]
    assert len(pickle.dumps(view)) < 2_000 < len(pickle.dumps(records))


def test_file_names_that_are_not_utf8_survive():
    name = b"caf\xe9.wav".decode("utf-8", "surrogateescape")
    assert Records.from_iterable([{"id": "a", "audio_path": name}])[0]["audio_path"] == name


def test_no_records_are_no_error():
    records = Records.from_iterable([])
    assert len(records) == 0
    assert list(records) == []
    assert records.durations.shape == (0,)
    assert list(pickle.loads(pickle.dumps(records))) == []


def test_a_hundred_thousand_lines_are_read_quickly_and_held_in_little_memory(tmp_path):
    path = tmp_path / "many.jsonl"
    line = '{"id": "speaker-%d", "audio_path": "%d.flac", "duration": 1.5, "sample_rate": 16000, "text": "he hoped"}\n'
    path.write_text("".join(line % (i, i) for i in range(100_000)))
    first_began = time.process_time()
    assert next(iterate_records(path))["id"] == "speaker-0"
    assert time.process_time() - first_began < 0.1  # the rest has not been read
    began = time.process_time()
    records = read_records(path)
    assert time.process_time() - began < 10
    assert len(records) == 100_000
    assert records[99_999]["id"] == "speaker-99999"
    assert records.nbytes < 2 * path.stat().st_size + 100_000 * len(str(tmp_path))
    assert json.loads(line % (7, 7))["text"] == records[7]["text"]
