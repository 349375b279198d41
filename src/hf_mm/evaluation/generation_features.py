"""Features of pictures as the measures of generators take them: checked once, in double precision.

Shapes: N pictures, D features.
"""

import numpy as np
import torch
from torch import Tensor

__all__ = ["FeatureRows", "checked_features", "checked_pair"]

FeatureRows = Tensor | np.ndarray
"""(N, D), a row for each picture."""


def checked_features(features: FeatureRows, name: str) -> Tensor:
    """Features in float64, in which differences of nearly equal sums stay exact enough.

    Args:
        features: (N, D).
        name: What to call them in errors.

    Raises:
        ValueError: Another shape, or NaN or infinity, whose row is named.
    """
    rows = torch.as_tensor(features).detach()
    if rows.ndim != 2 or not rows.numel():
        raise ValueError(f"`{name}` must be (pictures, features), got {tuple(rows.shape)}.")
    broken = (~rows.isfinite().all(dim=1)).nonzero()
    if len(broken):
        raise ValueError(f"`{name}` hold NaN or infinity in row {int(broken[0])}.")
    return rows.double()


def checked_pair(real: FeatureRows, generated: FeatureRows) -> tuple[Tensor, Tensor]:
    """Features of as many real as generated pictures: what is compared depends on how many there are.

    Raises:
        ValueError: As `checked_features`; or they differ in their count or their width.
    """
    real, generated = checked_features(real, "real"), checked_features(generated, "generated")
    if len(real) != len(generated):
        raise ValueError(
            f"`real` has {len(real)} rows, `generated` {len(generated)}; measures depend on the count, so "
            f"compare {min(len(real), len(generated))} of each."
        )
    if real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"`real` are {real.shape[1]} wide, `generated` {generated.shape[1]}; take both from one net."
        )
    return real, generated
