"""Pictures out of generators as 8-bit levels, so that they are drawn, stored and measured alike.

Shapes: N pictures, C channels, H x W pixels.
"""

import torch
from torch import Tensor

__all__ = ["pixel_levels"]

LEVELS = 255
FAR_OUT = 2.0  # where the largest number is above and none is below 0, they are levels and no shares


def pixel_levels(pixel_values: Tensor, name: str = "pixel_values") -> Tensor:
    """Pictures in [-1, 1] as levels in 0..255; what lies outside is cut, as when pictures are written.

    Args:
        pixel_values: (N, C, H, W) of floats in [-1, 1], C = 1 or 3; uint8 levels stay as they are.
        name: What to call them in errors.

    Returns:
        (N, C, H, W) uint8 on the device of the input.

    Raises:
        TypeError: They are integers other than uint8.
        ValueError: Another shape, no picture, NaN or infinity, or floats that are levels.
    """
    if pixel_values.ndim != 4 or pixel_values.shape[1] not in (1, 3) or not pixel_values.numel():
        raise ValueError(
            f"`{name}` must be (pictures, 1 or 3 channels, height, width), got {tuple(pixel_values.shape)}."
        )
    if pixel_values.dtype == torch.uint8:
        return pixel_values
    if not pixel_values.is_floating_point():
        raise TypeError(f"`{name}` are {pixel_values.dtype}; give floats in [-1, 1] or uint8 in 0..255.")
    pixels = pixel_values.detach().float()
    broken = (~pixels.isfinite().flatten(1).all(dim=1)).nonzero()
    if len(broken):
        raise ValueError(f"`{name}` hold NaN or infinity in picture {int(broken[0])}.")
    least, most = pixels.min().item(), pixels.max().item()
    if least >= 0 and most > FAR_OUT:
        raise ValueError(
            f"`{name}` are floats from {least:g} to {most:g}; bring them to [-1, 1], or give uint8 in 0..255."
        )
    return ((pixels + 1) * (LEVELS / 2)).round().clamp(0, LEVELS).to(torch.uint8)
