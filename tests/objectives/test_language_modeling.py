"""The loss of the next token: weights, shares of a larger batch, positions that were kept."""

import pytest
import torch
from torch.testing import assert_close
from transformers.loss.loss_utils import ForCausalLMLoss

from hf_mm.objectives.language_modeling import next_token_loss

WORDS = 11


def batch(seed=0):
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 6, WORDS, generator=draw, requires_grad=True)
    labels = torch.randint(0, WORDS, (2, 6), generator=draw)
    labels[0, :3] = labels[1, 4:] = -100
    return logits, labels, torch.rand(2, 6, generator=draw) + 0.5


@pytest.mark.parametrize("items", [None, 17, torch.tensor(17)])
def test_without_weights_it_is_the_loss_of_transformers(items):
    logits, labels, _ = batch()
    theirs = ForCausalLMLoss(logits, labels, WORDS, num_items_in_batch=items)
    assert_close(next_token_loss(logits, labels, None, items), theirs, rtol=1e-6, atol=1e-6)


def test_weights_weigh_the_mean():
    logits, labels, weights = batch()
    total, mass = 0.0, 0.0
    for row in range(2):
        for place in range(5):
            label = labels[row, place + 1]
            if label >= 0:
                total -= weights[row, place + 1] * logits[row, place].log_softmax(-1)[label]
                mass += weights[row, place + 1]
    assert_close(next_token_loss(logits, labels, weights), total / mass)


def test_the_shares_of_two_parts_add_up_to_the_whole():
    logits, labels, weights = batch()
    mass = weights[:, 1:][labels[:, 1:] != -100].sum()
    parts = [next_token_loss(logits[i : i + 1], labels[i : i + 1], weights[i : i + 1], mass) for i in (0, 1)]
    assert_close(sum(parts), next_token_loss(logits, labels, weights))


def test_positions_without_labels_need_no_logits():
    logits, labels, weights = batch()
    kept = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100) != -100
    whole = next_token_loss(logits, labels, weights)
    assert_close(next_token_loss(logits[kept], labels, weights, logits_to_keep=kept), whole)


@pytest.mark.parametrize("keep", [3, torch.tensor([1, 4]), torch.tensor([[0, 4], [1, 3]])])
def test_kept_positions_are_learnt_alone(keep):
    logits, labels, weights = batch()
    following = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    if isinstance(keep, int):
        index = torch.arange(6 - keep, 6).expand(2, -1)
    else:
        index = keep if keep.ndim == 2 else keep.expand(2, -1)
    chosen = torch.full_like(following, -100).scatter(1, index, following.gather(1, index))
    shifted = torch.nn.functional.pad(chosen, (1, 0), value=-100)[:, :6]
    left = logits.take_along_dim(index[..., None], dim=1)
    wanted = next_token_loss(logits, shifted, weights)
    assert_close(next_token_loss(left, labels, weights, logits_to_keep=keep), wanted)


def test_weights_of_another_shape_are_refused():
    logits, labels, weights = batch()
    with pytest.raises(ValueError, match=r"`loss_weights` are \(2, 5\), `labels` \(2, 6\); give one weight"):
        next_token_loss(logits, labels, weights[:, :5])


@pytest.mark.parametrize("items", [None, 0, 17, torch.tensor(0)])
@pytest.mark.parametrize("case", ["no labels", "labels that weigh nothing", "one token each"])
def test_nothing_to_learn_is_an_exact_zero_with_gradient_zero(case, items):
    logits, labels, weights = batch()
    if case == "no labels":
        labels.fill_(-100)
    elif case == "one token each":
        logits, labels, weights = logits[:, :1], labels[:, -1:], weights[:, :1]
    else:
        weights.zero_()
    loss = next_token_loss(logits, labels, weights, items)
    assert loss.item() == 0.0
    gradient = torch.autograd.grad(loss, logits)[0]
    assert torch.equal(gradient, torch.zeros_like(logits))
