import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from components.data import AudioDataset, PadCollate, read_manifest, write_manifest
from components.data.__main__ import main
from components.data.extract import plan_batches, plan_shards
from components.data.extractor import Extractor
from components.data.precomputed import PrecomputedDataset
from components.features import LogMel
from components.features.statistics import FeatureStatistics
from tests.components.clips import write_clip, write_corpus
from tests.components.extractors import Autoencoder, Frames
from utils.errors import BadSample, UserError

HERE = "tests.components.extractors"
LOG_MEL = ["--extractor", "components.features.LogMel", "sample_rate=16000", "n_mels=8"]
SECONDS = (0.5, 0.3, 0.4, 0.31, 0.52, 0.25, 0.33)


def extract(manifest, out, *options) -> int:
    return main(["extract", str(manifest), str(out), "--device=cpu", *(options or LOG_MEL)])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def as_many_threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def corpus(tmp_path) -> Path:
    return write_corpus(tmp_path / "corpus", SECONDS, ["yes", "no", "maybe"] * 2 + ["yes"])


# ---------------------------------------------------------------------------------------------------------------- plan


def test_shards_are_stretches_that_cover_every_clip_once():
    durations = np.random.default_rng(0).uniform(0.1, 30, 200)
    shards = plan_shards(durations, 60)
    assert [index for shard in shards for index in shard] == list(range(200))
    assert all(durations[shard[:-1]].sum() < 60 for shard in map(list, shards))
    assert plan_shards([100, 100, 100], 10) == [range(0, 1), range(1, 2), range(2, 3)]


def test_batches_hold_clips_of_like_length_within_their_budget():
    durations = [3.0, 1.0, 1.1, 50.0, 2.9, 1.2]
    batches = plan_batches(range(6), durations, 6.0)
    assert batches == [[1, 2, 5], [4, 0], [3]]


# ----------------------------------------------------------------------------------------------------------- extractor


def test_padding_and_company_change_nothing():
    extractor = Extractor(LogMel(16_000))
    clips = [torch.randn(1, samples) for samples in (5_000, 3_210, 160)]
    for together, clip in zip(extractor(clips), clips):
        assert torch.allclose(together, extractor([clip])[0], atol=1e-5)


def test_an_autoencoder_without_lengths_gives_the_mode_of_its_latents():
    extractor = Extractor(Autoencoder())
    assert not extractor.knows_lengths
    waveform = torch.randn(1, 1_000)
    (latents,) = extractor([waveform])
    assert latents.shape == (10, 4)
    assert torch.allclose(latents[:, 0], waveform.view(10, 100).mean(-1))


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (lambda waveform, lens: waveform, "returns a Tensor, not"),
        (lambda waveform, lens: (waveform[:, 0], lens), r"tensors of shapes \[1, 100\], \[1\]"),
        (SimpleNamespace(encode=lambda waveform: [1]), "encode returns a list"),
        (SimpleNamespace(), "can not be called"),
    ],
)
def test_another_form_of_result_is_refused(module, sentence):
    with pytest.raises(UserError, match=sentence):
        Extractor(module)([torch.zeros(1, 100)])


# ------------------------------------------------------------------------------------------------------------- command


def test_features_are_those_of_each_clip_and_records_keep_their_keys(corpus, tmp_path, capsys):
    assert extract(corpus, tmp_path / "out", *LOG_MEL, "--shard-seconds=1", "--batch-seconds=1") == 0
    assert "7 clips, 268 frames of 8 features in 3 shards, 0 clips left out" in capsys.readouterr().out
    frontend, clips = LogMel(16_000, n_mels=8), AudioDataset(corpus, 16_000)
    dataset = PrecomputedDataset(tmp_path / "out" / "manifest.jsonl", labels={"word": ["no", "yes"]})
    everything = []
    for i, record in enumerate(read_manifest(corpus)):
        waveform = clips[i]["waveform"]
        features, lens = frontend(waveform.unsqueeze(0), torch.tensor([waveform.shape[-1]]))
        item = dataset[i]
        assert item["id"] == record["id"]
        assert item["num_frames"] == int(lens[0]) == dataset.records[i]["num_frames"]
        assert torch.allclose(item["features"], features[0], atol=1e-5)
        assert {**dataset.records[i], **record, "audio_path": ""} == {**dataset.records[i], "audio_path": ""}
        assert Path(dataset.records[i]["audio_path"]) == corpus.parent / record["audio_path"]
        everything.append(item["features"].double())
    assert [dataset[i]["targets"]["word"] for i in range(3)] == [1, 0, -100]
    stats, frames = json.loads((tmp_path / "out" / "stats.json").read_text()), torch.cat(everything)
    assert np.allclose(stats["mean"], frames.mean(0), rtol=1e-12)
    assert np.allclose(stats["std"], frames.std(0, correction=0), rtol=1e-12)
    overall = [stats["overall_mean"], stats["overall_std"], stats["num_frames"]]
    assert np.allclose(overall, [frames.mean(), frames.std(correction=0), len(frames)], rtol=1e-12)
    assert FeatureStatistics.load(tmp_path / "out" / "stats.json").mean == stats["mean"]


def test_latents_in_half_precision(corpus, tmp_path):
    records = [*read_manifest(corpus), read_manifest(corpus)[0] | {"id": "again"}]
    write_manifest(corpus, records)
    assert extract(corpus, tmp_path / "out", "--extractor", f"{HERE}.Autoencoder", "--dtype=bfloat16") == 0
    dataset = PrecomputedDataset(tmp_path / "out" / "manifest.jsonl")
    assert (len(dataset), dataset.num_features, dataset[0]["features"].dtype) == (8, 4, torch.float32)
    assert torch.equal(dataset[0]["features"], dataset[0]["features"].bfloat16().float())
    assert torch.equal(dataset[0]["features"], dataset[7]["features"])


def test_an_extractor_from_a_file(corpus, tmp_path):
    node = tmp_path / "node.yaml"
    node.write_text(
        "sample_rate: 8000\n"
        "extractor: {_target_: components.features.LogMel, sample_rate: '${sample_rate}', n_mels: 8}\n"
    )
    assert extract(corpus, tmp_path / "out", "--extractor", str(node), "n_mels=6") == 0
    assert PrecomputedDataset(tmp_path / "out" / "manifest.jsonl").num_features == 6
    made = json.loads((tmp_path / "out" / "extractor.json").read_text())
    assert (made["sample_rate"], made["extractor"]["sample_rate"], made["extractor"]["n_mels"]) == (8_000, 8_000, 6)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--extractor", "nothing"], "neither a YAML file, nor a dotted name, nor one of .*log_mel"),
        (["--extractor", "nowhere.yaml"], "cannot read nowhere.yaml"),
        (["--extractor", "components.features.LogMell"], "did you mean 'LogMel'"),
        (["--extractor", "components.features.LogMel", "sample_rate=16000", "hop=3"], "extractor.hop"),
        (["--extractor", f"{HERE}.Frames", "--shard=2/2"], "is not I/N"),
        (["--extractor", "log_mel"], "give --sample-rate HZ"),
        (["--extractor", "log_mel", "--sample-rate=16000", "n_mels"], "'n_mels': expected key=value"),
        (["--extractor", "log_mel", "--sample-rate=16000", "f_max=9000"], "do not fit into a sample rate of 16000 Hz"),
        (["--extractor", "torch.nn.Identity"], "says no sample rate: give --sample-rate"),
        (["--extractor", f"{HERE}.Frames", "longest=10"], "could use none of 7 clips.* more than 10 samples"),
    ],
)
def test_a_mistake_is_one_sentence(corpus, tmp_path, capsys, options, sentence):
    assert extract(corpus, tmp_path / "out", *options) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("error: ")
    assert len(told.splitlines()) == 1
    assert re.search(sentence, told), told


def test_bad_clips_are_left_out_counted_and_listed(corpus, tmp_path, capsys):
    records = read_manifest(corpus)
    (corpus.parent / "clip1.wav").unlink()
    write_clip(corpus.parent / "clip2.wav", 0.1)
    write_manifest(corpus, records)
    with corpus.open("a") as file:
        file.write("{half a line\n")
    assert extract(corpus, tmp_path / "out", "--extractor", f"{HERE}.Frames", "longest=8100") == 0
    assert "4 clips" in (told := capsys.readouterr().out)
    assert "4 clips left out" in told
    bad = [json.loads(line) for line in (tmp_path / "out" / "bad_samples.jsonl").read_text().splitlines()]
    assert [clip["id"] for clip in bad[1:]] == ["clip1", "clip2", "clip4"]
    assert bad[2]["reason"] == "truncated"
    assert bad[3]["reason"] == "extractor failed"
    assert bad[3]["source"].endswith("clip4.wav")
    assert all(set(clip) == {"id", "source", "reason", "detail"} for clip in bad)
    assert len(PrecomputedDataset(tmp_path / "out" / "manifest.jsonl")) == 4


def test_values_too_large_for_their_dtype_are_no_features(corpus, tmp_path, capsys):
    options = ["--extractor", f"{HERE}.Frames", "value=70000"]
    assert extract(corpus, tmp_path / "half", *options, "--dtype=float16") == 2
    assert "not finite in float16" in capsys.readouterr().err
    assert extract(corpus, tmp_path / "brain", *options, "--dtype=bfloat16") == 0


# -------------------------------------------------------------------------------------------------- shares and resuming


def test_shares_by_number_or_by_a_launcher_make_the_same_files(corpus, tmp_path, monkeypatch):
    options = [*LOG_MEL, "--shard-seconds=0.5"]
    assert extract(corpus, tmp_path / "one", *options) == 0
    for share in ("2/3", "0/3", "1/3"):
        assert not (tmp_path / "three" / "manifest.jsonl").exists()
        assert extract(corpus, tmp_path / "three", *options, f"--shard={share}") == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert extract(corpus, tmp_path / "two", *options) == 0
    assert len(contents(tmp_path / "one")) == 2 * 5 + 4
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "three")


def test_a_second_run_keeps_whole_shards_and_makes_damaged_ones_anew(corpus, tmp_path):
    options, out = [*LOG_MEL, "--shard-seconds=0.5"], tmp_path / "out"
    assert extract(corpus, out, *options) == 0
    before = contents(out)
    times = {path: path.stat().st_mtime_ns for path in out.glob("shards/*.safetensors")}
    damaged, cut, lost = sorted(times)[:3]
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    cut.write_bytes(cut.read_bytes()[:-100])
    lost.unlink()
    (out / "shards" / ".00000.safetensors.elsewhere.7.partial").write_bytes(b"of a killed process")
    assert extract(corpus, out, *options) == 0
    assert contents(out) == before
    again = {path for path, at in times.items() if path.stat().st_mtime_ns != at}
    assert again == {damaged, cut, lost}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["n_mels=9"], "another extractor"),
        (["--dtype=float16"], "another dtype"),
        (["--sample-rate=8000"], "another sample rate"),
        (["--shard-seconds=3"], "another --shard-seconds"),
    ],
)
def test_other_settings_in_one_folder_are_refused(corpus, tmp_path, capsys, options, sentence):
    assert extract(corpus, tmp_path / "out", *LOG_MEL) == 0
    before = contents(tmp_path / "out")
    assert extract(corpus, tmp_path / "out", *LOG_MEL, *options) == 2
    assert f"holds features of {sentence}" in capsys.readouterr().err
    assert contents(tmp_path / "out") == before


def test_other_clips_or_weights_in_one_folder_are_refused(corpus, tmp_path, capsys, monkeypatch):
    options = ["--extractor", f"{HERE}.Frames"]
    assert extract(corpus, tmp_path / "out", *options) == 0
    monkeypatch.setattr(Frames, "__init__", lambda self: nn.Module.__init__(self) or setattr(self, "weight", 1))
    monkeypatch.setattr(Frames, "seconds", 0, raising=False)
    assert extract(corpus, tmp_path / "out", *options) == 2
    assert "other code or weights" in capsys.readouterr().err
    monkeypatch.undo()
    write_manifest(corpus, read_manifest(corpus)[:-1])
    assert extract(corpus, tmp_path / "out", *options) == 2
    assert "other clips" in capsys.readouterr().err


def command(corpus: Path, out: Path, *options: str, launcher: tuple[str, ...] = ()) -> list[str]:
    start = [*launcher, "-m", "components.data"] if launcher else [sys.executable, "-m", "components.data"]
    return [*start, "extract", str(corpus), str(out), "--device=cpu", "--shard-seconds=0.5", *options]


@pytest.mark.slow
def test_processes_make_the_same_files(corpus, tmp_path):
    assert extract(corpus, tmp_path / "one", *LOG_MEL, "--shard-seconds=0.5") == 0
    subprocess.run(command(corpus, tmp_path / "two", *LOG_MEL, "--num-processes=2", "--num-workers=1"), check=True)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2")
    subprocess.run(command(corpus, tmp_path / "launched", *LOG_MEL, launcher=torchrun), check=True)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "launched")


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["all", "child"])
def test_killed_processes_leave_whole_shards_and_the_same_command_goes_on(tmp_path, victim):
    corpus = write_corpus(tmp_path / "corpus", [0.5] * 12, ["yes"] * 12)
    options = ["--extractor", f"{HERE}.Frames", "seconds=0.2", "--num-processes=2"]
    out = tmp_path / "out"
    running = subprocess.Popen(
        command(corpus, out, *options), start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while len(list(out.glob("shards/*.json"))) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if victim == "all":
        os.killpg(running.pid, signal.SIGKILL)
    else:
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
    _, told = running.communicate(timeout=60)
    assert running.returncode == (-signal.SIGKILL if victim == "all" else 2), told
    assert victim == "all" or "was killed by signal 9; the shards that are done stay" in told
    times = {path: path.stat().st_mtime_ns for path in out.glob("shards/*.json")}
    assert 3 <= len(times) < 12
    assert not (out / "manifest.jsonl").exists()
    options = [*options[:3], "--shard-seconds=0.5"]
    assert extract(corpus, out, *options) == 0
    assert all(path.stat().st_mtime_ns == at for path, at in times.items())
    assert extract(corpus, tmp_path / "whole", *options) == 0
    assert contents(out) == contents(tmp_path / "whole")


# ------------------------------------------------------------------------------------------------------------- dataset


@pytest.fixture
def extracted(corpus, tmp_path) -> Path:
    assert extract(corpus, tmp_path / "out", *LOG_MEL, "--shard-seconds=1") == 0
    return tmp_path / "out" / "manifest.jsonl"


def test_a_crop_is_a_piece_and_is_keyed_by_the_generator(extracted):
    whole = PrecomputedDataset(extracted, fields=["labels"])
    dataset = PrecomputedDataset(extracted, crop_frames=30, training=True)
    assert whole.deterministic
    assert not dataset.deterministic
    assert dataset.num_frames.tolist() == [30, 30, 30, 30, 30, 26, 30]
    places = set()
    for seed in range(20):
        torch.manual_seed(seed)
        item = dataset[0]
        torch.manual_seed(seed)
        again = dataset[0]
        assert item["seed"] == again["seed"] > 0
        assert torch.equal(item["features"], again["features"])
        frames = whole[0]["features"].unfold(0, 30, 1).mT
        (found,) = [i for i, piece in enumerate(frames) if torch.equal(piece, item["features"])]
        places.add(found)
    assert len(places) > 5
    assert len(dataset[5]["features"]) == 26


def test_without_training_nothing_is_drawn(extracted):
    dataset = PrecomputedDataset(extracted, crop_frames=30)
    before = torch.get_rng_state()
    item = dataset[0]
    assert torch.equal(before, torch.get_rng_state())
    assert (item["seed"], item["num_frames"]) == (0, 30)
    assert torch.equal(item["features"], PrecomputedDataset(extracted)[0]["features"][:30])


def test_items_make_a_batch_and_travel_to_workers(extracted):
    dataset = PrecomputedDataset(extracted, fields=["sample_rate"])
    dataset[0]
    copy = pickle.loads(pickle.dumps(dataset))
    batch = PadCollate()([copy[i] for i in range(3)])
    assert batch["features"].shape == (3, 51, 8)
    assert batch["feature_lens"].tolist() == batch["num_frames"].tolist() == [51, 31, 41]
    assert np.allclose(dataset.durations, SECONDS)
    assert dataset.fingerprint() == copy.fingerprint()
    assert dataset.fingerprint()["num_frames"] == 268


def test_the_folder_can_move_and_the_audio_go(extracted, corpus, tmp_path):
    features = PrecomputedDataset(extracted)[0]["features"]
    for clip in corpus.parent.glob("*.wav"):
        clip.unlink()
    moved = extracted.parent.rename(tmp_path / "elsewhere") / "manifest.jsonl"
    assert torch.equal(PrecomputedDataset(moved)[0]["features"], features)


def test_a_clip_without_a_field_is_left_out_and_listed(extracted):
    records = read_manifest(extracted)
    records[1]["text"] = "hello"
    write_manifest(extracted, records)
    dataset = PrecomputedDataset(extracted, fields=["text"])
    assert [dataset[i]["text"] for i in range(len(dataset))] == ["hello"]
    assert [bad["id"] for bad in dataset.bad_samples] == ["clip0", *(f"clip{i}" for i in range(2, 7))]
    with pytest.raises(UserError, match=r"no clip of .* is left: .* has no 'speaker'"):
        PrecomputedDataset(extracted, fields=["speaker"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_frames": 52}, r"has features \[51, 8\] in .*, not \[52, 8\]"),
        ({"features_path": "shards/00009.safetensors"}, "which is missing"),
        ({"features_key": "clip9"}, "can not be found"),
        ({"features_path": None}, "no manifest of extracted features"),
    ],
)
def test_a_manifest_that_does_not_fit_its_shards_is_refused(extracted, change, sentence):
    records = read_manifest(extracted)
    records[0] = {name: value for name, value in (records[0] | change).items() if value is not None}
    write_manifest(extracted, records)
    with pytest.raises(UserError, match=sentence):
        PrecomputedDataset(extracted)


def test_a_damaged_shard_is_refused_at_once_or_a_bad_sample_later(extracted):
    dataset = PrecomputedDataset(extracted)
    shard = extracted.parent / "shards" / "00000.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    fresh = pickle.loads(pickle.dumps(dataset))
    with pytest.raises(BadSample, match="cannot read the features of clip0") as caught:
        fresh[0]
    assert (caught.value.sample_id, caught.value.reason) == ("clip0", "damaged features")
    with pytest.raises(UserError, match="can not be found in"):
        PrecomputedDataset(extracted)


def test_features_that_are_not_finite_are_a_bad_sample(extracted):
    from safetensors.torch import load_file, save_file

    shard = extracted.parent / "shards" / "00000.safetensors"
    tensors = load_file(shard)
    tensors["clip1"] = tensors["clip1"].clone().fill_(float("nan"))
    save_file(tensors, shard)
    dataset = PrecomputedDataset(extracted)
    dataset[0]
    with pytest.raises(BadSample, match="they are not finite"):
        dataset[1]


def test_a_field_of_blanks_is_none(extracted):
    records = read_manifest(extracted)
    for record in records:
        record["text"] = "hello" if record["id"] == "clip1" else "  "
    write_manifest(extracted, records)
    assert len(PrecomputedDataset(extracted, fields=["text"])) == 1
