"""Parts of a batch add up to its mean, however unequal they are; nothing at all is an exact zero."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from hf_mm.objectives.batch_mean import batch_mean, items_per_process, labelled_cross_entropy


def items(number=7, classes=5):
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(number, classes, generator=draw, requires_grad=True)
    labels = torch.randint(0, classes, (number,), generator=draw)
    labels[2] = -100
    return logits, labels


@pytest.mark.parametrize("divisor", [4, 4.0, torch.tensor(4)])
def test_a_part_is_divided_by_the_items_of_the_whole(divisor):
    assert batch_mean(torch.tensor(6.0), 3) == 2
    assert batch_mean(torch.tensor(6.0), torch.tensor(3)) == 2
    assert batch_mean(torch.tensor(6.0), 3, divisor) == 1.5


def test_less_than_one_item_per_process_is_no_reason_to_round():
    assert batch_mean(torch.tensor(6.0), 1, torch.tensor(0.5)) == 12


def test_the_type_of_the_divisor_is_not_that_of_the_mean():
    for divisor in (torch.tensor(4), torch.tensor(4.0, dtype=torch.float64)):
        assert batch_mean(torch.tensor(6.0), 3, divisor).dtype == torch.float32


@pytest.mark.parametrize("nothing", [0, 0.0, torch.tensor(0), torch.tensor(0.0, dtype=torch.float64)])
def test_no_items_are_an_exact_zero(nothing):
    total = torch.zeros((), requires_grad=True)
    for loss in (batch_mean(total * 3, nothing), batch_mean(total * 3, 5, nothing)):
        assert loss == 0
        assert torch.autograd.grad(loss, total)[0].isfinite()


def test_without_processes_items_are_their_own_mean():
    counts = torch.tensor([3, 0, 7])
    assert torch.equal(items_per_process(counts), counts.float())


def test_it_is_the_cross_entropy_of_torch_where_labels_are():
    logits, labels = items()
    loss = labelled_cross_entropy(logits, labels)
    peer = cross_entropy(logits, labels)
    assert_close(loss, peer, rtol=1e-6, atol=1e-6)
    assert_close(torch.autograd.grad(loss, logits), torch.autograd.grad(peer, logits), rtol=1e-6, atol=1e-6)


def test_accumulated_parts_add_up_to_the_mean():
    logits, labels = items()
    whole = labelled_cross_entropy(logits, labels)
    parts = [labelled_cross_entropy(logits[a:b], labels[a:b], 6) for a, b in ((0, 4), (4, 4), (4, 7))]
    assert_close(sum(parts), whole, rtol=1e-6, atol=1e-6)
    of_parts = torch.autograd.grad(sum(parts), logits)
    assert_close(of_parts, torch.autograd.grad(whole, logits), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("items_in_batch", [None, 0, 9])
@pytest.mark.parametrize("number", [0, 3])
def test_nothing_labelled_is_an_exact_zero_with_a_gradient_of_zero(items_in_batch, number):
    logits = torch.randn(number, 5, requires_grad=True)
    loss = labelled_cross_entropy(logits, torch.full((number,), -100), items_in_batch)
    assert loss.item() == 0
    assert torch.equal(torch.autograd.grad(loss, logits)[0], torch.zeros(number, 5))


def test_half_precision_is_widened_inside_autocast():
    logits, labels = items()
    half = logits.detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = labelled_cross_entropy(half, labels)
    assert loss.dtype == torch.float32
    assert_close(loss, cross_entropy(half.float(), labels), rtol=0, atol=0)


def test_double_precision_is_kept():
    logits, labels = items()
    assert labelled_cross_entropy(logits.double(), labels).dtype == torch.float64
