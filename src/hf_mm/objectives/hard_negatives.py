"""False partners that look like true ones, drawn from the batch by how alike they are.

Li et al. 2021, "Align before Fuse: Vision and Language Representation Learning with Momentum Distillation",
section 3.2, "Image-Text Matching" (https://arxiv.org/abs/2107.07651).

Shapes: n pairs of this process, N of all, P width of the shared space.
"""

import torch
from torch import Tensor, distributed

from .exchange import BatchShares, gather_rows
from .similarity import check_pairs, pairwise_similarity

__all__ = ["distributed_hard_negatives", "hard_negatives"]


@torch.no_grad()
def hard_negatives(
    similarity: Tensor, groups: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Draw a false partner for every row, with the probabilities that a softmax gives to the false ones.

    Args:
        similarity: (N, N) logits of every row with every column, the true ones on the diagonal; for the other
            direction give the transpose. A larger scale draws harder ones; 0 draws evenly.
        groups: (N,) integers, equal for pairs that are true also crosswise, as those of one caption are; they
            are never each other's false partners. Every pair is a group of its own when `None`.
        generator: Source of chance, on the CPU; by default torch's own.

    Returns:
        (N,) the column drawn for each row. A row that has no false partner, as in a batch of one, gets its
        own: a match, to be labelled so or left out.

    Raises:
        ValueError: Shapes do not fit, the batch is empty, or groups are no integers.
    """
    if similarity.dim() != 2 or similarity.shape[0] != similarity.shape[1]:
        raise ValueError(
            f"`similarity` must be square, true pairs on its diagonal, got {tuple(similarity.shape)}."
        )
    if not len(similarity):
        raise ValueError("`similarity` has no rows; skip empty batches.")
    groups = _pair_groups(groups, similarity)
    draws = torch.rand(len(similarity), generator=generator).to(similarity.device)
    own = torch.arange(len(similarity), device=similarity.device)
    return _drawn_columns(similarity, groups.unsqueeze(1) != groups, own, draws)


@torch.no_grad()
def distributed_hard_negatives(
    image_features: Tensor,
    text_features: Tensor,
    scale: Tensor | float,
    *,
    groups: Tensor | None = None,
    generator: torch.Generator | None = None,
    similarity: str = "dot",
    group: "distributed.ProcessGroup | None" = None,
) -> tuple[Tensor, Tensor]:
    """False partners, for own images and own texts, from the batch that all processes hold together.

    Every process finds for its own pairs what one process with the whole batch would find that had the chance
    of the first, which draws for all. `gather_features` brings the tokens or pixels of the rows that were
    drawn. Every process has to call it, with the same options.

    Args:
        image_features: (n, P), the images of this process, of length one where the cosine is meant.
        text_features: (n, P), their partners.
        scale: Factor on the similarities, the inverse of a temperature; a larger one draws harder ones.
        groups: (n,) integers as `hard_negatives` takes them, comparable between processes.
        generator: Source of chance of the first process, on the CPU; by default torch's own.
        similarity: "dot" or "euclidean" (minus the distance).
        group: The processes that share the batch; `None` for all, without processes this one.

    Returns:
        For each of the n images a text, and for each of the n texts an image, as (n,) indices into the rows
        of all processes in the order of their ranks. A pair that has no false partner gets its own.

    Raises:
        ValueError: Shapes do not fit, all processes are empty, or groups are no integers.
        TypeError: Features are no floating point numbers.
    """
    check_pairs(image_features, text_features, similarity, None, scale=scale)
    shares = BatchShares.of(image_features, group)
    if not shares.rows:
        raise ValueError("No process has any pairs; skip empty batches.")
    device, own = image_features.device, torch.arange(shares.rows, device=image_features.device)[shares.own]
    texts, images = gather_rows(text_features, shares), gather_rows(image_features, shares)  # (N, P)
    if groups is None:
        groups, everyones = own, torch.arange(shares.rows, device=device)
    else:
        groups = _pair_groups(groups, image_features)
        everyones = gather_rows(groups, shares)  # (N,)
    draws = _shared_draws(shares, generator, device)  # (2, n)
    allowed = groups.unsqueeze(1) != everyones  # (n, N)
    of_images = scale * pairwise_similarity(image_features, texts, similarity)
    of_texts = scale * pairwise_similarity(text_features, images, similarity)
    return _drawn_columns(of_images, allowed, own, draws[0]), _drawn_columns(of_texts, allowed, own, draws[1])


def _drawn_columns(logits: Tensor, allowed: Tensor, own: Tensor, draws: Tensor) -> Tensor:
    """The column where the summed probabilities of a row pass its draw.

    Args:
        logits: (n, N).
        allowed: (n, N) booleans, true at columns to draw from.
        own: (n,) the columns of rows without any.
        draws: (n,) from 0 to below 1.

    Returns:
        (n,).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).masked_fill(~allowed, -torch.inf)
    weights = (logits - logits.amax(1, keepdim=True)).exp()  # NaN in rows without any
    passed = weights.cumsum(1)
    # A column of weight 0 does not raise the sum, so none is the first to pass anything.
    column = torch.searchsorted(passed, draws.to(passed.dtype).unsqueeze(1) * passed[:, -1:], right=True)
    column = column.squeeze(1).clamp(max=logits.shape[1] - 1)  # NaN passes nothing; let the loss show it
    return torch.where(allowed.any(1), column, own)


def _pair_groups(groups: Tensor | None, rows: Tensor) -> Tensor:
    """The group of each row, on its device."""
    if groups is None:
        return torch.arange(len(rows), device=rows.device)
    if groups.shape != rows.shape[:1] or groups.is_floating_point():
        raise ValueError(
            f"`groups` must be ({len(rows)},) integers, one for each pair, got {tuple(groups.shape)} of "
            f"{groups.dtype}."
        )
    return groups.to(rows.device)


def _shared_draws(shares: BatchShares, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Numbers from 0 to below 1 that the first process drew: (2, n) of them for own images and own texts."""
    draws = torch.rand(2, shares.rows, generator=generator).to(device)
    if shares.processes > 1:
        distributed.broadcast(draws, group=shares.group, group_src=0)
    return draws[:, shares.own]
