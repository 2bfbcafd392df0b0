import pytest
import torch
import torchaudio

from components.features import LogMel


@pytest.mark.parametrize(
    ("sample_rate", "n_fft", "win_length", "hop_length"), [(16_000, 512, 400, 160), (8_000, 256, None, 80)]
)
def test_log_mel_agrees_with_torchaudio(sample_rate, n_fft, win_length, hop_length):
    waveform = torch.randn(2, 1, 4_000) * 0.1
    ours, lens = LogMel(sample_rate, n_fft, hop_length, 40, win_length)(waveform, torch.tensor([4_000, 4_000]))
    reference = torchaudio.transforms.MelSpectrogram(
        sample_rate, n_fft, win_length, hop_length, f_min=20.0, n_mels=40, pad_mode="constant", mel_scale="htk"
    )
    theirs = torch.log(reference(waveform.squeeze(1)) + 1e-5).transpose(1, 2)
    assert ours.shape == (2, 1 + 4_000 // hop_length, 40)
    assert lens.tolist() == [ours.shape[1]] * 2
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("subtract_mean", [False, True])
def test_padding_changes_no_frame(subtract_mean):
    frontend = LogMel(16_000, subtract_mean=subtract_mean)
    audio_lens = torch.tensor([3_000, 1, 160, 1_601])
    garbage = torch.randn(4, 1, 3_000)  # even if what lies behind a clip is not zero
    together, lens = frontend(garbage, audio_lens)
    for i, length in enumerate(audio_lens.tolist()):
        alone, alone_lens = frontend(garbage[i : i + 1, :, :length], audio_lens[i : i + 1])
        assert alone_lens.item() == alone.shape[1] == lens[i].item() == 1 + length // 160
        torch.testing.assert_close(together[i : i + 1, : lens[i]], alone, atol=1e-5, rtol=1e-5)
        assert together[i, lens[i] :].abs().sum() == 0


def test_silence_is_finite():
    features, _ = LogMel(16_000)(torch.zeros(1, 1, 1_000), torch.tensor([1_000]))
    assert features.isfinite().all()


def test_subtracting_the_mean_makes_loudness_irrelevant():
    frontend, waveform, lens = LogMel(16_000, subtract_mean=True), torch.randn(1, 1, 4_000), torch.tensor([4_000])
    torch.testing.assert_close(frontend(waveform, lens)[0], frontend(waveform * 0.5, lens)[0], atol=1e-3, rtol=1e-3)


def test_features_stay_in_float32_under_autocast():
    frontend, waveform, lens = LogMel(16_000), torch.randn(1, 1, 4_000), torch.tensor([4_000])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, _ = frontend(waveform, lens)
    assert torch.equal(inside, frontend(waveform, lens)[0])
