"""Which real pictures a generator reaches, and which of its own are real: balls around features.

Precision and recall: Kynkaanniemi et al. 2019, "Improved Precision and Recall Metric for Assessing Generative
Models", section 2 (https://arxiv.org/abs/1904.06991). Density and coverage: Naeem et al. 2020, "Reliable
Fidelity and Diversity Metrics for Generative Models", section 3 (https://arxiv.org/abs/2002.09797).

Each picture has a ball that reaches to its k-th neighbour of its own set; what lies on the rim is outside, as
in the code of Naeem et al. A collapsed generator may look good by all else: recall and coverage show it.

Shapes: N pictures, D features, Q queries, P pictures to look among.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..imaging.pixel_levels import pixel_levels
from .generation_features import FeatureRows, checked_features, checked_pair
from .index import EmbeddingIndex

__all__ = ["ManifoldMetrics", "Neighbours", "nearest_neighbours", "precision_recall_density_coverage"]

CHUNK_ROWS = 1024  # of the matrix of distances at a time: 80 MB for 10,000 pictures
ON_THE_RIM = 1 - 1e-9  # of a squared radius: equal distances may differ in their last digits


class ManifoldMetrics(NamedTuple):
    """Shares of N, but for density.

    Attributes:
        precision: Generated pictures in the ball of some real one.
        recall: Real pictures in the ball of some generated one.
        density: In how many balls of real pictures a generated one lies, over k; around 1 at best, and above
            where real pictures are dense.
        coverage: Real pictures with a generated one in their ball.
    """

    precision: float
    recall: float
    density: float
    coverage: float


class Neighbours(NamedTuple):
    """The nearest first.

    Attributes:
        distances: (Q, k) float32.
        indices: (Q, k) of the rows looked among.
    """

    distances: Tensor
    indices: Tensor


def precision_recall_density_coverage(
    real: FeatureRows, generated: FeatureRows, k: int = 5
) -> ManifoldMetrics:
    """All four, from three passes over distances that are never all in memory.

    Args:
        real: (N, D).
        generated: (N, D).
        k: Which neighbour a ball reaches to.

    Raises:
        ValueError: Unequal counts or widths, NaN, or no more than `k` pictures.
    """
    real, generated = checked_pair(real, generated)
    count = len(real)
    if not 1 <= k < count:
        raise ValueError(f"`k`={k} must be at least 1 and below the count of pictures, {count}; give more.")
    centre = real.mean(dim=0)
    real, generated = real - centre, generated - centre  # smaller numbers, smaller errors
    real_rims = _squared_radii(real, k) * ON_THE_RIM  # (N,)
    generated_rims = _squared_radii(generated, k) * ON_THE_RIM  # (N,)
    balls_around = real.new_zeros(count)  # of each generated picture
    reached = covered = 0.0
    for rows, distances in _squared_distances(real, generated):  # (c, N)
        inside = distances < real_rims[rows, None]
        balls_around += inside.sum(dim=0)
        covered += inside.any(dim=1).sum().item()
        reached += (distances < generated_rims).any(dim=1).sum().item()
    return ManifoldMetrics(
        precision=(balls_around > 0).double().mean().item(),
        recall=reached / count,
        density=balls_around.mean().item() / k,
        coverage=covered / count,
    )


def nearest_neighbours(queries: FeatureRows, among: FeatureRows, k: int = 1) -> Neighbours:
    """The nearest of other pictures, of training pictures for example, by features or by pixels.

    Args:
        queries: (Q, D) features; or pictures (Q, C, H, W), see `pixel_levels`.
        among: (P, D) or (P, C, H, W).
        k: How many of each.

    Returns:
        Their distances and numbers; of pictures the distances are the root of the summed squares of
        differences, levels running from 0 to 1.

    Raises:
        ValueError: NaN, other shapes or widths, or fewer than `k` pictures to look among.
    """
    queries, among = _rows(queries, "queries"), _rows(among, "among")
    if not 1 <= k <= len(among):
        raise ValueError(f"`k`={k} must be 1 to {len(among)}, the count of pictures in `among`.")
    index = EmbeddingIndex("euclidean", "exact")
    index.add(among)
    scores, rows = index.nearest(queries, k)
    return Neighbours(-scores, rows)


def _rows(pictures: FeatureRows, name: str) -> Tensor:
    found = torch.as_tensor(pictures)
    if found.ndim == 4:
        return pixel_levels(found, name).flatten(1).float() / 255
    return checked_features(found, name)


def _squared_radii(features: Tensor, k: int) -> Tensor:
    """From each of (N, D) to its k-th neighbour, (N,)."""
    found = []
    for rows, distances in _squared_distances(features, features):
        own = torch.arange(rows.start, rows.stop, device=features.device)
        distances[own - rows.start, own] = torch.inf  # nobody is their own neighbour
        found.append(distances.topk(k, dim=1, largest=False).values[:, -1])  # faster than kthvalue
    return torch.cat(found)


def _squared_distances(left: Tensor, right: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Some rows of `left` at a time, and their squared distances from all of `right`."""
    lengths = right.square().sum(dim=1)
    for first in range(0, len(left), CHUNK_ROWS):
        rows = slice(first, min(first + CHUNK_ROWS, len(left)))
        part = left[rows]
        distances = torch.addmm(lengths, part, right.T, alpha=-2.0)
        yield rows, distances.add_(part.square().sum(dim=1, keepdim=True)).clamp_(min=0)
