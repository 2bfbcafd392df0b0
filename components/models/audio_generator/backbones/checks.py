"""That a backbone gets the conditions it was built for."""

from __future__ import annotations

from components.models.audio_generator.conditions import Conditions
from utils.errors import UserError


def check_conditions(conditions: Conditions, vector_dim: int, sequence_dim: int, aligned_dim: int) -> None:
    """Compare widths; 0 stands for a part that is None.

    Raises:
        UserError: a part has another width than the backbone was built for.
    """
    for part, built in (("vector", vector_dim), ("sequence", sequence_dim), ("aligned", aligned_dim)):
        values = getattr(conditions, part)
        given = 0 if values is None else values.shape[-1]
        if given != built:
            raise UserError(
                f"the backbone was built with {part}_dim={built} and is given conditions.{part} of width {given}; "
                "build it with the widths of the ConditionFuser in front of it"
            )
