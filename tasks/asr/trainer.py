"""The speech recognition task: what a step is, and what is measured.  Shapes: B batch, N tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from components.data import check_sample_rate
from components.metrics.error_rates import RATE_NAMES, collapse_warning, error_counts
from components.models.asr import AsrModel, AsrOutput, Hypothesis
from tasks.asr.decoders import check_heads
from trainer import StepOutput, Trainer
from utils.errors import UserError

Batch = dict[str, Any]

logger = logging.getLogger(__name__)


@dataclass(eq=False, kw_only=True)
class AsrTrainer(Trainer):
    """Trains an `AsrModel`.

    Logged beside `loss`: `loss_<head>` where there are several, what the heads measure, `usable`, the share of
    utterances that some head could learn from; in validation `wer`, `cer` or `per`, and `length_ratio`, the length of
    what was heard to that of what was said.

    Attributes:
        decoder: `(model, encoded) -> n-best hypotheses of each utterance`, for validation.
        tokenizer: the model's.
        error_units: of the error rates of validation: `word` (wer), `char` (cer), `token` (per).
        loss_per: what a batch's loss is divided by, `token` or `utterance`.
        silent_steps: updates in which a recogniser may say nothing yet; later, and at the end, it is warned of.
    """

    decoder: Callable[..., list[list[Hypothesis]]]
    tokenizer: Any
    error_units: tuple[str, ...] | list[str] = ("word", "char")
    loss_per: str = "token"
    silent_steps: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss_per not in ("token", "utterance"):
            raise UserError(f"trainer.loss_per: token or utterance, not {self.loss_per!r}")
        if unknown := [unit for unit in self.error_units if unit not in RATE_NAMES]:
            raise UserError(f"trainer.error_units: {', '.join(RATE_NAMES)}, not {unknown[0]!r}")

    def on_fit_start(self) -> None:
        model: AsrModel = self.unwrapped_model
        loaders = {"train_dataloader": self.train_dataloader, "val_dataloader": self.val_dataloader}
        check_sample_rate(loaders, getattr(model.frontend, "sample_rate", None))
        check_heads(self.decoder, model)

    def training_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        return self._step(batch, self.model(batch))

    def validation_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        output: AsrOutput = self.model(batch)
        step = self._step(batch, output)
        found = self.decoder(self.unwrapped_model, output.encoded)
        heard = [hypotheses[0].tokens if hypotheses else [] for hypotheses in found]
        step.outputs = texts = [self.tokenizer.decode(tokens) for tokens in heard]
        for unit in self.error_units:
            said = self._said(batch) if unit == "token" else batch["text"]
            counts = error_counts(said, texts, unit)
            step.metrics[RATE_NAMES[unit]] = self._share(counts.errors, counts.num_reference)
        step.metrics["length_ratio"] = self._share(sum(map(len, heard)), int(batch["token_lens"].sum()))
        return step

    def _said(self, batch: Batch) -> list[str]:
        """The references in tokens: of words, where a lexicon spells them."""
        return [self.tokenizer.decode(row) for row in batch["tokens"].tolist()]

    def on_validation_end(self) -> None:
        is_early = self.global_step < self.silent_steps and self.global_step != self.total_steps
        if not self.global_step or is_early or not self.is_main_process or "val/length_ratio" not in self.metrics:
            return
        told = collapse_warning(self.metrics["val/length_ratio"], self.metrics.get("val/blank_share"))
        if told is not None:
            logger.warning("%s", told)

    def _step(self, batch: Batch, output: AsrOutput) -> StepOutput:
        metrics: dict[str, tuple[Tensor, Tensor]] = {}
        usable = torch.zeros_like(output.per_item)
        for name, head in output.heads.items():
            if len(output.heads) > 1:
                metrics[f"loss_{name}"] = (head.per_item.detach().sum(), self._count(batch, head.usable))
            metrics |= head.metrics
            usable = usable.maximum(head.usable.to(usable.dtype))
        metrics["usable"] = (usable.sum(), usable.new_tensor(len(usable)))
        return StepOutput(output.per_item.sum(), self._count(batch, usable), metrics)

    def _count(self, batch: Batch, usable: Tensor) -> Tensor:
        return (batch["token_lens"] * usable).sum() if self.loss_per == "token" else usable.sum()

    def _share(self, part: int, whole: int) -> tuple[Tensor, Tensor]:
        return torch.tensor(float(part), device=self.device), torch.tensor(float(whole), device=self.device)
