"""From noise to data with a trained network.  Shapes: B batch, L frames, D latent.

Both kinds of sampler count their calls: `num_calls` evaluations of the (guided) network for `num_steps` steps, none of
them idle.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from components.generative.time_grids import TimeGrid, uniform_grid
from utils.errors import UserError

# (x [B, L, D], t [B], share of the steps that is done) -> prediction [B, L, D]
Guided = Callable[[Tensor, Tensor, float], Tensor]

_CALLS_PER_STEP = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}


class OdeSampler:
    """Integrates d x / d t = velocity by a Runge-Kutta method.

    Args:
        method: `euler` (order 1, one call a step), `midpoint` or `heun` (order 2, two calls), `rk4` (order 4,
            four calls).
        grid: where to stop; steps of one length by default.
    """

    prediction = "velocity"

    def __init__(self, method: str = "euler", grid: TimeGrid = uniform_grid) -> None:
        if method not in _CALLS_PER_STEP:
            raise UserError(f"OdeSampler: method must be one of {', '.join(_CALLS_PER_STEP)}, got {method!r}")
        self.method, self.grid = method, grid

    def num_calls(self, num_steps: int) -> int:
        """How often the network is evaluated."""
        return num_steps * _CALLS_PER_STEP[self.method]

    @torch.no_grad()
    def sample(self, predict: Guided, x_0: Tensor, num_steps: int) -> Tensor:
        """`x_0 [B, L, D]` carried along the flow to t = 1."""
        times, x = self.grid(num_steps).tolist(), x_0
        for step, (t, after) in enumerate(pairwise(times)):
            done, dt = step / num_steps, after - t
            velocity = predict(x, _filled(x, t), done)
            if self.method == "midpoint":
                velocity = predict(x + dt / 2 * velocity, _filled(x, t + dt / 2), done)
            elif self.method == "heun":
                velocity = (velocity + predict(x + dt * velocity, _filled(x, after), done)) / 2
            elif self.method == "rk4":
                middle = _filled(x, t + dt / 2)
                second = predict(x + dt / 2 * velocity, middle, done)
                third = predict(x + dt / 2 * second, middle, done)
                last = predict(x + dt * third, _filled(x, after), done)
                velocity = (velocity + 2 * second + 2 * third + last) / 6
            x = x + dt * velocity
        return x


class SchedulerSampler:
    """Any scheduler of diffusers that steps once per call: flow Euler, UniPC, DPM-Solver++, DDIM.

    For flows the noise levels are given explicitly, `sigma = 1 - t` of the grid without its end: left to itself
    `FlowMatchEulerDiscreteScheduler` spends its last call on a step of no length.

    Args:
        scheduler: the scheduler; for flows UniPC and DPM-Solver++ want `prediction_type: flow_prediction` and
            `use_flow_sigmas: true`.
        grid: where to stop on flows; DPM-Solver++ and diffusion space their times themselves.
        prediction: `velocity`, or `v_prediction` for what `VDiffusion` trains.
    """

    def __init__(self, scheduler: Any, grid: TimeGrid = uniform_grid, prediction: str = "velocity") -> None:
        if prediction not in ("velocity", "v_prediction"):
            raise UserError(f"SchedulerSampler: prediction must be velocity or v_prediction, got {prediction!r}")
        self.scheduler, self.grid, self.prediction = scheduler, grid, prediction
        self._takes_sigmas = "sigmas" in inspect.signature(scheduler.set_timesteps).parameters
        if grid is not uniform_grid and not (self._takes_sigmas and prediction == "velocity"):
            raise UserError(f"SchedulerSampler: {type(scheduler).__name__} spaces its times itself, leave the grid out")

    def num_calls(self, num_steps: int) -> int:
        """How often the network is evaluated."""
        return num_steps

    @torch.no_grad()
    def sample(self, predict: Guided, x_0: Tensor, num_steps: int) -> Tensor:
        """`x_0 [B, L, D]` denoised to data."""
        is_flow = self.prediction == "velocity"
        if is_flow and self._takes_sigmas:
            sigmas = (1 - self.grid(num_steps)[:-1]).numpy()
            self.scheduler.set_timesteps(sigmas=sigmas, device=x_0.device)
        else:
            self.scheduler.set_timesteps(num_steps, device=x_0.device)
        num_train_steps = self.scheduler.config.num_train_timesteps
        x = x_0
        for step, timestep in enumerate(self.scheduler.timesteps):
            t = 1 - float(timestep) / num_train_steps
            predicted = predict(x, _filled(x, t), step / num_steps)
            # diffusers goes by d x / d sigma, which is minus d x / d t.
            x = self.scheduler.step(-predicted if is_flow else predicted, timestep, x, return_dict=False)[0]
        return x


def _filled(x: Tensor, t: float) -> Tensor:
    return x.new_full((len(x),), t)
