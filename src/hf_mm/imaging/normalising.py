"""Pixels in 0..255 to what a model reads: rescaled, each channel's mean taken off, divided by its spread.

Exactly as transformers' Pillow processors compute it, by a table: a channel has only 256 levels. Or as one
factor and one summand per channel, four times as fast and the last bits of a float apart.

Shapes: B views, H x W pixels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["affine", "check_colours", "level_table", "look_up", "normalised"]


def check_colours(fields: dict[str, Any]) -> None:
    """Refuse an `image_mean` or `image_std` that cannot be used.

    Raises:
        ValueError: Not one number or three, or a division by 0.
    """
    for name in ("image_mean", "image_std"):
        value = fields[name]
        numbers = list(value) if isinstance(value, Sequence) else [value]
        if len(numbers) not in (1, 3) or not all(isinstance(number, int | float) for number in numbers):
            raise ValueError(f"`{name}` must be one number or three, got {value}.")
        if name == "image_std" and 0 in numbers:
            raise ValueError(f"`image_std` is divided by and must not hold 0, got {value}.")


def affine(fields: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Rescaling and normalising as one factor and one summand per channel, (3, 1, 1) each."""
    factor = fields["rescale_factor"] if fields["do_rescale"] else 1.0
    mean, std = (fields["image_mean"], fields["image_std"]) if fields["do_normalize"] else (0.0, 1.0)
    mean, std = (torch.tensor(x, dtype=torch.float64).expand(3).view(3, 1, 1) for x in (mean, std))
    return (factor / std).float(), (-mean / std).float()


def level_table(fields: dict[str, Any]) -> np.ndarray:
    """What each of the 256 levels of each channel becomes, in the order of transformers' arithmetic.

    Rescaled in float64 and rounded to float32; mean and spread in float32.

    Returns:
        (3, 256) float32.
    """
    levels = np.arange(256, dtype=np.float64)
    if fields["do_rescale"]:
        levels = levels * fields["rescale_factor"]
    table = np.tile(levels.astype(np.float32), (3, 1))
    if fields["do_normalize"]:
        mean, std = (
            np.broadcast_to(np.array(fields[name], dtype=np.float32), 3)[:, None]
            for name in ("image_mean", "image_std")
        )
        table = (table - mean) / std
    return table


def look_up(views: Tensor, table: np.ndarray) -> Tensor:
    """Replace each level by its entry.

    Args:
        views: (B, 3, H, W) uint8.
        table: (3, 256) float32.

    Returns:
        (B, 3, H, W) float32.
    """
    pixels = np.empty(tuple(views.shape), np.float32)
    for view, out in zip(views.numpy(), pixels, strict=True):
        for channel in range(3):
            np.take(table[channel], view[channel], out=out[channel], mode="clip")
    return torch.from_numpy(pixels)


def normalised(views: Tensor, fields: dict[str, Any], exact: bool) -> Tensor:
    """Views as `fields` want them.

    Args:
        views: (B, 3, H, W) uint8, in any order in memory.
        fields: `do_rescale`, `rescale_factor`, `do_normalize`, `image_mean` and `image_std`.
        exact: By the table; else by one factor and one summand per channel.

    Returns:
        (B, 3, H, W) float32, contiguous; uint8 with neither rescaling nor normalising.
    """
    if not fields["do_rescale"] and not fields["do_normalize"]:
        return views.contiguous()
    if exact:
        return look_up(views, level_table(fields))
    scale, shift = affine(fields)
    return views.to(torch.float32, memory_format=torch.contiguous_format).mul_(scale).add_(shift)
