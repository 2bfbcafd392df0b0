"""Clips with what is said in them, as numbers.  Shapes: T samples, N tokens."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from components.data.samplers.lengths import records_of
from utils.errors import BadSample, UserError

if TYPE_CHECKING:
    from components.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class TranscribedDataset(Dataset):
    """The clips of a dataset with their transcripts, for speech recognition.

    An item is the dataset's own with `"tokens": int64 [N]`, without begin and end, and `"text": str`, the transcript as
    the tokenizer normalises it; a transcript of nothing is a bad sample. `PadCollate` pads tokens with -100 where it is
    told `pad_values: {tokens: -100}`, and adds `token_lens`.

    A collection for evaluation in which no record has a transcript is one to be recognised: its items have neither
    `tokens` nor `text`.

    Args:
        dataset: an `AudioDataset`, or another whose items have an `id`, and which has `records`.
        tokenizer: makes ids of texts.
        field: of the records, the transcript: a text, or a list of phones.
        max_tokens: clips with more are left out and counted in `dropped`; all texts are split once for that.
        fields: of the records, that items bring along as they are, None where there is none; `speaker`, say.

    Raises:
        UserError: no clip is left, or no record of a set for training has the field.
    """

    def __init__(
        self,
        dataset: Dataset,
        tokenizer: Tokenizer,
        field: str = "text",
        max_tokens: int | None = None,
        fields: Sequence[str] = (),
    ) -> None:
        self.dataset, self.tokenizer, self.field, self.fields = dataset, tokenizer, field, tuple(fields)
        self.dropped: Counter[str] = Counter()
        self._all = getattr(dataset, "records", None)
        if self._all is None:
            self._all = list(records_of(dataset))
        self.is_transcribed = any(record.get(field) is not None for record in self._all)
        if not self.is_transcribed:
            if not self.deterministic:
                raise UserError(f"field: no record of {self._name} has {field!r}, and there is nothing to learn from")
            logger.warning("no record of %s has %r: it is recognised, not scored", self._name, field)
        self._kept: np.ndarray | None = None
        if max_tokens is not None and self.is_transcribed:
            self._leave_out(max_tokens)

    def _leave_out(self, max_tokens: int) -> None:
        texts = (record.get(self.field) for record in self._all)
        fits = np.array([text is None or len(self.tokenizer.pieces(text)) <= max_tokens for text in texts])
        if not fits.any():
            raise UserError(f"max_tokens={max_tokens}: every transcript of {self._name} has more tokens")
        if not fits.all():
            self._kept = np.flatnonzero(fits)
            self.dropped[f"more than {max_tokens} tokens"] = len(fits) - len(self._kept)
            logger.info("%s: %d of %d left out, with %s", self._name, self.dropped.total(), len(fits), *self.dropped)

    @property
    def _name(self) -> str:
        return str(getattr(self.dataset, "manifest", type(self.dataset).__name__))

    @property
    def deterministic(self) -> bool:
        """Whether an item is the same at every visit: then nobody needs to seed generators for it."""
        return bool(getattr(self.dataset, "deterministic", False))

    @property
    def sample_rate(self) -> int:
        """Hz of the waveforms."""
        return self.dataset.sample_rate

    @property
    def records(self) -> Sequence[dict[str, Any]]:
        """The record of each item."""
        if self._kept is None:
            return self._all
        return self._all.select(self._kept) if hasattr(self._all, "select") else [self._all[i] for i in self._kept]

    @property
    def durations(self) -> np.ndarray:
        """Seconds of each clip, float64 `[N]`."""
        durations = np.asarray(self.dataset.durations, dtype=np.float64)
        return durations if self._kept is None else durations[self._kept]

    @property
    def bad_samples(self) -> list[dict[str, Any]]:
        """What the dataset left out when it was made."""
        return getattr(self.dataset, "bad_samples", [])

    def fingerprint(self) -> dict[str, Any]:
        """What identifies this data in a run's record."""
        inner = self.dataset.fingerprint()
        dropped = {**inner.get("dropped", {}), **self.dropped}
        return {**inner, "num_items": len(self), "dropped": dropped, "tokenizer": self.tokenizer.fingerprint}

    def set_epoch(self, epoch: int) -> None:
        """Tell the dataset, if it wants to know."""
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._all) if self._kept is None else len(self._kept)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = int(index if self._kept is None else self._kept[index])
        record = self._all[index]
        said = self._transcript(record) if self.is_transcribed else {}
        return {**self.dataset[index], **{field: record.get(field) for field in self.fields}, **said}

    def _transcript(self, record: dict[str, Any]) -> dict[str, Any]:
        """`tokens` and `text`, before any audio is read."""
        written = record.get(self.field)
        tokens = self.tokenizer.encode(written) if written else []
        if not tokens:
            raise BadSample(
                f"{record['id']} of {self._name} has no transcript in {self.field!r}: {written!r}",
                sample_id=record["id"],
                source=record.get("audio_path"),
                reason="empty transcript",
            )
        text = written if isinstance(written, str) else " ".join(map(str, written))
        return {"tokens": torch.tensor(tokens, dtype=torch.int64), "text": self.tokenizer.normalize(text)}
