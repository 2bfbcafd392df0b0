"""Losses and discriminators of waveform autoencoders, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from components.losses import (
    HingeLoss,
    Judgement,
    LeastSquaresLoss,
    MultiResolutionStftLoss,
    feature_matching,
    gaussian_kl,
    waveform_distance,
)
from components.models.discriminators import MultiScaleStftDiscriminator
from utils.errors import UserError


@pytest.fixture(autouse=True)
def drawn_alike():
    torch.manual_seed(0)


def clips(*lengths: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two versions of clips, with noise behind each."""
    target = 0.3 * torch.randn(len(lengths), 1, max(lengths))
    return target + 0.1 * torch.randn_like(target), target, torch.tensor(lengths)


def small() -> MultiResolutionStftLoss:
    return MultiResolutionStftLoss((256, 128), (50, 30), (200, 128))


# ------------------------------------------------------------------------------------------------------ spectral loss


def test_half_as_loud_is_half_converged_and_a_logarithm_of_two_away():
    _, target, lens = clips(4_000, 3_000)
    loss = small()(0.5 * target, target, lens)
    torch.testing.assert_close(loss.spectral_convergence, torch.full((2,), 0.5), atol=1e-3, rtol=0)
    torch.testing.assert_close(loss.log_magnitude, torch.full((2,), math.log(2)), atol=1e-3, rtol=0)
    torch.testing.assert_close(loss.total, loss.spectral_convergence + loss.log_magnitude)


def test_the_loss_is_that_of_its_formula():
    estimate, target, lens = clips(2_000)
    window, parts = torch.hann_window(128), []
    for samples in (estimate, target):
        spectrum = torch.stft(samples[0], 128, 32, 128, window, center=True, pad_mode="reflect", return_complex=True)
        parts.append(spectrum.abs().clamp(min=1e-4)[0])
    loss = MultiResolutionStftLoss((128,), (32,), (128,))(estimate, target, lens)
    torch.testing.assert_close(loss.spectral_convergence[0], (parts[1] - parts[0]).norm() / parts[1].norm())
    torch.testing.assert_close(loss.log_magnitude[0], (parts[1].log() - parts[0].log()).abs().mean())


@pytest.mark.parametrize("seed", range(2))
def test_padding_changes_no_loss(seed):
    torch.manual_seed(seed)
    estimate, target, lens = clips(1_500, 1, 400, 90)
    losses = {
        "total": lambda *batch: small()(*batch).total,
        "distance": waveform_distance,
    }
    for name, loss in losses.items():
        together = loss(estimate, target, lens)
        for i, length in enumerate(lens.tolist()):
            alone = loss(estimate[i : i + 1, :, :length], target[i : i + 1, :, :length], lens[i : i + 1])
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-5, msg=name)


def test_gradients_are_finite_where_nothing_differs_and_where_nothing_sounds():
    _, target, lens = clips(800, 300)
    for same in (target, torch.zeros_like(target)):
        estimate = same.clone().requires_grad_()
        small()(estimate, same, lens).total.sum().backward()
        assert estimate.grad.isfinite().all()
        assert estimate.grad[1, :, 300:].abs().sum() == 0


def test_resolutions_that_do_not_fit_together_are_refused():
    with pytest.raises(UserError, match="of one length"):
        MultiResolutionStftLoss((256, 128), (50,), (200, 128))
    with pytest.raises(UserError, match="a window of 300 samples is longer"):
        MultiResolutionStftLoss((256,), (50,), (300,))


def test_the_divergence_is_that_of_torch_and_zero_at_the_prior():
    mean, std, lens = torch.randn(2, 7, 3), torch.rand(2, 7, 3) + 0.1, torch.tensor([7, 4])
    ours = gaussian_kl(mean, std, lens)
    theirs = torch.distributions.kl_divergence(torch.distributions.Normal(mean, std), torch.distributions.Normal(0, 1))
    torch.testing.assert_close(ours[0], theirs[0].sum(-1).mean())
    torch.testing.assert_close(ours[1], theirs[1, :4].sum(-1).mean())
    assert gaussian_kl(torch.zeros(1, 5, 3), torch.ones(1, 5, 3), torch.tensor([5])).item() == 0


# ------------------------------------------------------------------------------------------------------- adversaries


def judged(value: float, behind: float = 99.0) -> list[Judgement]:
    """Two clips of 4 and 2 frames with the same logits; what lies behind the second is something else."""
    logits = torch.full((2, 4, 3), value)
    logits[1, 2:] = behind
    features = logits.unsqueeze(1).masked_fill(logits.unsqueeze(1) == behind, 0)
    return [Judgement(logits, [features, 2 * features], torch.tensor([4, 2]))] * 2


@pytest.mark.parametrize(
    ("loss", "real", "fake", "of_discriminator", "of_generator"),
    [
        (HingeLoss(), 0.25, -0.5, 0.75 + 0.5, 1.5),
        (HingeLoss(), 2.0, -3.0, 0.0, 4.0),
        (LeastSquaresLoss(), 0.25, -0.5, 0.75**2 + 0.25, 2.25),
    ],
)
def test_adversaries_are_paid_by_the_formula_over_true_frames(loss, real, fake, of_discriminator, of_generator):
    torch.testing.assert_close(loss.discriminator(judged(real), judged(fake)), torch.full((2,), of_discriminator))
    torch.testing.assert_close(loss.generator(judged(fake)), torch.full((2,), of_generator))


def test_features_match_in_units_of_the_real_ones():
    torch.testing.assert_close(feature_matching(judged(4.0), judged(3.0)), torch.full((2,), 0.25))


@torch.no_grad()
def test_a_clip_of_a_padded_batch_is_judged_as_it_is_alone():
    model = MultiScaleStftDiscriminator((256, 64), 4)
    waveform, _, lens = clips(900, 10, 300)
    together = model(waveform, lens)
    for i, length in enumerate(lens.tolist()):
        for whole, alone in zip(together, model(waveform[i : i + 1, :, :length], lens[i : i + 1])):
            num_frames = int(alone.lens)
            assert alone.logits.shape[1] == num_frames == int(whole.lens[i])
            torch.testing.assert_close(whole.logits[i, :num_frames], alone.logits[0], atol=1e-5, rtol=1e-4)
            for mine, its in zip(whole.features, alone.features):
                torch.testing.assert_close(mine[i, :, :num_frames], its[0], atol=1e-5, rtol=1e-4)
                assert mine[i, :, num_frames:].abs().sum() == 0


@pytest.mark.parametrize("loss", [HingeLoss(), LeastSquaresLoss()])
def test_a_discriminator_learns_to_tell_noise_from_tones_and_tells_the_generator_how(loss):
    model = MultiScaleStftDiscriminator((128, 64), 4)
    time, lens = torch.arange(800) / 8_000, torch.tensor([800, 640])
    real = 0.3 * torch.sin(2 * math.pi * torch.tensor([[[500.0]], [[900.0]]]) * time)
    fake = (0.2 * torch.randn(2, 1, 800)).requires_grad_()
    optimizer, losses = torch.optim.Adam(model.parameters(), 3e-3), []
    for _ in range(30):
        total = loss.discriminator(model(real, lens), model(fake.detach(), lens)).mean()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    assert losses[-1] < 0.6 * losses[0]
    judgements = model(fake, lens)
    (loss.generator(judgements) + feature_matching(model(real, lens), judgements)).sum().backward()
    assert fake.grad[:, :, :640].abs().sum() > 0
    assert fake.grad[1, :, 640:].abs().sum() == 0
