"""Masked patch prediction: the mean colour of hidden patches, as three choices among 256 levels.

Kim et al. 2021, "ViLT", section 4.5 and table 5, "MPP" (https://arxiv.org/abs/2102.03334), after Dosovitskiy
et al. 2021, "An Image is Worth 16x16 Words", appendix B.1.2 (https://arxiv.org/abs/2010.11929).

Shapes: B images, C channels, P patch side in pixels, G x F patches (rows x columns), N = G * F, K patches
that count.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .batch_mean import labelled_cross_entropy
from .masked_image import patch_pixels

__all__ = ["COLOUR_LEVELS", "masked_colour_loss", "patch_colour_classes"]

COLOUR_LEVELS = 256


def patch_colour_classes(
    pixel_values: Tensor, patch_size: int, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """The mean level of each channel over each patch, rounded down.

    Args:
        pixel_values: (B, C, G * P, F * P) as the model sees them, normalised.
        patch_size: P.
        mean: Of each channel, what was subtracted after dividing levels by 255.
        std: Of each channel, by what was divided then.

    Returns:
        (B, N, C) levels, 0 to 255; patches row by row, those of the padding too.

    Raises:
        ValueError: The image is no whole number of patches, or means and deviations are not one per channel.
    """
    if pixel_values.dim() != 4:
        raise ValueError(
            f"`pixel_values` must be (batch, channels, height, width), got {tuple(pixel_values.shape)}."
        )
    _, channels, height, width = pixel_values.shape
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"`pixel_values` is {height}x{width} px, not a multiple of `patch_size`={patch_size}; pad the "
            "images first."
        )
    if len(mean) != channels or len(std) != channels:
        raise ValueError(
            f"`mean` and `std` must have one number for each of the {channels} channels, got {len(mean)} and "
            f"{len(std)}."
        )
    wide = pixel_values.to(torch.promote_types(pixel_values.dtype, torch.float32))
    colours = patch_pixels(wide, patch_size).unflatten(2, (channels, -1)).mean(3)  # (B, N, C)
    levels = (colours * colours.new_tensor(std) + colours.new_tensor(mean)) * (COLOUR_LEVELS - 1)
    # A patch of one colour comes back a hair above or below its level: it must not fall into the one below.
    return (levels + 1e-3).floor().clamp(0, COLOUR_LEVELS - 1).long()


def masked_colour_loss(
    logits: Tensor, classes: Tensor, num_items_in_batch: Tensor | int | float | None = None
) -> Tensor:
    """Cross-entropy of the levels of hidden patches, in nats; the mean over patches and channels.

    Args:
        logits: (K, C * 256), the levels of the first channel, then those of the second, and so on; half
            precision is widened.
        classes: (K, C) levels, as `patch_colour_classes` finds them; -100 in patches that do not count.
        num_items_in_batch: Patches that count in the whole batch of which this is a part; by default those
            here.

    Returns:
        A scalar, in float32 at least; an exact 0 with gradient 0 when nothing is hidden.

    Raises:
        ValueError: Shapes do not fit.
    """
    if classes.dim() != 2 or logits.shape != (len(classes), classes.shape[1] * COLOUR_LEVELS):
        raise ValueError(
            f"`logits` must be (patches, channels * {COLOUR_LEVELS}) and `classes` (patches, channels), got "
            f"{tuple(logits.shape)} and {tuple(classes.shape)}."
        )
    channels = classes.shape[1]
    levels = logits.unflatten(1, (channels, COLOUR_LEVELS)).flatten(0, 1)  # (K * C, 256)
    items = None if num_items_in_batch is None else num_items_in_batch * channels
    return labelled_cross_entropy(levels, classes.flatten(), items)
