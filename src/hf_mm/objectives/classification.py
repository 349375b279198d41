"""Cross-entropy over classes, normalised as Trainer accumulates it.

Shapes: B rows, K classes.
"""

from torch import Tensor

from .batch_mean import labelled_cross_entropy

__all__ = ["check_class_labels", "classification_loss"]


def check_class_labels(labels: Tensor, rows: int) -> None:
    """Refuse labels that are not one class index per row.

    Raises:
        ValueError: Another shape or a floating dtype.
    """
    if labels.shape != (rows,) or labels.is_floating_point():
        raise ValueError(
            f"`labels` must be ({rows},) class indices, got {tuple(labels.shape)} of {labels.dtype}; for "
            "several classes per image or regression write a head of your own."
        )


def classification_loss(
    logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """Cross-entropy in nats: the mean, or this part's share in the mean of a larger batch.

    Args:
        logits: (B, K).
        labels: (B,) class indices, -100 where a row has none.
        num_items_in_batch: Labels in the whole batch of which this is a part.

    Returns:
        A scalar, in float32 at least; an exact 0 with gradient 0 when no row has a label.
    """
    return labelled_cross_entropy(logits, labels, num_items_in_batch)
