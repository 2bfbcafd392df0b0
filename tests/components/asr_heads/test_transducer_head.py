from functools import partial

import pytest
import torch

from components.models.asr.heads import LstmPredictor, StatelessPredictor, TransducerHead, transducer_loss
from components.models.asr.heads.lattice import plan_sub_batches
from tests.components.asr_heads.batches import (
    DIM,
    LENS,
    TOKEN_LENS,
    VOCAB,
    is_close_to_alone,
    make_encoded,
    make_tokens,
)

PREDICTORS = {
    "stateless": partial(StatelessPredictor, dim=10, context=2),
    "lstm": partial(LstmPredictor, dim=10, num_layers=2),
}
each_topology = pytest.mark.parametrize("monotonic", [False, True])
each_predictor = pytest.mark.parametrize("predictor", PREDICTORS)


_NEVER = torch.tensor(-torch.inf, dtype=torch.float64)


def make_head(predictor="stateless", **options):
    torch.manual_seed(0)
    return TransducerHead(DIM, VOCAB, PREDICTORS[predictor], joint_dim=8, **options)


def by_definition(log_probs, text, monotonic=False):
    """Minus log-probability of a text by the lattice `[T, U, V]`: node after node, in float64."""
    num_frames = len(log_probs)
    reached = {(0, 0): torch.zeros((), dtype=torch.float64)}
    if monotonic:
        for t in range(num_frames):
            for u in range(min(t, len(text)) + 1):
                for symbol, place in ((0, u), (text[u] if u < len(text) else None, u + 1)):
                    if symbol is not None:
                        way = reached[t, u] + log_probs[t, u, symbol]
                        reached[t + 1, place] = torch.logaddexp(reached.get((t + 1, place), _NEVER), way)
        return -reached[num_frames, len(text)]
    for t in range(num_frames):
        for u in range(len(text) + 1):
            ways = []
            if t:
                ways.append(reached[t - 1, u] + log_probs[t - 1, u, 0])
            if u:
                ways.append(reached[t, u - 1] + log_probs[t, u - 1, text[u - 1]])
            if ways:
                reached[t, u] = torch.stack(ways).logsumexp(0)
    return -(reached[num_frames - 1, len(text)] + log_probs[num_frames - 1, len(text), 0])


@each_topology
@each_predictor
def test_loss_and_gradients_are_those_of_the_definition(predictor, monotonic):
    head, encoded, tokens = make_head(predictor, monotonic=monotonic), make_encoded(), make_tokens()
    encoded.hidden.requires_grad_()
    weights = torch.tensor([1.0, 0.5, 2.0, 0.0])
    inputs = [encoded.hidden, *head.parameters()]
    output = head(encoded, tokens, TOKEN_LENS)
    found = torch.autograd.grad(output.per_item @ weights, inputs)

    frames, predictions = head.frames(encoded), head.of_prediction(head.predictor(tokens.clamp(min=0)))
    lattice = head.log_probs(frames.unsqueeze(2), predictions.unsqueeze(1)).double()
    lengths = zip(LENS, TOKEN_LENS)
    wanted = torch.stack(
        [by_definition(lattice[row, :t], tokens[row, :n].tolist(), monotonic) for row, (t, n) in enumerate(lengths)]
    )
    torch.testing.assert_close(output.per_item.double(), wanted, rtol=1e-6, atol=1e-5)
    for ours, theirs in zip(found, torch.autograd.grad(wanted @ weights.double(), inputs)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@each_topology
@pytest.mark.parametrize("max_joint_elements", [1, 12 * 6 * VOCAB, 2 * 12 * 6 * VOCAB])
def test_sub_batches_have_the_losses_and_gradients_of_the_whole(max_joint_elements, monotonic):
    whole, parts = (make_head(max_joint_elements=bound, monotonic=monotonic) for bound in (2**25, max_joint_elements))
    for head in (whole, parts):
        head(make_encoded(), make_tokens(), TOKEN_LENS).per_item.square().sum().backward()
    for ours, theirs in zip(parts.parameters(), whole.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


def test_a_plan_holds_every_utterance_once_and_keeps_the_bound():
    lens, token_lens = torch.randint(1, 50, (40,)), torch.randint(0, 9, (40,))
    plan = plan_sub_batches(lens, token_lens, 10, 3000)
    assert sorted(torch.cat([part.rows for part in plan]).tolist()) == list(range(40))
    for part in plan:
        assert part.num_steps == lens[part.rows].max()
        assert part.num_tokens == token_lens[part.rows].max()
        assert len(part.rows) == 1 or len(part.rows) * part.num_steps * (part.num_tokens + 1) * 10 <= 3000
    assert 1 < len(plan) < 40


def test_no_more_than_a_sub_batch_is_in_memory(monkeypatch):
    seen = []
    original = torch.nn.functional.linear

    def watched(*arguments):
        seen.append(original(*arguments))
        return seen[-1]

    monkeypatch.setattr("components.models.asr.heads.lattice.linear", watched)
    bound = 12 * 6 * VOCAB
    losses = make_head(max_joint_elements=bound)(make_encoded(), make_tokens(), TOKEN_LENS).per_item
    assert all(not logits.requires_grad for logits in seen)  # nothing of the forward pass waits for the backward
    losses.sum().backward()
    assert max(logits.numel() for logits in seen) <= bound
    assert sum(logits.numel() for logits in seen) > 3 * bound


@each_topology
@each_predictor
def test_a_batch_is_each_utterance_alone(predictor, monotonic):
    is_close_to_alone(make_head(predictor, monotonic=monotonic), make_encoded(), make_tokens(), TOKEN_LENS)


def test_an_utterance_without_frames_is_not_usable():
    head, encoded = make_head(), make_encoded(torch.tensor([5, 0]))
    encoded.hidden.requires_grad_()
    output = head(encoded, make_tokens(torch.tensor([2, 2])), torch.tensor([2, 2]))
    output.per_item.sum().backward()
    assert output.usable.tolist() == [True, False]
    assert output.per_item[1] == 0
    assert encoded.hidden.grad[1].abs().max() == 0


def test_a_monotonic_one_needs_a_frame_for_every_token():
    head, encoded = make_head(monotonic=True), make_encoded(torch.tensor([3, 2, 0]))
    encoded.hidden.requires_grad_()
    token_lens = torch.tensor([3, 3, 0])
    output = head(encoded, make_tokens(token_lens), token_lens)
    output.per_item.sum().backward()
    assert output.usable.tolist() == [True, False, False]
    assert output.per_item[0] > 0
    assert output.per_item[1:].tolist() == [0, 0]
    assert encoded.hidden.grad[1:].abs().max() == 0


def test_the_loss_is_float32_under_autocast():
    head, encoded, tokens = make_head(), make_encoded(), make_tokens()
    wanted = head(encoded, tokens, TOKEN_LENS).per_item
    with torch.autocast("cpu", torch.bfloat16):
        found = head(encoded, tokens, TOKEN_LENS).per_item
        found.sum().backward()  # here too, where autocast would reach the second making of the lattice
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02)
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


def test_a_whole_batch_without_tokens_has_the_loss_of_blanks():
    frames, predictions = torch.randn(2, 4, 8), torch.randn(2, 1, 8)
    weight, bias, none = torch.randn(VOCAB, 8), torch.randn(VOCAB), torch.zeros(2, dtype=torch.long)
    found = transducer_loss(frames, predictions, weight, bias, none[:, None][:, :0], torch.tensor([4, 2]), none)
    blanks = (torch.tanh(frames + predictions) @ weight.T + bias).log_softmax(-1)[..., 0]
    torch.testing.assert_close(found, -torch.stack([blanks[0].sum(), blanks[1, :2].sum()]))


@each_predictor
def test_a_predictor_step_by_step_is_the_predictor_at_once(predictor):
    torch.manual_seed(0)
    network, tokens = PREDICTORS[predictor](VOCAB), torch.randint(1, VOCAB, (3, 5))
    output, state = network.start(3)
    outputs = [output]
    for column in tokens.T:
        output, state = network.step(column, state)
        outputs.append(output)
    torch.testing.assert_close(torch.stack(outputs, dim=1), network(tokens))
