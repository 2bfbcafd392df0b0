"""Samplers and time grids by the names that people know them by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from components.generative.samplers import OdeSampler, SchedulerSampler
from components.generative.time_grids import ShiftedGrid, SwayGrid, TimeGrid, uniform_grid
from utils.errors import UserError
from utils.imports import require
from utils.names import did_you_mean

_METHODS = ("euler", "midpoint", "heun", "rk4")
_SCHEDULERS = {
    "unipc": "UniPCMultistepScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "ddim": "DDIMScheduler",
}
_GRIDS: dict[str, Callable[..., TimeGrid]] = {"sway": SwayGrid, "shifted": ShiftedGrid}

SAMPLERS = (*_METHODS, *_SCHEDULERS)


def named_sampler(
    name: str | None = None, objective: Any = None, grid: str | Mapping[str, float] | TimeGrid | None = None
) -> OdeSampler | SchedulerSampler:
    """The sampler of a name, for what a network was trained for.

    Args:
        name: of flows `euler`, `midpoint`, `heun` or `rk4`, of flows and diffusion `unipc` (Zhao et al. 2023,
            arXiv:2302.04867) or `dpmsolver++` (Lu et al. 2022, arXiv:2211.01095), of diffusion `ddim`. None: `euler` or
            `ddim`.
        objective: `FlowMatching`, which None stands for, or `VDiffusion`, whose noise levels are taken over.
        grid: see `named_grid`.

    Raises:
        UserError: there is none of that name, or none for this objective.
    """
    prediction = getattr(objective, "prediction", "velocity")
    is_flow = prediction == "velocity"
    name = name or ("euler" if is_flow else "ddim")
    if name not in SAMPLERS:
        raise UserError(f"sampler: {name!r} is none of {', '.join(SAMPLERS)}{did_you_mean(name, SAMPLERS)}")
    if name in (("ddim",) if is_flow else _METHODS):
        raise UserError(f"sampler: {name} can not sample from what was trained for {prediction}")
    if name in _METHODS:
        return OdeSampler(name, named_grid(grid))
    kind = getattr(require("diffusers", extra="generation"), _SCHEDULERS[name])
    if is_flow:
        scheduler = kind(prediction_type="flow_prediction", use_flow_sigmas=True)
    else:
        scheduler = kind.from_config(objective.scheduler.config)
    return SchedulerSampler(scheduler, named_grid(grid), prediction)


def named_grid(grid: str | Mapping[str, float] | TimeGrid | None = None) -> TimeGrid:
    """A time grid: `uniform` (also None), `sway`, `shifted`, or one of these with its number, `{sway: -0.8}`.

    Raises:
        UserError: there is none of that name, or it has another number of numbers.
    """
    if grid is None or grid == "uniform":
        return uniform_grid
    if callable(grid):
        return grid
    if isinstance(grid, str):
        named: dict[str, tuple[float, ...]] = {grid: ()}
    else:
        named = {str(name): (float(value),) for name, value in grid.items()}
    name = next(iter(named), "")
    if len(named) != 1 or name not in _GRIDS:
        known = ("uniform", *_GRIDS)
        raise UserError(f"grid: {grid!r} is none of {', '.join(known)}{did_you_mean(name, known)}")
    return _GRIDS[name](*named[name])
