"""Ours against the libraries whose features they claim to be."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from torchaudio.compliance import kaldi

from components.features import KaldiFbank, MelSpectrogram, Mfcc, NormalizeWaveform, WhisperLogMel
from utils.errors import UserError

SPEECH = Path(__file__).resolve().parents[3] / "shared" / "data" / "speech" / "manifest_test.jsonl"

FBANK = {
    "default": ({}, {}),
    "hamming": ({"window": "hamming", "n_mels": 40}, {"window_type": "hamming", "num_mel_bins": 40}),
    "hanning": ({"window": "hanning"}, {"window_type": "hanning"}),
    "rectangular": ({"window": "rectangular"}, {"window_type": "rectangular"}),
    "other frames": ({"frame_length": 32.0, "frame_shift": 12.5}, {"frame_length": 32.0, "frame_shift": 12.5}),
    "all samples": ({"snip_edges": False}, {"snip_edges": False}),
    "far apart": (
        {"snip_edges": False, "frame_length": 10.0, "frame_shift": 20.0},
        {"snip_edges": False, "frame_length": 10.0, "frame_shift": 20.0},
    ),
    "no preemphasis": ({"preemphasis": 0.0}, {"preemphasis_coefficient": 0.0}),
    "with DC": ({"remove_dc": False}, {"remove_dc_offset": False}),
    "a band": ({"f_min": 50.0, "f_max": 7_000.0}, {"low_freq": 50.0, "high_freq": 7_000.0}),
    "below Nyquist": ({"f_max": -400.0}, {"high_freq": -400.0}),
    "energy": ({"use_energy": True}, {"use_energy": True}),
    "energy without a floor": (
        {"use_energy": True, "scale": 1.0, "energy_floor": 0.0},
        {"use_energy": True, "energy_floor": 0.0},
    ),
    "unscaled": ({"scale": 1.0}, {}),
}  # fmt: skip


def noise(num_samples: int = 16_000, seed: int = 0) -> torch.Tensor:
    """`[1, 1, T]`: noise that grows, with an offset."""
    drawn = torch.randn(1, 1, num_samples, generator=torch.Generator().manual_seed(seed))
    return 0.1 * drawn * torch.linspace(0.01, 1, num_samples) + 0.02


def speech() -> torch.Tensor:
    """`[1, 1, T]`, 16 kHz."""
    if not SPEECH.exists():
        pytest.skip("needs recordings that are not part of the project")
    for line in SPEECH.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["sample_rate"] == 16_000:
            samples, _ = soundfile.read(SPEECH.parent / record["audio_path"], dtype="float32", frames=80_000)
            return torch.from_numpy(samples).view(1, 1, -1)
    raise AssertionError("no clip of 16 kHz")


def extract(frontend: torch.nn.Module, waveform: torch.Tensor) -> torch.Tensor:
    """`[L, F]` of one whole clip, and the promised number of frames."""
    features, feature_lens = frontend(waveform, torch.tensor([waveform.shape[-1]]))
    assert features.shape[1] == int(feature_lens)
    return features[0]


@pytest.mark.parametrize("setting", FBANK)
def test_fbank_is_that_of_torchaudio(setting):
    ours, theirs = FBANK[setting]
    waveform = noise()
    scaled = waveform[0] * ours.get("scale", 32_768)
    expected = kaldi.fbank(scaled, **{"num_mel_bins": 80, **theirs})
    # Single precision: a mel of 1e-7 of the frame's power is known to about 1e-4 of itself.
    torch.testing.assert_close(extract(KaldiFbank(16_000, **ours), waveform), expected, atol=1e-4, rtol=2e-5)


def test_fbank_without_logarithm_is_that_of_torchaudio():
    expected = kaldi.fbank(noise()[0], num_mel_bins=80, use_log_fbank=False)
    torch.testing.assert_close(
        extract(KaldiFbank(16_000, use_log=False, scale=1.0), noise()), expected, atol=1e-6, rtol=1e-3
    )


@pytest.mark.parametrize(("sample_rate", "n_mels"), [(8_000, 40), (22_050, 64), (44_100, 128)])
def test_fbank_at_other_rates_is_that_of_torchaudio(sample_rate, n_mels):
    expected = kaldi.fbank(noise()[0] * 32_768, num_mel_bins=n_mels, sample_frequency=sample_rate)
    torch.testing.assert_close(extract(KaldiFbank(sample_rate, n_mels), noise()), expected, atol=1e-4, rtol=2e-5)


def test_fbank_of_speech_is_that_of_torchaudio():
    expected = kaldi.fbank(speech()[0] * 32_768, num_mel_bins=80)
    ours = extract(KaldiFbank(16_000), speech())
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=5e-5)
    assert (ours - expected).abs().mean() < 1e-5


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"num_ceps": 20, "n_mels": 40}, {"num_ceps": 20, "num_mel_bins": 40}),
        ({"cepstral_lifter": 0.0}, {"cepstral_lifter": 0.0}),
        ({"use_energy": True}, {"use_energy": True}),
    ],
)
def test_mfcc_is_that_of_torchaudio(ours, theirs):
    expected = kaldi.mfcc(noise()[0] * 32_768, **theirs)
    # The lifter weighs them by up to 12, and what is uncertain in the mels with them.
    torch.testing.assert_close(extract(Mfcc(16_000, **ours), noise()), expected, atol=1e-3, rtol=2e-5)


MEL = {
    "default": ({}, {}),
    "magnitudes": ({"power": 1}, {"power": 1.0}),
    "slaney": ({"mel_scale": "slaney", "norm": "slaney"}, {"mel_scale": "slaney", "norm": "slaney"}),
    "slaney's areas, htk's scale": ({"norm": "slaney"}, {"norm": "slaney"}),
    "whole windows": ({"padding": "none"}, {"center": False}),
    "silence outside": ({"pad_mode": "constant"}, {"pad_mode": "constant"}),
    "short window": ({"win_length": 800, "hop_length": 200}, {"win_length": 800, "hop_length": 200}),
    "default hop": ({"win_length": 800, "hop_length": None}, {"win_length": 800, "hop_length": None}),
    "band": ({"f_min": 60.0, "f_max": 7_600.0}, {"f_min": 60.0, "f_max": 7_600.0}),
    "normalised": ({"normalized": True}, {"normalized": True}),
}


@pytest.mark.parametrize("setting", MEL)
def test_mel_spectrogram_is_that_of_torchaudio(setting):
    ours, theirs = MEL[setting]
    common = {"n_fft": 1_024, "hop_length": 256, "n_mels": 80}
    expected = torchaudio.transforms.MelSpectrogram(24_000, **common | theirs)(noise()[:, 0])[0].T
    actual = extract(MelSpectrogram(24_000, log=None, **common | ours), noise())
    torch.testing.assert_close(actual, expected, atol=1e-5 * float(expected.max()), rtol=1e-4)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"log": "ln", "floor": 1e-5}, lambda mel: mel.clamp(min=1e-5).log()),
        ({"log": "log10", "floor": 1e-10}, lambda mel: mel.clamp(min=1e-10).log10()),
        ({"log": "db", "floor": 1e-10}, torchaudio.transforms.AmplitudeToDB("power")),
        ({"log": "db", "floor": 1e-10, "top_db": 20.0}, torchaudio.transforms.AmplitudeToDB("power", 20.0)),
        ({"log": "db", "floor": 1e-10, "power": 1}, torchaudio.transforms.AmplitudeToDB("magnitude")),
    ],
)
def test_logarithms_are_those_of_torchaudio(ours, theirs):
    frontend = MelSpectrogram(16_000, 512, 128, 40, **ours)
    mel = torchaudio.transforms.MelSpectrogram(16_000, 512, None, 128, n_mels=40, power=float(frontend.power))
    torch.testing.assert_close(extract(frontend, noise()), theirs(mel(noise()[:, 0]))[0].T, atol=1e-3, rtol=1e-4)


def test_vocoder_frames_are_one_for_each_hop():
    """Padding "same" is the reflection by (n_fft - hop) / 2 of HiFi-GAN's family, then whole windows."""
    frontend = MelSpectrogram(24_000, 1_024, 256, 100, power=1, padding="same", log=None)
    assert frontend.feature_lens(torch.tensor([256, 2_560, 2_816])).tolist() == [1, 10, 11]
    padded = torch.nn.functional.pad(noise(2_560), (384, 384), mode="reflect")
    reference = torchaudio.transforms.MelSpectrogram(24_000, 1_024, hop_length=256, n_mels=100, power=1.0, center=False)
    torch.testing.assert_close(extract(frontend, noise(2_560)), reference(padded[:, 0])[0].T, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("num_samples", [1_000, 16_000, 479_990, 500_000])
def test_whisper_features_are_those_of_transformers(n_mels, num_samples):
    transformers = pytest.importorskip("transformers")
    reference = transformers.WhisperFeatureExtractor(feature_size=n_mels)
    waveform = noise(num_samples)
    expected = reference(waveform.flatten().numpy(), sampling_rate=16_000, return_tensors="pt").input_features[0].T
    actual = extract(WhisperLogMel(n_mels=n_mels, chunk_seconds=30), waveform)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_whisper_features_of_a_clip_at_its_own_length_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    reference = transformers.WhisperFeatureExtractor()
    for waveform in (noise(16_000), noise(4_321)):
        expected = reference(
            waveform.flatten().numpy(), sampling_rate=16_000, return_tensors="pt", padding=False, truncation=False
        ).input_features[0].T  # fmt: skip
        torch.testing.assert_close(extract(WhisperLogMel(), waveform), expected, atol=1e-5, rtol=1e-5)


def test_whisper_features_of_a_batch_use_the_maximum_of_each_clip():
    transformers = pytest.importorskip("transformers")
    loud, quiet = noise(8_000).flatten(), 1e-3 * noise(5_000, seed=1).flatten()
    expected = transformers.WhisperFeatureExtractor()(
        [loud.numpy(), quiet.numpy()], sampling_rate=16_000, return_tensors="pt"
    ).input_features.transpose(1, 2)  # fmt: skip
    batch = torch.stack([loud, torch.nn.functional.pad(quiet, (0, 3_000))]).unsqueeze(1)
    ours, feature_lens = WhisperLogMel(chunk_seconds=30)(batch, torch.tensor([8_000, 5_000]))
    assert feature_lens.tolist() == [3_000, 3_000]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_whisper_knows_one_sample_rate():
    with pytest.raises(UserError, match="16000 Hz, not at 8000 Hz"):
        WhisperLogMel(sample_rate=8_000)


def test_normalised_waveforms_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    clips = [np.float32(0.3) * noise(n, seed=n).flatten().numpy() + np.float32(0.1) for n in (4_000, 1_234, 1)]
    reference = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    expected = reference(clips, sampling_rate=16_000, padding=True, return_tensors="pt").input_values
    batch = torch.full((3, 1, 4_000), 9.0)
    for row, clip in zip(batch, clips):
        row[0, : len(clip)] = torch.from_numpy(clip)
    ours = NormalizeWaveform()(batch, torch.tensor([4_000, 1_234, 1]))
    torch.testing.assert_close(ours.squeeze(1), expected, atol=1e-4, rtol=1e-4)
