"""Instructions without recordings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from utils.errors import UserError


class Wishes(Dataset):
    """Instructions as items of a generator: `{"id", "task", "instruction", "waveform": silence [1, T], "seed"}`.

    Args:
        wishes: one, or several.
        sample_rate: Hz.
        seconds: how long the sounds are to be.

    Raises:
        UserError: there is none.
    """

    deterministic = True

    def __init__(self, wishes: str | Sequence[str], sample_rate: int, seconds: float) -> None:
        self.wishes = [wishes] if isinstance(wishes, str) else [str(wish) for wish in wishes]
        if not self.wishes or not all(wish.strip() for wish in self.wishes):
            raise UserError("prompt: there is nothing to wish for in it")
        self._length = round(seconds * sample_rate)

    def __len__(self) -> int:
        return len(self.wishes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        wish = self.wishes[index]
        canvas = torch.zeros(1, self._length)
        return {"id": wish, "task": "wish", "instruction": wish, "waveform": canvas, "seed": 0}
