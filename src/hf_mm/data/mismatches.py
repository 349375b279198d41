"""Pairs that do not belong together, drawn among the rows of a batch.

Shapes: B rows.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["random_mismatches", "untrue_pairs"]


def untrue_pairs(
    texts: Sequence[str], captions: Sequence[Sequence[str]], different: Callable[[int, int], bool]
) -> Tensor:
    """Which texts are not true of which pictures, as far as the captions tell.

    Args:
        texts: B texts, one of each row.
        captions: All texts that are true of the picture of each row.
        different: Whether two rows have different pictures.

    Returns:
        (B, B) bool: the text of a row (first) is no caption of the picture of another.
    """
    known = [set(of_row) for of_row in captions]
    return torch.tensor(
        [
            [text not in other and different(row, column) for column, other in enumerate(known)]
            for row, text in enumerate(texts)
        ]
    )


def random_mismatches(
    wrong: Tensor, share: float = 0.5, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Give a share of the rows the partner of another row: a picture, or tags.

    Args:
        wrong: (B, B) bool, true where a row (first) does not go with the partner of another.
        share: Of the B rows, rounded; fewer where not so many have a wrong partner in the batch.
        generator: Source of chance; by default torch's own.

    Returns:
        The partner of each row, (B,) int64, and (B,) int64: 1 where they belong together, else 0.
    """
    pairs, able = len(wrong), wrong.any(dim=1)
    order = torch.rand(pairs, generator=generator).masked_fill(~able, 2.0).argsort()
    chosen = torch.zeros_like(able)
    chosen[order[: round(share * pairs)]] = True
    chosen &= able
    other = torch.rand(wrong.shape, generator=generator).masked_fill(~wrong, -1.0).argmax(dim=1)
    return torch.where(chosen, other, torch.arange(pairs)), (~chosen).long()
