"""Augmentation with recordings: noises and impulse responses."""

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from components.augment import AddNoiseFromFiles, Reverb
from components.augment.level import active_power
from components.augment.recordings import _fast_size, convolve, direct_path
from components.augment.sound_files import find_sounds, warn_once
from components.data import write_manifest
from tests.components.clips import write_clip
from utils.errors import UserError

RATE = 16_000
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the shared recordings")


@pytest.fixture(autouse=True)
def forget_warnings():
    warn_once.cache_clear()


@pytest.fixture
def speech():
    """A second of something between two pauses."""
    clip = torch.zeros(1, RATE)
    clip[:, 4_000:12_000] = 0.1 * torch.randn(1, 8_000)
    return clip


def snr_db(clip, noisy, rate=RATE):
    noise = (noisy - clip).numpy()
    return 10 * np.log10(active_power(clip.numpy(), rate) / active_power(noise, rate))


def write_noise(path, seconds, rate=RATE, channels=1, subtype="PCM_16"):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(0).standard_normal((round(seconds * rate), channels)) * 0.1
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def test_the_active_part_leaves_pauses_out(speech):
    assert active_power(speech.numpy(), RATE) == pytest.approx(0.01, rel=0.1)
    assert active_power(np.zeros((1, RATE), np.float32), RATE) == 0
    assert active_power(np.full((1, 1), 0.5, np.float32), RATE) == 0.25


@pytest.mark.parametrize("ratio", [-5.0, 0.0, 12.5, 40.0])
@pytest.mark.parametrize(
    ("seconds", "rate", "channels", "subtype"),
    [(3.0, RATE, 1, "PCM_16"), (0.3, RATE, 1, "PCM_16"), (2.0, 44_100, 2, "PCM_24"), (0.7, 8_000, 8, "FLOAT")],
)
def test_noise_of_any_format_has_the_ratio_asked_for(tmp_path, speech, ratio, seconds, rate, channels, subtype):
    path = write_noise(tmp_path / "noise.wav", seconds, rate, channels, subtype)
    noisy = AddNoiseFromFiles(str(path), ratio, ratio, p=1.0)(speech, RATE)
    assert noisy.shape == speech.shape
    assert noisy.dtype == torch.float32
    assert snr_db(speech, noisy) == pytest.approx(ratio, abs=0.1)


def test_a_piece_is_read_from_a_random_place_and_a_short_noise_is_repeated_from_one(tmp_path):
    ramp = np.arange(1, 32_001) / 40_000
    soundfile.write(tmp_path / "ramp.wav", ramp, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "short.wav", ramp[:100], RATE, subtype="FLOAT")
    clip = torch.ones(1, 1_000)
    long, short = (
        {int(add[0].argmax()) for add in added(tmp_path / f"{name}.wav", clip)} for name in ("ramp", "short")
    )
    assert long == {999}
    assert len(short) > 10
    starts = {round(float(add[0, 0] / (add[0, 1] - add[0, 0]))) for add in added(tmp_path / "ramp.wav", clip)}
    assert len(starts) > 15
    looped = next(added(tmp_path / "short.wav", clip))[0]
    torch.testing.assert_close(looped[:900], looped[100:], atol=1e-5, rtol=1e-4)


def added(path, clip):
    step = AddNoiseFromFiles(path, 0, 0, p=1.0)
    for _ in range(30):
        yield step(clip, RATE) - clip


def test_silence_on_either_side_adds_nothing(tmp_path, speech):
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    write_noise(tmp_path / "noise.wav", 1)
    silence = torch.zeros(1, 800)
    assert torch.equal(AddNoiseFromFiles(tmp_path / "silent.wav", p=1.0)(speech, RATE), speech)
    assert torch.equal(AddNoiseFromFiles(tmp_path / "noise.wav", p=1.0)(silence, RATE), silence)
    assert torch.equal(AddNoiseFromFiles(tmp_path / "noise.wav", p=0.0)(speech, RATE), speech)


def test_files_folders_and_manifests_are_found_in_one_order(tmp_path):
    for name in ("b/2.wav", "a/1.flac", "c.wav"):
        write_noise(tmp_path / name, 0.5)
    whole = find_sounds(tmp_path, "noises")
    assert [Path(sound.path).name for sound in whole] == ["1.flac", "2.wav", "c.wav"]
    assert find_sounds([tmp_path / "c.wav", tmp_path / "b", tmp_path / "a" / "1.flac"], "noises") == whole
    record = {"id": "n", "audio_path": "c.wav", "duration": 0.25, "sample_rate": RATE, "offset": 0.125, "channel": 0}
    write_manifest(tmp_path / "noises.jsonl", [record])
    (sound,) = find_sounds(tmp_path / "noises.jsonl", "noises")
    assert (sound.first_frame, sound.num_frames, sound.channel) == (2_000, 4_000, 0)


def test_what_can_not_be_opened_is_left_out_by_name(tmp_path, caplog):
    write_noise(tmp_path / "good.wav", 0.5)
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.flac").write_text("no sound here, but a text")
    soundfile.write(tmp_path / "none.wav", np.zeros(0), RATE)
    (tmp_path / "folder.wav").mkdir()
    with caplog.at_level(logging.WARNING):
        step = AddNoiseFromFiles(tmp_path)
    assert [Path(noise.path).name for noise in step.noises] == ["good.wav"]
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("3 noises left out: ")
    assert all(name in message for name in ("empty.wav", "text.flac", "none.wav"))


def test_nothing_usable_is_one_sentence(tmp_path):
    (tmp_path / "text.wav").write_text("text")
    with pytest.raises(UserError, match=r"no impulse responses that can be read in .*"):
        Reverb(tmp_path)
    with pytest.raises(UserError, match=r"nowhere, which should hold noises, does not exist"):
        AddNoiseFromFiles([tmp_path / "nowhere"])
    with pytest.raises(UserError, match=r"smallest ratio in dB, 9, is above"):
        AddNoiseFromFiles(tmp_path, 9, 3)


def test_a_file_that_does_not_decode_gives_way_to_the_next_drawn(tmp_path, speech, caplog):
    write_noise(tmp_path / "good.wav", 2)
    broken = write_noise(tmp_path / "broken.flac", 2)
    broken.write_bytes(broken.read_bytes()[:200] + bytes(60_000))
    step = AddNoiseFromFiles(tmp_path, 10, 10, p=1.0)
    assert len(step.noises) == 2

    def run(keys):
        for key in keys:
            torch.manual_seed(key)
            yield key, step(speech, RATE)

    first, again = dict(run(range(12))), dict(run(reversed(range(12))))
    for key, noisy in first.items():
        assert torch.equal(noisy, again[key])
        assert snr_db(speech, noisy) == pytest.approx(10, abs=0.1)
    assert sum("broken.flac" in record.getMessage() for record in caplog.records) == 1
    (tmp_path / "good.wav").unlink()
    with pytest.raises(UserError, match="10 files drawn for augmentation in a row"):
        list(run([0]))


@pytest.mark.parametrize("length", [1, 2, 300, RATE])
@pytest.mark.parametrize("channels", [1, 2])
def test_edges_of_length(tmp_path, length, channels):
    write_noise(tmp_path / "noise.wav", 0.2, 44_100)
    write_response(tmp_path / "room.wav", 44_100)
    clip = torch.rand(channels, length)
    for step in (AddNoiseFromFiles(tmp_path / "noise.wav", p=1.0), Reverb(tmp_path / "room.wav", p=1.0)):
        made = step(clip, RATE)
        assert made.shape == clip.shape
        assert made.dtype == torch.float32
        assert made.isfinite().all()


@pytest.mark.parametrize("make", [AddNoiseFromFiles, Reverb])
def test_results_follow_the_key_alone_also_when_pickled_and_with_other_threads(tmp_path, make):
    for i in range(4):
        write_response(tmp_path / f"{i}.wav", 8_000 * (1 + i))
    step, clip = make(str(tmp_path), p=0.8), torch.randn(1, 50_000)
    copy, before = pickle.loads(pickle.dumps(step)), torch.get_num_threads()

    def made(step, keys):
        return {key: (torch.manual_seed(key), step(clip, RATE))[1] for key in keys}

    one = made(step, range(10))
    try:
        torch.set_num_threads(3)
        other = made(copy, [7, *range(10)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert len({clip.numpy().tobytes() for clip in one.values()}) >= 4


# ---------------------------------------------------------------------------------------------------------------- rooms


def write_response(path, rate=RATE, delay=0.01, seconds=0.3):
    """A direct path after `delay` s and a tail that decays."""
    rng, time = np.random.default_rng(1), np.arange(round(seconds * rate)) / rate
    response = rng.standard_normal(len(time)) * np.exp(-time * 20) * 0.05 * (time > delay)
    response[round(delay * rate)] = 0.7
    soundfile.write(path, response, rate, subtype="FLOAT")
    return path


def test_the_direct_path_stays_in_its_place_and_the_power_too(tmp_path, speech):
    path = write_response(tmp_path / "room.wav")
    wet = Reverb(path, p=1.0)(speech, RATE)
    lags = torch.fft.irfft(torch.fft.rfft(wet[0], 32_768) * torch.fft.rfft(speech[0], 32_768).conj())
    assert lags.argmax() == 0
    assert wet.square().mean().item() == pytest.approx(speech.square().mean().item(), rel=1e-4)
    assert wet[0, 12_000:].abs().max() > 0.005  # the tail
    assert not torch.equal(wet, speech)


def test_an_impulse_comes_out_as_the_response():
    response, clip = np.random.default_rng(0).standard_normal(500).astype(np.float32), np.zeros((1, 900), np.float32)
    response[40], clip[0, 100] = 9.0, 1.0
    wet = convolve(clip, response, 40)[0]
    np.testing.assert_allclose(wet[60:560], response, atol=1e-5)
    np.testing.assert_allclose(np.r_[wet[:60], wet[560:]], 0, atol=1e-5)
    full = np.convolve(clip[0], response)[40:940]
    np.testing.assert_allclose(wet, full, atol=1e-5)


def test_a_pure_delay_or_gain_changes_nothing(tmp_path, speech):
    response = np.zeros(4_000)
    response[1_234] = -0.2
    soundfile.write(tmp_path / "delay.wav", response, RATE)
    torch.testing.assert_close(Reverb(tmp_path / "delay.wav", p=1.0)(speech, RATE), -speech, atol=1e-5, rtol=1e-3)
    silence = torch.zeros(1, 500)
    assert torch.equal(Reverb(tmp_path / "delay.wav", p=1.0)(silence, RATE), silence)


def test_a_reflection_louder_than_the_direct_path_is_not_taken_for_it():
    response = np.zeros(2_000, np.float32)
    response[[300, 301, 1_100]] = 0.2, 0.3, -0.9
    assert direct_path(response, RATE) == 301
    assert direct_path(np.ones(1, np.float32), RATE) == 0


def test_a_silent_response_is_not_used(tmp_path, speech):
    soundfile.write(tmp_path / "silent.wav", np.zeros(400), RATE)
    with pytest.raises(UserError, match="impulse response is silent"):
        Reverb(tmp_path / "silent.wav", p=1.0)(speech, RATE)


def test_sizes_for_transforms_are_large_enough_and_not_much_larger():
    for at_least in (1, 2, 7, 100, 1_025, 47_999, 48_001, 10**6):
        assert at_least <= _fast_size(at_least) <= max(at_least * 1.25, 1)


# ----------------------------------------------------------------------------------------------------- real recordings


@needs_data
def test_every_real_noise_is_added_at_the_ratio(speech):
    noises = find_sounds(DATA / "noise" / "manifest.jsonl", "noises")
    assert len(noises) == 20
    assert find_sounds(DATA / "noise", "noises") == noises
    for noise in noises:
        noisy = AddNoiseFromFiles(noise.path, 7.0, 7.0, p=1.0)(speech, RATE)
        if not torch.equal(noisy, speech):
            assert snr_db(speech, noisy) == pytest.approx(7.0, abs=0.1)


@needs_data
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_every_real_response_keeps_length_place_and_power(rate):
    responses = find_sounds(DATA / "impulse_responses" / "manifest.jsonl", "impulse responses")
    assert {sound.num_channels for sound in responses} == {1, 2, 8}
    clip, click = torch.zeros(1, 2 * rate), rate // 2
    clip[0, click] = 0.5
    for response in responses:
        wet = Reverb(response.path, p=1.0)(clip, rate)
        assert wet.shape == clip.shape
        assert wet.square().mean().item() == pytest.approx(clip.square().mean().item(), rel=1e-3)
        level = wet[0].abs() / wet.abs().max()
        assert level[click] > 0.1  # it arrives where it was made,
        assert level[: click - rate // 500].max() < 0.1  # and no echo comes before it


@needs_data
def test_a_folder_of_hostile_files_serves_what_it_can(speech, caplog):
    step = AddNoiseFromFiles(DATA / "hostile_audio", 10.0, 10.0, p=1.0)
    refused = next(record.getMessage() for record in caplog.records)
    for name in ("empty_file", "git_lfs_pointer", "text_content", "rate_1hz", "rate_zero", "zero_frames"):
        assert f"{name}." in refused
    for key in range(60):
        torch.manual_seed(key)
        assert step(speech, RATE).isfinite().all()
    named = {record.getMessage() for record in caplog.records[1:]}
    assert any("flac_bitrot" in message for message in named)
    assert any("nan_inf_float32" in message for message in named)


def test_clips_made_for_tests_serve_as_noise(tmp_path):
    assert AddNoiseFromFiles(write_clip(tmp_path / "a.wav"), p=1.0)(torch.randn(1, 99), RATE).isfinite().all()
