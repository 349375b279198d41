"""An answer out of a list: one that is right, or several with the scores that people gave them.

Scores as independent answers: Anderson et al. 2018, "Bottom-Up and Top-Down Attention for Image Captioning
and Visual Question Answering", section 3.3 (https://arxiv.org/abs/1707.07998). As a distribution: Li et al.
2019, "VisualBERT" (https://arxiv.org/abs/1908.03557).

Shapes: B rows, A answers.
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from .batch_mean import batch_mean, labelled_cross_entropy
from .classification import check_class_labels

__all__ = ["answer_loss", "distribution_loss"]


def answer_loss(
    logits: Tensor,
    labels: Tensor,
    num_items_in_batch: Tensor | int | float | None = None,
    as_distribution: bool = False,
) -> Tensor:
    """The loss of scored answers, in nats: a mean over rows.

    Args:
        logits: (B, A); half precision is widened.
        labels: (B, A) scores of the answers, 0 to 1, for which it is the binary cross-entropy summed over
            answers; or (B,) numbers of the right answers, -100 where there is none, for which it is the
            cross-entropy among all.
        num_items_in_batch: Labels in the whole batch of which this is a part, counted as Trainer counts them:
            every number of `labels` but -100.
        as_distribution: Scores are probabilities, for which it is the divergence from them to the model's.

    Returns:
        A scalar, in float32 at least; an exact 0 with gradient 0 when no row has a label.

    Raises:
        ValueError: `labels` are neither scores of all answers nor one answer for each row.
    """
    if labels.ndim == 1 and not labels.is_floating_point():
        check_class_labels(labels, len(logits))
        return labelled_cross_entropy(logits, labels, num_items_in_batch)
    if labels.shape != logits.shape or not labels.is_floating_point():
        raise ValueError(
            f"`labels` must be {tuple(logits.shape)} scores of the answers (`num_labels`={logits.shape[1]}) "
            f"or ({len(logits)},) numbers of answers, got {tuple(labels.shape)} of {labels.dtype}."
        )
    rows = None if num_items_in_batch is None else num_items_in_batch / labels.shape[1]
    if as_distribution:
        return distribution_loss(logits, labels, rows)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = binary_cross_entropy_with_logits(wide, labels.to(wide.dtype), reduction="sum")
    return batch_mean(total, len(labels), rows)


def distribution_loss(
    logits: Tensor, probabilities: Tensor, num_items_in_batch: Tensor | int | float | None = None
) -> Tensor:
    """The divergence (Kullback-Leibler) from given probabilities to the model's, in nats: a mean over rows.

    Args:
        logits: (B, A); half precision is widened. -inf is allowed where the probability is 0.
        probabilities: (B, A).
        num_items_in_batch: Rows in the whole batch of which this is a part; by default those here.

    Returns:
        A scalar, in float32 at least.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    given = probabilities.to(logits.dtype)
    guessed = logits.log_softmax(dim=1).masked_fill(given == 0, 0.0)
    return batch_mean(
        torch.special.xlogy(given, given).sum() - (given * guessed).sum(), len(logits), num_items_in_batch
    )
