"""Splits dealt by a hash: a clip stays where it is when others come or go."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from components.data.manifest import Record
from utils.errors import UserError


def share_of(key: str, seed: int = 0) -> float:
    """A number in [0, 1) that depends on `key` and `seed` alone: what is below 0.1 is a tenth, and stays one."""
    digest = hashlib.sha256(f"{seed}\0{key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


@dataclass(frozen=True)
class Split:
    """Shares of a collection for training, validation and test.

    Args:
        val, test: shares in [0, 1); what is left is `train`.
        by: the key that must not be in two splits: `id`, `speaker`, or any other that every record has.
        seed: another one deals anew.
    """

    val: float = 0.0
    test: float = 0.0
    by: str = "id"
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.val >= 0 and self.test >= 0 and self.val + self.test < 1):
            raise UserError(
                f"--val {self.val} and --test {self.test}: shares from 0 on, that leave something to train on"
            )

    @property
    def names(self) -> list[str]:
        """The splits that get anything."""
        return ["train"] + ["val"] * (self.val > 0) + ["test"] * (self.test > 0)

    def of(self, record: Record) -> str:
        """The split of a record.

        Raises:
            UserError: it lacks the key.
        """
        if self.by not in record:
            raise UserError(f"--split-by {self.by}: {record['id']!r} has no {self.by!r}")
        share = share_of(str(record[self.by]), self.seed)
        if share < self.val:
            return "val"
        return "test" if share < self.val + self.test else "train"
