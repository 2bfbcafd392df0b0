"""Paired metrics against second implementations, and what happens to pairs that have no score."""

import numpy as np
import pytest
import torch

from components.metrics import (
    Clip,
    KullbackLeibler,
    LogSpectralDistance,
    MelCepstralDistortion,
    MultiResolutionStft,
    Pesq,
    SiSdr,
    Stoi,
)
from components.metrics.divergence import sigmoid_divergence, softmax_divergence
from components.metrics.signal_metrics import si_sdr
from components.metrics.spectra import (
    cepstral_distances,
    dynamic_time_warping,
    log_spectral_distance,
    mel_cepstrum,
    power_spectrogram,
)
from tests.components.metric_clips import RATE, Samples, carrying, silence, tone
from utils.errors import UserError


def speech_like(seconds=2.0, seed=0, rate=RATE):
    """Noise-excited, slowly changing and interrupted, which STOI and PESQ take for speech."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    carrier = np.cumsum(generator.standard_normal(len(time)))
    carrier = np.diff(carrier - np.convolve(carrier, np.ones(50) / 50, "same"), prepend=0)
    envelope = np.clip(np.sin(2 * np.pi * 3 * time), 0, None) * (1 + 0.5 * np.sin(2 * np.pi * 0.7 * time))
    samples = 0.1 * carrier * envelope
    return Clip(f"speech{seed}", samples.astype(np.float32), rate, labels={"speaker": "a"})


def noisy(clip, level=0.05, seed=9):
    noise = level * np.random.default_rng(seed).standard_normal(len(clip.samples))
    return Clip(clip.id, (clip.samples + noise).astype(np.float32), clip.sample_rate, clip.text, clip.labels)


# ------------------------------------------------------------------------------------------------------------- signals


@pytest.mark.slow  # the library takes seconds to import
@pytest.mark.parametrize("zero_mean", [True, False])
def test_si_sdr_is_that_of_torchmetrics(zero_mean):
    audio = pytest.importorskip("torchmetrics.functional.audio")
    reference = speech_like().samples + np.float32(0.02)
    estimate = noisy(speech_like()).samples
    theirs = audio.scale_invariant_signal_distortion_ratio(
        torch.from_numpy(estimate).double(), torch.from_numpy(reference).double(), zero_mean
    )
    assert si_sdr(estimate, reference, zero_mean) == pytest.approx(float(theirs), abs=1e-6)


def test_si_sdr_does_not_mind_the_level_and_a_copy_counts_as_the_highest():
    metric, clip = SiSdr(), speech_like()
    louder = Clip("louder", 2 * noisy(clip).samples, RATE)
    metric.update([noisy(clip), louder, clip], [clip, clip, clip])
    scores = dict(metric.scores[:2])
    assert scores["louder"] == pytest.approx(scores["speech0"], abs=1e-4)
    assert metric.scores[2] == ("speech0", 100)


@pytest.mark.parametrize("extended", [False, True])
def test_stoi_is_pystois_with_the_reference_first(extended):
    pystoi = pytest.importorskip("pystoi")
    clip = speech_like()
    metric = Stoi(extended=extended)
    metric.update([noisy(clip)], [clip])
    theirs = pystoi.stoi(np.float64(clip.samples), np.float64(noisy(clip).samples), RATE, extended)
    assert 0.05 < metric.compute().value < 0.99
    assert metric.compute().value == pytest.approx(theirs)


def test_stoi_of_too_little_speech_is_counted_and_joining_mends_it():
    pytest.importorskip("pystoi")
    short = [speech_like(0.3, seed=i) for i in range(8)]
    alone, joined = Stoi(), Stoi(join_by="speaker", join_seconds=1.2)
    for metric in (alone, joined):
        metric.update([noisy(clip) for clip in short], short)
    assert (alone.compute().value, alone.compute().num_used) == (None, 0)
    assert alone.compute().num_skipped == {"too little speech (384 ms)": 8}
    result = joined.compute()
    assert (result.num_used, result.num_skipped, result.details["num_pieces"]) == (8, {}, 2)
    assert 0.05 < result.value < 1


def test_pieces_that_wait_to_be_joined_are_scored_in_the_end_and_only_once():
    pytest.importorskip("pystoi")
    metric = Stoi(join_by="speaker", join_seconds=100)
    short = [speech_like(0.5, seed=i) for i in range(4)]
    metric.update([noisy(clip) for clip in short], short)
    unnamed = Clip("unnamed", short[0].samples, RATE)
    metric.update([unnamed], [unnamed])
    first, second = metric.compute(), metric.compute()
    assert first == second
    assert (first.num_used, first.num_skipped) == (4, {"no label 'speaker'": 1})


def test_pesq_is_the_packages_and_refuses_what_it_can_not_hear():
    pesq = pytest.importorskip("pesq")
    clip, metric = speech_like(3.0), Pesq()
    tiny = speech_like(0.1, seed=1)
    metric.update([noisy(clip), tiny, silence("quiet", 1.0)], [clip, tiny, silence("quiet", 1.0)])
    result = metric.compute()
    assert result.value == pytest.approx(pesq.pesq(8000, clip.samples, noisy(clip).samples, "nb"))
    assert result.num_skipped == {"shorter than 0.25 s": 1, "silent reference": 1}
    wide = Pesq(band="wb")
    wide.update([noisy(clip)], [clip])
    assert wide.compute().num_skipped == {"8000 Hz is no wide band": 1}
    with pytest.raises(UserError, match="band: expected nb or wb"):
        Pesq(band="full")


# ------------------------------------------------------------------------------------------------------------- spectra


def test_log_spectral_distance_is_scipys_stft_by_hand():
    signal = pytest.importorskip("scipy.signal")
    clip, other = speech_like(0.5), noisy(speech_like(0.5))
    powers = []
    for one in (clip, other):
        frames = signal.ShortTimeFFT(signal.windows.hann(256, sym=False), 64, RATE)
        spectrum = frames.stft(np.pad(np.float64(one.samples), 128), p0=2, p1=2 + 1 + len(one.samples) // 64)
        powers.append(np.square(np.abs(spectrum.T)) * (2 / 128) ** 2)
    mine = power_spectrogram(clip.samples, 256, 64)
    assert mine == pytest.approx(powers[0], abs=1e-15)
    decibels = [10 * np.log10(np.maximum(power, 1e-10)) for power in powers]
    expected = np.sqrt(np.square(decibels[0] - decibels[1]).mean(1)).mean()
    metric = LogSpectralDistance()
    metric.update([other], [clip])
    assert metric.compute().value == pytest.approx(expected)


def test_log_spectral_distance_of_another_level_is_that_level():
    spectrum = power_spectrogram(tone(noise=0.1).samples, 256, 64)
    assert log_spectral_distance(spectrum, 100 * spectrum) == pytest.approx(20)


def test_a_full_scale_tone_has_power_one():
    time = np.arange(RATE) / RATE
    spectrum = power_spectrogram(np.sin(2 * np.pi * 1000 * time), 256, 64)
    assert spectrum[20:-20].max(1) == pytest.approx(1, rel=1e-6)


def test_bands_and_speech_frames_hear_what_they_are_for():
    clip = tone(seconds=1.0, noise=0.001)
    half = clip.samples.copy()
    half[RATE // 2 :] *= 1e-4  # silence behind the tone
    reference = Clip("a", half, RATE)
    low_cut = np.fft.rfft(half)
    low_cut[np.fft.rfftfreq(len(half), 1 / RATE) > 2000] *= 1e-3
    dull = Clip("a", np.fft.irfft(low_cut, len(half)).astype(np.float32), RATE)
    hissing = Clip("a", np.concatenate([half[: RATE // 2], noisy(reference, 0.01).samples[RATE // 2 :]]), RATE)

    def score(generated, **options):
        metric = LogSpectralDistance(**options)
        metric.update([generated], [reference])
        return metric.compute().value

    assert score(dull, f_min=2200) > 3 * score(dull, f_max=1800)
    assert score(hissing) > 10
    assert score(hissing, frames="speech") < 0.2 * score(hissing)
    with pytest.raises(UserError, match="is no band"):
        LogSpectralDistance(f_min=3000, f_max=2000)
    metric = LogSpectralDistance(f_min=4000)
    metric.update([dull], [reference])
    assert metric.compute().num_skipped == {"8000 Hz holds nothing above 4000 Hz": 1}


def test_mel_cepstrum_is_scipys_cosine_transform():
    fft = pytest.importorskip("scipy.fft")
    from components.features.mel import mel_filters

    clip = speech_like(0.5)
    power = power_spectrogram(clip.samples, 256, 80)
    mels = np.log(np.maximum(power @ mel_filters(129, 40, RATE, 0.0, 4000.0).double().numpy(), 1e-8))
    theirs = fft.dct(mels, type=2, axis=1)[:, 1:14] / 80
    assert mel_cepstrum(clip.samples, RATE, 13) == pytest.approx(theirs, abs=1e-12)


def test_mel_cepstral_distortion_with_all_coefficients_is_the_distance_of_log_mels_without_level():
    one, other = (mel_cepstrum(clip.samples, RATE, 39) for clip in (speech_like(0.3), noisy(speech_like(0.3))))
    orders = np.arange(1, 40)
    basis = 2 * np.cos(np.pi * np.outer(orders, np.arange(40) + 0.5) / 40)
    decibels = 10 / np.log(10) * (one - other) @ basis
    expected = np.sqrt(np.square(decibels).mean(1))
    assert np.diagonal(cepstral_distances(one, other)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow  # the library takes seconds to import
@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (7, 1), (9, 14), (30, 22)])
def test_time_warping_costs_what_librosas_does(shape):
    sequence = pytest.importorskip("librosa.sequence")
    costs = np.random.default_rng(0).random(shape)
    path = dynamic_time_warping(costs)
    total, theirs = sequence.dtw(C=costs)
    assert sum(costs[cell] for cell in path) == pytest.approx(total[-1, -1])
    assert path == [tuple(cell) for cell in theirs[::-1].tolist()]


def test_warped_distortion_forgives_another_speed():
    slow = np.repeat(np.arange(6), 4)
    chirp = lambda pitches: np.concatenate([tone(seconds=0.1, hertz=150 + 60 * p).samples for p in pitches])  # noqa: E731
    reference, stretched = Clip("a", chirp(range(6)), RATE), Clip("a", chirp(slow[::2]), RATE)
    warped = MelCepstralDistortion()
    warped.update([stretched], [reference])
    plain = MelCepstralDistortion(align="none", max_length_difference=10)
    plain.update([stretched], [reference])
    assert warped.compute().value < 0.5 * plain.compute().value


def test_multi_resolution_stft_is_auralosss():
    freq = pytest.importorskip("auraloss.freq")
    clip = speech_like(1.0)
    metric = MultiResolutionStft()
    metric.update([noisy(clip)], [clip])
    x, y = (torch.from_numpy(c.samples).double().view(1, 1, -1) for c in (noisy(clip), clip))
    theirs = freq.MultiResolutionSTFTLoss().double()
    assert metric.compute().value == pytest.approx(float(theirs(x, y)), rel=1e-6)


# ---------------------------------------------------------------------------------------------------------- divergence


def test_softmax_divergence_is_torchs_of_generated_from_reference():
    p, q = np.random.default_rng(0).normal(size=(2, 5, 7)) * 2
    log_p, probs_q = torch.from_numpy(p).log_softmax(1), torch.from_numpy(q).softmax(1)
    theirs = torch.nn.functional.kl_div(log_p, probs_q, reduction="none").sum(1)
    assert softmax_divergence(p, q) == pytest.approx(theirs.numpy())


def test_sigmoid_divergence_has_both_terms():
    """The form in wide use, `kl_div(log sigmoid(p), sigmoid(q))`, lacks the classes' absence; it can be negative."""
    p, q = np.random.default_rng(0).normal(size=(2, 50, 527)) * 2 - 3
    a, b = torch.from_numpy(p), torch.from_numpy(q)
    bernoulli = torch.distributions.Bernoulli
    full = torch.distributions.kl_divergence(bernoulli(logits=b), bernoulli(logits=a)).sum(1)
    assert sigmoid_divergence(p, q) == pytest.approx(full.numpy())
    in_use = torch.nn.functional.kl_div((a.sigmoid() + 1e-6).log(), b.sigmoid(), reduction="none").sum(1)
    assert abs(sigmoid_divergence(p, q).mean() - float(in_use.mean())) > 1
    likely, unlikely = torch.zeros(1, 4).sigmoid(), torch.full((1, 4), -1.0).sigmoid()
    half = torch.nn.functional.kl_div(likely.log(), unlikely, reduction="sum")
    assert half < 0 < sigmoid_divergence(np.zeros(4), np.full(4, -1.0))


def test_sigmoid_divergence_is_finite_far_out():
    assert np.isfinite(sigmoid_divergence(np.array([800.0]), np.array([-800.0])))
    assert sigmoid_divergence(np.array([800.0, -5]), np.array([800.0, -5])) == 0


def test_kullback_leibler_is_a_mean_over_pairs_with_unrelated_pairs_as_its_ceiling():
    logits = np.random.default_rng(0).normal(size=(30, 3)) * 4
    near = logits + 0.1
    near[:, 0] += 0.3
    metric = KullbackLeibler(Samples())
    metric.update(carrying(near), carrying(logits))
    result = metric.compute()
    assert result.value == pytest.approx(softmax_divergence(np.float32(near), np.float32(logits)).mean(), rel=1e-6)
    assert result.low < result.value < result.high < result.ceiling
    assert (result.unit, result.num_used) == ("nats", 30)
    with pytest.raises(UserError, match="kind: expected softmax or sigmoid"):
        KullbackLeibler(Samples(), kind="both")


# --------------------------------------------------------------------------------------------------------------- pairs


def test_pairs_without_a_score_are_counted_by_reason_and_never_scored():
    metric = SiSdr(max_length_difference=0.05)
    good = speech_like()
    longer = Clip("longer", np.pad(good.samples, (0, RATE)), RATE)
    padded = Clip("padded", np.pad(good.samples, (0, 100)), RATE)
    pairs = [
        (noisy(good), good),
        (padded, good),
        (longer, good),
        (silence("quiet", 2.0), good),
        (good, silence("quiet", 2.0)),
        (silence("nothing", 0), good),
    ]
    metric.update(*map(list, zip(*pairs)))
    result = metric.compute()
    assert result.num_used == 2
    assert result.num_skipped == {
        "lengths differ by more than 0.05 s": 1,
        "silent output": 1,
        "silent reference": 1,
        "empty": 1,
    }
    assert set(result.per_item) == {"speech0", "padded"}


def test_a_reference_of_another_rate_is_taken_to_the_generated_clips():
    clip = tone(seconds=1.0, noise=0)
    twice = Clip("a", clip.at(16_000), 16_000)
    metric = SiSdr()
    metric.update([clip], [twice])
    assert metric.compute().value > 20


def test_as_many_references_as_clips_are_wanted():
    with pytest.raises(ValueError, match="takes pairs: 2 generated, 1 references"):
        SiSdr().update([tone(), tone()], [tone()])


def test_without_any_pair_there_is_no_value():
    result = SiSdr().compute()
    assert (result.value, result.num_used, result.low, result.high) == (None, 0, None, None)
