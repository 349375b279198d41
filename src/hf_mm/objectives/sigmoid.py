"""The sigmoid loss between images and texts: each pair on its own is a partner or is not.

Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", algorithm 1
(https://arxiv.org/abs/2303.15343).

Shapes: N pairs, P width of the shared space.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .similarity import check_similarity, pairwise_similarity

__all__ = ["sigmoid_loss"]


def sigmoid_loss(
    image_features: Tensor, text_features: Tensor, scale: Tensor, bias: Tensor, *, similarity: str = "dot",
    chunk_size: int | None = None,
) -> Tensor:  # fmt: skip
    """Sum over pairs divided by N."""
    check_similarity(similarity)
    logits = scale * pairwise_similarity(image_features, text_features, similarity) + bias  # (N, N)
    signs = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    return -logsigmoid(signs * logits).sum() / len(logits)
