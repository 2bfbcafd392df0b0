import itertools

import pytest
import torch
from torch.testing import assert_close

from components.losses.minimum_risk import (
    ParallelMinimumRisk,
    distinct,
    edit_distance,
    expected_risk,
    path_scores,
)
from utils.errors import UserError


def levenshtein(a, b):
    table = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        before, table[0] = table[0], i
        for j, y in enumerate(b, start=1):
            before, table[j] = table[j], min(before + (x != y), table[j] + 1, table[j - 1] + 1)
    return table[-1]


def test_edit_distances_of_a_batch_are_those_of_each_pair():
    generator = torch.Generator().manual_seed(0)
    hyps, refs = (torch.randint(0, 4, (300, n), generator=generator) for n in (9, 7))
    hyp_lens, ref_lens = (torch.randint(0, n + 1, (300,), generator=generator) for n in (9, 7))
    pairs = zip(hyps.tolist(), hyp_lens.tolist(), refs.tolist(), ref_lens.tolist())
    expected = [levenshtein(hyp[:n], ref[:m]) for hyp, n, ref, m in pairs]
    assert edit_distance(hyps, hyp_lens, refs, ref_lens).tolist() == expected


def every_sequence(vocab_size, length):
    return torch.tensor(list(itertools.product(range(vocab_size), repeat=length)))


def test_with_all_sequences_as_candidates_the_gradient_is_that_of_the_expectation():
    logits = torch.randn(2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    refs, ref_lens = torch.tensor([[0, 1, 2], [2, 2, 0]]), torch.tensor([3, 2])
    candidates = every_sequence(3, 3).expand(2, -1, -1)
    lens = torch.tensor([3, 3])
    repeated = [x.repeat_interleave(27, 0) for x in (lens, refs, ref_lens)]
    errors = edit_distance(candidates.flatten(0, 1), *repeated).view(2, 27)

    probs = logits.softmax(-1)
    expectation = torch.stack([
        sum(
            probs[b, 0, i] * probs[b, 1, j] * probs[b, 2, k] * levenshtein((i, j, k), refs[b, : ref_lens[b]].tolist())
            for i, j, k in itertools.product(range(3), repeat=3)
        )
        for b in range(2)
    ])  # fmt: skip
    (wanted,) = torch.autograd.grad(expectation.sum(), logits)
    risk = expected_risk(path_scores(logits.log_softmax(-1), candidates, lens), errors)
    (found,) = torch.autograd.grad(risk.sum(), logits)
    assert_close(found.double(), wanted, rtol=0, atol=1e-6)
    assert_close(risk.double(), expectation - errors.double().mean(1), rtol=0, atol=1e-5)


def test_candidates_with_equally_many_errors_teach_nothing():
    scores = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    risk = expected_risk(scores, torch.tensor([[2] * 5, [0] * 5, [7] * 5]))
    assert_close(risk, torch.zeros(3), rtol=0, atol=1e-6)
    risk.sum().backward()
    assert_close(scores.grad, torch.zeros(3, 5), rtol=0, atol=1e-6)


def test_a_candidate_drawn_twice_counts_once():
    candidates = torch.tensor(
        [[[1, 2, 3], [1, 2, 4], [1, 2, 3], [1, 5, 3]], [[1, 2, 3], [1, 2, 9], [1, 0, 0], [1, 0, 5]]]
    )
    lens = torch.tensor([3, 2])
    once = distinct(candidates, lens)
    assert once.tolist() == [[True, True, False, True], [True, False, True, False]]
    scores, errors = torch.randn(2, 4), torch.tensor([[0.0, 1, 0, 2], [1, 1, 2, 2]])
    first = expected_risk(scores, errors, once)
    assert_close(first[0], expected_risk(scores[:1, [0, 1, 3]], errors[:1, [0, 1, 3]])[0])
    assert_close(first[1], expected_risk(scores[1:, [0, 2]], errors[1:, [0, 2]])[0])


def test_candidates_are_the_best_path_and_others_with_second_bests():
    torch.manual_seed(0)
    log_probs = torch.randn(2, 200, 6).log_softmax(-1)
    candidates = ParallelMinimumRisk(num_candidates=5, share=0.3).candidates(log_probs)
    ranked = log_probs.argsort(-1, descending=True)
    assert torch.equal(candidates[:, 0], ranked[..., 0])
    changed = candidates[:, 1:] != ranked[:, None, :, 0]
    assert torch.equal(candidates[:, 1:].masked_select(changed), ranked[:, None, :, 1].expand_as(changed)[changed])
    assert 0.25 < changed.float().mean() < 0.35


def test_training_lowers_the_expected_errors_and_padding_is_not_seen():
    torch.manual_seed(0)
    logits = torch.randn(1, 6, 5, requires_grad=True)
    loss = ParallelMinimumRisk(num_candidates=8, share=0.5)
    lens = torch.tensor([4])
    best, second = logits.topk(2).indices.unbind(-1)
    tokens = torch.where(torch.tensor([0, 1, 0, 1, 0, 1]).bool(), second, best)
    assert edit_distance(best, lens, tokens, lens).tolist() == [2]
    for _ in range(300):
        (gradient,) = torch.autograd.grad(loss(logits.log_softmax(-1), lens, tokens, lens).sum(), logits)
        assert not gradient[:, 4:].any()
        logits = (logits - gradient).detach().requires_grad_()
    assert edit_distance(logits.argmax(-1), lens, tokens, lens).tolist() == [0]


@pytest.mark.parametrize("options", [{"num_candidates": 1}, {"share": 0.0}, {"share": 1.5}])
def test_settings_that_leave_nothing_to_compare_are_refused(options):
    with pytest.raises(UserError, match="num_candidates must be at least 2"):
        ParallelMinimumRisk(**options)
