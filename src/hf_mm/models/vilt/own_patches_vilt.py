"""Targets by patch in the order in which ViLT has patches: row by row of each image's own grid.

Shapes: B images, G x F patches of the padded images, N most patches of an image, V values of a patch.
"""

import torch
from torch import Tensor

from .layout_vilt import PatchGrids

__all__ = ["own_patches", "real_patches"]


def own_patches(values: Tensor, grids: PatchGrids, most: int) -> Tensor:
    """(B, G * F, V) values of the patches of padded images to (B, N, V) of each image's own grid.

    What stands behind the last patch of an image is of no meaning.

    Args:
        values: Of all patches, row by row.
        grids: Of the images.
        most: N.
    """
    columns, numbers = grids.inside.shape[2], torch.arange(most, device=values.device)
    widths = grids.widths.unsqueeze(1)  # (B, 1)
    places = (numbers // widths * columns + numbers % widths).clamp(max=values.shape[1] - 1)  # (B, N)
    return values.gather(1, places.unsqueeze(2).expand(-1, -1, values.shape[2]))


def real_patches(grids: PatchGrids, most: int) -> Tensor:
    """(B, N) bool, true up to the last patch of an image."""
    numbers = torch.arange(most, device=grids.inside.device)
    return numbers < (grids.heights * grids.widths).unsqueeze(1)
