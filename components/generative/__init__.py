"""The mathematics of generation: paths, objectives, samplers, guidance. No networks."""

from components.generative.guidance import FactoredGuidance
from components.generative.keyed_noise import keyed_noise
from components.generative.named import SAMPLERS, named_grid, named_sampler
from components.generative.objectives import FlowMatching, ObjectiveOutput, VDiffusion, masked_mean
from components.generative.paths import AffinePath, CosinePath, LinearPath, PathSample
from components.generative.samplers import OdeSampler, SchedulerSampler
from components.generative.time_grids import ShiftedGrid, SwayGrid, uniform_grid
from components.generative.timesteps import LogitNormalTimesteps, ShiftedTimesteps, TimestepDensity, UniformTimesteps

__all__ = [
    "SAMPLERS",
    "AffinePath",
    "CosinePath",
    "FactoredGuidance",
    "FlowMatching",
    "LinearPath",
    "LogitNormalTimesteps",
    "ObjectiveOutput",
    "OdeSampler",
    "PathSample",
    "SchedulerSampler",
    "ShiftedGrid",
    "ShiftedTimesteps",
    "SwayGrid",
    "TimestepDensity",
    "UniformTimesteps",
    "VDiffusion",
    "keyed_noise",
    "masked_mean",
    "named_grid",
    "named_sampler",
    "uniform_grid",
]
