"""What a generator is trained for.  Shapes: B batch, L frames, D latent.

An objective draws times and noise, asks for a prediction and returns one loss per item, the mean over its own frames:
long clips do not outweigh short ones, and nobody sees padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from components.generative.pairing import pair_by_transport
from components.generative.paths import AffinePath, LinearPath
from components.generative.timesteps import LogitNormalTimesteps, TimestepDensity, UniformTimesteps

# (x_t [B, L, D], t [B]) -> prediction [B, L, D]
Predict = Callable[[Tensor, Tensor], Tensor]


@dataclass(slots=True)
class ObjectiveOutput:
    """Losses and where they were taken.

    Attributes:
        per_item: `[B]`, weighted as the objective says.
        t: `[B]` in [0, 1], 0 noise and 1 data.
    """

    per_item: Tensor
    t: Tensor


def masked_mean(values: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Mean over `[L, D]` of each item, padding left out; `[B, L, D]`, `[B, L]` to `[B]`; 0 for an item of padding."""
    per_frame = values.mean(-1)
    if padding_mask is None:
        return per_frame.mean(-1)
    real = (~padding_mask).to(per_frame.dtype)
    return (per_frame * real).sum(-1) / real.sum(-1).clamp(min=1)


class FlowMatching:
    """Conditional flow matching (Lipman et al. 2023, arXiv:2210.02747, eq. 23): the squared error of the velocity.

    Args:
        path: from noise to data; straight lines by default.
        timesteps: the density over t; logit-normal by default.
        optimal_transport: pair noise and data within a batch so that paths cross less (Tong et al. 2024,
            arXiv:2302.00482). The batch must then have one length, as a canvas has.
        source_noise: where a source is given (`x_0` of `loss`), how much Gaussian noise is added to it.
    """

    prediction = "velocity"

    def __init__(
        self,
        path: AffinePath | None = None,
        timesteps: TimestepDensity | None = None,
        optimal_transport: bool = False,
        source_noise: float = 0.5,
    ) -> None:
        self.path = path or LinearPath()
        self.timesteps = timesteps or LogitNormalTimesteps()
        self.optimal_transport, self.source_noise = optimal_transport, source_noise

    def loss(
        self,
        predict: Predict,
        x_1: Tensor,
        padding_mask: Tensor | None = None,
        source: Tensor | None = None,
        t: Tensor | None = None,
    ) -> ObjectiveOutput:
        """Losses of `x_1 [B, L, D]`.

        Args:
            padding_mask: `[B, L]`, True where there is nothing.
            source: `[B, L, D]`, starts the flow in the place of noise: the latents of a noisy recording, say.
            t: `[B]`; None draws them.
        """
        if t is None:
            t = self.timesteps.sample(len(x_1), x_1.device).to(x_1.dtype)
        x_0 = self.start(torch.randn_like(x_1), source)
        if self.optimal_transport and source is None:
            x_0 = pair_by_transport(x_0, x_1)
        point = self.path.sample(x_0, x_1, t)
        error = (predict(point.x_t, t) - point.velocity).float().square()
        return ObjectiveOutput(masked_mean(error, padding_mask), t)

    def start(self, noise: Tensor, source: Tensor | None = None) -> Tensor:
        """Where a flow begins: in the noise, or around a source."""
        return noise if source is None else source + self.source_noise * noise


class VDiffusion:
    """Diffusion by v-prediction (Salimans & Ho 2022, arXiv:2202.00512) with min-SNR weights (Hang et al. 2023,
    arXiv:2303.09556: `min(SNR, gamma) / (SNR + 1)` for this target).

    Args:
        scheduler: a scheduler of diffusers that adds noise, with `prediction_type: v_prediction`.
        min_snr_gamma: None weighs all times alike.
    """

    prediction = "v_prediction"

    def __init__(self, scheduler: Any, min_snr_gamma: float | None = 5.0) -> None:
        self.scheduler, self.min_snr_gamma = scheduler, min_snr_gamma
        self.timesteps = UniformTimesteps()

    def loss(
        self,
        predict: Predict,
        x_1: Tensor,
        padding_mask: Tensor | None = None,
        source: Tensor | None = None,
        t: Tensor | None = None,
    ) -> ObjectiveOutput:
        """As `FlowMatching.loss`; there is no source but noise."""
        num_steps = self.scheduler.config.num_train_timesteps
        if t is None:
            t = self.timesteps.sample(len(x_1), x_1.device)
        steps = ((1 - t) * num_steps).long().clamp(0, num_steps - 1)
        noise = torch.randn_like(x_1)
        x_t = self.scheduler.add_noise(x_1, noise, steps)
        target = self.scheduler.get_velocity(x_1, noise, steps)
        t = 1 - steps.to(x_1.dtype) / num_steps
        error = (predict(x_t, t) - target).float().square()
        per_item = masked_mean(error, padding_mask)
        if self.min_snr_gamma is not None:
            kept = self.scheduler.alphas_cumprod.to(x_1.device)[steps].float()
            snr = kept / (1 - kept).clamp(min=1e-8)
            per_item = per_item * snr.clamp(max=self.min_snr_gamma) / (snr + 1)
        return ObjectiveOutput(per_item, t)

    def start(self, noise: Tensor, source: Tensor | None = None) -> Tensor:
        """Where sampling begins."""
        return noise
