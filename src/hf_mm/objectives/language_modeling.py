"""Cross-entropy of the next token, each label with its own weight where weights are given.

Deitke et al. 2024, "Molmo and PixMo", section 3 (https://arxiv.org/abs/2409.17146): annotations of one image
are weighted by sqrt(1/n), so that richly annotated images do not outweigh the others.

Shapes: B rows, L tokens of a row, W words.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from .batch_mean import IGNORED, batch_mean

__all__ = ["next_token_loss"]


def next_token_loss(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    num_items_in_batch: Tensor | int | float | None = None,
    logits_to_keep: int | Tensor = 0,
) -> Tensor:
    """Weighted mean of the cross-entropies in nats, or this part's share in that of a larger batch.

    sum(w * CE) / sum(w) over the labelled positions; with `num_items_in_batch` that is the divisor.

    Args:
        logits: (B, L, W), or what `logits_to_keep` leaves of it; computed in float32 whatever their dtype.
        labels: (B, L) tokens, -100 where nothing is learnt; shifted here, position i predicts label i + 1.
        weights: (B, L), of each label; all 1 when `None`.
        num_items_in_batch: The labelled tokens, or the sum of their weights, of all accumulated batches.
        logits_to_keep: As the model takes it: how many last positions, their indices, or (B, L) booleans.

    Returns:
        A scalar, an exact 0 with gradient 0 when nothing has a label or every label weighs 0.

    Raises:
        ValueError: `weights` do not go with the labels.
    """
    if weights is not None and weights.shape != labels.shape:
        raise ValueError(
            f"`loss_weights` are {tuple(weights.shape)}, `labels` {tuple(labels.shape)}; give one weight for "
            "each label."
        )
    targets = _following(labels, IGNORED, logits_to_keep).flatten().to(logits.device)
    words = logits.flatten(0, -2).float()
    each = cross_entropy(words, targets, ignore_index=IGNORED, reduction="none")  # 0 where ignored
    if weights is None:
        total, items = each.sum(), (targets != IGNORED).sum()
    else:
        scale = _following(weights, 0, logits_to_keep).flatten().to(each)
        total, items = (each * scale).sum(), scale[targets != IGNORED].sum()
    return batch_mean(total, items, num_items_in_batch)


def _following(values: Tensor, filler: float, logits_to_keep: int | Tensor) -> Tensor:
    """What belongs to the token after each position (B, L), at the positions that get logits."""
    following = pad(values, (0, 1), value=filler)[:, 1:]
    if isinstance(logits_to_keep, int):
        return following[:, -logits_to_keep:] if logits_to_keep else following
    if logits_to_keep.dtype == torch.bool:
        return following[logits_to_keep]
    if logits_to_keep.ndim == 2:
        return following.take_along_dim(logits_to_keep, dim=1)
    return following[:, logits_to_keep]
