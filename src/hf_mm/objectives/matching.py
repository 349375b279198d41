"""Does this text belong to that image? For models that read both together.

Image-text matching: Lu et al. 2019, "ViLBERT", section 3.1 (https://arxiv.org/abs/1908.02265); with random
texts for half of the images: Kim et al. 2021, "ViLT: Vision-and-Language Transformer Without Convolution or
Region Supervision", section 3.2 (https://arxiv.org/abs/2102.03334); the true text among false ones, for
retrieval: the same, section 4.4.

Shapes: B pairs, K false candidates of a pair, Q questions.
"""

import torch
from torch import Tensor

from .batch_mean import IGNORED, labelled_cross_entropy

__all__ = ["choice_loss", "matching_loss", "ranking_loss"]


def matching_loss(
    logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | float | None = None
) -> Tensor:
    """Cross-entropy of "belong together" against "do not", in nats.

    Args:
        logits: (B, 2), of a mismatch and of a match; half precision is widened.
        labels: (B,) integers: 1 for a match, 0 for a mismatch, -100 for a pair that does not count.
        num_items_in_batch: Pairs that count in the whole batch of which this is a part; by default those
            here.

    Returns:
        A scalar, in float32 at least; an exact 0 with gradient 0 when no pair counts.

    Raises:
        ValueError: Shapes do not fit, or labels are no integers.
    """
    if logits.dim() != 2 or logits.shape[1] != 2:
        raise ValueError(
            f"`logits` must be (pairs, 2), of a mismatch and of a match, got {tuple(logits.shape)}."
        )
    if labels.shape != logits.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"`labels` must be ({len(logits)},) integers, 1 for a match and 0 for a mismatch, got "
            f"{tuple(labels.shape)} of {labels.dtype}."
        )
    return labelled_cross_entropy(logits, labels, num_items_in_batch)


def ranking_loss(
    scores: Tensor,
    candidates: Tensor | None = None,
    num_items_in_batch: Tensor | int | float | None = None,
) -> Tensor:
    """Cross-entropy of the true partner, which comes first, among all candidates, in nats.

    ViLT learns retrieval so, with 15 false texts to an image, from the difference of its two matching logits.

    Args:
        scores: (B, 1 + K), of the true partner and of K false ones; half precision is widened.
        candidates: (B, 1 + K) booleans, false where there is no such candidate. A row whose true partner is
            missing does not count; all count when `None`.
        num_items_in_batch: Rows that count in the whole batch of which this is a part; by default those here.

    Returns:
        A scalar, in float32 at least; an exact 0 with gradient 0 when there is nothing to choose from.

    Raises:
        ValueError: Shapes do not fit, or candidates are no booleans.
    """
    if scores.dim() != 2 or not scores.shape[1]:
        raise ValueError(
            f"`scores` must be (rows, 1 + false partners), the true one first, got {tuple(scores.shape)}."
        )
    labels = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
    if candidates is not None:
        if candidates.shape != scores.shape or candidates.dtype != torch.bool:
            raise ValueError(
                f"`candidates` must be {tuple(scores.shape)} booleans like `scores`, got "
                f"{tuple(candidates.shape)} of {candidates.dtype}."
            )
        present = candidates[:, :1]
        scores = scores.masked_fill(present & ~candidates, -torch.inf)
        labels = labels.masked_fill(~present.squeeze(1), IGNORED)
    return labelled_cross_entropy(scores, labels, num_items_in_batch)


def choice_loss(
    scores: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | float | None = None
) -> Tensor:
    """Cross-entropy of the right candidate of each question, in nats.

    Args:
        scores: (B, 1), groups of B / Q candidates of a question side by side; half precision is widened.
        labels: (Q,), which candidate of each question is right; -100 leaves a question out.
        num_items_in_batch: Questions that count in the whole batch of which this is a part; by default those
            here.

    Returns:
        A scalar, in float32 at least; an exact 0 with gradient 0 when no question counts.

    Raises:
        ValueError: The rows are not as many for each of the `labels`, at least two.
    """
    rows = len(scores)
    if labels.ndim != 1 or labels.is_floating_point() or not len(labels) or rows % len(labels):
        raise ValueError(
            f"`labels` must be one integer for each group of candidates, {rows} rows in all, got "
            f"{tuple(labels.shape)} of {labels.dtype}."
        )
    if rows == len(labels):
        raise ValueError(
            f"`labels` are {rows} for {rows} rows, one candidate each: nothing to choose from; give the "
            "candidates of a group side by side, and one label for a group."
        )
    return labelled_cross_entropy(scores.reshape(len(labels), -1), labels, num_items_in_batch)
