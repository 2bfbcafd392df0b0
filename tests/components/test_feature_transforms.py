"""Waveform levels, normalisation by statistics, stacking, dither and what composes them."""

import json
import math

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from components.augment.keyed import hash_normal
from components.features import (
    FeaturePipeline,
    GlobalCmvn,
    KaldiFbank,
    LogMel,
    MelSpectrogram,
    Mfcc,
    NormalizeWaveform,
    StackFrames,
    UtteranceCmvn,
)
from components.features.statistics import FeatureStatistics, Moments
from utils.build import build
from utils.errors import UserError


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def padded_features(*lens: int, num_features: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    features = torch.randn(len(lens), max(lens) + 2, num_features) * 3 + 1
    feature_lens = torch.tensor(lens)
    inside = torch.arange(features.shape[1]) < feature_lens.unsqueeze(1)
    return features * inside.unsqueeze(2), feature_lens


# ------------------------------------------------------------------------------------------------------------ waveforms


@pytest.mark.parametrize("mode", ["peak", "rms", "zero_mean_unit_variance"])
def test_a_level_is_that_of_the_clip_without_its_padding(mode):
    normalise = NormalizeWaveform(mode)
    waveform, audio_lens = 0.2 * torch.randn(4, 1, 1_000) + 0.1, torch.tensor([1_000, 400, 2, 1])
    together = normalise(waveform, audio_lens)
    for i, length in enumerate(audio_lens.tolist()):
        alone = normalise(waveform[i : i + 1, :, :length], audio_lens[i : i + 1])
        torch.testing.assert_close(together[i : i + 1, :, :length], alone)
        assert together[i, :, length:].abs().sum() == 0


def test_levels_are_what_their_names_say():
    waveform, audio_lens = 0.2 * torch.randn(1, 1, 1_000) + 0.1, torch.tensor([1_000])
    assert NormalizeWaveform("peak")(waveform, audio_lens).abs().max() == pytest.approx(1)
    assert NormalizeWaveform("peak", -6.0)(waveform, audio_lens).abs().max() == pytest.approx(0.501, abs=1e-3)
    assert NormalizeWaveform("rms")(waveform, audio_lens).square().mean().sqrt() == pytest.approx(0.1)
    standard = NormalizeWaveform()(waveform, audio_lens)
    assert standard.mean() == pytest.approx(0, abs=1e-6)
    assert standard.var(unbiased=False) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("mode", ["peak", "rms", "zero_mean_unit_variance"])
def test_silence_stays_silent(mode):
    waveform = torch.zeros(2, 1, 500, requires_grad=True)
    normalised = NormalizeWaveform(mode)(waveform, torch.tensor([500, 1]))
    assert normalised.abs().sum() == 0
    normalised.sum().backward()
    assert waveform.grad.isfinite().all()


def test_a_level_that_means_nothing_is_refused():
    with pytest.raises(UserError, match="has no level"):
        NormalizeWaveform(level_db=-3.0)
    with pytest.raises(UserError, match="expected peak, rms"):
        NormalizeWaveform("loudness")


# ----------------------------------------------------------------------------------------------------------- statistics


def test_merged_moments_are_those_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    clips = [torch.randn(n, 3, generator=generator) + 1e4 for n in (1, 50, 7, 300)]
    merged = Moments.of(clips[0])
    for clip in clips[1:]:
        merged = merged.merge(Moments.of(clip))
    whole = torch.cat(clips).double()
    assert merged.count == 358
    torch.testing.assert_close(merged.mean, whole.mean(0), rtol=1e-12, atol=0)
    # The sum of squares minus the square of sums has lost half of its digits here.
    torch.testing.assert_close(merged.var, whole.var(0, unbiased=False), rtol=1e-9, atol=0)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_statistics_come_back_from_their_file(tmp_path, suffix):
    statistics = FeatureStatistics([1.5, 0.1], [4.0, 1 / 3], 77, {"frontend": {"n_mels": 2}})
    statistics.save(tmp_path / f"deep/cmvn{suffix}")
    assert FeatureStatistics.load(tmp_path / f"deep/cmvn{suffix}") == statistics
    assert [path.name for path in (tmp_path / "deep").iterdir()] == [f"cmvn{suffix}"]


def test_statistics_are_readable_without_us(tmp_path):
    FeatureStatistics([1.0], [2.0]).save(tmp_path / "a.json")
    FeatureStatistics([1.0], [2.0]).save(tmp_path / "a.safetensors")
    assert json.loads((tmp_path / "a.json").read_text())["var"] == [2.0]
    assert load_file(tmp_path / "a.safetensors")["var"].tolist() == [2.0]


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"mean": [1], "var": []}', '{"mean": [NaN], "var": [1]}', '{"mean": [1], "var": [-1]}'],
)
def test_a_file_that_holds_no_statistics_is_named(tmp_path, content):
    (tmp_path / "cmvn.json").write_text(content)
    with pytest.raises(UserError, match=r"cmvn\.json holds no feature statistics"):
        GlobalCmvn(str(tmp_path / "cmvn.json"))


def test_missing_statistics_say_how_they_are_made(tmp_path):
    with pytest.raises(UserError, match=r"python -m components\.data cmvn"):
        GlobalCmvn(str(tmp_path / "cmvn.json"))
    with pytest.raises(UserError, match=r"\.json or \.safetensors"):
        GlobalCmvn(str(tmp_path / "cmvn.npy"))


def global_cmvn(tmp_path, **settings) -> GlobalCmvn:
    FeatureStatistics([1.0, 2.0, 3.0, 4.0, 5.0], [4.0, 1.0, 0.25, 9.0, 0.0]).save(tmp_path / "cmvn.json")
    return GlobalCmvn(str(tmp_path / "cmvn.json"), **settings)


def test_global_cmvn_takes_off_the_mean_and_divides_by_the_deviation(tmp_path):
    features, feature_lens = padded_features(4, 2)
    normalised, lens = global_cmvn(tmp_path)(features, feature_lens)
    expected = (features[0, :4] - torch.arange(1.0, 6)) / torch.tensor([2, 1, 0.5, 3, 1])  # the last never varied
    torch.testing.assert_close(normalised[0, :4], expected)
    assert normalised[1, 2:].abs().sum() == 0
    assert torch.equal(lens, feature_lens)
    only_mean, _ = global_cmvn(tmp_path, variance=False)(features, feature_lens)
    torch.testing.assert_close(only_mean[0, :4], features[0, :4] - torch.arange(1.0, 6))


def test_a_checkpoint_brings_the_statistics_without_their_file(tmp_path):
    features, feature_lens = padded_features(3)
    trained = global_cmvn(tmp_path)
    fresh = GlobalCmvn(size=5)
    assert fresh(features, feature_lens)[0].isnan().any()  # not silently something else
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh(features, feature_lens)[0], trained(features, feature_lens)[0])


def test_statistics_of_other_features_are_refused_when_the_pipeline_is_built(tmp_path):
    with pytest.raises(UserError, match="made of 5 features, but 80 come in"):
        FeaturePipeline(KaldiFbank(16_000), {"cmvn": global_cmvn(tmp_path)})


@pytest.mark.parametrize("variance", [True, False])
def test_utterance_cmvn_is_that_of_the_true_frames(variance):
    features, feature_lens = padded_features(40, 7, 1)
    normalised, _ = UtteranceCmvn(variance)(features, feature_lens)
    for i, length in enumerate(feature_lens.tolist()):
        own = features[i, :length]
        deviation = torch.sqrt(own.var(0, unbiased=False) + 1e-5) if variance else 1.0
        torch.testing.assert_close(normalised[i, :length], (own - own.mean(0)) / deviation, atol=1e-5, rtol=1e-4)
        assert normalised[i, length:].abs().sum() == 0


# ------------------------------------------------------------------------------------------------------------- stacking


@pytest.mark.parametrize(("size", "stride"), [(7, 6), (1, 1), (4, 3), (3, 5), (8, 1)])
def test_stacked_frames_are_those_around_each_stride_and_the_edges_are_repeated(size, stride):
    lens = list(range(1, 41))
    features, feature_lens = padded_features(*lens, num_features=2)
    transform = StackFrames(size, stride)
    stacked, stacked_lens = transform(features, feature_lens)
    assert stacked.shape[2] == transform.num_features(2) == 2 * size
    for clip, length, num_stacks, row in zip(features, lens, stacked_lens.tolist(), stacked):
        assert num_stacks == math.ceil(length / stride)
        for t in range(num_stacks):
            around = [min(max(t * stride - (size - 1) // 2 + k, 0), length - 1) for k in range(size)]
            assert torch.equal(row[t], clip[around].flatten())
        assert row[num_stacks:].abs().sum() == 0


# --------------------------------------------------------------------------------------------------------------- dither


def test_dither_is_a_function_of_the_seed_and_nothing_else():
    frontend, waveform = KaldiFbank(16_000, n_mels=23, dither=1.0).train(), 0.01 * torch.randn(2, 1, 4_000)
    audio_lens, seed = torch.tensor([4_000, 3_001]), torch.tensor([11, 12])
    state = torch.get_rng_state()
    first, _ = frontend(waveform, audio_lens, seed)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, frontend(waveform, audio_lens, seed)[0])
    alone, _ = frontend(waveform[1:, :, :3_001], audio_lens[1:], seed[1:])
    torch.testing.assert_close(first[1:, : alone.shape[1]], alone, atol=1e-4, rtol=1e-4)
    other, _ = frontend(waveform, audio_lens, torch.tensor([11, 13]))
    assert not torch.equal(first[1], other[1])


def test_dither_is_of_one_bit_of_sixteen_and_for_training_only():
    frontend, silence, audio_lens = KaldiFbank(16_000, dither=1.0, use_energy=True), torch.zeros(1, 1, 16_000), [16_000]
    dithered, _ = frontend.train()(silence, torch.tensor(audio_lens), torch.tensor([5]))
    assert dithered[0, :, 0].mean() == pytest.approx(math.log(400), abs=0.05)  # of 400 samples of variance one
    clean, _ = KaldiFbank(16_000, use_energy=True)(silence, torch.tensor(audio_lens))
    assert torch.equal(frontend(silence, torch.tensor(audio_lens))[0], clean)
    assert torch.equal(frontend.eval()(silence, torch.tensor(audio_lens), torch.tensor([5]))[0], clean)


def test_hashed_normal_numbers_are_standard_and_independent_of_how_many_are_drawn():
    numbers = hash_normal(torch.tensor([1, 2]), 100_001)
    assert numbers.shape == (2, 100_001)
    assert numbers.mean() == pytest.approx(0, abs=0.01)
    assert numbers.std() == pytest.approx(1, abs=0.01)
    assert torch.corrcoef(numbers)[0, 1].abs() < 0.01
    assert torch.corrcoef(torch.stack([numbers[0, :-1], numbers[0, 1:]]))[0, 1].abs() < 0.01
    assert torch.equal(hash_normal(torch.tensor([2]), 17)[0], numbers[1, :17])


# ------------------------------------------------------------------------------------------------------------- pipeline


def test_a_pipeline_is_its_parts_one_after_the_other(tmp_path):
    level, fbank, stack, cmvn = NormalizeWaveform(), KaldiFbank(16_000, n_mels=40), StackFrames(), UtteranceCmvn()
    pipeline = FeaturePipeline(fbank, {"stack": stack, "cmvn": cmvn}, {"level": level})
    waveform, audio_lens = torch.randn(2, 1, 8_000), torch.tensor([8_000, 5_000])
    features, feature_lens = pipeline(waveform, audio_lens)
    assert pipeline.num_features == features.shape[2] == 280
    assert torch.equal(pipeline.feature_lens(audio_lens), feature_lens)
    assert torch.equal(features, cmvn(*stack(*fbank(level(waveform, audio_lens), audio_lens)))[0])


def test_a_pipeline_is_made_by_yaml_and_a_step_is_taken_out_at_the_prompt():
    config = OmegaConf.create(
        """
        frontend:
          _target_: components.features.FeaturePipeline
          frontend: {_target_: components.features.KaldiFbank, sample_rate: 16000, n_mels: 20}
          transforms:
            stack: {_target_: components.features.StackFrames, size: 4, stride: 3}
            cmvn: {_target_: components.features.UtteranceCmvn}
          waveform_transforms:
            level: {_target_: components.features.NormalizeWaveform, mode: peak}
        """
    )
    assert build(config, "frontend").num_features == 80
    config.frontend.transforms.stack = None
    pipeline = build(config, "frontend")
    assert pipeline.num_features == 20
    assert list(pipeline.transforms) == ["cmvn"]


def test_a_pipeline_hands_seeds_to_its_frontend():
    pipeline = FeaturePipeline(KaldiFbank(16_000, dither=1.0), {"cmvn": UtteranceCmvn()}).train()
    waveform, audio_lens = torch.zeros(1, 1, 4_000), torch.tensor([4_000])
    first, second = (pipeline(waveform, audio_lens, torch.tensor([seed]))[0] for seed in (1, 2))
    assert not torch.equal(first, second)


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: KaldiFbank(8_000, f_max=8_000.0), "from 20.0 to 8000.0 Hz do not fit into a sample rate of 8000 Hz"),
        (lambda: LogMel(8_000, f_max=8_000.0), "do not fit into a sample rate of 8000 Hz"),
        (lambda: KaldiFbank(16_000, window="blackman"), "expected one of povey"),
        (lambda: KaldiFbank(16_000, frame_length=0.1), "too short"),
        (lambda: Mfcc(16_000, num_ceps=24), "24 cepstra can not be had from 23 mels"),
        (lambda: MelSpectrogram(16_000, log="log2"), "log: expected one of ln, log10, db, null, got 'log2'"),
        (lambda: MelSpectrogram(16_000, power=3), "power: expected one of 1, 2"),
        (lambda: MelSpectrogram(16_000, padding="valid"), "padding: expected one of center, same, none"),
        (lambda: MelSpectrogram(16_000, n_fft=400, win_length=512), "longer than n_fft=400"),
        (lambda: MelSpectrogram(16_000, top_db=80.0), "top_db"),
        (lambda: MelSpectrogram(16_000, mel_scale="bark"), "expected htk or slaney"),
        (lambda: MelSpectrogram(16_000, norm="area"), "expected null or slaney"),
        (lambda: GlobalCmvn(), "give statistics=FILE, or a size"),
    ],
)
def test_settings_that_mean_nothing_are_refused_in_a_sentence(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()


def test_filters_that_hear_nothing_are_told(caplog):
    MelSpectrogram(16_000, n_fft=256, n_mels=128)
    assert "mel filters lie between the bins of the spectrum" in caplog.text
