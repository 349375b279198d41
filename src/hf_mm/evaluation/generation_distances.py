"""How far generated pictures lie from real ones: the Frechet and the kernel distance of their features.

Frechet distance: Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
Equilibrium", section 3 (https://arxiv.org/abs/1706.08500); on features of Inception it is the FID. Kernel
distance: Binkowski et al. 2018, "Demystifying MMD GANs", section 4 (https://arxiv.org/abs/1801.01401); on
Inception the KID.

Shapes: N pictures, D features, m pictures of a subset.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .generation_features import FeatureRows, checked_pair

__all__ = ["KernelDistance", "frechet_distance", "kernel_distance"]

SUBSET_SIZE = 1000  # as the paper has it
DEGREE = 3


class KernelDistance(NamedTuple):
    """The mean over subsets and its spread.

    Attributes:
        mean: Unbiased: around 0, and below it half the time, for pictures of one distribution.
        std: Standard deviation from one subset to the next.
    """

    mean: float
    std: float


def frechet_distance(real: FeatureRows, generated: FeatureRows, *, allow_singular: bool = False) -> float:
    """The squared distance of two normal distributions with the means and covariances of the features.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). The last trace is the sum of the singular values of R1 R2^T,
    where C = R^T R by a QR decomposition of the centred features: no root of a matrix, no root of a number
    that rounding made negative, and right where covariances are singular.

    It is biased upwards, more so with fewer pictures: compare equal counts only, and look at the distance of
    real pictures from each other.

    Args:
        real: (N, D).
        generated: (N, D).
        allow_singular: Accept fewer than D + 1 pictures, whose covariances lack directions.

    Returns:
        0 for equal sets; in squared units of the features.

    Raises:
        ValueError: Unequal counts or widths, NaN, or no more pictures than features.
    """
    real, generated = checked_pair(real, generated)
    count, width = real.shape
    if count < 2 or (count <= width and not allow_singular):
        raise ValueError(
            f"The covariance of {width} features needs more than {max(width, 1)} pictures, got {count}; give "
            "more, take a net with fewer features or `kernel_distance`, or pass `allow_singular=True`."
        )
    means = real.mean(dim=0), generated.mean(dim=0)
    roots = [_root(part - mean) for part, mean in zip((real, generated), means, strict=True)]
    spreads = sum(root.square().sum() for root in roots)
    shared = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    return max(0.0, float((means[0] - means[1]).square().sum() + spreads - 2 * shared))


def kernel_distance(
    real: FeatureRows,
    generated: FeatureRows,
    subsets: int = 100,
    subset_size: int | None = None,
    seed: int = 0,
) -> KernelDistance:
    """The squared maximum mean discrepancy with the kernel (x . y / D + 1)^3, without bias.

    Args:
        real: (N, D).
        generated: (N, D).
        subsets: How many are drawn, each without replacement.
        subset_size: Pictures in each, m; by default 1,000, or half of N where that is less.
        seed: Of the draws.

    Raises:
        ValueError: Unequal counts or widths, NaN, no subset, or subsets of fewer than 2 or more than N.
    """
    real, generated = checked_pair(real, generated)
    count = len(real)
    size = min(SUBSET_SIZE, count // 2) if subset_size is None else subset_size
    if not 2 <= size <= count or subsets < 1:
        raise ValueError(
            f"`subsets`={subsets} of `subset_size`={size} out of {count} pictures; there must be 1 subset or "
            f"more, of 2 to {count} pictures."
        )
    draw = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(subsets):
        x, y = (part[torch.randperm(count, generator=draw)[:size]] for part in (real, generated))
        found.append(_discrepancy(x, y))
    values = torch.stack(found)
    return KernelDistance(values.mean().item(), values.std(unbiased=False).item())


def _root(centred: Tensor) -> Tensor:
    """R with R^T R the covariance of centred features (N, D), by QR of the rows."""
    return torch.linalg.qr(centred, mode="r").R / (len(centred) - 1) ** 0.5


def _discrepancy(x: Tensor, y: Tensor) -> Tensor:
    """Equation 4 of the paper: pairs of a picture with itself do not count."""
    size, width = x.shape
    within = x.new_zeros(())
    for part in (x, y):
        kernel = (part @ part.T / width + 1) ** DEGREE  # (m, m)
        within += (kernel.sum() - kernel.trace()) / (size * (size - 1))
    return within - 2 * ((x @ y.T / width + 1) ** DEGREE).mean()
