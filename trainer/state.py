"""Where a run stands, and when something periodic is due."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction

from utils.errors import UserError


@dataclass(slots=True)
class TrainState:
    """The counters of a run. `global_step` counts optimizer updates, `batch_idx` micro-steps within the epoch."""

    epoch: int = 0
    global_step: int = 0
    batch_idx: int = 0
    epoch_ended: bool = False
    last_validated_step: int = -1
    num_non_finite: int = 0  # updates skipped, or rolled back from
    owes_validation: bool = False  # a signal broke it off
    owes_end: bool = False  # and somebody had wished the run to end with it

    def begin_epoch(self) -> None:
        """Enter the epoch: the one that was interrupted, or the next one where the last came to its end."""
        if self.epoch_ended:
            self.epoch, self.batch_idx, self.epoch_ended = self.epoch + 1, 0, False

    @property
    def epochs_completed(self) -> int:
        return self.epoch + self.epoch_ended

    def state_dict(self) -> dict[str, int | bool]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, int | bool]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


@dataclass(frozen=True, slots=True)
class Every:
    """A cadence in updates, in epochs, or in a fraction of an epoch. Both None: never.

    Attributes:
        n_steps: every so many optimizer updates.
        n_epochs: every so many epochs; below 1, that fraction of an epoch (0.25: four times an epoch).
    """

    n_steps: int | None = None
    n_epochs: float | None = None

    def __post_init__(self) -> None:
        for name in ("n_steps", "n_epochs"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"every {name[2:]}: must be positive or null, got {value}")

    def is_due(self, state: TrainState, updates_per_epoch: int | None = None) -> bool:
        """Whether it is time, asked once after each update."""
        if self.n_steps is not None and state.global_step % self.n_steps == 0:
            return True
        if self.n_epochs is None:
            return False
        if self.n_epochs >= 1:
            return state.epoch_ended and state.epochs_completed % round(self.n_epochs) == 0
        if updates_per_epoch is None:
            raise UserError("a fraction of an epoch needs an epoch of known length: set trainer.epoch_length")
        period = updates_per_epoch * Fraction(self.n_epochs).limit_denominator(10_000)
        return int(state.global_step / period) > int((state.global_step - 1) / period)
