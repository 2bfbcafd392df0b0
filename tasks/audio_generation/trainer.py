"""The audio generation task: what a step is, what is watched, and what is looked at before it starts.

Shapes: B batch, L latent frames, D latent.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from components.data import check_sample_rate
from components.models.audio_generator.generator import AudioGenerator, GeneratorOutput
from trainer import StepOutput, Trainer
from trainer.data import plan_loader

Batch = dict[str, Any]

logger = logging.getLogger(__name__)


@dataclass(eq=False, kw_only=True)
class AudioGenerationTrainer(Trainer):
    """Trains an `AudioGenerator`.

    Logged beside `loss`: `loss_t<k>`, over the k-th part of the times, and `loss_<task>` where there are tasks.

    Attributes:
        duration_weights: of the losses of token and total durations, where the model predicts them.
        task_weights: task -> weight of its items; 1 where it is not named.
        num_time_parts: of how many parts of [0, 1] losses are told apart.
        validation_times: at each of these every validation clip is tried: a loss that varies little.
        num_statistics_batches: so many training batches give the latents' mean and scale, where no file did.
    """

    duration_weights: Mapping[str, float] = field(default_factory=lambda: {"token": 0.1, "total": 0.1})
    task_weights: Mapping[str, float] | None = None
    num_time_parts: int = 4
    validation_times: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9)
    num_statistics_batches: int = 32

    def on_fit_start(self) -> None:
        """Latents must be at the scale of the noise they are learned against: users lose days to that."""
        model: AudioGenerator = self.unwrapped_model
        loaders = {"train_dataloader": self.train_dataloader, "val_dataloader": self.val_dataloader}
        check_sample_rate(loaders, model.autoencoder.sample_rate)
        model.to(self.device)
        statistics = getattr(model.autoencoder, "statistics", None)
        if statistics is not None and bool((statistics.mean == 0).all() and (statistics.std == 1).all()):
            model.autoencoder.fit_statistics(self._raw_latents(model))
        problem = self._scale_problem(model)
        if problem and self.is_main_process:
            logger.warning("%s", problem)

    def training_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        output: GeneratorOutput = self.model(batch)
        weights = self._weights(batch, output.per_item)
        loss = output.per_item
        if output.durations is not None:
            weighted = (weight * getattr(output.durations, name) for name, weight in self.duration_weights.items())
            loss = sum(weighted, loss)
        return StepOutput((loss * weights).sum(), len(loss), self._metrics(batch, output))

    def validation_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        losses = []
        for t in self.validation_times:
            output: GeneratorOutput = self.model(batch, torch.full((len(batch["id"]),), t, device=self.device))
            losses.append(output.per_item)
        output.per_item = torch.stack(losses).mean(0)
        return StepOutput(output.per_item.sum(), len(output.per_item), self._task_metrics(batch, output))

    def _weights(self, batch: Batch, like: Tensor) -> Tensor:
        if not self.task_weights or "task" not in batch:
            return torch.ones_like(like)
        return like.new_tensor([float(self.task_weights.get(task, 1.0)) for task in batch["task"]])

    def _metrics(self, batch: Batch, output: GeneratorOutput) -> dict[str, tuple[Tensor, Tensor]]:
        metrics = self._task_metrics(batch, output)
        losses, part = output.per_item.detach(), (output.t * self.num_time_parts).long()
        for k in range(self.num_time_parts):
            chosen = (part == k).to(losses.dtype)
            metrics[f"loss_t{k}"] = ((losses * chosen).sum(), chosen.sum())
        if output.durations is not None:
            metrics["loss_durations"] = (output.durations.total.detach().sum(), part.new_tensor(len(losses)))
        return metrics

    def _task_metrics(self, batch: Batch, output: GeneratorOutput) -> dict[str, tuple[Tensor, Tensor]]:
        tasks: Sequence[str] = batch.get("task", ())
        metrics = {}
        for task in sorted(set(tasks)):
            chosen = output.per_item.new_tensor([float(t == task) for t in tasks])
            metrics[f"loss_{task}"] = ((output.per_item.detach() * chosen).sum(), chosen.sum())
        return metrics

    def _raw_latents(self, model: AudioGenerator) -> Iterator[tuple[Tensor, Tensor]]:
        """Of the first batches of the data's own order, the same on every rank."""
        for batch in self._first_batches(self.num_statistics_batches):
            with torch.no_grad():
                yield model.autoencoder.raw_latents(batch["waveform"], batch["audio_lens"])

    def _scale_problem(self, model: AudioGenerator) -> str | None:
        for batch in self._first_batches(1):
            return model.autoencoder.check_scale(*model.latents_of(batch))
        return None

    def _first_batches(self, count: int) -> Iterator[Batch]:
        loader = plan_loader(self.train_dataloader, seed=self.seed, skip_bad=self.bad_samples.skips)
        loader.start(0)
        for loaded in islice(loader, count):
            yield self.to_device(loaded.batch)
