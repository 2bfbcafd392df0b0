"""Samplers and grids by name."""

import pytest
import torch

from components.generative import (
    FlowMatching,
    OdeSampler,
    SwayGrid,
    VDiffusion,
    named_grid,
    named_sampler,
    uniform_grid,
)
from tests.components.test_generative import exact_end, gaussian_velocity
from utils.errors import UserError


def test_a_fourth_order_method_has_its_order_and_its_calls():
    x_0 = torch.randn(4, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    calls = []

    def velocity(x, t, done):
        calls.append(t)
        return gaussian_velocity(x, t)

    sampler = OdeSampler("rk4")
    errors = [(sampler.sample(velocity, x_0, n) - exact_end(x_0)).abs().max() for n in (2, 4)]
    assert errors[0] / errors[1] > 0.8 * 2**4
    assert len(calls) == sampler.num_calls(2) + sampler.num_calls(4) == 24


@pytest.mark.parametrize("name", ["unipc", "dpmsolver++"])
def test_schedulers_by_name_arrive_where_a_flow_ends(name):
    pytest.importorskip("diffusers")
    x_0 = torch.randn(4, 50, 2, generator=torch.Generator().manual_seed(0))
    x_1 = named_sampler(name, FlowMatching()).sample(lambda x, t, done: gaussian_velocity(x, t), x_0, 16)
    assert (x_1 - exact_end(x_0)).abs().max() < 0.15


def test_diffusion_is_sampled_with_the_noise_levels_it_was_trained_with():
    diffusers = pytest.importorskip("diffusers")
    objective = VDiffusion(diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"))
    for name in (None, "ddim", "unipc", "dpmsolver++"):
        sampler = named_sampler(name, objective)
        assert sampler.prediction == "v_prediction"
        assert sampler.scheduler.config.beta_schedule == "squaredcos_cap_v2"
    assert type(named_sampler(None, objective).scheduler).__name__ == "DDIMScheduler"
    with pytest.raises(UserError, match="sampler: heun can not sample from what was trained for v_prediction"):
        named_sampler("heun", objective)


def test_grids_by_name_and_with_their_number():
    assert named_grid() is named_grid("uniform") is uniform_grid
    assert torch.equal(named_grid("sway")(5), SwayGrid()(5))
    assert torch.equal(named_grid({"sway": -0.5})(5), SwayGrid(-0.5)(5))
    assert named_grid(uniform_grid) is uniform_grid
    assert named_sampler("heun", grid={"shifted": 2}).grid.shift == 2
    for wrong in ("shift", {"sway": 1, "shifted": 2}, {}):
        with pytest.raises(UserError, match=r"grid: .* is none of uniform, sway, shifted"):
            named_grid(wrong)
