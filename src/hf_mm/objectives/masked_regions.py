"""Masked regions: the feature or the class of a hidden part of the picture is guessed from all the rest.

Feature regression, classification and divergence from the detector's distribution: Chen et al. 2020, "UNITER:
UNiversal Image-TExt Representation Learning", section 3.2 (https://arxiv.org/abs/1909.11740). The smooth
error on features: Tan and Bansal 2019, "LXMERT: Learning Cross-Modality Encoder Representations from
Transformers", section 3.1 (https://arxiv.org/abs/1908.07490). The distribution as target: Lu et al. 2019,
"ViLBERT", section 3.1 (https://arxiv.org/abs/1908.02265). Which regions to hide is decided where batches are
made.

All losses are means over the hidden regions and over no others: LXMERT's own code asks for the classes of
visible regions too, which are read off rather than guessed.

Shapes: K regions, F width of a region's feature, C classes.
"""

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, mse_loss, smooth_l1_loss

from .batch_mean import batch_mean, labelled_cross_entropy

__all__ = [
    "masked_feature_smooth_l1",
    "masked_region_classification",
    "masked_region_kl",
    "masked_region_regression",
]


def masked_region_regression(
    predicted: Tensor,
    targets: Tensor,
    num_items_in_batch: Tensor | int | float | None = None,
    counted: Tensor | None = None,
) -> Tensor:
    """Mean squared error of the features of hidden regions, over their numbers.

    The paper writes the squared distance, F times as much; its code takes this mean.

    Args:
        predicted: (K, F); half precision is widened.
        targets: (K, F) as the detector gave them; no gradient goes there.
        num_items_in_batch: Hidden regions in the whole batch of which this is a part; by default those here.
        counted: (K,) bool, false on regions that do not count; all do by default.

    Returns:
        A scalar, in float32 at least; an exact 0 with gradient 0 when nothing is hidden.

    Raises:
        ValueError: Shapes do not fit.
    """
    predicted, targets, items = _compared(predicted, targets, counted, ("predicted", "targets", "width"))
    with torch.autocast(predicted.device.type, enabled=False):
        total = mse_loss(predicted, targets, reduction="none").mean(1).sum()
    return batch_mean(total, items, num_items_in_batch)


def masked_feature_smooth_l1(
    predicted: Tensor,
    targets: Tensor,
    num_items_in_batch: Tensor | int | float | None = None,
    counted: Tensor | None = None,
) -> Tensor:
    """Smooth absolute error of the features of hidden regions, over their numbers: half the square below 1.

    LXMERT takes the mean over all regions, hidden or not, times 1 / 0.15, the inverse of the hidden share: on
    average the same number.

    Args:
        predicted: (K, F); half precision is widened.
        targets: (K, F) as the detector gave them; no gradient goes there.
        num_items_in_batch: As `masked_region_regression` takes it.
        counted: As `masked_region_regression` takes it.

    Returns:
        A scalar, in float32 at least; an exact 0 with gradient 0 when nothing is hidden.

    Raises:
        ValueError: Shapes do not fit.
    """
    predicted, targets, items = _compared(predicted, targets, counted, ("predicted", "targets", "width"))
    with torch.autocast(predicted.device.type, enabled=False):
        total = smooth_l1_loss(predicted, targets, reduction="none").mean(1).sum()
    return batch_mean(total, items, num_items_in_batch)


def masked_region_classification(
    logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | float | None = None
) -> Tensor:
    """Cross-entropy of the classes, objects or attributes of hidden regions, in nats.

    Args:
        logits: (K, C); half precision is widened.
        labels: (K,) integers, -100 for a region that does not count.
        num_items_in_batch: Regions with a label in the whole batch of which this is a part; by default those
            here.

    Returns:
        A scalar, in float32 at least; an exact 0 with gradient 0 when nothing has a label.

    Raises:
        ValueError: Shapes do not fit, or labels are no integers.
    """
    if logits.dim() != 2:
        raise ValueError(f"`logits` must be (regions, classes), got {tuple(logits.shape)}.")
    if labels.shape != logits.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"`labels` must be ({len(logits)},) integers, one class for each region, got "
            f"{tuple(labels.shape)} of {labels.dtype}."
        )
    return labelled_cross_entropy(logits, labels, num_items_in_batch)


def masked_region_kl(
    logits: Tensor,
    scores: Tensor,
    num_items_in_batch: Tensor | int | float | None = None,
    counted: Tensor | None = None,
) -> Tensor:
    """Divergence of the predicted from the detector's distribution over the classes, in nats.

    The sum over classes, the mean over regions. Its gradient is that of VL-BERT's soft cross-entropy, from
    which it differs by the entropy of the targets.

    Args:
        logits: (K, C); half precision is widened.
        scores: (K, C) probabilities that the detector gave each class; no gradient goes there.
        num_items_in_batch: As `masked_region_regression` takes it.
        counted: As `masked_region_regression` takes it.

    Returns:
        A scalar, in float32 at least; an exact 0 with gradient 0 when nothing is hidden.

    Raises:
        ValueError: Shapes do not fit.
    """
    logits, scores, items = _compared(logits, scores, counted, ("logits", "scores", "classes"))
    with torch.autocast(logits.device.type, enabled=False):
        total = (torch.xlogy(scores, scores) - scores * log_softmax(logits, 1)).sum()  # 0 log 0 is 0
    return batch_mean(total, items, num_items_in_batch)


def _compared(
    given: Tensor, wanted: Tensor, counted: Tensor | None, names: tuple[str, str, str]
) -> tuple[Tensor, Tensor, Tensor | int]:
    """Both in float32 at least, the wanted one without gradient, and the number of regions that count.

    What stands at the others may be anything, also no number: zeros take its place, here and in the gradient.
    """
    if given.dim() != 2 or wanted.shape != given.shape:
        raise ValueError(
            f"`{names[0]}` and `{names[1]}` must both be (regions, {names[2]}), got {tuple(given.shape)} and "
            f"{tuple(wanted.shape)}."
        )
    wide = torch.promote_types(given.dtype, torch.float32)
    given, wanted = given.to(wide), wanted.detach().to(wide)
    if counted is None:
        return given, wanted, len(given)
    if counted.shape != given.shape[:1] or counted.dtype != torch.bool:
        raise ValueError(
            f"`counted` must be ({len(given)},) booleans, one for each region, got {tuple(counted.shape)} of "
            f"{counted.dtype}."
        )
    left_out = ~counted.unsqueeze(1)  # (K, 1)
    return given.masked_fill(left_out, 0.0), wanted.masked_fill(left_out, 0.0), counted.sum()
