"""The autoencoding task: two optimizers in turn.  Shapes: B batch, T samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer import StepOutput, Trainer

Batch = dict[str, Any]


@dataclass(eq=False, kw_only=True)
class AutoencoderTrainer(Trainer):
    """Trains an `AdversarialPair` by an `AutoencoderLoss`, with the optimizers `discriminator` and `generator`.

    In an update the discriminators learn first, and judge the same reconstruction anew for the autoencoder.

    Attributes:
        adversarial_start: updates before the autoencoder hears of the discriminators, which learn from the first on.
    """

    adversarial_start: int = 0

    def training_step(self, batch: Batch, batch_idx: int) -> Iterator[tuple[str, StepOutput]]:
        model, target, lens = self.unwrapped_model, batch["waveform"], batch["audio_lens"]
        with self.accelerator.autocast():
            output = model.generator(target, lens)
            judgements = (model.discriminator(sound, lens) for sound in (target, output.waveform.detach()))
            loss = self.loss_fn.adversarial.discriminator(*judgements)
        yield "discriminator", StepOutput(loss.sum(), len(target))
        with self.accelerator.autocast():
            parts = self.loss_fn.reconstruction(output.waveform, target, lens, output.kl)
            if self.global_step >= self.adversarial_start:
                with torch.no_grad():
                    real = model.discriminator(target, lens)
                parts |= self.loss_fn.judged(real, model.discriminator(output.waveform, lens))
            total = self.loss_fn.total(parts)
        yield "generator", StepOutput(total.sum(), len(target), _metrics(parts))

    def validation_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        target, lens = batch["waveform"], batch["audio_lens"]
        output = self.model(target, lens)
        parts = self.loss_fn.reconstruction(output.waveform, target, lens, output.kl)
        return StepOutput(self.loss_fn.total(parts).sum(), len(target), _metrics(parts), outputs=output.waveform)


def _metrics(parts: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, int]]:
    return {name: (part.detach().sum(), len(part)) for name, part in parts.items()}
