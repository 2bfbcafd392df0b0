"""Lhotse's own `prepare_x`, called on tiny trees of the corpora's true layouts."""

import functools
import http.server
import json
import sys
import tarfile
import threading

import pytest

from components.data import AudioDataset, read_manifest
from components.data.recipes import lhotse_corpora, prepare_lhotse_corpus
from components.data.recipes.lhotse_records import parts_of
from tests.components.clips import write_clip
from utils.errors import UserError

lhotse = pytest.importorskip("lhotse")


def librispeech_tree(folder):
    for part, speaker in (("train-clean-5", 19), ("dev-clean-2", 1272)):
        chapter = folder / part / str(speaker) / "198"
        lines = []
        for number in range(2):
            name = f"{speaker}-198-000{number}"
            write_clip(chapter / f"{name}.flac", 0.2 + 0.1 * number, seed=number)
            lines.append(f"{name} WORD NUMBER {number}\n")
        (chapter / f"{speaker}-198.trans.txt").write_text("".join(lines))


def aishell_tree(folder):
    lines = []
    for part, speaker in (("train", "S0002"), ("dev", "S0724"), ("test", "S0764")):
        name = f"BAC009{speaker}W0122"
        write_clip(folder / "data_aishell" / "wav" / part / speaker / f"{name}.wav", 0.2)
        lines.append(f"{name} 而 对 楼市\n")
    transcript = folder / "data_aishell" / "transcript" / "aishell_transcript_v0.8.txt"
    transcript.parent.mkdir(parents=True)
    transcript.write_text("".join(lines), encoding="utf-8")


def common_voice_tree(folder):
    columns = ["client_id", "path", "sentence", "up_votes", "down_votes", "age", "gender", "accents", "variant"]
    columns += ["locale", "segment"]
    for part in ("train", "dev", "test"):
        name = f"common_voice_ru_{part}.mp3"
        write_clip(folder / "ru" / "clips" / name, 0.3)
        row = ["abc", name, 'сказал "да', "2", "0", "", "male_masculine", "", "", "ru", ""]
        (folder / "ru" / f"{part}.tsv").write_text("\t".join(columns) + "\n" + "\t".join(row) + "\n", encoding="utf-8")


def ljspeech_tree(folder):
    names = [f"LJ001-{number:04}" for number in range(1, 9)]
    for name in names:
        write_clip(folder / "wavs" / f"{name}.wav", 0.2, 22_050)
    (folder / "metadata.csv").write_text("".join(f"{name}|In 1999|In nineteen ninety-nine\n" for name in names))


def musan_tree(folder):
    for kind, source in (("music", "fma"), ("speech", "librivox"), ("noise", "free-sound")):
        for number in range(2):
            write_clip(folder / kind / source / f"{kind}-{source}-000{number}.wav", 0.2)
    lines = [f"music-fma-000{number} jazz,blues N somebody\n" for number in range(2)]
    (folder / "music" / "fma" / "ANNOTATIONS").write_text("".join(lines))


def speech_commands_tree(folder):
    main, test = folder / "speech_commands_v0.02", folder / "speech_commands_test_set_v0.02"
    for name in ("yes/0a7c_nohash_0.wav", "yes/0b7c_nohash_0.wav", "no/0a7c_nohash_0.wav"):
        write_clip(main / name, 0.2)
    for name in ("pink_noise.wav", "running_tap.wav"):
        write_clip(main / "_background_noise_" / name, 0.3)
    (main / "validation_list.txt").write_text("yes/0b7c_nohash_0.wav\n")
    (main / "testing_list.txt").write_text("no/0a7c_nohash_0.wav\n")
    for name in ("no/0a7c_nohash_0.wav", "_silence_/0.wav", "_unknown_/bed_0c7c_nohash_0.wav"):
        write_clip(test / name, 0.2)


def yesno_tree(folder):
    for number in range(60):
        write_clip(folder / ("_".join(f"{number:08b}") + ".wav"), 0.05, 8_000)


def prepared(tmp_path, corpus, make, **options):
    make(tmp_path / "corpus")
    out = tmp_path / "out"
    prepare_lhotse_corpus(corpus, str(out), data_root=str(tmp_path / "corpus"), **options)
    return {path.stem: read_manifest(path) for path in out.glob("*.jsonl")}


def test_librispeech_parts_become_the_splits_that_are_asked_for(tmp_path):
    splits = {"train": ["train-clean-5"], "val": ["dev-clean-2"], "test": ["dev-clean-2"]}
    options = {"dataset_parts": "mini_librispeech", "normalize_text": "lower"}
    found = prepared(tmp_path, "librispeech", librispeech_tree, splits=splits, options=options)
    assert {split: [r["id"] for r in records] for split, records in found.items()} == {
        "train": ["19-198-0000", "19-198-0001"],
        "val": ["1272-198-0000", "1272-198-0001"],
        "test": ["1272-198-0000", "1272-198-0001"],
    }
    record = found["train"][1]
    path = tmp_path / "corpus" / "train-clean-5" / "19" / "198" / "19-198-0001.flac"
    assert record == {
        "id": "19-198-0001",
        "audio_path": str(path),
        "duration": 0.3,
        "sample_rate": 16_000,
        "text": "word number 1",
        "speaker": "19",
        "language": "English",
        "part": "train-clean-5",
    }
    about = json.loads((tmp_path / "out" / "corpus.json").read_text())
    assert about["licence"] == "CC BY 4.0"
    assert about["splits"]["train"]["clips"] == 2
    assert about["made_with"] == {"lhotse": lhotse.__version__}
    assert AudioDataset(tmp_path / "out" / "val.jsonl", 8_000)[1]["waveform"].shape == (1, 2_400)


def test_every_part_is_a_split_where_none_is_named(tmp_path):
    found = prepared(tmp_path, "aishell", aishell_tree)
    assert {split: records[0]["text"] for split, records in found.items()} == dict.fromkeys(
        ("train", "dev", "test"), "而对楼市"
    )
    assert found["dev"][0]["speaker"] == "S0724"


@pytest.mark.slow
def test_common_voice_is_taken_by_language_and_part(tmp_path):
    # Lhotse starts a process for each part: one is enough here.
    options = {"languages": ["ru"], "splits": ["dev"]}
    found = prepared(tmp_path, "commonvoice", common_voice_tree, splits={"val": ["ru-dev"]}, options=options)
    assert list(found) == ["val"]
    record = found["val"][0]
    assert (record["text"], record["speaker"], record["language"]) == ('сказал "да', "abc", "ru")
    assert record["duration"] == pytest.approx(0.3, abs=0.1)  # MP3 has no exact length


def test_a_corpus_in_one_piece_is_split_by_a_hash_of_its_ids(tmp_path):
    shares = {"val": 0.4, "test": 0.3}
    found = prepared(tmp_path, "ljspeech", ljspeech_tree, splits={"train": ["all"]}, held_out=shares)
    ids = [r["id"] for records in found.values() for r in records]
    assert len(ids) == len(set(ids)) == 8
    assert all(found[split] for split in ("train", "val", "test"))
    assert found["train"][0]["text"] == "In 1999"
    assert found["train"][0]["normalized_text"] == "In nineteen ninety-nine"


def test_a_field_may_become_the_label(tmp_path):
    found = prepared(
        tmp_path, "musan", musan_tree, splits={"train": ["music", "speech", "noise"]}, labels={"kind": "part"}
    )
    assert [(r["id"], r["labels"]) for r in found["train"]] == [
        (f"{kind}-{source}-000{number}", {"kind": kind})
        for kind, source in (("music", "fma"), ("noise", "free-sound"), ("speech", "librivox"))
        for number in range(2)
    ]
    assert found["train"][0]["genres"] == ["jazz", "blues"]


def test_speech_commands_have_words_as_labels_and_silence_has_none(tmp_path):
    splits = {"train": ["train"], "val": ["valid"], "test": ["test"]}
    found = prepared(
        tmp_path,
        "speechcommands",
        speech_commands_tree,
        splits=splits,
        labels={"word": "text"},
        options={"speechcommands_version": "2"},
    )
    words = {split: sorted(r["labels"].get("word", "") for r in records) for split, records in found.items()}
    assert words == {"train": ["", "yes"], "val": ["", "yes"], "test": ["", "bed", "no"]}


def test_yesno_is_prepared_once(tmp_path):
    found = prepared(tmp_path, "yesno", yesno_tree)
    assert {split: len(records) for split, records in found.items()} == {"train": 30, "test": 30}
    assert found["train"][0]["text"] == "NO NO NO NO NO NO NO NO"
    before = (tmp_path / "out" / "train.jsonl").stat().st_mtime_ns
    (tmp_path / "corpus" / "0_0_0_0_0_0_0_0.wav").unlink()  # would not be prepared again
    prepare_lhotse_corpus("yesno", str(tmp_path / "out"), data_root=str(tmp_path / "corpus"))
    assert (tmp_path / "out" / "train.jsonl").stat().st_mtime_ns == before
    assert lhotse.load_manifest(tmp_path / "out" / "lhotse" / "yesno_recordings_train.jsonl.gz")


def test_lhotse_downloads_what_it_can(tmp_path):
    yesno_tree(tmp_path / "waves_yesno")
    (tmp_path / "served").mkdir()
    with tarfile.open(tmp_path / "served" / "waves_yesno.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "waves_yesno", "waves_yesno")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/waves_yesno.tar.gz"
        prepare_lhotse_corpus("yesno", str(tmp_path / "out"), str(tmp_path / "downloads"), options={"url": url})
        server.shutdown()
    record = read_manifest(tmp_path / "out" / "test.jsonl")[0]
    assert record["audio_path"].startswith(str(tmp_path / "downloads" / "yesno" / "waves_yesno"))


def test_all_corpora_of_lhotse_are_known():
    names = lhotse_corpora()
    assert len(names) >= 100
    assert {"librispeech", "aishell", "commonvoice", "gigaspeech", "vctk", "aidatatang_200zh"} <= set(names)


def test_what_is_wrong_is_said_in_a_sentence(tmp_path):
    out, root = str(tmp_path / "out"), str(tmp_path)
    for corpus, options, sentence in (
        ("librispeach", {}, r"Lhotse knows no corpus 'librispeach' \(did you mean 'librispeech'\?\)"),
        ("librispeech", {"num_job": 2}, r"options.num_job: .* no such option \(did you mean 'num_jobs'\?\)"),
        ("yesno", {}, "cannot prepare yesno .*a folder that holds the 60 files"),
        ("ljspeech", {}, "cannot prepare ljspeech .*No such file: .*metadata.csv.*metadata.csv and wavs/"),
        ("aishell", {}, r"cannot prepare aishell .*data_aishell/\{wav,transcript\}"),
        ("musan", {"parts": []}, "cannot prepare musan .*No MUSAN parts"),
        ("speechcommands", {}, "also needs options.speechcommands_version"),
        ("fisher_spanish", {}, r"takes no single folder: name them by options \(audio_dir_path"),
    ):
        with pytest.raises(UserError, match=sentence):
            prepare_lhotse_corpus(corpus, out, data_root=root, options=options)
    with pytest.raises(UserError, match=r"commonvoice: .*give data_root=DIR, a folder that holds <language>/"):
        prepare_lhotse_corpus("commonvoice", out)
    with pytest.raises(UserError, match=r"fisher_spanish: .*also needs options.audio_dir_path"):
        prepare_lhotse_corpus("fisher_spanish", out)
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"splits.val: aishell has no part 'valid' there but dev, test, train"):
        prepared(tmp_path, "aishell", aishell_tree, splits={"train": ["train"], "val": ["valid"]})
    assert not (tmp_path / "out").exists()


def test_without_lhotse_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lhotse", None)
    monkeypatch.delitem(sys.modules, "lhotse.recipes", raising=False)
    with pytest.raises(UserError, match=r"lhotse is not installed: pip install -e '.\[data\]'"):
        prepare_lhotse_corpus("yesno", str(tmp_path / "out"), data_root=str(tmp_path))


# ------------------------------------------------------------------------------------- what recipes return


def recording(tmp_path, name="a", seconds=2.0, channels=1):
    return lhotse.Recording.from_file(write_clip(tmp_path / f"{name}.wav", seconds, channels=channels))


def said(number, start, duration, channel=0, **fields):
    return lhotse.SupervisionSegment(f"s{number}", "a", start, duration, channel=channel, **fields)


def test_a_segment_becomes_a_stretch_of_its_file(tmp_path):
    recordings = lhotse.RecordingSet.from_recordings([recording(tmp_path, channels=2)])
    segments = lhotse.SupervisionSet.from_segments(
        [
            said(1, 0.5, 1.0, channel=1, text="hi", custom={"snr": 3}),
            said(2, 0.0, 1.0, [0, 1]),
            said(3, 0.0, 2.0, [0, 1]),
        ]
    )
    records = parts_of((recordings, segments))["all"]
    assert [(r.get("offset"), r["duration"], r.get("channel"), r.get("text"), r.get("snr")) for r in records] == [
        (0.5, 1.0, 1, "hi", 3),
        (0.0, 1.0, None, None, None),
        (None, 2.0, None, None, None),
    ]


def test_cuts_are_records_of_their_own_span(tmp_path):
    cut = recording(tmp_path).to_cut()
    cut.supervisions = [said(1, 0.0, 1.0, text="one"), said(2, 1.0, 1.0, text="two")]
    cuts = lhotse.CutSet.from_cuts([cut.truncate(offset=0.25, duration=1.5)])
    (record,) = parts_of({"train": {"cuts": cuts}})["train"]
    assert (record["offset"], record["duration"], record["text"]) == (0.25, 1.5, "one two")


def test_what_a_recipe_only_wrote_is_read(tmp_path):
    recordings = lhotse.RecordingSet.from_recordings([recording(tmp_path)])
    segments = lhotse.SupervisionSet.from_segments([said(1, 0.0, 2.0, text="hi")])
    (tmp_path / "own").mkdir()
    recordings.to_file(tmp_path / "own" / "slu_recordings_train.jsonl.gz")
    segments.to_file(tmp_path / "own" / "slu_supervisions_train.jsonl.gz")
    (found,) = parts_of(None, tmp_path / "own").items()
    assert found[0] == "slu_train"
    assert found[1][0]["text"] == "hi"


def test_manifests_that_change_the_audio_are_refused(tmp_path):
    fast = lhotse.RecordingSet.from_recordings([recording(tmp_path).perturb_speed(1.1)])
    with pytest.raises(UserError, match="Lhotse changes the recording"):
        parts_of({"recordings": fast})
    first, second = recording(tmp_path, "b").to_cut(), recording(tmp_path, "c").to_cut()
    with pytest.raises(UserError, match="mixed of several recordings"):
        parts_of(lhotse.CutSet.from_cuts([first.mix(second)]))
