import pytest
import torch
from torch.testing import assert_close

from components.models.asr.cif import (
    CifStream,
    cif_matrix,
    integrate_and_fire,
    lossy_integrate_and_fire,
    scale_weights,
    token_spans,
)
from tests.components.asr_paraformer.integrator import integrate, utterance
from utils.errors import UserError

METHODS = ["merge", "dense"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("num_frames", "integral", "max_tokens", "threshold"),
    [
        (40, 10.3, 10, 1.0),
        (40, 10.3, 12, 1.0),  # two tokens that the weights do not reach
        (40, 10.3, 6, 1.0),  # four tokens too many
        (10, 25.4, 25, 1.0),  # more tokens than frames: a frame is part of several
        (30, 7.7, 9, 0.8),
        (1, 0.3, 2, 1.0),
    ],
)
def test_it_is_the_frame_by_frame_integrator(method, num_frames, integral, max_tokens, threshold):
    hidden, alphas = utterance(num_frames, integral)
    counts = torch.full((2,), max_tokens)
    rows = integrate_and_fire(hidden, alphas, counts, max_tokens, threshold, method)
    assert_close(rows, integrate(hidden, alphas, max_tokens, threshold), rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_long_utterances_in_float32_are_exact_to_1e_6(method):
    hidden, alphas = utterance(3000, 800.3, dim=8, dtype=torch.float32)
    rows = integrate_and_fire(hidden, alphas, torch.tensor([800, 800]), method=method)
    assert rows.dtype == torch.float32
    assert (rows - integrate(hidden, alphas, 800)).abs().max() < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_every_token_has_its_embedding(method):
    generator = torch.Generator().manual_seed(1)
    lens = torch.randint(1, 60, (500,), generator=generator)
    counts = torch.randint(1, 40, (500,), generator=generator)
    alphas = torch.rand(500, 60, generator=generator) * (torch.arange(60) < lens[:, None])
    hidden = 1 + torch.rand(500, 60, 2, generator=generator)  # no sum of frames is near zero
    scaled = scale_weights(alphas, counts, lens)
    rows = integrate_and_fire(hidden, scaled, counts, method=method)
    own = torch.arange(rows.shape[1]) < counts[:, None]
    assert rows[own].min() > 0.99
    assert not rows[~own].any()


def test_the_public_recipe_loses_last_tokens_where_ours_does_not():
    hidden, alphas = utterance(200, 50.0, batch=192)
    hidden, alphas = 1 + hidden.abs().float(), alphas.float()
    counts = torch.full((192,), 50)
    alphas = alphas * (counts / alphas.sum(1))[:, None]  # scaled in float32, as there
    lost = (lossy_integrate_and_fire(hidden, alphas, counts, 50)[:, -1] == 0).all(1)
    assert 0.2 < lost.float().mean() < 0.8
    assert (integrate_and_fire(hidden, alphas, counts, 50)[:, -1] > 0.9).all()


def test_what_the_public_recipe_keeps_is_right():
    hidden, alphas = utterance(80, 20.3)  # nothing near a border
    rows = lossy_integrate_and_fire(hidden, alphas, torch.tensor([20, 18]), 20)
    expected = integrate(hidden, alphas, 20)
    expected[1, 18:] = 0
    assert_close(rows, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("integral", [4.6, 20.7])  # weights up to 0.9, and up to 2.5 and more
def test_gradients(method, integral):
    hidden, alphas = utterance(12, integral)
    assert (alphas.max() > 2) == (integral > 20)
    counts = torch.tensor([int(integral), 3])

    def fire(hidden, alphas):
        return integrate_and_fire(hidden, alphas, counts, method=method)

    assert torch.autograd.gradcheck(fire, (hidden.requires_grad_(), alphas.requires_grad_()))


@pytest.mark.parametrize("method", METHODS)
def test_gradients_through_scaling_where_the_last_token_ends_with_the_last_frame(method):
    hidden, alphas = utterance(12, 4.6)
    counts, lens = torch.tensor([5, 3]), torch.tensor([12, 12])

    def fire(hidden, alphas):
        return integrate_and_fire(hidden, scale_weights(alphas, counts, lens), counts, method=method)

    assert torch.autograd.gradcheck(fire, (hidden.requires_grad_(), alphas.requires_grad_()))


def test_mass_is_conserved():
    _, alphas = utterance(50, 13.0)
    matrix = cif_matrix(alphas, 13)
    assert_close(matrix.sum(1), alphas)
    assert_close(matrix.sum(2), torch.ones(2, 13, dtype=torch.float64))


@pytest.mark.parametrize("method", METHODS)
def test_frames_without_weight_add_nothing(method):
    hidden, alphas = utterance(20, 6.4)
    alphas[:, ::3] = 0
    alphas[:, :2] = 0
    counts = torch.tensor([4, 4])
    rows = integrate_and_fire(hidden, alphas, counts, method=method)
    assert_close(rows, integrate(hidden, alphas, 4), rtol=0, atol=1e-12)
    hidden[:, ::3] = 1e6
    assert_close(integrate_and_fire(hidden, alphas, counts, method=method), rows, rtol=0, atol=1e-12)


def test_an_utterance_without_any_weight_is_divided_evenly_and_can_learn():
    alphas = torch.zeros(2, 6, requires_grad=True)
    scaled = scale_weights(alphas, torch.tensor([2, 3]), torch.tensor([6, 4]))
    assert_close(scaled[0], torch.full((6,), 1 / 3, dtype=torch.float64))
    assert_close(scaled[1], torch.tensor([0.75] * 4 + [0, 0], dtype=torch.float64))
    rows = integrate_and_fire(torch.ones(2, 6, 1), scaled, torch.tensor([2, 3]))
    assert_close(rows[..., 0], torch.tensor([[1.0, 1, 0], [1, 1, 1]]))
    (2 * rows).sum().backward()
    assert alphas.grad.isfinite().all()


def test_half_precision_does_not_move_the_borders():
    hidden, alphas = utterance(1000, 250.0)
    with torch.autocast("cpu", torch.bfloat16):
        rows = integrate_and_fire(hidden.float(), alphas, torch.tensor([250, 250]))
    assert_close(rows, integrate(hidden, alphas, 250).float(), rtol=0, atol=1e-5)


def test_an_unknown_method_is_refused():
    hidden, alphas = utterance(4, 2.0)
    with pytest.raises(UserError, match="'loop' is none of merge, dense"):
        integrate_and_fire(hidden, alphas, torch.tensor([2, 2]), method="loop")


@pytest.mark.parametrize("chunk", [1, 4, 7, 100])
@pytest.mark.parametrize("integral", [11.3, 80.2])
def test_chunks_give_what_the_whole_gives(chunk, integral):
    hidden, alphas = utterance(37, integral)
    alphas[1, 10:20] = 0
    stream = CifStream()
    parts = [stream.push(h, a) for h, a in zip(hidden.split(chunk, 1), alphas.split(chunk, 1))]
    tail, more = stream.finish(0.45)
    counts = sum(fired for _, fired in parts)
    whole = integrate(hidden, alphas, int(counts.max()) + 1)
    for b in range(2):
        rows = torch.cat([rows[b, : fired[b]] for rows, fired in parts])
        assert len(rows) == counts[b] == int(alphas[b].sum())
        assert_close(rows, whole[b, : len(rows)], rtol=0, atol=1e-10)
        assert more[b] == int(alphas[b].sum() % 1 >= 0.55)
        if more[b]:
            assert_close(tail[b, 0], whole[b, counts[b]], rtol=0, atol=1e-10)


def test_tokens_begin_and_end_inside_of_frames():
    alphas = torch.tensor([[0.5, 0.0, 1.0, 1.0, 0.5, 0.0], [0.0, 2.0, 0.0, 0.0, 0.0, 0.0]])
    begins, ends = token_spans(alphas, torch.tensor([6, 3]), 3)
    assert_close(begins, torch.tensor([[0, 2.5, 3.5], [1, 1.5, 3]], dtype=torch.float64), rtol=0, atol=1e-6)
    assert_close(ends, torch.tensor([[2.5, 3.5, 5], [1.5, 2, 3]], dtype=torch.float64), rtol=0, atol=1e-6)


def test_the_integral_at_a_border_is_a_whole_number_of_tokens():
    _, alphas = utterance(50, 17.0)
    begins, ends = token_spans(alphas, torch.tensor([50, 50]), 17)
    integral = torch.cat([torch.zeros(2, 1), alphas.cumsum(1)], 1)
    for places, first in ((begins, 0), (ends, 1)):
        whole = places.floor().long().clamp(max=49)
        reached = integral.gather(1, whole) + (places - whole) * alphas.gather(1, whole)
        assert_close(reached, torch.arange(first, 17 + first).double().expand(2, -1), rtol=0, atol=1e-6)
    assert_close(begins[:, 1:], ends[:, :-1], rtol=0, atol=1e-4)
