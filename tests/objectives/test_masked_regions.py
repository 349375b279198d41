"""Hidden regions: the losses of torch and of formulas by hand, over the regions that count and no others."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, mse_loss, smooth_l1_loss
from torch.testing import assert_close

from hf_mm.objectives.masked_regions import (
    masked_feature_smooth_l1,
    masked_region_classification,
    masked_region_kl,
    masked_region_regression,
)

ON_NUMBERS = [masked_region_regression, masked_feature_smooth_l1, masked_region_kl]


def numbers(regions=5, width=7):
    """Predictions, and targets that are a distribution, so that each loss takes them."""
    draw = torch.Generator().manual_seed(0)
    predicted = torch.randn(regions, width, generator=draw) * 2
    return predicted.requires_grad_(), torch.randn(regions, width, generator=draw).softmax(1)


def classes(regions=5, number=7):
    return torch.randint(0, number, (regions,), generator=torch.Generator().manual_seed(1))


def gradient(loss, predicted):
    return torch.autograd.grad(loss, predicted)[0]


PEERS = {
    masked_region_regression: mse_loss,
    masked_feature_smooth_l1: smooth_l1_loss,
    masked_region_kl: lambda logits, scores: kl_div(logits.log_softmax(1), scores, reduction="batchmean"),
}


@pytest.mark.parametrize("loss", ON_NUMBERS)
def test_value_and_gradient_are_those_of_torch(loss):
    predicted, targets = numbers()
    found, peer = loss(predicted, targets), PEERS[loss](predicted, targets)
    assert_close(found, peer, rtol=1e-6, atol=1e-6)
    assert_close(gradient(found, predicted), gradient(peer, predicted), rtol=1e-6, atol=1e-6)


def test_classes_cost_their_cross_entropy():
    logits, labels = numbers()[0], classes()
    found, peer = masked_region_classification(logits, labels), cross_entropy(logits, labels)
    assert_close(found, peer, rtol=1e-6, atol=1e-6)
    assert_close(gradient(found, logits), gradient(peer, logits), rtol=1e-6, atol=1e-6)


def test_closed_forms():
    predicted, targets = torch.tensor([[1.0, -3.0], [0.0, 0.5]]), torch.zeros(2, 2)
    assert masked_region_regression(predicted, targets).item() == (1 + 9 + 0.25) / 4
    assert masked_feature_smooth_l1(predicted, targets).item() == (0.5 + 2.5 + 0.125) / 4
    certain = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    assert masked_region_kl(torch.zeros(1, 4), certain).item() == pytest.approx(math.log(4))
    even = torch.full((1, 4), 0.25)
    assert masked_region_kl(torch.zeros(1, 4), even).item() == pytest.approx(0.0, abs=1e-7)
    assert masked_region_classification(torch.zeros(3, 8), classes(3)).item() == pytest.approx(math.log(8))


def test_the_divergence_has_the_gradient_of_the_soft_cross_entropy_and_less_than_its_value():
    logits, scores = numbers()
    soft = cross_entropy(logits, scores)
    entropy = -(scores * scores.log()).sum(1).mean()
    found = masked_region_kl(logits, scores)
    assert_close(found, soft - entropy, rtol=1e-5, atol=1e-6)
    assert_close(gradient(found, logits), gradient(soft, logits), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", ON_NUMBERS)
def test_regions_that_do_not_count_leave_no_trace_whatever_stands_there(loss):
    predicted, targets = numbers()
    spoilt = predicted.detach().clone()
    spoilt[1], spoilt[4] = math.nan, math.inf
    wrong = targets.index_fill(0, torch.tensor([1, 4]), math.nan)
    spoilt.requires_grad_()
    counted = torch.tensor([True, False, True, True, False])
    found, expected = loss(spoilt, wrong, None, counted), loss(predicted[counted], targets[counted])
    assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert_close(gradient(found, spoilt), gradient(expected, predicted), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", ON_NUMBERS)
def test_accumulated_regions_add_up(loss):
    predicted, targets = numbers()
    parts = [loss(predicted[a:b], targets[a:b], 5) for a, b in ((0, 1), (1, 1), (1, 5))]
    assert_close(sum(parts), loss(predicted, targets), rtol=1e-6, atol=1e-6)


def test_accumulated_classes_add_up_without_those_that_have_no_label():
    logits, labels = numbers()[0], classes().index_fill(0, torch.tensor([2]), -100)
    parts = [masked_region_classification(logits[a:b], labels[a:b], 4) for a, b in ((0, 2), (2, 5))]
    assert_close(sum(parts), masked_region_classification(logits, labels), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("items", [None, 0, torch.tensor(0), 4])
@pytest.mark.parametrize("loss", [*ON_NUMBERS, masked_region_classification])
def test_nothing_hidden_is_an_exact_zero_with_a_gradient_of_zero(loss, items):
    predicted, targets = numbers(0)
    none = loss(predicted, classes(0) if loss is masked_region_classification else targets, items)
    assert none.item() == 0
    assert gradient(none, predicted).shape == (0, 7)
    predicted, targets = numbers(3)
    if loss is masked_region_classification:
        left_out = loss(predicted, torch.full((3,), -100), items)
    else:
        left_out = loss(predicted, targets, items, torch.zeros(3, dtype=torch.bool))
    assert left_out.item() == 0
    assert torch.equal(gradient(left_out, predicted), torch.zeros(3, 7))


@pytest.mark.parametrize("loss", ON_NUMBERS)
def test_half_precision_is_widened_inside_autocast_and_targets_get_no_gradient(loss):
    predicted, targets = numbers()
    targets.requires_grad_()
    half = predicted.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(half, targets)
    assert found.dtype == torch.float32
    assert_close(found, loss(half.float(), targets), rtol=0, atol=0)
    found.backward()
    assert targets.grad is None
    assert loss(predicted.double(), targets).dtype == torch.float64


@pytest.mark.parametrize("loss", ON_NUMBERS)
def test_shapes_that_do_not_fit_are_named(loss):
    predicted, targets = numbers()
    for wrong in (targets[:4], targets[:, :6], targets[0]):
        with pytest.raises(ValueError, match=r"must both be \(regions, \w+\), got \(5, 7\) and \("):
            loss(predicted, wrong)
    for wrong in (torch.ones(4, dtype=torch.bool), torch.ones(5)):
        with pytest.raises(ValueError, match=r"`counted` must be \(5,\) booleans, one for each region, got"):
            loss(predicted, targets, None, wrong)


def test_labels_that_are_no_classes_are_named():
    logits = numbers()[0]
    for wrong in (classes(4), classes().float(), classes() > 3):
        with pytest.raises(ValueError, match=r"`labels` must be \(5,\) integers, one class for each region"):
            masked_region_classification(logits, wrong)
    with pytest.raises(ValueError, match=r"`logits` must be \(regions, classes\), got \(7,\)"):
        masked_region_classification(logits[0], classes())
