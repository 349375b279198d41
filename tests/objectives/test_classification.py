"""Cross-entropy over classes: torch's own, shares of a larger batch, rows without a label."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from hf_mm.objectives.classification import check_class_labels, classification_loss


def batch():
    draw = torch.Generator().manual_seed(0)
    return torch.randn(5, 4, generator=draw, requires_grad=True), torch.tensor([0, 3, 1, 2, 2])


def test_it_is_torchs_mean():
    logits, labels = batch()
    assert_close(classification_loss(logits, labels), cross_entropy(logits, labels))


def test_parts_of_a_batch_add_up():
    logits, labels = batch()
    parts = [classification_loss(logits[rows], labels[rows], 5) for rows in (slice(2), slice(2, 5))]
    assert_close(sum(parts), cross_entropy(logits, labels))


def test_rows_without_a_label_do_not_count():
    logits, labels = batch()
    labels[1] = -100
    kept = [0, 2, 3, 4]
    assert_close(classification_loss(logits, labels), cross_entropy(logits[kept], labels[kept]))


@pytest.mark.parametrize("items", [None, 0, torch.tensor(0), 3])
@pytest.mark.parametrize("rows", [0, 5])
def test_without_any_label_it_is_an_exact_zero_with_gradient_zero(rows, items):
    logits, labels = batch()
    logits, labels = logits[:rows], labels[:rows].fill_(-100)
    loss = classification_loss(logits, labels, items)
    assert loss.item() == 0.0
    assert torch.equal(torch.autograd.grad(loss, logits)[0], torch.zeros_like(logits))


def test_labels_that_are_not_one_class_for_each_row_are_named():
    for labels in (torch.zeros(4).long(), torch.zeros(5)):
        with pytest.raises(ValueError, match=r"`labels` must be \(5,\) class indices, got"):
            check_class_labels(labels, 5)
