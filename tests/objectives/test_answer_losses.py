"""Answers: closed forms, rows without one, what is refused."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, kl_div
from torch.testing import assert_close

from hf_mm.objectives.answers import answer_loss, distribution_loss
from hf_mm.objectives.matching import choice_loss


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), requires_grad=True)


SCORES = torch.tensor([[0.2, 0.8, 0.0], [1.0, 0.0, 0.0]])


def test_scores_are_answers_each_by_itself():
    logits = drawn(2, 3)
    loss = answer_loss(logits, SCORES)
    assert_close(loss, binary_cross_entropy_with_logits(logits, SCORES) * 3)
    assert_close(answer_loss(logits, SCORES, num_items_in_batch=12), loss / 2)  # 12 numbers are 4 rows


def test_as_a_distribution_scores_cost_the_divergence_from_them():
    logits = drawn(2, 3)
    loss = answer_loss(logits, SCORES, as_distribution=True)
    peer = kl_div(logits.log_softmax(1), SCORES, reduction="batchmean")
    assert_close(loss, peer)
    assert_close(torch.autograd.grad(loss, logits), torch.autograd.grad(peer, logits))
    assert_close(answer_loss(logits, SCORES, 12, as_distribution=True), loss / 2)


def test_what_cannot_be_chosen_and_has_no_probability_costs_nothing():
    logits = torch.tensor([[0.5, 1.0, -torch.inf]], requires_grad=True)
    loss = distribution_loss(logits, SCORES[:1])
    assert_close(loss, distribution_loss(logits[:, :2], SCORES[:1, :2]))
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()


def test_rows_without_an_answer_are_left_out():
    logits = drawn(3, 4)
    labels = torch.tensor([2, -100, 0])
    assert_close(answer_loss(logits, labels), cross_entropy(logits[::2], labels[::2]))
    nothing = answer_loss(logits, torch.full((3,), -100))
    assert nothing.item() == 0
    assert torch.equal(torch.autograd.grad(nothing, logits)[0], torch.zeros(3, 4))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.rand(2, 4), r"`labels` must be \(2, 3\) scores of the answers \(`num_labels`=3\) or \(2,\)"),
        (torch.ones(2, 3).long(), r"got \(2, 3\) of torch.int64"),
        (torch.ones(3).long(), r"`labels` must be \(2,\) class indices, got \(3,\)"),
    ],
)
def test_labels_of_other_answers_are_named(labels, message):
    with pytest.raises(ValueError, match=message):
        answer_loss(torch.zeros(2, 3), labels)


def test_a_choice_is_among_the_candidates_of_a_question():
    scores = drawn(6, 1)
    loss = choice_loss(scores, torch.tensor([2, 0]))
    assert_close(loss, cross_entropy(scores.view(2, 3), torch.tensor([2, 0])))
    assert_close(choice_loss(scores, torch.tensor([2, 0]), 4), loss / 2)
    assert choice_loss(scores, torch.tensor([-100, -100])).item() == 0


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(4).long(), "one integer for each group of candidates, 6 rows in all"),
        (torch.zeros(0).long(), r"got \(0,\)"),
        (torch.zeros(2), "of torch.float32"),
        (torch.zeros(6).long(), "`labels` are 6 for 6 rows, one candidate each: nothing to choose from"),
    ],
)
def test_choices_that_do_not_come_out_even_are_named(labels, message):
    with pytest.raises(ValueError, match=message):
        choice_loss(torch.zeros(6, 1), labels)
