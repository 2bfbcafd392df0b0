"""The tagging task: what a step is, and what is measured.  Shapes: B batch, K classes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from components.data import check_sample_rate
from components.models.tagger import TaggerOutput
from tasks.tagging.inference import Record, TaggingPredictor, metric_name
from trainer import StepOutput, Trainer
from utils.errors import UserError

Batch = dict[str, Any]


@dataclass(eq=False, kw_only=True)
class TaggingTrainer(Trainer):
    """Trains a tagger; `loss_fn` is `(logits, targets) -> MultiTargetLoss`.

    Attributes:
        labels: target -> its class names.
        main_target: the one whose accuracy is called `accuracy`; the others' are `<target>_accuracy`.
    """

    labels: dict[str, list[str]]
    main_target: str

    @cached_property
    def predictor(self) -> TaggingPredictor:
        return TaggingPredictor(self.labels, self.main_target)

    def on_fit_start(self) -> None:
        loaders = {"train_dataloader": self.train_dataloader, "val_dataloader": self.val_dataloader}
        frontend = getattr(self.unwrapped_model, "frontend", None)
        check_sample_rate(loaders, getattr(frontend, "sample_rate", None))

    def training_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        return self._step(batch)

    def validation_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        return self._step(batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Record]:
        return self.predictor(self.model, batch)

    def _step(self, batch: Batch) -> StepOutput:
        if "waveform" not in batch:
            raise UserError("the batch has no waveform for the model: take `features` out of the dataset")
        output: TaggerOutput = self.model(batch["waveform"], batch["audio_lens"], batch["seed"])
        targets = batch["targets"]
        result = self.loss_fn(output.logits, targets)
        metrics: dict[str, tuple[Tensor, Tensor]] = {}
        for target, count in result.counts.items():
            truth = targets[target].argmax(1) if targets[target].is_floating_point() else targets[target]
            # A class id of -100, unknown, is never the largest logit's.
            correct = (output.logits[target].argmax(1) == truth).sum()
            metrics[metric_name(target, "accuracy", self.main_target)] = (correct, count)
            if len(result.counts) > 1:
                metrics[f"{target}_loss"] = (result.sums[target].detach(), count)
        return StepOutput(result.loss, result.num_items, metrics, outputs=output.logits)
