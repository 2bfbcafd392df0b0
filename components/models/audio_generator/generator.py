"""One model for every "make me this sound".

Shapes: B batch, T samples, L latent frames, D latent, S places of a stream, E width of a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from components.generative import FactoredGuidance, FlowMatching, OdeSampler, keyed_noise
from components.layers import length_mask
from components.models.audio_generator.adapters import AdapterOutput
from components.models.audio_generator.autoencoders import Autoencoder
from components.models.audio_generator.conditions import ConditionFuser, Conditions, Stream
from components.models.audio_generator.durations import (
    TOKEN_RESOLUTION,
    TOTAL_RESOLUTION,
    DurationLoss,
    DurationLosses,
    expand_by_durations,
    from_log_duration,
    round_durations,
)
from utils.errors import UserError

Batch = Mapping[str, Any]

_ROUNDING = 1e-3  # frames: what sums of seconds are off
_NO_GUIDANCE = FactoredGuidance({"all": ()}, 1.0)


@dataclass(slots=True)
class GeneratorOutput:
    """Losses of a batch, item by item.

    Attributes:
        per_item: `[B]`, of the objective.
        t: `[B]` in [0, 1], where each was taken.
        durations: of predicted durations; None where no adapter predicts them.
    """

    per_item: Tensor
    t: Tensor
    durations: DurationLosses | None = None


# So that FSDP, torch.export and their like find the tensors inside.
torch.export.register_dataclass(DurationLosses)
torch.export.register_dataclass(GeneratorOutput)


class AudioGenerator(nn.Module):
    """Autoencoder, content encoders, adapter, fuser and backbone, trained by an objective.

    A batch has the target as `waveform [B, 1, T]` with `audio_lens`, or as `latents [B, L, D]` with `latents_lens`, and
    one field per condition stream; `has_<stream>` says which items have it.

    Args:
        autoencoder: frozen.
        content_encoder: stream -> its encoder, or a partial of one that is given the autoencoder. A stream is read
            from the field of its name.
        fuser: makes, from `embed_dims`, the `ConditionFuser`.
        backbone: makes, from `latent_dim`, `vector_dim`, `sequence_dim`, `aligned_dim`, the network.
        objective: `FlowMatching` or `VDiffusion`.
        content_adapter: makes, from `content_dim` and `instruction_dim`, what reads `content` in the light of
            `instruction`; None: content stays as it is.
        content, instruction: the streams that the adapter joins. With durations the tokens of the content are also the
            stream `<content>_frames`, laid out in time.
        durations: the field with the seconds of the content's tokens, `[B, S]`; by default `<content>_durations`. Items
            without, all zeros, get the adapter's, stretched to the length of the clip.
        source: the stream in whose latents, instead of noise, a flow starts.
        is_full: all clips fill their canvas, so that nothing needs a mask.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        content_encoder: Mapping[str, nn.Module | None],
        fuser: Callable[..., ConditionFuser],
        backbone: Callable[..., nn.Module],
        objective: Any = None,
        content_adapter: Callable[..., nn.Module] | None = None,
        content: str = "text",
        instruction: str = "instruction",
        durations: str | None = None,
        source: str | None = None,
        is_full: bool = False,
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder.requires_grad_(False)
        encoders = {
            name: encoder(autoencoder=autoencoder) if isinstance(encoder, partial) else encoder
            for name, encoder in content_encoder.items()
            if encoder is not None
        }
        self.content_encoder = nn.ModuleDict(encoders)
        self.content, self.instruction, self.source, self.is_full = content, instruction, source, is_full
        self.durations = durations or f"{content}_durations"
        widths = {name: encoder.embed_dim for name, encoder in encoders.items()}
        self.content_adapter = None
        if content_adapter is not None:
            dims = {"content_dim": widths[content], "instruction_dim": widths[instruction]}
            self.content_adapter = content_adapter(**dims)
            widths[content] = self.content_adapter.embed_dim
        if content in widths:
            widths[self.content_frames] = widths[content]
        self.fuser = fuser(embed_dims=widths)
        dims = {name: getattr(self.fuser, name) for name in ("vector_dim", "sequence_dim", "aligned_dim")}
        self.backbone = backbone(latent_dim=autoencoder.latent_dim, **dims)
        self.objective = objective or FlowMatching()

    @property
    def content_frames(self) -> str:
        """The stream of the content laid out in time."""
        return f"{self.content}_frames"

    def train(self, mode: bool = True) -> AudioGenerator:
        super().train(mode)
        self.autoencoder.eval()  # frozen, its statistics included
        return self

    def gradient_checkpointing_enable(self) -> None:
        """Trade time for memory in the backbone."""
        self.backbone.gradient_checkpointing_enable()

    def forward(self, batch: Batch, t: Tensor | None = None) -> GeneratorOutput:
        """Losses of a batch; at times `t [B]`, or drawn ones."""
        latents, lens = self.latents_of(batch)
        streams, present, adapted = self.encode(batch)
        self._lay_out(streams, present, adapted, batch, lens, latents.shape[1])
        conditions = self.fuser(self._with_slots(streams), present, lens, latents.shape[1])
        mask = self._padding_mask(lens, latents.shape[1])
        source = None if self.source is None else self.source_latents(batch, latents.shape[1])

        def predict(x_t: Tensor, t: Tensor) -> Tensor:
            return self.backbone(x_t, t, conditions, mask)

        losses = self.objective.loss(predict, latents, mask, source, t)
        if adapted is None or adapted.log_total_duration is None:
            return GeneratorOutput(losses.per_item, losses.t)
        durations = self._duration_losses(adapted, streams[self.content], present, batch, lens)
        return GeneratorOutput(losses.per_item, losses.t, durations)

    @torch.no_grad()
    def latents_of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The target's latents `[B, L, D]` and lengths `[B]`."""
        if "latents" in batch:
            return batch["latents"], batch["latents_lens"]
        return self.autoencoder.encode(batch["waveform"], batch["audio_lens"])

    @torch.no_grad()
    def source_latents(self, batch: Batch, num_frames: int) -> Tensor:
        """Those of the stream where a flow starts, `[B, num_frames, D]`.

        Raises:
            UserError: the batch has no such recordings.
        """
        if self.source not in batch:
            raise UserError(
                f"this model starts in a recording, the field {self.source!r}, which the batch does not have"
            )
        latents, _ = self.autoencoder.encode(batch[self.source], batch[f"{self.source}_lens"])
        return nn.functional.pad(latents, (0, 0, 0, num_frames - latents.shape[1]))

    def encode(self, batch: Batch) -> tuple[dict[str, Stream], dict[str, Tensor], AdapterOutput | None]:
        """Every stream that the batch has, which items have it, and what the adapter made of the content."""
        streams: dict[str, Stream] = {}
        for name, encoder in self.content_encoder.items():
            if name in batch:
                more = {field: _never_empty(batch[field]) for field in encoder.more_fields if field in batch}
                streams[name] = encoder(_never_empty(batch[name]), batch.get(f"{name}_lens"), **more)
        device = next(self.backbone.parameters()).device
        present = {name: batch[f"has_{name}"].to(device) for name in streams if f"has_{name}" in batch}
        if self.content_adapter is None or self.content not in streams:
            return streams, present, None
        adapted = self.content_adapter(streams[self.content], streams[self.instruction])
        streams[self.content] = adapted.content
        return streams, present, adapted

    @torch.no_grad()
    def generate(
        self,
        batch: Batch,
        seeds: Tensor,
        num_steps: int,
        sampler: Any = None,
        guidance: FactoredGuidance | None = None,
        audio_lens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Sounds for the conditions of a batch: `[B, 1, T]` and their lengths `[B]`.

        Args:
            seeds: int64 `[B]`; an item's sound depends on its own seed and conditions alone.
            num_steps: of the sampler.
            guidance: none by default.
            audio_lens: `[B]` samples to make; None: the batch's own, or what the adapter predicts.
        """
        sampler, guidance = sampler or OdeSampler(), guidance or _NO_GUIDANCE
        streams, present, adapted = self.encode(batch)
        lens = self._lens_to_make(batch, audio_lens, adapted, present)
        num_frames = int(lens.max())
        self._lay_out(streams, present, adapted, batch, lens, num_frames)
        mask = self._padding_mask(lens, num_frames)
        fused: dict[frozenset[str], Conditions] = {}

        def predict_all(x: Tensor, t: Tensor, drops: Sequence[frozenset[str]]) -> Sequence[Tensor]:
            for drop in drops:
                if drop not in fused:  # conditions do not change on the way
                    fused[drop] = self.fuser(self._with_slots(streams), present, lens, num_frames, drop)
            together = _concatenated([fused[drop] for drop in drops])
            times = len(drops)
            masks = None if mask is None else mask.repeat(times, 1)
            return self.backbone(x.repeat(times, 1, 1), t.repeat(times), together, masks).chunk(times)

        def predict(x: Tensor, t: Tensor, done: float) -> Tensor:
            return guidance(partial(predict_all, x, t), done, mask)

        noise = keyed_noise(seeds.cpu(), lens.cpu(), self.autoencoder.latent_dim, lens.device)
        source = None if self.source is None else self.source_latents(batch, num_frames)
        latents = sampler.sample(predict, self.objective.start(noise, source), num_steps)
        return self.autoencoder.decode(latents, lens)

    def _lens_to_make(
        self, batch: Batch, audio_lens: Tensor | None, adapted: AdapterOutput | None, present: Mapping[str, Tensor]
    ) -> Tensor:
        if audio_lens is None:
            audio_lens = batch.get("audio_lens")
        if audio_lens is not None:
            return self.autoencoder.latent_lens_of(audio_lens)
        assert adapted is not None, "neither a length nor somebody to predict it"
        assert adapted.log_total_duration is not None
        rate = self.autoencoder.sample_rate / self.autoencoder.hop_length
        seconds = from_log_duration(adapted.log_total_duration, TOTAL_RESOLUTION)
        return (seconds * rate).round().long().clamp(min=1)

    def _lay_out(
        self,
        streams: dict[str, Stream],
        present: dict[str, Tensor],
        adapted: AdapterOutput | None,
        batch: Batch,
        lens: Tensor,
        num_frames: int,
    ) -> None:
        """The content's tokens in time, where their durations are known or predicted."""
        if self.content_frames not in self.fuser.slots or self.content not in streams:
            return
        content = streams[self.content]
        token_lens = torch.full_like(lens, content.values.shape[1]) if content.lens is None else content.lens
        seconds, total = self._given_durations(batch, content), lens
        if seconds is not None:  # a clip may go on in silence behind its last token
            rate = self.autoencoder.sample_rate / self.autoencoder.hop_length
            total = torch.minimum((seconds.sum(1) * rate - _ROUNDING).ceil().long(), lens)
        if adapted is not None and adapted.log_durations is not None:
            predicted = from_log_duration(adapted.log_durations, TOKEN_RESOLUTION)
            seconds = predicted if seconds is None else torch.where(total.unsqueeze(1) > 0, seconds, predicted)
            total = torch.where(total > 0, total, lens)
        if seconds is None:
            return
        frames = round_durations(seconds, token_lens, total=total)
        streams[self.content_frames] = Stream(expand_by_durations(content, frames, num_frames).values, lens)
        has_time = (seconds > 0).any(1)
        present[self.content_frames] = has_time & present[self.content] if self.content in present else has_time

    def _given_durations(self, batch: Batch, content: Stream) -> Tensor | None:
        """Seconds of the content's tokens `[B, S]`, zeros for an item without; None where the batch has none."""
        seconds = batch.get(self.durations)
        return None if seconds is None else nn.functional.pad(seconds, (0, content.values.shape[1] - seconds.shape[1]))

    def _duration_losses(
        self, adapted: AdapterOutput, content: Stream, present: Mapping[str, Tensor], batch: Batch, lens: Tensor
    ) -> DurationLosses:
        """Of items with content; those of their tokens where the batch has durations."""
        has_content = present.get(self.content, torch.ones_like(lens, dtype=torch.bool))
        seconds = self._given_durations(batch, content)
        is_timed = torch.zeros_like(has_content) if seconds is None else has_content & (seconds > 0).any(1)
        rate = self.autoencoder.sample_rate / self.autoencoder.hop_length
        predicted = adapted.log_durations
        assert predicted is not None
        assert adapted.log_total_duration is not None
        losses = DurationLoss()(
            predicted, adapted.log_total_duration, torch.zeros_like(predicted) if seconds is None else seconds,
            content.lens, is_timed, lens / rate,
        )  # fmt: skip
        losses.total = losses.total * has_content
        return losses

    def _with_slots(self, streams: Mapping[str, Stream]) -> dict[str, Stream]:
        return {name: stream for name, stream in streams.items() if name in self.fuser.slots}

    def _padding_mask(self, lens: Tensor, num_frames: int) -> Tensor | None:
        return None if self.is_full else ~length_mask(lens, num_frames)


def _never_empty(field: Any) -> Any:
    """A field that no item of a batch has, `[B, 0, ...]`, with one place of zeros: a network can be run on that."""
    if not isinstance(field, Tensor) or field.numel():
        return field
    return field.new_zeros([max(1, size) for size in field.shape])


def _concatenated(conditions: Collection[Conditions]) -> Conditions:
    """Several batches of conditions of the same shapes as one."""

    def joined(name: str) -> Tensor | None:
        parts = [getattr(one, name) for one in conditions]
        return None if parts[0] is None else torch.cat(parts)

    return Conditions(*map(joined, ("vector", "sequence", "sequence_padding_mask", "aligned")))
