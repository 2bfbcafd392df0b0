"""Encoded streams to the conditions of a backbone.

Shapes: B batch, L latent frames, S sequence, N places of a stream, E width of a stream, V / W / A widths of the slots.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from components.layers import length_mask
from utils.errors import UserError

SLOTS = ("vector", "sequence", "aligned")
RESAMPLINGS = ("none", "nearest", "linear")


@dataclass(slots=True)
class Conditions:
    """What a backbone is conditioned on; every part may be None.

    Attributes:
        vector: `[B, V]`, of the whole clip: modulation.
        sequence: `[B, S, W]`, in an order but not aligned with the audio: cross-attention.
        sequence_padding_mask: `[B, S]`, True where the sequence has ended; None where none has.
        aligned: `[B, L, A]`, frame by frame: added in each block or concatenated to the input. Zero behind a clip.
    """

    vector: Tensor | None = None
    sequence: Tensor | None = None
    sequence_padding_mask: Tensor | None = None
    aligned: Tensor | None = None


# So that FSDP, torch.export and their like find the tensors inside.
torch.export.register_dataclass(Conditions)


class Stream(NamedTuple):
    """An encoded condition: `values [B, N, E]` with `lens [B]` (None: all N), or `[B, E]` and None."""

    values: Tensor
    lens: Tensor | None = None


class SlotInput(nn.Module):
    """One stream's way into one slot: a projection, and a learned null where the stream is absent."""

    def __init__(self, embed_dim: int, dim: int) -> None:
        super().__init__()
        self.projection = nn.Linear(embed_dim, dim)
        self.null = nn.Parameter(torch.empty(dim))
        nn.init.normal_(self.null, std=0.5)  # about as large as what is projected

    def forward(self, values: Tensor, present: Tensor) -> Tensor:
        """`values [..., E]` to the slot's width; the null where `present`, of as many axes, is False."""
        projected = self.projection(values)
        return torch.where(present, projected, self.null.to(projected.dtype))


class ConditionFuser(nn.Module):
    """Sorts encoded streams into the slots of a backbone.

    Each stream has its own projection, its own learned null for where it is absent, and its own dropout of whole items,
    so that one batch mixes tasks and each condition can be guided by itself. In its slot, a stream is
    - `vector`: its mean over its places; several are summed;
    - `sequence`: its places; several are concatenated, each marked by a learned embedding, without gaps between;
    - `aligned`: brought to the latent frames; several are summed or concatenated.
    Shapes depend neither on what is present nor on what is dropped.

    Args:
        slots: stream -> its slot, or several.
        embed_dims: stream -> E, as its encoder says.
        vector_dim, sequence_dim: widths V and W of these slots.
        aligned_dim: width of every aligned stream; A is this, or so many times this as are concatenated.
        dropout: in training, the probability that an item loses a stream; a number is everybody's.
        joint_dropout: the probability that it loses all at once, beside.
        resample: how an aligned stream comes to the latent frames; a word is everybody's. `nearest` and `linear`
            stretch an item's places over its own frames, their centres aligned; `none` takes them one by one, and the
            null behind the last.
        aligned_fusion: `sum` or `concat`.

    Raises:
        UserError: a name, word or number is none of these.
    """

    def __init__(
        self,
        slots: Mapping[str, str | Sequence[str]],
        embed_dims: Mapping[str, int],
        vector_dim: int = 128,
        sequence_dim: int = 128,
        aligned_dim: int = 64,
        dropout: Mapping[str, float] | float = 0.1,
        joint_dropout: float = 0.0,
        resample: Mapping[str, str] | str = "nearest",
        aligned_fusion: Literal["sum", "concat"] = "sum",
    ) -> None:
        super().__init__()
        self.slots = {name: (slot,) if isinstance(slot, str) else tuple(slot) for name, slot in slots.items()}
        self.embed_dims = {name: embed_dims.get(name, 0) for name in self.slots}
        self.dropout = _of_each(dropout, self.slots, "dropout", default=0.0)
        self.resample = _of_each(resample, self.slots, "resample", default="nearest")
        self.joint_dropout, self.aligned_fusion = joint_dropout, aligned_fusion
        self._check_settings()
        counts = {slot: sum(slot in chosen for chosen in self.slots.values()) for slot in SLOTS}
        widths = {"vector": vector_dim, "sequence": sequence_dim, "aligned": aligned_dim}
        self.vector_dim = vector_dim if counts["vector"] else 0
        self.sequence_dim = sequence_dim if counts["sequence"] else 0
        self.aligned_dim = aligned_dim * (counts["aligned"] if aligned_fusion == "concat" else bool(counts["aligned"]))
        self.inputs = nn.ModuleDict(
            {
                name: nn.ModuleDict({slot: SlotInput(self.embed_dims[name], widths[slot]) for slot in chosen})
                for name, chosen in self.slots.items()
            }
        )
        self.types = nn.ParameterDict()
        if counts["sequence"] > 1:
            for name in (name for name, chosen in self.slots.items() if "sequence" in chosen):
                self.types[name] = nn.Parameter(0.5 * torch.randn(sequence_dim))

    def _check_settings(self) -> None:
        for name, chosen in self.slots.items():
            for slot in chosen:
                if slot not in SLOTS:
                    raise UserError(f"stream {name!r}: there is no slot {slot!r}, only {', '.join(SLOTS)}")
            if not self.embed_dims[name]:
                raise UserError(f"stream {name!r} has a slot but no encoder that says how wide it is")
            if self.resample[name] not in RESAMPLINGS:
                raise UserError(f"stream {name!r}: resample is {self.resample[name]!r}, not {', '.join(RESAMPLINGS)}")
        for name, p in {**self.dropout, "joint": self.joint_dropout}.items():
            if not 0 <= p <= 1:
                raise UserError(f"dropout of {name!r} must lie in [0, 1], got {p}")
        if self.aligned_fusion not in ("sum", "concat"):
            raise UserError(f"aligned_fusion must be 'sum' or 'concat', got {self.aligned_fusion!r}")

    def forward(
        self,
        streams: Mapping[str, Stream],
        present: Mapping[str, Tensor],
        latent_lens: Tensor,
        num_frames: int,
        drop: Collection[str] = (),
    ) -> Conditions:
        """Fuse what there is; a stream with a slot that is not among `streams` is absent from all items.

        Args:
            streams: name -> its values and lengths.
            present: name -> `[B]` bool, which items have it; without an entry, all.
            latent_lens: `[B]`.
            num_frames: L.
            drop: names of streams that all items are to lose, for guidance.

        Raises:
            UserError: a stream, or one to drop, has no slot.
        """
        for name in (*streams, *drop):
            if name not in self.slots:
                raise UserError(f"condition stream {name!r} has no slot; there are {', '.join(self.slots) or 'none'}")
        kept = self._draw(latent_lens)
        vectors, sequences, aligned = [], [], []
        for name, chosen in self.slots.items():
            stream, keep = self._prepare(name, streams, present.get(name), latent_lens, kept[name], name in drop)
            if "vector" in chosen:
                vectors.append(self._vector(name, stream, keep))
            if "sequence" in chosen:
                sequences.append(self._sequence(name, stream, keep))
            if "aligned" in chosen:
                aligned.append(self._aligned(name, stream, keep, latent_lens, num_frames))
        sequence, padding_mask = _pack(sequences) if sequences else (None, None)
        return Conditions(
            vector=sum(vectors[1:], vectors[0]) if vectors else None,
            sequence=sequence,
            sequence_padding_mask=padding_mask,
            aligned=self._fuse_aligned(aligned, latent_lens) if aligned else None,
        )

    def _draw(self, latent_lens: Tensor) -> dict[str, Tensor | None]:
        """name -> `[B]` bool, which items keep a stream in this step; None outside of training."""
        if not self.training or not (self.joint_dropout or any(self.dropout.values())):
            return dict.fromkeys(self.slots)
        draws = torch.rand(len(self.slots) + 1, len(latent_lens), device=latent_lens.device)
        joint = draws[-1] >= self.joint_dropout
        return {name: (draw >= p) & joint for (name, p), draw in zip(self.dropout.items(), draws)}

    def _prepare(
        self,
        name: str,
        streams: Mapping[str, Stream],
        present: Tensor | None,
        latent_lens: Tensor,
        kept: Tensor | None,
        dropped: bool,
    ) -> tuple[Stream, Tensor]:
        """The stream `[B, N >= 1, E]` with lens, zero where it has nothing, and which items keep it `[B]`."""
        missing = name not in streams or dropped
        values, lens = streams.get(name) or Stream(latent_lens.new_zeros((len(latent_lens), 1, self.embed_dims[name])))
        if not values.is_floating_point():
            values = values.to(self.inputs[name][self.slots[name][0]].null.dtype)
        if values.ndim == 2:
            values = values.unsqueeze(1)
        if values.shape[1] == 0:
            values = pad(values, (0, 0, 0, 1))
        if lens is None:
            lens = torch.full_like(latent_lens, values.shape[1])
        keep = (lens > 0) & (not missing)
        for condition in (present, kept):
            keep = keep if condition is None else keep & condition
        real = length_mask(lens, values.shape[1]) & keep.unsqueeze(1)
        return Stream(values.masked_fill(~real.unsqueeze(-1), 0), lens), keep

    def _vector(self, name: str, stream: Stream, keep: Tensor) -> Tensor:
        mean = stream.values.sum(1) / stream.lens.clamp(min=1).unsqueeze(1)
        return self.inputs[name]["vector"](mean.to(stream.values.dtype), keep.unsqueeze(1))

    def _sequence(self, name: str, stream: Stream, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens `[B, N, W]` and which are real `[B, N]`; of an absent stream one, the null."""
        tokens = self.inputs[name]["sequence"](stream.values, keep[:, None, None])
        if name in self.types:
            tokens = tokens + self.types[name].to(tokens.dtype)
        return tokens, length_mask(torch.where(keep, stream.lens, 1), tokens.shape[1])

    def _aligned(self, name: str, stream: Stream, keep: Tensor, latent_lens: Tensor, num_frames: int) -> Tensor:
        """`[B, L, aligned_dim]`."""
        present = keep.unsqueeze(1).expand(-1, num_frames)
        if self.resample[name] == "none":
            values = pad(stream.values, (0, 0, 0, num_frames - stream.values.shape[1]))
            present = present & length_mask(stream.lens, num_frames)
        else:
            values = stretch(stream, latent_lens, num_frames, linear=self.resample[name] == "linear")
        return self.inputs[name]["aligned"](values, present.unsqueeze(-1))

    def _fuse_aligned(self, aligned: list[Tensor], latent_lens: Tensor) -> Tensor:
        fused = torch.cat(aligned, dim=-1) if self.aligned_fusion == "concat" else sum(aligned[1:], aligned[0])
        return fused.masked_fill(~length_mask(latent_lens, fused.shape[1]).unsqueeze(-1), 0)


def _of_each(setting: Mapping | float | str, names: Collection[str], key: str, default: float | str) -> dict:
    if not isinstance(setting, Mapping):
        return dict.fromkeys(names, setting)
    if unknown := set(setting) - set(names):
        raise UserError(f"{key}: there is no stream {sorted(unknown)[0]!r}, only {', '.join(names)}")
    return {name: setting.get(name, default) for name in names}


def _pack(sequences: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Streams one behind the other, padding last: positions do not depend on the batch. `[B, S, W]`, `[B, S]`."""
    tokens, real = torch.cat([t for t, _ in sequences], dim=1), torch.cat([r for _, r in sequences], dim=1)
    if len(sequences) > 1:
        order = torch.argsort(real, dim=1, descending=True, stable=True)
        tokens, real = torch.take_along_dim(tokens, order.unsqueeze(-1), dim=1), real.gather(1, order)
    return tokens.masked_fill(~real.unsqueeze(-1), 0), ~real


def stretch(stream: Stream, lens: Tensor, num_frames: int, linear: bool = False) -> Tensor:
    """Each item's places over its own `lens [B]` frames, centres aligned: `[B, num_frames, E]`.

    The nearest place, or the two around it weighted by how near they are. Behind an item's last frame its last place.
    """
    places = stream.values.shape[1]
    stream_lens = torch.full_like(lens, places) if stream.lens is None else stream.lens
    frames = torch.arange(num_frames, device=lens.device, dtype=torch.float64) + 0.5
    where = frames * (stream_lens / lens.clamp(min=1).double()).unsqueeze(1)  # in places, the first from 0 to 1
    last = (stream_lens - 1).clamp(min=0).unsqueeze(1)
    if not linear:
        return _take(stream.values, torch.minimum(where.long(), last))
    where = (where - 0.5).clamp(min=0)
    below = torch.minimum(where.long(), last)
    weight = (where - below).clamp(max=1).unsqueeze(-1).to(stream.values.dtype)
    return torch.lerp(_take(stream.values, below), _take(stream.values, torch.minimum(below + 1, last)), weight)


def _take(values: Tensor, index: Tensor) -> Tensor:
    """`values [B, N, E]` at `index [B, L]`: `[B, L, E]`."""
    return torch.take_along_dim(values, index.unsqueeze(-1), dim=1)


def crop_aligned(
    streams: Mapping[str, Stream], start: Tensor, num_frames: int, rates: Mapping[str, float] | None = None
) -> dict[str, Stream]:
    """The same stretch of time of a target and of all that is aligned with it.

    Args:
        streams: name -> `[B, N, E]` with lens: the latents, and what goes along with them.
        start: `[B]`, the first latent frame of each item's crop, int64.
        num_frames: latent frames of a crop; an item that ends before gets what there is.
        rates: name -> places of the stream in a latent frame, where it is not 1.
    """
    cropped = {}
    for name, (values, lens) in streams.items():
        rate = (rates or {}).get(name, 1.0)
        places = math.ceil(num_frames * rate)
        first = (start * rate).floor().long() if rate != 1 else start
        index = first.unsqueeze(1) + torch.arange(places, device=start.device)
        ends = torch.full_like(start, values.shape[1]) if lens is None else lens
        real = (index < ends.unsqueeze(1)).unsqueeze(-1)
        piece = _take(values, index.clamp(max=values.shape[1] - 1)).masked_fill(~real, 0)
        cropped[name] = Stream(piece, (ends - first).clamp(min=0, max=places))
    return cropped
