"""What every frontend keeps to, and LogMel."""

import pytest
import torch
import torchaudio

from components.features import (
    FeaturePipeline,
    KaldiFbank,
    LogMel,
    MelSpectrogram,
    Mfcc,
    NormalizeWaveform,
    StackFrames,
    UtteranceCmvn,
    WhisperLogMel,
)

FRONTENDS = {
    "log_mel": lambda: LogMel(16_000),
    "log_mel, mean": lambda: LogMel(16_000, subtract_mean=True),
    "fbank": lambda: KaldiFbank(16_000),
    "fbank, energy": lambda: KaldiFbank(16_000, use_energy=True, scale=1.0, window="hamming"),
    "fbank, all samples": lambda: KaldiFbank(16_000, snip_edges=False),
    "fbank, far apart": lambda: KaldiFbank(16_000, snip_edges=False, frame_length=10.0, frame_shift=20.0),
    "mfcc": lambda: Mfcc(16_000),
    "mfcc, energy": lambda: Mfcc(16_000, use_energy=True, snip_edges=False),
    "whisper": lambda: WhisperLogMel(),
    "whisper, chunk": lambda: WhisperLogMel(n_mels=128, chunk_seconds=0.3),
    "mel": lambda: MelSpectrogram(16_000, 512, 128, log="db", floor=1e-10, top_db=60.0),
    "mel, vocoder": lambda: MelSpectrogram(24_000, 1_024, 256, 100, power=1, padding="same", floor=1e-7),
    "mel, whole windows": lambda: MelSpectrogram(16_000, 400, 160, 40, padding="none", log=None),
    "mel, silence outside": lambda: MelSpectrogram(16_000, 512, 160, 40, pad_mode="constant", log="log10"),
    "pipeline": lambda: FeaturePipeline(
        KaldiFbank(16_000, n_mels=40),
        {"stack": StackFrames(), "cmvn": UtteranceCmvn(variance=False), "none": None},
        {"level": NormalizeWaveform("rms")},
    ),
}


@pytest.fixture(autouse=True)
def drawn_alike():
    torch.manual_seed(0)


@pytest.fixture(params=FRONTENDS)
def frontend(request):
    return FRONTENDS[request.param]()


def lens(*values: int) -> torch.Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize("seed", range(3))
def test_a_clip_of_a_padded_batch_has_the_features_it_has_alone(frontend, seed):
    generator = torch.Generator().manual_seed(seed)
    audio_lens = torch.randint(1, 6_000, (6,), generator=generator)
    audio_lens[:2] = lens(1, int(torch.randint(2, 400, (), generator=generator)))  # shorter than any window
    # what lies behind a clip is not even zero
    waveform = 0.1 * torch.randn(6, 1, int(audio_lens.max()) + 500, generator=generator)
    together, feature_lens = frontend(waveform, audio_lens)
    assert together.shape[2] == frontend.num_features
    assert torch.equal(feature_lens, frontend.feature_lens(audio_lens))
    for i, length in enumerate(audio_lens.tolist()):
        alone, alone_lens = frontend(waveform[i : i + 1, :, :length], audio_lens[i : i + 1])
        assert alone.shape[1] == int(alone_lens) == int(feature_lens[i]) >= 1
        torch.testing.assert_close(together[i, : feature_lens[i]], alone[0], atol=2e-4, rtol=1e-4)
        assert together[i, feature_lens[i] :].abs().sum() == 0


@pytest.mark.parametrize("length", [1, 2, 159, 160, 399, 400, 4_000])
def test_silence_is_finite_whatever_its_length(frontend, length):
    features, feature_lens = frontend(torch.zeros(1, 1, length), lens(length))
    assert features.isfinite().all()
    assert features.shape[1] == int(feature_lens) >= 1


def test_a_clip_without_samples_in_a_batch_is_finite(frontend):
    features, feature_lens = frontend(torch.randn(2, 1, 2_000), lens(2_000, 0))
    assert features.isfinite().all()
    assert feature_lens.min() >= 1


def test_features_stay_in_float32_under_autocast(frontend):
    waveform, audio_lens = torch.randn(1, 1, 4_000), lens(4_000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, _ = frontend(waveform, audio_lens)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, frontend(waveform, audio_lens)[0])


def test_gradients_reach_the_clip_and_stop_at_its_end(frontend):
    waveform = (0.1 * torch.randn(2, 1, 4_000)).requires_grad_()
    features, _ = frontend(waveform, lens(4_000, 2_000))
    (features * torch.randn_like(features)).sum().backward()
    assert waveform.grad.isfinite().all()
    assert waveform.grad[1, 0, :1_000].abs().sum() > 0
    assert waveform.grad[1, 0, 2_000:].abs().sum() == 0


def test_a_frontend_keeps_nothing_in_a_checkpoint(frontend):
    assert frontend.state_dict() == {}


@pytest.mark.parametrize(
    ("sample_rate", "n_fft", "win_length", "hop_length"), [(16_000, 512, 400, 160), (8_000, 256, None, 80)]
)
def test_log_mel_agrees_with_torchaudio(sample_rate, n_fft, win_length, hop_length):
    waveform = torch.randn(2, 1, 4_000) * 0.1
    ours, feature_lens = LogMel(sample_rate, n_fft, hop_length, 40, win_length)(waveform, lens(4_000, 4_000))
    reference = torchaudio.transforms.MelSpectrogram(
        sample_rate, n_fft, win_length, hop_length, f_min=20.0, n_mels=40, pad_mode="constant", mel_scale="htk"
    )
    theirs = torch.log(reference(waveform.squeeze(1)) + 1e-5).transpose(1, 2)
    assert ours.shape == (2, 1 + 4_000 // hop_length, 40)
    assert feature_lens.tolist() == [ours.shape[1]] * 2
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


def test_log_mel_at_one_sample_and_at_exact_hops():
    assert LogMel(16_000).feature_lens(lens(1, 159, 160, 1_600)).tolist() == [1, 1, 2, 11]


def test_subtracting_the_mean_makes_loudness_irrelevant():
    frontend, waveform, audio_lens = LogMel(16_000, subtract_mean=True), torch.randn(1, 1, 4_000), lens(4_000)
    torch.testing.assert_close(
        frontend(waveform, audio_lens)[0], frontend(waveform * 0.5, audio_lens)[0], atol=1e-3, rtol=1e-3
    )
