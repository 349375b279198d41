"""How alike two vectors are, for every pair of two sets: what contrastive objectives and retrieval compare.

Shapes: N rows, M columns, P width of the space that both live in.
"""

import torch
from torch import Tensor

__all__ = ["check_similarity", "float32_at_least", "pairwise_similarity"]

SIMILARITIES = ("dot", "euclidean")


def pairwise_similarity(rows: Tensor, columns: Tensor, similarity: str = "dot") -> Tensor:
    """The similarity of every row to every column, in float32 at least, whatever autocast says.

    Distances come from the dot products, |x|^2 + |t|^2 - 2xt, and are exact to about 1e-3 of the vectors'
    length: what is nearer counts as the same place, distance 0 and, where the slope is undefined, gradient 0.

    Args:
        rows: (..., N, P).
        columns: (..., M, P).
        similarity: "dot" (the cosine, when the vectors have length one) or "euclidean", minus the distance.

    Returns:
        (..., N, M).
    """
    with torch.autocast(rows.device.type, enabled=False):
        rows, columns = float32_at_least(rows), float32_at_least(columns)
        products = rows @ columns.transpose(-1, -2)  # (..., N, M)
        if similarity == "dot":
            return products
        lengths = rows.square().sum(-1).unsqueeze(-1) + columns.square().sum(-1).unsqueeze(-2)  # (..., N, M)
        squared = lengths - 2 * products
        apart = squared > 4 * torch.finfo(squared.dtype).eps * lengths
        # sqrt has no slope at 0, and 0 * inf is not 0: such pairs must not reach it.
        return -torch.where(apart, squared, 1.0).sqrt() * apart


def float32_at_least(features: Tensor) -> Tensor:
    """Half precision widened; float32 and float64 as they are."""
    return features.to(torch.promote_types(features.dtype, torch.float32))


def check_similarity(similarity: str) -> None:
    """Refuse an unknown kind of similarity.

    Raises:
        ValueError: It is none of `SIMILARITIES`.
    """
    if similarity not in SIMILARITIES:
        raise ValueError(f"`similarity` must be one of {list(SIMILARITIES)}, got {similarity!r}.")
