"""Hide regions of pictures, those that overlap together.

Chen et al. 2020, "UNITER", section 3.2: 15 % of the regions (https://arxiv.org/abs/1909.11740). Overlapping
ones with them: Lu et al. 2020, "12-in-1: Multi-Task Vision and Language Representation Learning", section
3.3 (https://arxiv.org/abs/1912.02315): a detector finds the same thing several times, and what is hidden in
one box is read off the next.

Shapes: B pictures, R regions of the one with most.
"""

import torch
from torch import Tensor

from ..imaging.boxes import box_iou
from .whole_groups import draw_groups

__all__ = ["mask_regions", "overlapping_groups"]


def overlapping_groups(boxes: Tensor, region_mask: Tensor, overlap: float = 0.4) -> Tensor:
    """Number regions so that those that overlap, or overlap a third one that does, have the same number.

    Args:
        boxes: (B, R, 4) x1, y1, x2, y2.
        region_mask: (B, R), 1 on regions.
        overlap: Area that two regions share over the area that they cover together, above which they belong
            together.

    Returns:
        (B, R) int64, the number of the first region of each group; -1 at padding.
    """
    regions = boxes.shape[1]
    real = region_mask.bool()
    together = torch.stack([box_iou(of_picture, of_picture) > overlap for of_picture in boxes])  # (B, R, R)
    together = (together & real[:, None] & real[:, :, None]) | torch.eye(regions, dtype=torch.bool)
    groups = torch.arange(regions).expand(len(boxes), -1)
    while True:  # the smallest number wanders from neighbour to neighbour
        smallest = torch.where(together, groups[:, None], regions).amin(dim=2)
        if torch.equal(smallest, groups):
            return groups.masked_fill(~real, -1)
        groups = smallest


def mask_regions(
    boxes: Tensor,
    region_mask: Tensor,
    share: float = 0.15,
    overlap: float = 0.4,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Choose regions at random and hide them, with all that overlap them.

    Regions are drawn until `share` of those of their picture (rounded, at least one) or more are hidden. No
    visible region overlaps a hidden one by more than `overlap`. Overlapping regions that are together more
    than half of the picture's stay visible where there are others to hide.

    Args:
        boxes: (B, R, 4) x1, y1, x2, y2.
        region_mask: (B, R), 1 on regions.
        share: Hidden share of the regions of a picture, between 0 and 1.
        overlap: Area that two regions share over the area that they cover together, above which they are
            hidden together; 1 for each region alone.
        generator: Source of chance; by default torch's own.

    Returns:
        (B, R) bool, true where a region is hidden, never at padding.

    Raises:
        ValueError: Shapes that do not fit each other, or a share or an overlap out of its range.
    """
    if boxes.ndim != 3 or boxes.shape[2] != 4 or region_mask.shape != boxes.shape[:2]:
        raise ValueError(
            f"`boxes` must be (pictures, regions, 4) and `region_mask` (pictures, regions), got "
            f"{tuple(boxes.shape)} and {tuple(region_mask.shape)}."
        )
    if not 0 < share < 1 or not 0 <= overlap <= 1:
        raise ValueError(
            f"`share`={share} of the regions must hide some and leave some, `overlap`={overlap} be in 0..1; "
            "UNITER hides 0.15, ViLBERT what overlaps by 0.4."
        )
    groups = overlapping_groups(boxes, region_mask, overlap)
    exists = groups >= 0
    place = groups.clamp(min=0)
    sizes = torch.zeros_like(groups).scatter_add(1, place, exists.long()).gather(1, place)  # of its group
    small = exists & (2 * sizes <= exists.sum(dim=1, keepdim=True))
    allowed = torch.where(small.any(dim=1, keepdim=True), small, exists)
    return draw_groups(groups.masked_fill(~allowed, -1), share, generator)
