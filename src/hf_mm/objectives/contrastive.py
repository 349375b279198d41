"""InfoNCE between images and texts: each picks its partner out of the batch.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", figure 3
(https://arxiv.org/abs/2103.00020).

Shapes: N pairs, P width of the shared space, K hard negatives per image.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from .similarity import check_similarity, pairwise_similarity

__all__ = ["info_nce"]


def info_nce(
    image_features: Tensor, text_features: Tensor, scale: Tensor, *, similarity: str = "dot",
    label_smoothing: float = 0.0, hard_negatives: Tensor | None = None, chunk_size: int | None = None,
) -> Tensor:  # fmt: skip
    """The mean of the cross-entropies image to text and text to image."""
    check_similarity(similarity)
    logits = scale * pairwise_similarity(image_features, text_features, similarity)  # (N, N)
    targets = torch.arange(len(logits), device=logits.device)
    text_to_image = cross_entropy(logits.T, targets, label_smoothing=label_smoothing)
    if hard_negatives is not None:
        harder = scale * pairwise_similarity(image_features.unsqueeze(1), hard_negatives, similarity).squeeze(1)
        logits = torch.cat([logits, harder], dim=1)  # (N, N + K)
    return (cross_entropy(logits, targets, label_smoothing=label_smoothing) + text_to_image) / 2
