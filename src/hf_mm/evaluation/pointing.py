"""How well points meet what they should: precision, recall and F1 after matching one to one.

Deitke et al. 2024, "Molmo and PixMo", appendix on pointing (https://arxiv.org/abs/2409.17146). Points are
matched to targets by the Hungarian method (Kuhn 1955), so that as many as possible hit, and of equals the
nearest; a target is hit once.

Shapes: P predicted points, T targets.
"""

from collections.abc import Sequence

import numpy as np

__all__ = ["mean_point_scores", "point_scores"]

MISS = 1e9  # dearer than any number of distances in pixels


def point_scores(
    predicted: Sequence[Sequence[float]],
    targets: Sequence[Sequence[float]] | None = None,
    radius_px: float | None = None,
    masks: Sequence[np.ndarray] | None = None,
) -> dict[str, float]:
    """Precision, recall and F1 of the points of one image.

    Args:
        predicted: (P, 2) x and y in pixels.
        targets: (T, 2) x and y in pixels; a point within `radius_px` of one hits it.
        radius_px: How near is near enough.
        masks: In the place of both, T arrays (height, width) of booleans; a point inside of one hits it.

    Returns:
        `precision`, `recall` and `f1` as shares of 1, and `hits`. Nothing to point at and no point is all
        1; one of the two is all 0.

    Raises:
        ValueError: Neither or both of targets with a radius and masks.
    """
    if (targets is None) == (masks is None) or (targets is None) != (radius_px is None):
        raise ValueError("Give either `targets` with `radius_px` or `masks`.")
    points = np.asarray(predicted, float).reshape(-1, 2)
    if masks is not None:
        cost = np.array([[0.0 if _inside(point, mask) else MISS for mask in masks] for point in points])
        count = len(masks)
    else:
        places = np.asarray(targets, float).reshape(-1, 2)
        count = len(places)
        cost = np.linalg.norm(points[:, None] - places[None], axis=-1)  # (P, T)
        cost = np.where(cost <= radius_px, cost, MISS)
    if not len(points) or not count:
        share = float(len(points) == count)
        return {"precision": share, "recall": share, "f1": share, "hits": 0}
    hits = sum(cost[point, target] < MISS for point, target in zip(*_matching(cost), strict=True))
    precision, recall = hits / len(points), hits / count
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "hits": int(hits)}


def mean_point_scores(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over images of what `point_scores` returns, and how many images there are (`n`).

    Raises:
        ValueError: There are none.
    """
    if not scores:
        raise ValueError("`scores` is empty; the mean needs at least one image.")
    names = ("precision", "recall", "f1")
    return {**{name: float(np.mean([score[name] for score in scores])) for name in names}, "n": len(scores)}


def _inside(point: np.ndarray, mask: np.ndarray) -> bool:
    """Whether the pixel that a point lies in belongs to a mask; points on the far edge count as inside."""
    height, width = np.shape(mask)
    x, y = point
    if not (0 <= x <= width and 0 <= y <= height):
        return False
    return bool(mask[min(int(y), height - 1), min(int(x), width - 1)])


def _matching(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the cheapest one-to-one matching."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError("Scores of points need scipy: pip install 'hf-mm[eval]'.") from error
    return linear_sum_assignment(cost)
