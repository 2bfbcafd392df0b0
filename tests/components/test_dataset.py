from pathlib import Path

import pytest
import torch

from components.augment import RandomGain
from components.data import AudioDataset, AudioFiles, ConcatDataset, PadCollate, read_manifest, write_manifest
from components.data.audio import load_audio
from tests.components.clips import write_clip, write_corpus
from utils.errors import UserError

HOSTILE = Path("../shared/data/hostile_audio")
LABELS = {"word": ["no", "yes"]}


def test_an_item_has_a_waveform_and_class_ids(tmp_path):
    dataset = AudioDataset(write_corpus(tmp_path), 16_000, LABELS)
    item = dataset[0]
    assert item["id"] == "clip0"
    assert item["waveform"].shape == (1, 8_000)
    assert item["waveform"].dtype == torch.float32
    assert [dataset[i]["targets"]["word"] for i in range(3)] == [1, 0, -100]


def test_clips_are_resampled_and_mixed_down(tmp_path):
    path = write_clip(tmp_path / "a.wav", 0.5, sample_rate=44_100, channels=2)
    waveform = load_audio(path, 8_000)
    assert waveform.shape == (1, 4_000)
    assert 0.15 < waveform.std() < 0.25  # a sine of 0.3 has 0.21


def test_limits_are_counted_not_silent(tmp_path):
    dataset = AudioDataset(write_corpus(tmp_path), 16_000, min_duration=0.35, max_duration=0.45)
    assert [record["id"] for record in dataset.records] == ["clip2"]
    assert dataset.dropped == {"shorter than 0.35 s": 1, "longer than 0.45 s": 1}
    assert len(AudioDataset(write_corpus(tmp_path), 16_000, max_samples=2)) == 2
    with pytest.raises(UserError, match=r"no clip of .* is left"):
        AudioDataset(write_corpus(tmp_path), 16_000, min_duration=9)


def test_without_augmentation_nothing_is_drawn(tmp_path):
    dataset = AudioDataset(write_corpus(tmp_path), 16_000)
    before = torch.get_rng_state()
    assert dataset.deterministic
    assert dataset[0]["seed"] == 0
    assert torch.equal(before, torch.get_rng_state())


def test_a_training_item_is_a_function_of_the_generator(tmp_path):
    augment = {"gain": RandomGain(), "none": None}
    dataset = AudioDataset(write_corpus(tmp_path), 16_000, augment=augment, cache_bytes=10**6)
    assert not dataset.deterministic
    torch.manual_seed(3)
    first = dataset[0]
    other = dataset[0]
    torch.manual_seed(3)
    again = dataset[0]
    assert first["seed"] == again["seed"] != other["seed"]
    assert torch.equal(first["waveform"], again["waveform"])
    assert not torch.equal(first["waveform"], other["waveform"])


def test_the_cache_stays_within_its_bytes(tmp_path):
    manifest = write_corpus(tmp_path)
    dataset = AudioDataset(manifest, 16_000, cache_bytes=4 * 8_000 + 10)
    items = [dataset[i] for i in range(3)]
    (tmp_path / "clip0.wav").unlink()
    assert torch.equal(dataset[0]["waveform"], items[0]["waveform"])
    (tmp_path / "clip1.wav").unlink()
    with pytest.raises(UserError, match=r"clip1.wav: there is no such file"):
        dataset[1]


def test_a_truncated_file_is_noticed(tmp_path):
    manifest = write_corpus(tmp_path)
    record = read_manifest(manifest)[0] | {"duration": 2.0}
    write_manifest(manifest, [record])
    with pytest.raises(UserError, match=r"clip0.wav: it ends 1.50 s before"):
        AudioDataset(manifest, 16_000)[0]


def test_fingerprints_tell_data_apart(tmp_path):
    one = AudioDataset(write_corpus(tmp_path / "a"), 16_000).fingerprint()
    two = AudioDataset(write_corpus(tmp_path / "b", labels=("no", "no", "no")), 16_000).fingerprint()
    assert one["num_items"] == 3
    assert one["hours"] == pytest.approx(1.2 / 3600, abs=1e-4)
    assert one["sha256"] != two["sha256"]


def test_plain_files_have_no_targets(tmp_path):
    write_corpus(tmp_path)
    dataset = AudioFiles([str(tmp_path)], 8_000)
    assert len(dataset) == 3
    assert dataset[0]["targets"] == {}
    assert dataset[0]["waveform"].shape == (1, 4_000)
    assert dataset.fingerprint()["num_items"] == 3


def test_concat_by_name(tmp_path):
    parts = {name: AudioDataset(write_corpus(tmp_path / name), 16_000, LABELS) for name in "ab"}
    dataset = ConcatDataset(parts | {"c": None})
    assert len(dataset) == len(dataset.durations) == 6
    assert dataset[4]["id"] == "clip1"
    assert dataset.deterministic
    assert set(dataset.fingerprint()) == {"a", "b"}
    training = AudioDataset(tmp_path / "a" / "clips.jsonl", 16_000, augment={})
    assert not ConcatDataset([parts["a"], training]).deterministic
    with pytest.raises(UserError, match="at least one dataset"):
        ConcatDataset({})


def test_collate_pads_and_remembers_lengths(tmp_path):
    dataset = AudioDataset(write_corpus(tmp_path), 16_000, LABELS)
    batch = PadCollate()([dataset[i] | {"f0": torch.ones(i + 1)} for i in range(3)])
    assert batch["id"] == ["clip0", "clip1", "clip2"]
    assert batch["waveform"].shape == (3, 1, 8_000)
    assert batch["audio_lens"].tolist() == [8_000, 4_800, 6_400]
    assert batch["waveform"][1, 0, 4_800:].abs().sum() == 0
    assert torch.equal(batch["targets"]["word"], torch.tensor([1, 0, -100]))
    assert batch["seed"].dtype == torch.int64
    assert batch["f0_lens"].tolist() == [1, 2, 3]


@pytest.mark.skipif(not HOSTILE.is_dir(), reason="needs the shared hostile audio")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("zero_frames.wav", "no samples"),
        ("empty_file.wav", "it is empty"),
        ("nan_inf_float32.wav", "NaN or infinite"),
        ("text_content.wav", "it is a web page"),
        ("git_lfs_pointer.flac", "git lfs pull"),
        ("aac.m4a", "AAC"),
        ("flac_bitrot.flac", "decoder"),
        ("directory.wav", "folder"),
        ("rate_1hz.wav", "1 Hz"),
        ("nowhere.wav", "no such file"),
    ],
)
def test_unreadable_audio_is_one_sentence(name, reason):
    with pytest.raises(UserError, match=rf"{name}: .*{reason}"):
        load_audio(HOSTILE / name, 16_000)
