"""Paths, objectives, samplers and guidance, against closed forms and diffusers."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise, product

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.guiders import ClassifierFreeGuidance

from components.generative import (
    CosinePath,
    FactoredGuidance,
    FlowMatching,
    LinearPath,
    LogitNormalTimesteps,
    OdeSampler,
    SchedulerSampler,
    ShiftedGrid,
    ShiftedTimesteps,
    SwayGrid,
    UniformTimesteps,
    VDiffusion,
    keyed_noise,
    masked_mean,
    uniform_grid,
)
from utils.errors import UserError

PATHS = {"linear": LinearPath(), "with a rest": LinearPath(sigma_min=0.1), "cosine": CosinePath()}


def points(seed: int = 0, shape=(5, 7, 3)):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize("name", PATHS)
def test_a_path_runs_from_noise_to_data_and_its_velocity_is_its_derivative(name):
    path, (x_0, x_1), t = PATHS[name], points(), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    point = path.sample(x_0, x_1, t)
    near = [path.sample(x_0, x_1, t + dt).x_t for dt in (-1e-6, 1e-6)]
    assert torch.allclose((near[1] - near[0]) / 2e-6, point.velocity, atol=1e-6)
    assert torch.allclose(path.data(point.x_t, point.velocity, t), x_1)
    assert torch.allclose(path.source(point.x_t, point.velocity, t), x_0)
    assert torch.allclose(path.sample(x_0, x_1, torch.zeros(5).double()).x_t, x_0)


def test_published_definitions():
    """Liu et al.: x_1 - x_0. Lipman et al., eq. 23: x_1 - (1 - sigma_min) x_0. Salimans & Ho: alpha eps - sigma x."""
    (x_0, x_1), t = points(), torch.full((5,), 0.3, dtype=torch.float64)
    assert torch.allclose(LinearPath().sample(x_0, x_1, t).velocity, x_1 - x_0)
    assert torch.allclose(LinearPath(0.1).sample(x_0, x_1, t).velocity, x_1 - 0.9 * x_0)
    alpha, sigma = math.sin(math.pi * 0.15), math.cos(math.pi * 0.15)
    assert torch.allclose(CosinePath().sample(x_0, x_1, t).velocity, -math.pi / 2 * (sigma * -x_1 + alpha * x_0))


@pytest.mark.parametrize(
    ("density", "quartiles"),
    [
        (UniformTimesteps(), (0.25, 0.5, 0.75)),
        (LogitNormalTimesteps(), (0.3375, 0.5, 0.6625)),
        (ShiftedTimesteps(UniformTimesteps(), 3.0), (0.1, 0.25, 0.5)),
    ],
)
def test_times_are_drawn_from_their_density_and_cover_it_in_every_batch(density, quartiles):
    torch.manual_seed(0)
    t = density.sample(4000)
    assert torch.allclose(t.quantile(torch.tensor([0.25, 0.5, 0.75])), torch.tensor(quartiles), atol=2e-3)
    few = UniformTimesteps().sample(8).sort().values
    assert ((few * 8).floor() == torch.arange(8)).all()


def test_the_best_prediction_has_no_loss_and_padding_has_none_at_all():
    torch.manual_seed(0)
    x_1 = torch.randn(3, 6, 2)
    mask = torch.arange(6) >= torch.tensor([[6], [3], [1]])
    seen = {}

    def truth(x_t, t):
        return (x_1 - x_t) / (1 - t.view(-1, 1, 1))

    assert FlowMatching().loss(truth, x_1, mask).per_item.max() < 1e-6

    def zero(x_t, t):
        seen["x_t"] = x_t
        return torch.zeros_like(x_t)

    torch.manual_seed(1)
    padded = FlowMatching().loss(zero, x_1, mask, t=torch.full((3,), 0.5)).per_item
    velocity = 2 * (x_1 - seen["x_t"])
    for i, length in enumerate((6, 3, 1)):
        assert torch.isclose(padded[i], velocity[i, :length].square().mean())


def test_an_item_of_nothing_but_padding_weighs_nothing():
    assert masked_mean(torch.ones(1, 4, 2), torch.ones(1, 4, dtype=torch.bool)).item() == 0


def test_a_source_starts_the_flow_in_the_place_of_noise():
    source = torch.full((2, 3, 1), 7.0)
    objective = FlowMatching(source_noise=0.0)
    captured = {}

    def look(x_t, t):
        captured["x_t"] = x_t
        return torch.zeros_like(x_t)

    objective.loss(look, torch.zeros(2, 3, 1), source=source, t=torch.zeros(2))
    assert torch.equal(captured["x_t"], source)


def test_optimal_transport_pairs_each_noise_once_and_shortens_the_way():
    torch.manual_seed(0)
    from components.generative.pairing import pair_by_transport

    x_0, x_1 = torch.randn(16, 4, 2), torch.randn(16, 4, 2)
    paired = pair_by_transport(x_0, x_1)
    assert sorted(paired.flatten(1).sum(1).tolist()) == pytest.approx(sorted(x_0.flatten(1).sum(1).tolist()))
    assert (paired - x_1).square().sum() < (x_0 - x_1).square().sum()


MEAN, STD = 1.5, 0.5


def gaussian_velocity(x, t, done=0.0):
    """Of straight lines from N(0, 1) to N(MEAN, STD^2), in closed form."""
    t = t.view(-1, 1, 1).to(x.dtype)
    variance = (1 - t) ** 2 + t**2 * STD**2
    return MEAN + (t * STD**2 - (1 - t)) / variance * (x - t * MEAN)


def exact_end(x_0):
    return MEAN + STD * x_0


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_an_ode_sampler_has_its_order(method, order):
    x_0 = torch.randn(4, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sampler = OdeSampler(method)
    errors = [(sampler.sample(gaussian_velocity, x_0, n) - exact_end(x_0)).abs().max() for n in (32, 64)]
    assert errors[0] / errors[1] > 0.9 * 2**order


FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 1.0}
SAMPLERS = {
    "euler": partial(OdeSampler, "euler"),
    "midpoint": partial(OdeSampler, "midpoint"),
    "heun": partial(OdeSampler, "heun"),
    "flow euler": lambda grid: SchedulerSampler(FlowMatchEulerDiscreteScheduler(), grid),
    "unipc": lambda grid: SchedulerSampler(UniPCMultistepScheduler(**FLOW), grid),
    "dpm": lambda grid: SchedulerSampler(DPMSolverMultistepScheduler(**FLOW), grid),
}
GRIDS = {"uniform": uniform_grid, "sway": SwayGrid(-1.0), "shifted": ShiftedGrid(3.0)}


@pytest.mark.parametrize(
    ("name", "grid"), [pair for pair in product(SAMPLERS, GRIDS) if pair[0] != "dpm"] + [("dpm", "uniform")]
)
def test_samplers_cost_what_they_say_move_at_every_step_and_arrive(name, grid):
    sampler = SAMPLERS[name](GRIDS[grid])
    times: list[float] = []

    def count(x, t, done):
        times.append(float(t[0]))
        return gaussian_velocity(x, t)

    x_0 = torch.randn(4, 50, 2, generator=torch.Generator().manual_seed(0))
    x_1 = sampler.sample(count, x_0, 16)
    assert len(times) == sampler.num_calls(16) == (32 if name in ("midpoint", "heun") else 16)
    assert (x_1 - exact_end(x_0)).abs().max() < (0.5 if "euler" in name else 0.15)
    if name != "heun":  # which looks at the end of every step
        assert all(after - before > 1e-3 for before, after in pairwise([*times, 1.0])), "a step is idle"


def test_a_grid_that_a_scheduler_can_not_follow_is_refused():
    with pytest.raises(UserError, match="DPMSolverMultistepScheduler spaces its times itself"):
        SAMPLERS["dpm"](SwayGrid())


def test_euler_by_diffusers_is_euler_by_hand():
    x_0 = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0))
    for grid in (uniform_grid, SwayGrid()):
        ours = OdeSampler("euler", grid).sample(gaussian_velocity, x_0, 7)
        theirs = SchedulerSampler(FlowMatchEulerDiscreteScheduler(), grid).sample(gaussian_velocity, x_0, 7)
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_eight_steps_of_unipc_are_nearer_than_eight_of_euler():
    x_0 = torch.randn(4, 50, 2, generator=torch.Generator().manual_seed(0))
    errors = {}
    for name in ("flow euler", "unipc"):
        errors[name] = (SAMPLERS[name](uniform_grid).sample(gaussian_velocity, x_0, 8) - exact_end(x_0)).abs().max()
    assert errors["unipc"] < errors["flow euler"] / 3


def v_scheduler() -> DDIMScheduler:
    return DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing",
                         beta_schedule="scaled_linear", clip_sample=False)  # fmt: skip


def test_v_diffusion_has_its_targets_weights_and_sampler_from_diffusers():
    scheduler = v_scheduler()
    torch.manual_seed(0)
    x_1, t = torch.randn(4, 6, 2), torch.tensor([0.1, 0.4, 0.7, 0.95])
    noise_seed = torch.random.get_rng_state()
    out = VDiffusion(scheduler).loss(lambda x, t: torch.zeros_like(x), x_1, t=t)
    torch.random.set_rng_state(noise_seed)
    noise = torch.randn_like(x_1)
    steps = ((1 - t) * 1000).long()
    kept = scheduler.alphas_cumprod[steps]
    v = kept.sqrt().view(-1, 1, 1) * noise - (1 - kept).sqrt().view(-1, 1, 1) * x_1
    snr = kept / (1 - kept)
    assert torch.allclose(out.per_item, v.square().mean((1, 2)) * snr.clamp(max=5) / (snr + 1), atol=1e-5)

    def predict(x, t, done):
        """Of data N(0, STD^2) in closed form."""
        steps = ((1 - t) * 1000).round().long().clamp(max=999)
        a = scheduler.alphas_cumprod[steps].sqrt().view(-1, 1, 1)
        s = (1 - scheduler.alphas_cumprod[steps]).sqrt().view(-1, 1, 1)
        gain = 1 / (a**2 * STD**2 + s**2)
        return a * s * gain * (1 - STD**2) * x

    x_0 = torch.randn(8, 200, 2)
    sampled = SchedulerSampler(scheduler, prediction="v_prediction").sample(predict, x_0, 50)
    assert abs(sampled.std().item() - STD) < 0.04


def predictions(drops):
    """One distinct tensor per set of dropped streams."""
    torch.manual_seed(3)
    base, effects = torch.randn(2, 5, 3), {name: torch.randn(2, 5, 3) for name in ("contour", "text", "caption")}
    return [base + sum(effect for name, effect in effects.items() if name not in drop) for drop in drops]


def one(*dropped):
    return predictions([frozenset(dropped)])[0]


GROUPS = {"aligned": ["contour"], "text": ["text", "caption"]}


def test_factored_guidance_is_its_formula():
    guided = FactoredGuidance(GROUPS, {"aligned": 1.5, "text": 4.0})(predictions, 0.5)
    v_0, v_aligned, v_all = one("contour", "text", "caption"), one("text", "caption"), one()
    assert torch.allclose(guided, v_0 + 1.5 * (v_aligned - v_0) + 4.0 * (v_all - v_aligned), atol=1e-5)


def test_one_scale_costs_two_predictions_and_is_that_of_diffusers():
    calls = []

    def counted(drops):
        calls.append(drops)
        return predictions(drops)

    for rescale in (0.0, 0.7):
        guided = FactoredGuidance(GROUPS, 3.0, rescale=rescale)(counted, 0.0)
        theirs = ClassifierFreeGuidance(guidance_scale=3.0, guidance_rescale=rescale)
        expected = theirs.forward(one(), one("contour", "text", "caption")).pred
        assert torch.allclose(guided, expected, atol=2e-2 if rescale else 1e-5)  # they take the unbiased spread
    assert [len(drops) for drops in calls] == [2, 2]
    assert torch.allclose(FactoredGuidance(GROUPS, 1.0)(counted, 0.0), one())
    assert len(calls[-1]) == 1


def test_guidance_has_its_interval():
    guidance = FactoredGuidance(GROUPS, 3.0, start=0.25, stop=0.75)
    plain = [torch.equal(guidance(predictions, done), one()) for done in (0.0, 0.25, 0.5, 0.75)]
    assert plain == [True, False, False, True]


def test_rescaled_guidance_does_not_see_padding():
    guidance = FactoredGuidance(GROUPS, 3.0, rescale=0.7)
    mask = torch.arange(5) >= torch.tensor([[5], [3]])
    alone = guidance(lambda drops: [p[1:, :3] for p in predictions(drops)], 0.0)
    assert torch.allclose(guidance(predictions, 0.0, mask)[1:, :3], alone, atol=1e-6)


def test_guidance_is_refused_where_it_has_no_meaning():
    with pytest.raises(UserError, match="there is no group 'txet', only aligned, text"):
        FactoredGuidance(GROUPS, {"txet": 2.0})
    with pytest.raises(UserError, match=r"rescale must lie in \[0, 1\]"):
        FactoredGuidance(GROUPS, 2.0, rescale=1.5)


def test_noise_belongs_to_an_item():
    seeds, lens = torch.tensor([5, 2**61, 9]), torch.tensor([4, 7, 2])
    together = keyed_noise(seeds, lens, 3)
    assert together.shape == (3, 7, 3)
    for i in range(3):
        alone = keyed_noise(seeds[i : i + 1], lens[i : i + 1], 3)
        assert torch.equal(together[i, : lens[i]], alone[0])
        assert together[i, lens[i] :].abs().sum() == 0
