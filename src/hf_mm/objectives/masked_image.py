"""Masked image modelling: which patches to hide, and the loss on their pixels.

Xie et al. 2022, "SimMIM: a Simple Framework for Masked Image Modeling", sections 3.2 and 3.4: random masks,
L1 on the hidden pixels (https://arxiv.org/abs/2111.09886). Bao et al. 2022, "BEiT: BERT Pre-Training of Image
Transformers", algorithm 1: masks of blocks (https://arxiv.org/abs/2106.08254). He et al. 2022, "Masked
Autoencoders Are Scalable Vision Learners", section 3: targets normalised by patch
(https://arxiv.org/abs/2111.06377).

Shapes: B images, C channels, P patch side in pixels, G x F patches (rows x columns), N = G * F.
"""

import math

import torch
from torch import Tensor

from .batch_mean import batch_mean

__all__ = [
    "block_patch_masks",
    "masked_pixel_loss",
    "patch_pixels",
    "pixels_of_patches",
    "random_patch_masks",
]

NORMALIZED_PATCH_EPS = 1e-6  # on the variance, for patches of one colour


def patch_pixels(pixel_values: Tensor, patch_size: int) -> Tensor:
    """(B, C, G * P, F * P) pixels by patch: (B, N, C * P * P), patches row by row."""
    patches = pixel_values.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))  # (B, C, G, P, F, P)
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, N, C * P * P)


def pixels_of_patches(patches: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """(B, N, C * P * P) patches to the image (B, C, G * P, F * P): undoes `patch_pixels`."""
    parts = patches.unflatten(2, (-1, patch_size, patch_size)).unflatten(1, grid)  # (B, G, F, C, P, P)
    return parts.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)  # (B, C, G * P, F * P)


def masked_pixel_loss(
    predicted: Tensor,
    target: Tensor,
    scored: Tensor,
    normalize_patches: bool = False,
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    """Mean absolute error over the pixels of some patches.

    Args:
        predicted: (B, N, C * P * P) pixels by patch.
        target: The same of the image.
        scored: (B, N) bool, true where a patch counts.
        normalize_patches: Compare with targets of mean 0 and deviation 1 in each patch: the shape of what is
            there counts, brightness and contrast do not.
        num_items_in_batch: Patches that count in the whole batch of which this is a part; by default those
            here.

    Returns:
        A scalar, in units of the pixels (or of a patch's deviation); 0 when no patch counts.
    """
    target = target.float()
    if normalize_patches:
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        target = (target - mean) / (variance + NORMALIZED_PATCH_EPS).sqrt()
    error = (predicted.float() - target).abs().mean(dim=-1)  # (B, N)
    return batch_mean((error * scored).sum(), scored.sum(), num_items_in_batch)


def random_patch_masks(
    rows: int, grid: tuple[int, int], share: float, unit: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """Hide squares of patches chosen at random, as many in each row.

    Args:
        rows: Masks to draw, B.
        grid: Rows and columns of patches, (G, F).
        share: Hidden share of an image, between 0 and 1; rounded to whole squares, at least one.
        unit: Side of a square, in patches; SimMIM hides 32 px, two patches of 16.
        generator: Source of chance; by default torch's own.

    Returns:
        (B, N) bool, true where a patch is hidden.

    Raises:
        ValueError: A share that hides nothing or all, or a grid that is no multiple of `unit`.
    """
    if unit < 1 or grid[0] % unit or grid[1] % unit:
        raise ValueError(
            f"`unit`={unit} must divide the {grid[0]}x{grid[1]} patches of the image; use 1 for any size."
        )
    coarse = (grid[0] // unit, grid[1] // unit)
    count = _hidden_patches(coarse, share)
    order = torch.rand(rows, coarse[0] * coarse[1], generator=generator).argsort(dim=1)
    masks = (order < count).unflatten(1, coarse)  # a rank below `count` has `count` places in each row
    return masks.repeat_interleave(unit, 1).repeat_interleave(unit, 2).flatten(1)  # (B, N)


def block_patch_masks(
    rows: int,
    grid: tuple[int, int],
    share: float,
    smallest: int = 16,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Hide rectangular blocks of patches until the share is reached, as many patches in each row.

    Blocks are drawn as in BEiT: an area between `smallest` and what is still to hide, sides in a ratio
    between 0.3 and 1 / 0.3. Of the last block only the first lines, or the last, are hidden, so that the
    number of patches is exact.

    Args:
        rows: Masks to draw, B.
        grid: Rows and columns of patches, (G, F).
        share: Hidden share of an image, between 0 and 1; rounded to whole patches, at least one.
        smallest: Least area of a block, in patches; BEiT's 16 are for 14x14 patches.
        generator: Source of chance; by default torch's own.

    Returns:
        (B, N) bool, true where a patch is hidden.

    Raises:
        ValueError: A share that hides nothing or all, or blocks below one patch.
    """
    count = _hidden_patches(grid, share)
    if smallest < 1:
        raise ValueError(f"`smallest`={smallest} must be at least 1 patch.")
    masks = [_draw_blocks(grid, count, smallest, generator) for _ in range(rows)]
    return torch.stack(masks) if masks else torch.zeros(0, grid[0] * grid[1], dtype=torch.bool)


def _hidden_patches(grid: tuple[int, int], share: float) -> int:
    """How many patches a share of the grid is."""
    patches = grid[0] * grid[1]
    if not 0.0 < share < 1.0 or patches < 2:
        raise ValueError(
            f"`share`={share} of {grid[0]}x{grid[1]} patches must hide some and leave some: give a number "
            "between 0 and 1, and at least two patches."
        )
    return min(max(round(share * patches), 1), patches - 1)


def _draw_blocks(
    grid: tuple[int, int], count: int, smallest: int, generator: torch.Generator | None
) -> Tensor:
    """One mask (N,) of exactly `count` patches in blocks."""
    mask = torch.zeros(grid, dtype=torch.bool)
    missing = count
    while missing:
        area, ratio, top, left, end = torch.rand(5, generator=generator).tolist()
        area = smallest + area * max(missing - smallest, 0)
        ratio = math.exp((2 * ratio - 1) * math.log(1 / 0.3))  # a tall block as often as a wide one
        height = min(max(round(math.sqrt(area * ratio)), 1), grid[0])
        width = min(max(round(math.sqrt(area / ratio)), 1), grid[1])
        y, x = int(top * (grid[0] - height + 1)), int(left * (grid[1] - width + 1))
        block = mask[y : y + height, x : x + width]  # a view
        fresh = (~block).nonzero()
        fresh = fresh[:missing] if end < 0.5 else fresh[-missing:]
        block[fresh[:, 0], fresh[:, 1]] = True
        missing -= len(fresh)
    return mask.flatten()
