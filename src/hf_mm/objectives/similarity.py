"""How alike two vectors are, for every pair of two sets: what contrastive objectives and retrieval compare.

Shapes: N rows, M columns, P width of the space that both live in.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["check_pairs", "check_similarity", "pairwise_similarity", "similarity_gradients", "tiles"]


def pairwise_similarity(rows: Tensor, columns: Tensor, similarity: str = "dot") -> Tensor:
    """The similarity of every row to every column, in float32 at least, whatever autocast says.

    Squared distances come from dot products, |x|^2 + |t|^2 - 2xt, and carry their rounding: vectors nearer
    than about 0.002 of their length count as being at one place, with distance 0 and gradient 0.

    Args:
        rows: (..., N, P).
        columns: (..., M, P).
        similarity: "dot" (the cosine, when the vectors have length one) or "euclidean", minus the distance.

    Returns:
        (..., N, M).
    """
    with torch.autocast(rows.device.type, enabled=False):
        rows, columns = _wide(rows, columns)
        products = rows @ columns.transpose(-1, -2)  # (..., N, M)
        if similarity == "dot":
            return products
        lengths = rows.square().sum(-1).unsqueeze(-1) + columns.square().sum(-1).unsqueeze(-2)  # (..., N, M)
        squared = lengths - 2 * products
        together = squared <= 16 * torch.finfo(squared.dtype).eps * lengths  # not so where it is NaN
        # Such pairs must not reach the root: its slope at 0 is infinite, and 0 * inf is not 0.
        return -squared.masked_fill(together, 1.0).sqrt().masked_fill(together, 0.0)


def similarity_gradients(
    slopes: Tensor, similarities: Tensor, rows: Tensor, columns: Tensor, similarity: str
) -> tuple[Tensor, Tensor]:
    """The gradients of a function of similarities with respect to what was compared.

    Args:
        slopes: (N, M) derivatives with respect to each similarity.
        similarities: (N, M) as `pairwise_similarity` gave them.
        rows: (N, P).
        columns: (M, P).
        similarity: As given to `pairwise_similarity`.

    Returns:
        (N, P) and (M, P), float32 at least.
    """
    with torch.autocast(rows.device.type, enabled=False):
        rows, columns = _wide(rows, columns)
        if similarity == "dot":
            return slopes @ columns, slopes.T @ rows
        # d(-|x - t|)/dx = (x - t) / -|x - t|, and 0 for those at one place.
        slopes = slopes / similarities.masked_fill(similarities == 0, torch.inf)
        of_rows = rows * slopes.sum(1, keepdim=True) - slopes @ columns
        return of_rows, columns * slopes.sum(0).unsqueeze(1) - slopes.T @ rows


def tiles(rows: int, columns: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Cut a (rows, columns) matrix into squares of `size`, smaller at the far edges."""
    for row in range(0, rows, size):
        for column in range(0, columns, size):
            yield slice(row, min(row + size, rows)), slice(column, min(column + size, columns))


def check_similarity(similarity: str) -> None:
    """Refuse an unknown kind of similarity.

    Raises:
        ValueError: It is neither "dot" nor "euclidean".
    """
    if similarity not in ("dot", "euclidean"):
        raise ValueError(f"`similarity` must be 'dot' or 'euclidean', got {similarity!r}.")


def check_pairs(
    image_features: Tensor,
    text_features: Tensor,
    similarity: str,
    chunk_size: int | None,
    **numbers: Tensor | float,
) -> None:
    """Refuse what no contrastive objective can compare; looks at shapes and types only, never at values.

    Args:
        image_features: (N, P).
        text_features: (N, P).
        similarity: As `pairwise_similarity` takes it.
        chunk_size: Side of a tile, at least 1, or `None`.
        numbers: What must be single numbers, by argument name.

    Raises:
        ValueError: A shape, the similarity or the chunk size is wrong.
        TypeError: Features are no floating point numbers.
    """
    check_similarity(similarity)
    for name, features in (("image_features", image_features), ("text_features", text_features)):
        if features.dim() != 2:
            raise ValueError(f"`{name}` must be (pairs, width), got {tuple(features.shape)}.")
        if not features.is_floating_point():
            raise TypeError(f"`{name}` must be floating point, got {features.dtype}.")
    if image_features.shape != text_features.shape:
        raise ValueError(
            f"`image_features` is {tuple(image_features.shape)} but `text_features` is "
            f"{tuple(text_features.shape)}; row i of both must be one pair in one space."
        )
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"`chunk_size` must be at least 1, or None for no chunks, got {chunk_size}.")
    for name, number in numbers.items():
        if isinstance(number, Tensor) and number.numel() != 1:
            raise ValueError(f"`{name}` must be a single number, got shape {tuple(number.shape)}.")


def _wide(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one type of at least 32 bits."""
    dtype = torch.promote_types(torch.promote_types(rows.dtype, columns.dtype), torch.float32)
    return rows.to(dtype), columns.to(dtype)
