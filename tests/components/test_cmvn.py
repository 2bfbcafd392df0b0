"""`python -m components.data cmvn`."""

import json

import numpy as np
import pytest
import soundfile
import torch
import yaml

from components.data import read_manifest, write_manifest
from components.data.__main__ import main
from components.data.cmvn import evenly_spaced, frontend_node
from components.features import FeaturePipeline, GlobalCmvn, KaldiFbank, StackFrames
from components.features.statistics import FeatureStatistics
from tests.components.clips import write_corpus
from utils.errors import UserError

FBANK = ("--frontend", "kaldi_fbank", "--sample-rate", "16000")


def cmvn(*arguments) -> int:
    return main(["cmvn", *map(str, arguments)])


def all_frames(folder, frontend) -> torch.Tensor:
    """Every frame of the corpus, each clip alone, in float64."""
    pieces = []
    for i in range(3):
        samples, _ = soundfile.read(folder / f"clip{i}.wav", dtype="float32")
        waveform = torch.from_numpy(samples).view(1, 1, -1)
        pieces.append(frontend(waveform, torch.tensor([len(samples)]))[0][0])
    return torch.cat(pieces).double()


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_statistics_are_those_of_all_frames_at_once(tmp_path, capsys, suffix):
    out = tmp_path / f"cmvn.{suffix}"
    assert cmvn(write_corpus(tmp_path), out, "n_mels=20", *FBANK) == 0
    frames, found = all_frames(tmp_path, KaldiFbank(16_000, n_mels=20)), FeatureStatistics.load(out)
    assert found.num_frames == len(frames) == 48 + 28 + 38
    np.testing.assert_allclose(found.mean, frames.mean(0), rtol=1e-9)
    np.testing.assert_allclose(found.var, frames.var(0, unbiased=False), rtol=1e-7)
    assert found.made_of["frontend"]["n_mels"] == 20
    assert found.made_of["num_clips"] == 3
    assert found.made_of["seconds"] == pytest.approx(1.2)
    assert "3 clips" in (told := capsys.readouterr().out)
    assert "114 frames of 20 features, 0 left out" in told


def test_features_normalised_by_their_own_statistics_are_standard(tmp_path):
    cmvn(write_corpus(tmp_path), tmp_path / "cmvn.json", "n_mels=20", *FBANK)
    pipeline = FeaturePipeline(KaldiFbank(16_000, n_mels=20), {"cmvn": GlobalCmvn(str(tmp_path / "cmvn.json"))})
    frames = all_frames(tmp_path, pipeline)
    torch.testing.assert_close(frames.mean(0), torch.zeros(20).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(frames.var(0, unbiased=False), torch.ones(20).double(), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing(tmp_path):
    manifest = write_corpus(tmp_path)
    for processes in (1, 2):
        assert cmvn(manifest, tmp_path / f"{processes}.json", *FBANK, "--num-processes", processes) == 0
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()


def test_bad_clips_are_left_out_named_and_counted(tmp_path, capsys):
    manifest = write_corpus(tmp_path)
    records = [{**record, "audio_path": str(tmp_path / record["audio_path"])} for record in read_manifest(manifest)]
    (tmp_path / "empty.wav").write_bytes(b"")
    soundfile.write(tmp_path / "nan.wav", np.full(8_000, np.nan, dtype="float32"), 16_000, subtype="FLOAT")
    for name in ("empty", "nan", "absent"):
        records.insert(1, {**records[0], "id": name, "audio_path": str(tmp_path / f"{name}.wav")})
    write_manifest(tmp_path / "mixed.jsonl", records)
    assert cmvn(tmp_path / "mixed.jsonl", tmp_path / "mixed.json", *FBANK) == 0
    out, err = capsys.readouterr()
    assert "3 clips" in out
    assert "3 left out" in out
    assert err.count("left out:") == 3
    assert all(f"{name}.wav" in err for name in ("empty", "nan", "absent"))
    cmvn(manifest, tmp_path / "clean.json", *FBANK)
    mixed, clean = (FeatureStatistics.load(tmp_path / f"{name}.json") for name in ("mixed", "clean"))
    assert (mixed.mean, mixed.var, mixed.num_frames) == (clean.mean, clean.var, clean.num_frames)


def test_a_collection_without_a_usable_clip_is_an_error(tmp_path, capsys):
    manifest = write_corpus(tmp_path)
    for i in range(3):
        (tmp_path / f"clip{i}.wav").unlink()
    assert cmvn(manifest, tmp_path / "cmvn.json", *FBANK) == 2
    assert "none of 3 clips could be used; the first: " in capsys.readouterr().err
    assert not (tmp_path / "cmvn.json").exists()


def test_fewer_clips_are_spread_over_the_manifest(tmp_path):
    assert evenly_spaced(10, 3) == [0, 3, 6]
    assert evenly_spaced(3, 10) == evenly_spaced(3, None) == [0, 1, 2]
    cmvn(write_corpus(tmp_path), tmp_path / "cmvn.json", *FBANK, "--max-clips", 2)
    assert json.loads((tmp_path / "cmvn.json").read_text())["made_of"]["num_clips"] == 2


def test_a_frontend_of_ones_own_file_says_its_sample_rate_itself(tmp_path):
    node = {"_target_": "components.features.Mfcc", "sample_rate": 8_000, "num_ceps": 10}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(node))
    assert cmvn(write_corpus(tmp_path), tmp_path / "cmvn.json", "--frontend", tmp_path / "mine.yaml") == 0
    assert len(FeatureStatistics.load(tmp_path / "cmvn.json").mean) == 10
    with pytest.raises(UserError, match="its sample rate is 8000 Hz, --sample-rate 16000"):
        frontend_node(str(tmp_path / "mine.yaml"), 16_000)


def test_a_pipeline_is_cut_where_it_needs_the_statistics(tmp_path):
    """The config of a run that is yet to be: its statistics file is what this command makes."""
    config = {
        "sample_rate": 16_000,
        "model": {
            "frontend": {
                "_target_": "components.features.FeaturePipeline",
                "frontend": {
                    "_target_": "components.features.KaldiFbank",
                    "sample_rate": "${sample_rate}",
                    "n_mels": 20,
                },
                "transforms": {
                    "stack": {"_target_": "components.features.StackFrames"},
                    "cmvn": {"_target_": "components.features.GlobalCmvn", "statistics": str(tmp_path / "cmvn.json")},
                    "again": {"_target_": "components.features.StackFrames"},
                },
            }
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    manifest = write_corpus(tmp_path)
    assert cmvn(manifest, tmp_path / "cmvn.json", "--frontend", tmp_path / "config.yaml") == 0
    frames = all_frames(tmp_path, FeaturePipeline(KaldiFbank(16_000, n_mels=20), {"stack": StackFrames()}))
    np.testing.assert_allclose(FeatureStatistics.load(tmp_path / "cmvn.json").mean, frames.mean(0), rtol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("out.txt", *FBANK), r"a .json or .safetensors file, not out.txt"),
        (("out.json", "--frontend", "kaldi_fbank"), "give --sample-rate HZ"),
        (("out.json", "--frontend", "fbank", "--sample-rate", "16000"), "nor one of kaldi_fbank, "),
        (("out.json", "--frontend", "absent.yaml"), "cannot read absent.yaml: No such file"),
        (("out.json", "n_mel=40", *FBANK), "unknown argument of components.features.KaldiFbank (did you mean"),
        (("out.json", "n_mels", *FBANK), "'n_mels': expected key=value"),
        (("out.json", "window=square", *FBANK), "window: expected one of povey"),
        (("/proc/nowhere/out.json", *FBANK), "cannot write /proc/nowhere/out.json"),
        (("out.json", "--frontend", "components.features.LogMel"), "frontend.sample_rate: missing"),
        (("out.json", "--frontend", "whisper", "--sample-rate", "8000"), "defined at 16000 Hz, not at 8000 Hz"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(tmp_path, capsys, arguments, sentence):
    assert cmvn(write_corpus(tmp_path), *arguments) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert "Traceback" not in err


@pytest.mark.parametrize("name", ["log_mel", "kaldi_fbank", "kaldi_fbank_lfr", "whisper", "mel", "mfcc"])
def test_every_shipped_frontend_can_be_named(name):
    node, sample_rate = frontend_node(name, 16_000)
    assert sample_rate == 16_000
    assert node["_target_"].startswith("components.features.")
