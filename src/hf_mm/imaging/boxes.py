"""Boxes in a picture: how much two of them overlap, and keeping one of those that overlap too much.

A box is x1, y1, x2, y2 with x1 < x2 and y1 < y2, in any unit; pixels have no width of their own, so that
boxes overlap as much in pixels as in shares of the picture.

Shapes: N and M boxes.
"""

import torch
from torch import Tensor

__all__ = ["box_iou", "non_maximum_suppression"]


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Area that two boxes share, over the area that they cover together.

    Args:
        boxes: (N, 4).
        others: (M, 4).

    Returns:
        (N, M) in 0..1; 0 for two boxes without any area.
    """
    top_left = torch.maximum(boxes[:, None, :2], others[None, :, :2])  # (N, M, 2)
    bottom_right = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])  # (N, M, 2)
    shared = (bottom_right - top_left).clamp(min=0).prod(dim=-1)  # (N, M)
    areas, other_areas = ((part[:, 2:] - part[:, :2]).prod(dim=-1) for part in (boxes, others))
    covered = areas[:, None] + other_areas - shared
    return torch.where(covered > 0, shared / covered, torch.zeros_like(shared))


def non_maximum_suppression(boxes: Tensor, scores: Tensor, max_overlap: float) -> Tensor:
    """Of boxes that overlap more than `max_overlap`, keep the one with the highest score.

    In order of their scores, each box is kept unless it overlaps one that is kept. Of equal scores the first
    comes first.

    Args:
        boxes: (N, 4).
        scores: (N,).
        max_overlap: As `box_iou`, 0 to 1.

    Returns:
        (kept,) numbers of the boxes that stay, the best first.

    Raises:
        ValueError: Shapes do not fit, or `max_overlap` is not in 0..1.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1]:
        raise ValueError(
            f"`boxes` must be (boxes, 4) and `scores` (boxes,), got {tuple(boxes.shape)} and "
            f"{tuple(scores.shape)}."
        )
    if not 0 <= max_overlap <= 1:
        raise ValueError(f"`max_overlap`={max_overlap} must be in 0..1.")
    order = scores.argsort(descending=True, stable=True)
    overlapping = (box_iou(boxes[order], boxes[order]) > max_overlap).cpu()  # (N, N)
    kept, dropped = [], torch.zeros(len(boxes), dtype=torch.bool)
    for place in range(len(boxes)):
        if not dropped[place]:
            kept.append(place)
            dropped |= overlapping[place]
    return order[torch.tensor(kept, dtype=torch.long, device=order.device)]
