"""Samples that could not be used: left out, named in `exp_dir/bad_samples.jsonl`, and too many of them end the run.

They travel with their batch, so each is counted where the loop takes it, never where a worker has read ahead: a resumed
run counts as one that nobody stopped. All ranks look at the same totals, at logs, validations, epochs' ends and saves.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from trainer.keyed import Loaded
from utils.errors import UserError

if TYPE_CHECKING:
    from trainer.trainer import Trainer

logger = logging.getLogger(__name__)

POLICIES = ("skip", "raise")
FILE_NAME = "bad_samples.jsonl"
# The share is taken over so many samples, so that a disk that goes away is noticed in a long run too.
_WINDOW, _FEWEST = 1000, 100

BadSampleRecord = Mapping[str, Any]


class BadSamples:
    """The account of one Trainer."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._named: dict[tuple[Any, Any], str] = {}  # (source, id) -> reason; on rank 0
        self._new: list[BadSampleRecord] = []
        self._num_new_samples = 0
        self._recent: deque[tuple[int, int]] = deque()  # (samples, bad ones) between two settlements

    @property
    def skips(self) -> bool:
        return self._trainer.on_bad_sample == "skip"

    def begin(self, loaders: Mapping[str, Any], resumed: bool) -> None:
        """Take up what datasets know about themselves: lines of their manifests that can not be used (`bad_samples`).

        Raises:
            UserError: there are such lines and they are not to be skipped, or they are too many.
        """
        self._read_file(resumed)
        for name, loader in loaders.items():
            dataset: Any = getattr(loader, "dataset", None)
            bad = list(getattr(dataset, "bad_samples", ()))
            if not bad:
                continue
            if not self.skips:
                raise UserError(f"{name}: {_in_words(bad[0])} (trainer.on_bad_sample=skip leaves it out)")
            self._new += bad if self._trainer.is_main_process else ()
            self._check(len(bad), len(bad) + len(dataset), f"of the {len(bad) + len(dataset)} of {name}")
        self._write()

    def see(self, loaded: Loaded) -> None:
        """Count a batch."""
        self._num_new_samples += loaded.num_samples
        self._new += loaded.bad

    def settle(self, at_end: bool = False) -> None:
        """Add up over ranks, write the new ones down, and stop where there are too many. Collective.

        Args:
            at_end: of an epoch or an evaluation: few samples are enough to judge by.
        """
        num_samples, num_bad = self._num_new_samples, len(self._new)
        if not self._trainer.is_alone:
            counts = torch.tensor([num_samples, num_bad], device=self._trainer.device)
            torch.distributed.all_reduce(counts)
            num_samples, num_bad = counts.tolist()
            if num_bad:
                self._gather()
        self._write()
        self._num_new_samples = 0
        if num_samples == 0:
            return
        self._recent.append((num_samples, num_bad))
        while sum(n for n, _ in self._recent) - self._recent[0][0] >= _WINDOW:
            self._recent.popleft()
        recent, bad = (sum(numbers) for numbers in zip(*self._recent))
        if recent >= _FEWEST or at_end:
            self._check(bad, recent, f"of the last {recent}")

    def summary(self) -> str | None:
        """How many were left out and why; None where none was."""
        if not self._named:
            return None
        reasons = Counter(self._named.values()).most_common()
        told = ", ".join(f"{count} {reason}" for reason, count in reasons[:4])
        more = f", {len(reasons) - 4} reasons more" if len(reasons) > 4 else ""
        where = "" if self._trainer.exp_dir is None else f"; named in {self._trainer.exp_dir / FILE_NAME}"
        return f"{len(self._named)} bad samples left out ({told}{more}){where}"

    def state_dict(self) -> dict[str, Any]:
        return {"recent": [list(pair) for pair in self._recent]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the account back to `state`; what was seen since is to be seen again."""
        self._recent = deque((num, bad) for num, bad in state.get("recent", ()))
        self._num_new_samples, self._new = 0, []

    def _check(self, bad: int, num_samples: int, of_what: str) -> None:
        allowed = self._trainer.max_bad_fraction
        if num_samples and bad > allowed * num_samples:
            raise UserError(
                f"{bad} bad samples {of_what}, more than trainer.max_bad_fraction={allowed:g} allows"
                + (f": {told}" if (told := self.summary()) else "")
            )

    def _gather(self) -> None:
        trainer = self._trainer
        everyones: list[Any] | None = [None] * trainer.accelerator.num_processes if trainer.is_main_process else None
        torch.distributed.gather_object(self._new, everyones)
        self._new = [record for records in everyones or () for record in records]

    def _write(self) -> None:
        """Append those not named before; on rank 0."""
        new, self._new = self._new, []
        if not self._trainer.is_main_process:
            return
        lines = []
        for record in new:
            key = record.get("source"), record.get("id")
            if key not in self._named:
                if not self._named:
                    logger.warning("left out, the first bad sample: %s", _in_words(record))
                self._named[key] = str(record["reason"])
                lines.append(json.dumps(dict(record), ensure_ascii=False, default=str) + "\n")
        if lines and self._trainer.exp_dir is not None and not self._trainer.fast_dev_run:
            self._trainer.exp_dir.mkdir(parents=True, exist_ok=True)
            try:
                with (self._trainer.exp_dir / FILE_NAME).open("a", encoding="utf-8") as file:
                    file.writelines(lines)
            except OSError as error:  # a full disk: the names are kept by the log at least
                logger.warning("can not write %s (%s): %s", FILE_NAME, error, "".join(lines).strip())

    def _read_file(self, resumed: bool) -> None:
        trainer = self._trainer
        if trainer.exp_dir is None or not trainer.is_main_process or trainer.fast_dev_run:
            return
        path = trainer.exp_dir / FILE_NAME
        if not resumed:
            path.unlink(missing_ok=True)
        elif path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:  # the kill that we resume from cut it short
                    continue
                self._named[record.get("source"), record.get("id")] = record["reason"]


def _in_words(record: BadSampleRecord) -> str:
    return str(record.get("detail") or f"{record.get('source')}: {record['reason']}")
