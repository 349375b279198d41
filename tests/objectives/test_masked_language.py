"""Masked words: the loss of torch over all positions, from a head that ran on the hidden ones alone."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from hf_mm.objectives.masked_language import masked_token_loss

WORDS = 13


def batch():
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(3, 6, 8, generator=draw, requires_grad=True)
    labels = torch.full((3, 6), -100)
    labels[0, 2], labels[0, 3], labels[2, 5] = 4, 0, 12
    head = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, WORDS))
    for weight in head.parameters():
        nn.init.normal_(weight, generator=draw)
    return states, head, labels


def gradients(loss, states, head):
    return torch.autograd.grad(loss, [states, *head.parameters()])


def test_value_and_gradients_equal_those_of_logits_everywhere():
    states, head, labels = batch()
    loss = masked_token_loss(states, head, labels)
    peer = cross_entropy(head(states).flatten(0, 1), labels.flatten())
    assert_close(loss, peer, rtol=1e-6, atol=1e-6)
    assert_close(gradients(loss, states, head), gradients(peer, states, head), rtol=1e-5, atol=1e-5)


def test_the_head_sees_the_hidden_places_only():
    states, head, labels = batch()
    seen = []
    head.register_forward_hook(lambda module, inputs, outputs: seen.append(inputs[0]))
    masked_token_loss(states, head, labels)
    assert torch.equal(seen[0], states[labels != -100])


def test_packed_states_cost_what_padded_ones_do():
    states, head, labels = batch()
    kept = torch.arange(6) < torch.tensor([[4], [3], [6]])
    packed = masked_token_loss(states[kept], head, labels[kept])
    assert_close(packed, masked_token_loss(states, head, labels), rtol=1e-6, atol=1e-6)


def test_accumulated_rows_add_up():
    states, head, labels = batch()
    whole = masked_token_loss(states, head, labels)
    parts = [masked_token_loss(states[row], head, labels[row], 3) for row in range(3)]
    assert_close(sum(parts), whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("items", [None, 0, 5])
def test_nothing_hidden_is_an_exact_zero_and_every_weight_gets_a_gradient_of_zero(items):
    states, head, labels = batch()
    loss = masked_token_loss(states, head, torch.full_like(labels, -100), items)
    assert loss.item() == 0
    for gradient in gradients(loss, states, head):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_inside_autocast_the_cross_entropy_is_in_float32():
    states, head, labels = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(states[labels != -100])
        loss = masked_token_loss(states, head, labels)
    assert logits.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert_close(loss, cross_entropy(logits.float(), labels[labels != -100]), rtol=1e-6, atol=1e-6)


def test_labels_that_do_not_go_with_the_states_are_refused():
    states, head, labels = batch()
    with pytest.raises(
        ValueError, match=r"`labels` must be \(3, 6\) tokens, one for each state, got \(3, 5\)"
    ):
        masked_token_loss(states, head, labels[:, 1:])
    with pytest.raises(ValueError, match=r"`labels` must be \(3, 6\) tokens.*of torch.float32"):
        masked_token_loss(states, head, labels.float())
