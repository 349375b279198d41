"""Hide whole groups of places: all tokens of a word, all regions that overlap.

What can be read off a neighbour need not be guessed; so what belongs together is hidden together.

Shapes: B rows, L places of a row, G groups.
"""

import torch
from torch import Tensor

__all__ = ["draw_groups"]


def draw_groups(groups: Tensor, share: float, generator: torch.Generator | None = None) -> Tensor:
    """Draw groups at random until they have `share` of the places of their row, or more.

    Small groups are so drawn as well as large ones, and each row that has a group gets one at least.

    Args:
        groups: (B, L) int64, the group of each place, counted from 0; -1 for places that are never drawn.
        share: Between 0 and 1; of the places that can be drawn, rounded.
        generator: Source of chance; by default torch's own.

    Returns:
        (B, L) bool, true on all places of the groups that were drawn.
    """
    exists = groups >= 0
    if not exists.any():
        return exists
    place = groups.clamp(min=0)
    sizes = torch.zeros(len(groups), int(groups.max()) + 1, dtype=torch.int64)  # (B, G) places
    sizes = sizes.scatter_add(1, place, exists.long())
    order = torch.rand(sizes.shape, generator=generator).argsort(dim=1)
    sizes = sizes.gather(1, order)
    before = sizes.cumsum(dim=1) - sizes  # places of the groups drawn earlier
    wanted = (share * exists.sum(dim=1, keepdim=True)).round().clamp(min=1)  # (B, 1)
    drawn = torch.zeros_like(exists[:, :1]).expand(sizes.shape).scatter(1, order, before < wanted)
    return drawn.gather(1, place) & exists
