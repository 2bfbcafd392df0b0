"""What a waveform autoencoder is trained for.  Shapes: B batch, T samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from components.losses.adversarial import AdversarialLoss, Judgement, feature_matching
from components.losses.multi_scale_stft import MultiResolutionStftLoss, waveform_distance
from utils.errors import UserError

RECONSTRUCTION = ("spectral", "waveform", "kl")
ADVERSARIAL = ("adversarial", "feature_matching")


class AutoencoderLoss(nn.Module):
    """A weighted sum of parts, each one number a clip.

    - `spectral`: spectral convergence and log-magnitude distance at several resolutions;
    - `waveform`: mean absolute difference of samples;
    - `kl`: the posterior's divergence from a standard normal, in nats per frame;
    - `adversarial`, `feature_matching`: what discriminators make of it.

    Args:
        spectral: of two waveforms and their lengths.
        adversarial: how the generator and its discriminators are paid.
        weights: part -> weight; a part without one is left out of the sum, but measured.

    Raises:
        UserError: a weight is of no part.
    """

    def __init__(
        self, spectral: MultiResolutionStftLoss, adversarial: AdversarialLoss, weights: Mapping[str, float]
    ) -> None:
        super().__init__()
        if unknown := set(weights) - {*RECONSTRUCTION, *ADVERSARIAL}:
            parts = ", ".join((*RECONSTRUCTION, *ADVERSARIAL))
            raise UserError(f"weights: {sorted(unknown)[0]!r} is none of {parts}")
        self.spectral, self.adversarial, self.weights = spectral, adversarial, dict(weights)

    def reconstruction(self, estimate: Tensor, target: Tensor, audio_lens: Tensor, kl: Tensor) -> dict[str, Tensor]:
        """`[B, 1, T]` twice, `[B]`, and the divergence `[B]` to the parts of that name, `[B]` each."""
        spectral = self.spectral(estimate, target, audio_lens).total
        return {"spectral": spectral, "waveform": waveform_distance(estimate, target, audio_lens), "kl": kl}

    def judged(self, real: Sequence[Judgement], fake: Sequence[Judgement]) -> dict[str, Tensor]:
        """What discriminators said of target and estimate to the adversarial parts, `[B]` each."""
        return {"adversarial": self.adversarial.generator(fake), "feature_matching": feature_matching(real, fake)}

    def total(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum, `[B]`."""
        return torch.stack([weight * parts[name] for name, weight in self.weights.items() if name in parts]).sum(0)
