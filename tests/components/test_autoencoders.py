"""Waveforms to latents and back: what every autoencoder keeps to, and what each is for."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import soundfile
import torch
from diffusers import AutoencoderOobleck
from omegaconf import OmegaConf
from torch import nn

from components.data.extract import main as extract
from components.features import KaldiFbank, LogMel, MelSpectrogram
from components.models.audio_generator.autoencoders import (
    Autoencoder,
    IdentityAutoencoder,
    MelAutoencoder,
    OobleckAutoencoder,
    PatchAutoencoder,
)
from components.models.audio_generator.autoencoders.griffin_lim import griffin_lim
from components.models.audio_generator.autoencoders.mel_inverse import MelInverse
from tests.components.clips import write_corpus
from utils.build import build
from utils.compose import CONFIGS, Request
from utils.errors import UserError
from utils.validate import validate

SPEECH = Path(__file__).resolve().parents[3] / "shared" / "data" / "spoken_digits" / "audio"


class Vocoder(nn.Module):
    """A network that smears over frames and knows nothing of padding."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ConvTranspose1d(48, 1, 240, stride=80, padding=80)

    def forward(self, mels):
        return torch.tanh(self.layer(mels))


def oobleck(strides=(2, 4, 4), **options):
    multiples = [2**i for i in range(len(strides))]
    return OobleckAutoencoder(8_000, 16, strides, multiples, 8, **options)


def log_mel() -> LogMel:
    return LogMel(8_000, n_fft=256, hop_length=80, n_mels=48)


AUTOENCODERS = {
    "mel": lambda: MelAutoencoder(log_mel(), num_iterations=4),
    "mel, same": lambda: MelAutoencoder(MelSpectrogram(8_000, 256, 64, 40, power=1, padding="same", log="db")),
    "mel, wide hop": lambda: MelAutoencoder(MelSpectrogram(8_000, 128, 100, 20, log="log10"), num_iterations=3),
    "mel, linear": lambda: MelAutoencoder(MelSpectrogram(8_000, 256, 64, 40, log=None), momentum=0.0),
    "vocoder": lambda: MelAutoencoder(log_mel(), vocoder=Vocoder()),
    "oobleck": oobleck,
    "oobleck, odd strides": lambda: oobleck((3, 5, 2)),
    "oobleck, stereo": lambda: oobleck(audio_channels=2),
    "patch": lambda: PatchAutoencoder(8_000, 30),
}


@pytest.fixture(autouse=True)
def drawn_alike():
    torch.manual_seed(0)


@pytest.fixture(params=AUTOENCODERS)
def autoencoder(request):
    return AUTOENCODERS[request.param]().eval()


def lens(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def tones(*lengths: int, sample_rate: int = 8_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Gliding tones, padded with noise, not zeros."""
    waveform = 0.2 * torch.randn(len(lengths), 1, max(lengths))
    for i, length in enumerate(lengths):
        time = torch.arange(length) / sample_rate
        waveform[i, 0, :length] = 0.4 * torch.sin(2 * math.pi * (300 + 150 * i + 400 * time) * time)
    return waveform, lens(*lengths)


def speech(count: int) -> list[torch.Tensor]:
    files = sorted(SPEECH.rglob("*.*"))[:: max(1, len(list(SPEECH.rglob("*.*"))) // count)][:count]
    return [torch.from_numpy(soundfile.read(file, dtype="float32")[0]) for file in files]


# ------------------------------------------------------------------------------------------------------ all of them


@pytest.fixture
def one_thread():
    """With more, matrix products are summed in an order that depends on the batch, and Griffin-Lim makes 1e-4 of it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@torch.no_grad()
@pytest.mark.usefixtures("one_thread")
def test_a_clip_of_a_padded_batch_goes_there_and_back_as_it_does_alone(autoencoder):
    autoencoder.fit_statistics([autoencoder.raw_latents(*tones(700, 900))])
    waveform, audio_lens = tones(700, 1, 333, 640)
    latents, latent_lens = autoencoder.encode(waveform, audio_lens)
    decoded, decoded_lens = autoencoder.decode(latents, latent_lens)
    assert latents.shape[2] == autoencoder.latent_dim
    for i, length in enumerate(audio_lens.tolist()):
        alone, alone_lens = autoencoder.encode(waveform[i : i + 1, :, :length], audio_lens[i : i + 1])
        assert alone.shape[1] == int(alone_lens) == int(latent_lens[i]) >= 1
        torch.testing.assert_close(latents[i, : latent_lens[i]], alone[0], atol=1e-5, rtol=1e-5)
        assert latents[i, latent_lens[i] :].abs().sum() == 0
        heard, heard_lens = autoencoder.decode(alone, alone_lens)
        assert heard.shape == (1, 1, int(heard_lens)) == (1, 1, int(decoded_lens[i]))
        torch.testing.assert_close(decoded[i, :, : decoded_lens[i]], heard[0], atol=1e-5, rtol=1e-5)
        assert decoded[i, :, decoded_lens[i] :].abs().sum() == 0


@torch.no_grad()
def test_every_sample_comes_back_and_a_hop_at_most_beside(autoencoder):
    hop = autoencoder.hop_length
    audio_lens = lens(1, hop - 1, hop, hop + 1, 5 * hop)
    waveform = 0.1 * torch.randn(5, 1, 5 * hop)
    latents, latent_lens = autoencoder.encode(waveform, audio_lens)
    assert latent_lens.tolist() == [1, 1, 1, 2, 5] == autoencoder.latent_lens_of(audio_lens).tolist()
    decoded, decoded_lens = autoencoder.decode(latents, latent_lens)
    assert decoded_lens.tolist() == [hop, hop, hop, 2 * hop, 5 * hop]
    assert decoded.shape == (5, 1, 5 * hop)


@torch.no_grad()
def test_silence_is_finite_there_and_back(autoencoder):
    latents, latent_lens = autoencoder.encode(torch.zeros(2, 1, 500), lens(500, 0))
    decoded, _ = autoencoder.decode(latents, latent_lens)
    assert latents.isfinite().all()
    assert decoded.isfinite().all()


@torch.no_grad()
def test_latents_out_of_all_bounds_are_heard_as_something_finite(autoencoder):
    for value in (-1e4, 1e4):
        decoded, _ = autoencoder.decode(torch.full((1, 12, autoencoder.latent_dim), value), lens(12))
        assert decoded.isfinite().all()


@torch.no_grad()
def test_nothing_is_random_unless_asked_for(autoencoder):
    waveform, audio_lens = tones(600, 400)
    (first, first_lens), (second, _) = (autoencoder.encode(waveform, audio_lens) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(*(autoencoder.decode(first, first_lens)[0] for _ in range(2)))


# -------------------------------------------------------------------------------------------------------- statistics


@torch.no_grad()
@pytest.mark.parametrize("per_dimension", [True, False])
def test_fitted_latents_have_unit_scale_and_come_back_the_same(autoencoder, per_dimension):
    batches = [tones(700, 900), tones(300, 2_000, 50)]
    autoencoder.fit_statistics((autoencoder.raw_latents(*batch) for batch in batches), per_dimension)
    frames = torch.cat([x[i, :n] for x, ls in (autoencoder.encode(*b) for b in batches) for i, n in enumerate(ls)])
    mean, var = (
        (frames.mean(0), frames.var(0, correction=0)) if per_dimension else (frames.mean(), frames.square().mean())
    )
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-4, rtol=0)
    moving = var > 0.5  # a dimension that never moves is only centred
    torch.testing.assert_close(var[moving], torch.ones_like(var[moving]), atol=1e-3, rtol=0)
    raw, _ = autoencoder.raw_latents(*batches[0])
    back = autoencoder.statistics.restore(autoencoder.encode(*batches[0])[0])
    torch.testing.assert_close(back[1], raw[1], atol=1e-4, rtol=1e-4)


def test_statistics_of_parts_are_those_of_the_whole_in_double_precision():
    autoencoder, frames = PatchAutoencoder(8_000, 4), 1_000 + torch.randn(5_000, 4)
    autoencoder.fit_statistics(frames.split([1, 700, 4_299]))
    torch.testing.assert_close(autoencoder.statistics.mean.double(), frames.double().mean(0), rtol=1e-7, atol=0)
    torch.testing.assert_close(
        autoencoder.statistics.std.double(), frames.double().std(0, correction=0), rtol=1e-6, atol=0
    )


def test_statistics_travel_in_the_state():
    fitted, other = PatchAutoencoder(8_000, 4), PatchAutoencoder(8_000, 4)
    fitted.fit_statistics([3 + 2 * torch.randn(100, 4)])
    other.load_state_dict(fitted.state_dict())
    assert torch.equal(fitted.statistics.mean, other.statistics.mean)
    assert other.statistics.std[0] != 1


def test_statistics_that_were_extracted_are_read_and_those_of_standardised_latents_refused(tmp_path):
    manifest = write_corpus(tmp_path / "corpus")
    name = "components.models.audio_generator.autoencoders.PatchAutoencoder"
    settings = ["sample_rate=16000", "patch_length=40"]
    assert extract([str(manifest), str(tmp_path / "raw"), "--extractor", name, *settings]) == 0
    autoencoder = PatchAutoencoder(16_000, 40, statistics=tmp_path / "raw" / "stats.json")
    found = json.loads((tmp_path / "raw" / "stats.json").read_text())
    torch.testing.assert_close(autoencoder.statistics.std, torch.tensor(found["std"]), rtol=1e-5, atol=0)

    settings.append(f"statistics={tmp_path / 'raw' / 'stats.json'}")
    assert extract([str(manifest), str(tmp_path / "unit"), "--extractor", name, *settings]) == 0
    with pytest.raises(UserError, match="already standardised"):
        PatchAutoencoder(16_000, 40, statistics=tmp_path / "unit" / "stats.json")
    with pytest.raises(UserError, match="40 dimensions, the latents have 41"):
        PatchAutoencoder(16_000, 41, statistics=tmp_path / "raw" / "stats.json")


@torch.no_grad()
def test_latents_far_from_unit_scale_are_told_of():
    autoencoder, (waveform, audio_lens) = MelAutoencoder(log_mel()), tones(3_000, 2_000)
    told = autoencoder.check_scale(*autoencoder.encode(waveform, audio_lens))
    assert "standard deviation" in told
    assert "stats.json" in told
    autoencoder.fit_statistics([autoencoder.raw_latents(waveform, audio_lens)])
    assert autoencoder.check_scale(*autoencoder.encode(waveform, audio_lens)) is None


def test_no_frames_make_no_statistics():
    with pytest.raises(UserError, match="not one frame"):
        PatchAutoencoder(8_000, 4).fit_statistics([])


# --------------------------------------------------------------------------------------------------------------- mel


@torch.no_grad()
@pytest.mark.skipif(not SPEECH.is_dir(), reason="needs the spoken digits")
def test_speech_sounds_about_the_same_after_griffin_lim():
    autoencoder, clips = MelAutoencoder(log_mel()), speech(8)
    audio_lens = lens(*map(len, clips))
    waveform = nn.utils.rnn.pad_sequence(clips, batch_first=True).unsqueeze(1)
    latents, latent_lens = autoencoder.encode(waveform, audio_lens)
    again, _ = autoencoder.encode(*autoencoder.decode(latents, latent_lens))
    inside = torch.arange(latents.shape[1]) < latent_lens.unsqueeze(1)
    decibels = 10 / math.log(10) * (again - latents)[inside]
    assert decibels.square().mean().sqrt() < 2.5  # 2.0 here


@torch.no_grad()
def test_griffin_lim_finds_a_waveform_of_these_magnitudes_and_momentum_helps():
    (waveform, _), window = tones(4_000), torch.hann_window(256)
    frames = nn.functional.pad(waveform[0, 0], (128, 256)).unfold(-1, 256, 64)[:62] * window
    magnitudes = torch.fft.rfft(frames).abs().unsqueeze(0)

    def distance(**options) -> float:
        heard = griffin_lim(magnitudes, lens(62), window, 64, 128, **options)
        back = torch.fft.rfft(nn.functional.pad(heard[0], (128, 256)).unfold(-1, 256, 64)[:62] * window).abs()
        return float((back - magnitudes[0]).norm() / magnitudes[0].norm())

    assert distance(num_iterations=32) < 0.1
    assert distance(num_iterations=32) < distance(num_iterations=32, momentum=0.0) < distance(num_iterations=0)


@torch.no_grad()
def test_the_way_back_from_mels_is_not_negative_and_has_these_mels():
    frontend = log_mel()
    mels, _ = MelAutoencoder(frontend).encode(*tones(4_000))

    def distance(num_updates: int) -> float:
        magnitudes = MelInverse(frontend, num_updates)(mels)
        assert magnitudes.min() >= 0
        again = torch.log(magnitudes.square() @ frontend.filters + 1e-5)
        return 10 / math.log(10) * float((again - mels).square().mean().sqrt())

    assert distance(16) < 2.5
    assert distance(16) < 0.5 * distance(0)  # of the pseudo-inverse alone


@pytest.mark.parametrize(
    ("frontend", "reason"),
    [
        (lambda: KaldiFbank(16_000), "LogMel and MelSpectrogram only, not of KaldiFbank"),
        (lambda: LogMel(16_000, subtract_mean=True), "forget what is needed"),
        (lambda: MelSpectrogram(16_000, padding="none"), "leaves out a clip's edges"),
    ],
)
def test_mels_that_can_not_be_turned_back_are_refused(frontend, reason):
    with pytest.raises(UserError, match=reason):
        MelAutoencoder(frontend())


# ----------------------------------------------------------------------------------------------------------- oobleck


@torch.no_grad()
def test_oobleck_is_that_of_diffusers():
    ours = oobleck().eval()
    theirs = AutoencoderOobleck(16, [2, 4, 4], [1, 2, 4], 8, 8, 1, 8_000).eval()
    ours.encoder.load_state_dict(theirs.encoder.state_dict())  # their names of normalised weights are understood
    ours.decoder.load_state_dict(theirs.decoder.state_dict())
    waveform, audio_lens = tones(640, 640)
    expected = theirs.encode(waveform).latent_dist
    latents, latent_lens = ours.encode(waveform, audio_lens)
    torch.testing.assert_close(latents, expected.mode().transpose(1, 2))
    torch.testing.assert_close(ours.decode(latents, latent_lens)[0], theirs.decode(expected.mode()).sample)
    torch.testing.assert_close(2 * ours(waveform, audio_lens).kl.mean(), expected.kl())


def test_oobleck_is_read_from_a_folder_and_says_what_does_not_fit(tmp_path):
    theirs = AutoencoderOobleck(16, [2, 4], [1, 2], 8, 8, 2, 8_000)
    theirs.save_pretrained(tmp_path / "whole" / "vae")
    ours = OobleckAutoencoder(8_000, pretrained=str(tmp_path / "whole"), subfolder="vae")
    assert (ours.hop_length, ours.latent_dim, ours.audio_channels) == (8, 8, 2)
    torch.testing.assert_close(ours.decoder.conv2.weight, theirs.decoder.conv2.weight)
    with pytest.raises(UserError, match="is of 8000 Hz, but sample_rate is 16000"):
        OobleckAutoencoder(16_000, pretrained=str(tmp_path / "whole"), subfolder="vae")
    with pytest.raises(UserError, match="no AutoencoderOobleck can be read"):
        OobleckAutoencoder(8_000, pretrained=str(tmp_path / "nowhere"))
    AutoencoderOobleck(16, [2, 4], [1, 2], 8, 12, 1, 8_000).save_pretrained(tmp_path / "odd")
    with pytest.raises(UserError, match="16 channels, its decoder takes 12"):
        OobleckAutoencoder(8_000, pretrained=str(tmp_path / "odd"))
    with pytest.raises(UserError, match="must be even, got 15"):
        OobleckAutoencoder(8_000, 15, [2, 4], [1, 2])
    with pytest.raises(UserError, match="got 2 and 3"):
        OobleckAutoencoder(8_000, 16, [2, 4], [1, 2, 4])


@torch.no_grad()
@pytest.mark.parametrize("bare", [False, True])
def test_what_was_trained_is_saved_for_diffusers_and_read_again(tmp_path, bare):
    ours, (waveform, audio_lens) = oobleck(), tones(640, 300)
    for parameter in ours.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    if bare:
        ours.remove_weight_norm()
    ours.save_pretrained(tmp_path)
    again = OobleckAutoencoder(8_000, pretrained=str(tmp_path))
    latents, latent_lens = ours.encode(waveform, audio_lens)
    torch.testing.assert_close(again.encode(waveform, audio_lens)[0], latents, atol=1e-5, rtol=1e-5)
    decoded = [autoencoder.decode(latents, latent_lens)[0] for autoencoder in (ours, again)]
    torch.testing.assert_close(*decoded, atol=1e-5, rtol=1e-5)
    theirs = AutoencoderOobleck.from_pretrained(tmp_path).encode(waveform[:1]).latent_dist.mode()
    torch.testing.assert_close(theirs.transpose(1, 2)[0], latents[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_without_weight_normalisation_the_same_comes_out_and_can_be_loaded():
    autoencoder, (waveform, audio_lens) = oobleck().eval(), tones(640, 300)
    latents, latent_lens = autoencoder.encode(waveform, audio_lens)
    decoded, _ = autoencoder.decode(latents, latent_lens)
    autoencoder.remove_weight_norm()
    assert not any("parametrizations" in name for name in autoencoder.state_dict())
    bare = oobleck(normalise_weights=False).eval()
    bare.load_state_dict(autoencoder.state_dict())
    torch.testing.assert_close(bare.decode(*bare.encode(waveform, audio_lens))[0], decoded, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_a_sample_is_spread_as_the_posterior_says_and_is_zero_behind_a_clip():
    autoencoder, (waveform, _) = oobleck(), tones(96)
    waveform[..., 64:] = 0
    mean, std = autoencoder.posterior(waveform, lens(2))
    draws, _ = autoencoder.raw_latents(waveform.expand(500, -1, -1), lens(64).expand(500), sample=True)
    torch.testing.assert_close(draws.std(0)[:2], std[0, :2], rtol=0.15, atol=0.0)
    assert (draws.mean(0) - mean[0])[:2].abs().max() < 0.2
    assert draws[:, 2:].abs().sum() == 0


def test_a_copy_can_be_made_after_a_step():
    autoencoder, clip = oobleck(), tones(96)
    autoencoder(*clip).waveform.sum().backward()
    copied = copy.deepcopy(autoencoder)
    torch.testing.assert_close(copied.encode(*clip), autoencoder.encode(*clip))


def test_all_of_oobleck_learns_and_padding_changes_no_gradient():
    autoencoder, (waveform, audio_lens) = oobleck((3, 4)), tones(600, 200)

    def gradients(*clips) -> dict[str, torch.Tensor]:
        model = copy.deepcopy(autoencoder)
        for clip, clip_lens in clips:
            output = model(clip, clip_lens, sample=False)
            assert output.waveform.shape == clip.shape
            (output.waveform.square().sum() + output.kl.sum()).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    together = gradients((waveform, audio_lens))
    alone = gradients((waveform[:1], audio_lens[:1]), (waveform[1:, :, :200], audio_lens[1:]))
    for name, gradient in together.items():
        assert gradient.isfinite().all()
        torch.testing.assert_close(gradient, alone[name], atol=1e-4, rtol=1e-3)
    assert sum(gradient.abs().sum() > 0 for gradient in together.values()) == len(together)


# ------------------------------------------------------------------------------------------------- patch and identity


def test_patches_come_back_exactly():
    waveform, audio_lens = tones(90, 61)
    decoded, _ = PatchAutoencoder(8_000, 30).decode(*PatchAutoencoder(8_000, 30).encode(waveform, audio_lens))
    assert torch.equal(decoded[0], waveform[0])
    assert torch.equal(decoded[1, :, :61], waveform[1, :, :61])


def test_precomputed_latents_are_standardised_and_heard_by_the_one_that_made_them():
    maker, (waveform, audio_lens) = PatchAutoencoder(8_000, 30), tones(90, 61)
    features, feature_lens = maker.encode(waveform, audio_lens)
    identity = IdentityAutoencoder(30, decoder=maker)
    assert (identity.sample_rate, identity.hop_length) == (8_000, 30)
    assert identity.latent_lens_of(audio_lens).tolist() == feature_lens.tolist()
    identity.fit_statistics([identity.raw_latents(features, feature_lens)])
    latents, latent_lens = identity.encode(features, feature_lens)
    assert identity.check_scale(latents, latent_lens) is None
    torch.testing.assert_close(identity.decode(latents, latent_lens)[0][0], waveform[0], atol=1e-5, rtol=1e-5)


def test_without_a_decoder_latents_come_back_at_their_own_scale():
    identity, features = IdentityAutoencoder(5, sample_rate=24_000, hop_length=480), 7 + 3 * torch.randn(2, 9, 5)
    identity.fit_statistics([(features, lens(9, 4))])
    decoded, decoded_lens = identity.decode(*identity.encode(features, lens(9, 4)))
    torch.testing.assert_close(decoded[0], features[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(decoded[1, :4], features[1, :4], atol=1e-5, rtol=1e-5)
    assert decoded[1, 4:].abs().sum() == 0
    assert decoded_lens.tolist() == [9, 4]
    assert identity.latent_lens_of(lens(480, 481)).tolist() == [1, 2]


# ----------------------------------------------------------------------------------------------------------- configs

OPTIONS = {
    "identity": ("latent_dim=4",),
    "mel": (),
    "oobleck": None,  # 43 M parameters
    "oobleck_small": (),
    "oobleck_stable_audio": None,  # from the hub
    "patch": (),
}


def test_all_shipped_autoencoders_are_tried():
    assert sorted(path.stem for path in (CONFIGS / "model/autoencoder").glob("*.yaml")) == sorted(OPTIONS)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_shipped_autoencoder_is_valid(name):
    node = Request(CONFIGS, f"model/autoencoder/{name}").compose().model.autoencoder
    settings = OmegaConf.from_dotlist(list(OPTIONS[name] or ()))
    node = OmegaConf.merge(OmegaConf.to_container(node), settings)
    config = OmegaConf.create({"sample_rate": 8_000, "autoencoder": node})
    assert validate(config) == []
    if OPTIONS[name] is not None:
        assert isinstance(build(config, "autoencoder"), Autoencoder)
