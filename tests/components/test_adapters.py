from functools import partial

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from components.layers import length_mask
from components.models.audio_generator import (
    CrossAttentionAdapter,
    DurationLoss,
    NoAdapter,
    PrefixAdapter,
    Stream,
    expand_by_durations,
    from_log_duration,
    round_durations,
    to_log_duration,
)
from components.models.audio_generator.durations import TOKEN_RESOLUTION, TOTAL_RESOLUTION, scale_gradient
from utils.compose import CONFIGS

DIMS = {"content_dim": 6, "instruction_dim": 5}
ADAPTERS = {
    "cross": partial(CrossAttentionAdapter, **DIMS, dim=8, num_heads=2, duration_dim=7),
    "prefix": partial(PrefixAdapter, **DIMS, dim=8, num_layers=2, num_heads=2, duration_dim=7),
}
LENS, INSTRUCTION_LENS = torch.tensor([9, 1, 4, 6]), torch.tensor([2, 7, 1, 3])


def make(name, **changes):
    torch.manual_seed(0)
    return ADAPTERS[name](**changes)


def make_streams():
    torch.manual_seed(1)
    return Stream(torch.randn(4, 9, 6), LENS), Stream(torch.randn(4, 7, 5), INSTRUCTION_LENS)


def everything(output):
    return output.content.values.sum() + output.log_durations.square().sum() + output.log_total_duration.square().sum()


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_padded_batch_gives_the_same_as_each_item_alone(name):
    adapter, (content, instruction) = make(name).eval(), make_streams()
    content.values[~length_mask(LENS, 9)] = 7.0
    instruction.values[~length_mask(INSTRUCTION_LENS, 7)] = 7.0
    together = adapter(content, instruction)
    assert together.content.values.shape == (4, 9, adapter.embed_dim)
    assert torch.equal(together.content.lens, LENS)
    for i, (n, m) in enumerate(zip(LENS.tolist(), INSTRUCTION_LENS.tolist())):
        alone = adapter(Stream(content.values[i : i + 1, :n]), Stream(instruction.values[i : i + 1, :m]))
        close = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-5)
        close(together.content.values[i, :n], alone.content.values[0])
        close(together.log_durations[i, :n], alone.log_durations[0])
        close(together.log_total_duration[i], alone.log_total_duration[0])
        assert together.content.values[i, n:].abs().sum() == together.log_durations[i, n:].abs().sum() == 0


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_instruction_changes_the_content_and_its_durations(name):
    adapter, (content, instruction) = make(name).eval(), make_streams()
    one, other = (adapter(content, Stream(v, INSTRUCTION_LENS)) for v in (instruction.values, -instruction.values))
    assert (one.content.values - other.content.values).abs().max() > 1e-3
    assert (one.log_durations - other.log_durations).abs().max() > 1e-3
    assert (one.log_total_duration - other.log_total_duration).abs().min() > 1e-5


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_parameter_gets_a_gradient_and_half_precision_goes_through(name):
    for enabled in (False, True):
        adapter, streams = make(name), make_streams()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = adapter(*streams)
        everything(output).float().backward()
        assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in adapter.parameters())


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_durations_disturb_the_content_by_a_tenth(name):
    gradients = {}
    for factor in (1.0, 0.1):
        adapter, (content, instruction) = make(name, duration_grad_scale=factor).eval(), make_streams()
        output = adapter(content, instruction)
        (output.log_durations.square().sum() + output.log_total_duration.square().sum()).backward()
        gradients[factor] = adapter.content.weight.grad, adapter.token_durations.out.weight.grad
    torch.testing.assert_close(0.1 * gradients[1.0][0], gradients[0.1][0])
    torch.testing.assert_close(gradients[1.0][1], gradients[0.1][1])


@pytest.mark.parametrize("name", ADAPTERS)
def test_nothing_waits_for_the_device(name):
    """On the meta device there is no value to wait for."""
    with torch.device("meta"):
        adapter = make(name)
        content, lens = Stream(torch.zeros(4, 9, 6), torch.zeros(4, dtype=torch.long)), torch.zeros(4, dtype=torch.long)
        output = adapter(content, Stream(torch.zeros(4, 7, 5), lens))
        frames = round_durations(from_log_duration(output.log_durations, 0.01), lens, total=lens)
        expanded = expand_by_durations(output.content, frames, 20)
        truth = torch.zeros(4, 9), lens, torch.zeros(4, dtype=torch.bool), torch.zeros(4)
        losses = DurationLoss()(output.log_durations, output.log_total_duration, *truth)
        (expanded.values.sum() + losses.token_mean).backward()


def test_scaling_a_gradient_leaves_the_value():
    x = torch.randn(5, requires_grad=True)
    scale_gradient(x, 0.1).sum().backward()
    torch.testing.assert_close(scale_gradient(x, 0.1), x)
    torch.testing.assert_close(x.grad, torch.full((5,), 0.1))


def test_without_an_adapter_content_goes_on_as_it_is():
    content, instruction = make_streams()
    adapter = NoAdapter(**DIMS)
    output = adapter(content, instruction)
    assert output.content is content
    assert adapter.embed_dim == 6
    assert output.log_durations is None
    assert output.log_total_duration is None


@pytest.mark.parametrize("name", ADAPTERS)
def test_vectors_and_streams_without_lengths_are_taken(name):
    adapter, (content, instruction) = make(name).eval(), make_streams()
    output = adapter(Stream(content.values), Stream(instruction.values[:, 0]))
    assert output.content.values.shape == (4, 9, 8)
    assert output.content.lens.tolist() == [9] * 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ADAPTERS)
def test_durations_are_learnt(name):
    """A token lasts by its kind, and twice as long where the instruction says so."""
    torch.manual_seed(0)
    adapter = make(name, dim=16, duration_dim=16, dropout=0.0)
    optimizer, loss_fn, losses = torch.optim.AdamW(adapter.parameters(), lr=3e-3), DurationLoss(), []
    for _ in range(300):
        kind, slow = torch.randint(0, 6, (16, 9)), torch.randint(0, 2, (16,))
        lens = torch.randint(3, 10, (16,))
        durations = 0.05 * (kind + 1) * (slow + 1).unsqueeze(1)
        total = durations.masked_fill(~length_mask(lens, 9), 0).sum(1)
        output = adapter(Stream(torch.eye(6)[kind], lens), Stream(torch.eye(5)[slow]))
        found = loss_fn(output.log_durations, output.log_total_duration, durations, lens, slow >= 0, total)
        loss = found.token_mean + found.total.mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(found.token_mean.item())
    assert sum(losses[-20:]) / 20 < 0.05 < losses[0]


def test_log_durations_go_back_and_forth():
    seconds = torch.tensor([0.0, 0.004, 0.1, 2.0, 30.0])
    for resolution in (TOKEN_RESOLUTION, TOTAL_RESOLUTION):
        torch.testing.assert_close(from_log_duration(to_log_duration(seconds, resolution), resolution), seconds)
    assert from_log_duration(torch.tensor(-1.0), 0.01) == 0


def test_rounded_durations_add_up_exactly_and_no_end_is_off_by_more_than_half_a_frame():
    torch.manual_seed(0)
    durations, lens = 6 * torch.rand(200, 13), torch.randint(1, 14, (200,))
    total = torch.randint(1, 90, (200,))
    frames = round_durations(durations, lens, total)
    assert frames.dtype == torch.int64
    assert (frames >= 0).all()
    assert torch.equal(frames.sum(1), total)
    assert frames[~length_mask(lens, 13)].sum() == 0
    real = durations.double().masked_fill(~length_mask(lens, 13), 0)
    ends = (real / real.sum(1, keepdim=True) * total.unsqueeze(1)).cumsum(1)
    assert (frames.cumsum(1) - ends).abs().max() <= 0.5 + 1e-6
    own = round_durations(durations, lens)
    assert (own.sum(1) - real.sum(1)).abs().max() <= 0.5


def test_halves_are_shared_out_and_where_nothing_is_predicted_all_get_alike():
    assert round_durations(torch.full((1, 4), 0.5), torch.tensor([4])).tolist() == [[1, 0, 1, 0]]
    zeros = round_durations(torch.zeros(2, 4), torch.tensor([4, 2]), torch.tensor([8, 5]))
    assert zeros.tolist() == [[2, 2, 2, 2], [3, 2, 0, 0]]


def test_the_length_regulator_repeats_each_token():
    torch.manual_seed(0)
    content, lens = torch.randn(5, 6, 3), torch.tensor([6, 1, 4, 2, 3])
    frames = torch.randint(0, 4, (5, 6)) * length_mask(lens, 6)
    frames[1] = 0
    expanded = expand_by_durations(Stream(content, lens), frames, 12)
    for i in range(5):
        expected = content[i].repeat_interleave(frames[i], dim=0)[:12]
        assert expanded.lens[i] == len(expected)
        assert torch.equal(expanded.values[i, : len(expected)], expected)
        assert expanded.values[i, len(expected) :].abs().sum() == 0


def test_the_length_regulator_is_the_product_with_the_alignment_and_hands_gradients_back():
    content = torch.randn(2, 3, 4, requires_grad=True)
    frames = torch.tensor([[2, 0, 3], [1, 1, 1]])
    starts, ends = frames.cumsum(1) - frames, frames.cumsum(1)
    place = torch.arange(6).view(1, 6, 1)
    alignment = ((place >= starts.unsqueeze(1)) & (place < ends.unsqueeze(1))).float()
    expanded = expand_by_durations(Stream(content, torch.tensor([3, 3])), frames, 6).values
    torch.testing.assert_close(expanded, alignment @ content)
    expanded.sum().backward()
    torch.testing.assert_close(content.grad, frames.float().unsqueeze(-1).expand(2, 3, 4))


def test_losses_of_tokens_are_those_of_time_aligned_items_alone():
    torch.manual_seed(0)
    predicted, total = torch.randn(3, 5, requires_grad=True), torch.randn(3)
    durations, lens = torch.rand(3, 5), torch.tensor([5, 2, 4])
    durations[2], durations[1, 2:] = torch.nan, torch.nan
    seconds = torch.tensor([1.0, 2.0, 3.0])
    losses = DurationLoss()(predicted, total, durations, lens, torch.tensor([True, True, False]), seconds)
    first = (predicted[0] - torch.log1p(durations[0] / 0.01)).square().mean()
    second = (predicted[1, :2] - torch.log1p(durations[1, :2] / 0.01)).square().mean()
    torch.testing.assert_close(losses.token, torch.stack([first, second, torch.tensor(0.0)]))
    torch.testing.assert_close(losses.token_mean, (first + second) / 2)
    torch.testing.assert_close(losses.total, (total - torch.log1p(seconds / 0.1)).square())
    losses.token_mean.backward()
    assert predicted.grad[2].abs().sum() == predicted.grad[1, 2:].abs().sum() == 0
    assert predicted.grad.isfinite().all()


def test_without_a_time_aligned_item_there_is_no_loss_of_tokens():
    nobody = torch.zeros(2, dtype=torch.bool)
    lens, seconds = torch.tensor([3, 3]), torch.ones(2)
    losses = DurationLoss()(torch.randn(2, 3), torch.randn(2), torch.rand(2, 3), lens, nobody, seconds)
    assert losses.token_mean == 0


@pytest.mark.parametrize("name", ["none", "prefix_adapter", "cross_attn_adapter"])
def test_a_shipped_adapter_is_built(name):
    adapter = instantiate(OmegaConf.load(CONFIGS / "model" / "content_adapter" / f"{name}.yaml"))(**DIMS)
    output = adapter(*make_streams())
    assert output.content.values.shape[-1] == adapter.embed_dim
    assert (output.log_durations is None) == (name == "none")
