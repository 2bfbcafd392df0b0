"""Instructions without a corpus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import pad
from torch.utils.data import Dataset

from components.data.dataset import AudioFiles
from components.data.generation.canvas import NormalizeLevel
from utils.errors import BadSample, UserError


class Wishes(Dataset):
    """Instructions as items of a generator: `{"id", "task", "instruction", "waveform": silence [1, T], "seed"}`.

    With recordings, each of them is wished each wish, and is in its items as `source_waveform [1, T]`, with silence
    behind it.

    Args:
        wishes: one, or several.
        sample_rate: Hz.
        seconds: how long the sounds are to be.
        recordings: what wishes are about ("clean this recording"): a file, a folder, or a list of both.
        rms: the level that recordings are brought to, as `NormalizeLevel`; None leaves them as they are.

    Raises:
        UserError: there is no wish, or no recording where some were named; `BadSample` where one is too long.
    """

    deterministic = True

    def __init__(
        self,
        wishes: str | Sequence[str],
        sample_rate: int,
        seconds: float,
        recordings: str | Sequence[str] | None = None,
        rms: float | None = 0.1,
    ) -> None:
        self.wishes = [wishes] if isinstance(wishes, str) else [str(wish) for wish in wishes]
        if not self.wishes or not all(wish.strip() for wish in self.wishes):
            raise UserError("prompt: there is nothing to wish for in it")
        self.recordings = None if recordings is None else AudioFiles(recordings, sample_rate)
        self._level = None if rms is None else NormalizeLevel(rms)
        self._sample_rate, self._length = sample_rate, round(seconds * sample_rate)

    def __len__(self) -> int:
        return len(self.wishes) * (1 if self.recordings is None else len(self.recordings))

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, wish = divmod(index, len(self.wishes))
        wish = self.wishes[wish]
        canvas = torch.zeros(1, self._length)
        item = {"id": wish, "task": "wish", "instruction": wish, "waveform": canvas, "seed": 0}
        if self.recordings is None:
            return item
        found = self.recordings[number]
        return item | {"id": f"{found['id']}: {wish}", "source_waveform": self._on_canvas(found)}

    def _on_canvas(self, found: dict[str, Any]) -> torch.Tensor:
        samples = found["waveform"]
        missing = self._length - samples.shape[-1]
        if missing < 0:
            seconds = samples.shape[-1] / self._sample_rate
            raise BadSample(
                f"{found['id']} has {seconds:.2f} s, the model makes {self._length / self._sample_rate:.2f} s",
                sample_id=found["id"], source=found["id"], reason="too long",
            )  # fmt: skip
        if self._level is not None:
            samples = self._level(samples, self._sample_rate)
        return pad(samples, (0, missing))
