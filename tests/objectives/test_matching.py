"""Matching and ranking: closed forms, pairs that do not count, what is refused."""

import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.testing import assert_close

from hf_mm.objectives.matching import matching_loss, ranking_loss


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), requires_grad=True)


def test_matching_is_binary_cross_entropy_of_the_difference_of_its_logits():
    logits, labels = drawn(6, 2), torch.tensor([1, 0, 0, 1, 1, 0])
    loss = matching_loss(logits, labels)
    peer = binary_cross_entropy_with_logits(logits[:, 1] - logits[:, 0], labels.float())
    assert_close(loss, peer, rtol=1e-6, atol=1e-6)
    assert_close(torch.autograd.grad(loss, logits), torch.autograd.grad(peer, logits), rtol=1e-6, atol=1e-6)


def test_matching_without_a_clue_costs_the_logarithm_of_two():
    assert_close(matching_loss(torch.zeros(3, 2), torch.tensor([1, 0, 1])).item(), math.log(2))


def test_pairs_that_do_not_count_are_left_out():
    logits = drawn(4, 2)
    loss = matching_loss(logits, torch.tensor([1, -100, 0, -100]))
    assert_close(loss, matching_loss(logits[::2], torch.tensor([1, 0])))
    assert_close(matching_loss(logits, torch.tensor([1, -100, 0, -100]), 8), loss / 4)


@pytest.mark.parametrize("rows", [0, 3])
def test_no_pair_that_counts_is_an_exact_zero(rows):
    logits = drawn(rows, 2)
    loss = matching_loss(logits, torch.full((rows,), -100))
    assert loss.item() == 0
    assert torch.equal(torch.autograd.grad(loss, logits)[0], torch.zeros(rows, 2))


def test_wrong_matching_inputs_are_refused():
    with pytest.raises(ValueError, match=r"`logits` must be \(pairs, 2\), of a mismatch and .* got \(3, 1\)"):
        matching_loss(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long))
    for labels in (torch.zeros(4, dtype=torch.long), torch.zeros(3), torch.zeros(3, dtype=torch.bool)):
        with pytest.raises(ValueError, match=rf"`labels` must be \(3,\) integers.*of {labels.dtype}"):
            matching_loss(torch.zeros(3, 2), labels)


def test_ranking_is_cross_entropy_with_the_true_partner_first():
    scores = drawn(5, 4)
    loss = ranking_loss(scores)
    peer = cross_entropy(scores, torch.zeros(5, dtype=torch.long))
    assert_close(loss, peer, rtol=1e-6, atol=1e-6)
    assert_close(torch.autograd.grad(loss, scores), torch.autograd.grad(peer, scores), rtol=1e-6, atol=1e-6)
    assert_close(ranking_loss(scores, num_items_in_batch=10), loss / 2)


def test_missing_candidates_take_no_part():
    scores = drawn(3, 4)
    candidates = torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1], [0, 1, 1, 1]]).bool()
    loss = ranking_loss(scores, candidates)
    whole = torch.stack([scores[0, [0, 1, 3]].log_softmax(0)[0], scores[1].log_softmax(0)[0]])
    assert_close(loss, -whole.mean())
    gradient = torch.autograd.grad(loss, scores)[0]
    assert gradient.isfinite().all()
    assert gradient[0, 2] == 0
    assert torch.equal(gradient[2], torch.zeros(4))


@pytest.mark.parametrize("shape", [(3, 1), (0, 4)])
def test_nothing_to_choose_from_is_an_exact_zero(shape):
    scores = drawn(*shape)
    loss = ranking_loss(scores)
    assert loss.item() == 0
    assert torch.equal(torch.autograd.grad(loss, scores)[0], torch.zeros(shape))


def test_a_batch_without_true_partners_is_an_exact_zero():
    scores = drawn(3, 4)
    loss = ranking_loss(scores, torch.zeros(3, 4, dtype=torch.bool))
    assert loss.item() == 0
    assert torch.equal(torch.autograd.grad(loss, scores)[0], torch.zeros(3, 4))


def test_wrong_ranking_inputs_are_refused():
    for scores in (torch.zeros(3), torch.zeros(3, 0)):
        with pytest.raises(ValueError, match=r"`scores` must be \(rows, 1 \+ false partners\)"):
            ranking_loss(scores)
    for candidates in (torch.ones(3, 5, dtype=torch.bool), torch.ones(3, 4)):
        with pytest.raises(ValueError, match=r"`candidates` must be \(3, 4\) booleans like `scores`, got"):
            ranking_loss(torch.zeros(3, 4), candidates)
