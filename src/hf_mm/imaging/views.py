"""From RGB pixels to the square views that a vision tower sees, not yet normalised.

Three ways to make a picture square: "crop", its shorter side resized and the middle kept (CLIP, LLaVA);
"stretch" (ViT); "pad", as large as fits in the middle of a black square (Molmo). Resizing is exact in the
arithmetic of the published models, or done in 8-bit integers, several times as fast and a level of 255 away.

Shapes: H x W pixels of a picture, S side of a view in pixels, P patches per side of a view.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

__all__ = ["TORCH_MODES", "Box", "cover_patches", "cut_windows", "fit_views", "pad_to"]

Box = tuple[int, int, int, int]
"""Top, left, height, width of the picture on a padded canvas, in pixels."""

# Filters that torch antialiases as Pillow does.
TORCH_MODES: dict[int, str] = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}
MOST_PIXELS = 2**26  # of one resized picture
STACKED_BYTES = 2**25  # resized in one go


def fit_views(pictures: list[np.ndarray], side: int, fit: str, resample: int, exact: bool) -> Tensor:
    """One square view of each picture.

    Pictures of one size are resized together; those that have the view's size are taken as they are.

    Args:
        pictures: (H, W, 3) uint8 each.
        side: S.
        fit: "crop" or "stretch".
        resample: Filter, a value of `PIL.Image.Resampling`.
        exact: Resize as Pillow does; else in 8-bit integers if the filter is bilinear or bicubic.

    Returns:
        (pictures, 3, S, S) uint8, channels last in memory.

    Raises:
        ValueError: A picture is so narrow that resizing its shorter side would make it huge.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, picture in enumerate(pictures):
        groups.setdefault(picture.shape, []).append(i)
    views = torch.empty(len(pictures), side, side, 3, dtype=torch.uint8)
    for (height, width, _), members in groups.items():
        size = (side, side) if fit == "stretch" else _shorter_side_to(side, height, width, members[0])
        resize = _resize_with_pillow if exact or resample not in TORCH_MODES else _resize_in_bytes
        chunk = max(1, STACKED_BYTES // (height * width * 3))
        for start in range(0, len(members), chunk):
            part = members[start : start + chunk]
            stack = np.stack([pictures[i] for i in part])
            resized = torch.from_numpy(stack) if size == (height, width) else resize(stack, size, resample)
            top, left = (size[0] - side) // 2, (size[1] - side) // 2
            resized = resized[:, top : top + side, left : left + side]
            if len(part) == len(pictures):
                return resized.permute(0, 3, 1, 2)
            views[part] = resized
    return views.permute(0, 3, 1, 2)


def pad_to(picture: np.ndarray, height: int, width: int, resample: int, exact: bool) -> tuple[Tensor, Box]:
    """A picture as large as fits, in the middle of a black canvas.

    Args:
        picture: (H, W, 3) uint8.
        height: Of the canvas, in pixels.
        width: Of the canvas, in pixels.
        resample: `PIL.Image.Resampling.BILINEAR` or `BICUBIC`, antialiased.
        exact: Resize in float32, as the published models; else in 8-bit integers.

    Returns:
        (3, height, width) float32 in 0..255, or uint8 if not `exact`; and where the picture is.
    """
    old_height, old_width = picture.shape[:2]
    # float32 as the published models were trained: it decides the last pixel.
    scale = min(np.float32(height) / np.float32(old_height), np.float32(width) / np.float32(old_width))
    new_height = max(1, int(np.float32(old_height) * scale))
    new_width = max(1, int(np.float32(old_width) * scale))
    pixels = torch.from_numpy(np.require(picture, requirements=["C", "W"])).permute(2, 0, 1)  # (3, H, W)
    if exact:
        pixels = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    if (new_height, new_width) != (old_height, old_width):
        pixels = nn.functional.interpolate(
            pixels[None], (new_height, new_width), mode=TORCH_MODES[resample], antialias=True
        )[0].clamp_(0, 255)  # bicubic overshoots
    if (new_height, new_width) == (height, width):
        return pixels, (0, 0, height, width)
    top, left = (height - new_height) // 2, (width - new_width) // 2
    canvas = pixels.new_zeros(3, height, width)
    canvas[:, top : top + new_height, left : left + new_width] = pixels
    return canvas, (top, left, new_height, new_width)


def cut_windows(canvas: Tensor, side: int, step: int) -> Tensor:
    """Overlapping square windows of a canvas, row by row, without a copy.

    Args:
        canvas: (..., height, width).
        side: Of a window.
        step: From one window to the next.

    Returns:
        (rows, columns, ..., side, side).
    """
    windows = canvas.unfold(-2, side, step).unfold(-2, side, step)  # (..., rows, columns, side, side)
    return windows.movedim((-4, -3), (0, 1))


def cover_patches(box: Box, rows: int, cols: int, patch_size: int) -> Tensor:
    """Share of each patch of a canvas that the picture in `box` covers.

    Returns:
        (rows, cols) float32 in 0..1.
    """
    top, left, height, width = box
    return torch.outer(_cover(top, height, rows, patch_size), _cover(left, width, cols, patch_size))


def _cover(start: int, length: int, patches: int, patch_size: int) -> Tensor:
    edges = torch.arange(patches + 1) * patch_size
    covered = (edges - start).clamp(0, length)  # pixels of the picture before each edge
    return covered.diff() / patch_size


def _shorter_side_to(side: int, height: int, width: int, number: int) -> tuple[int, int]:
    longer = side * max(height, width) // min(height, width)
    if side * longer > MOST_PIXELS:
        raise ValueError(
            f"image {number} is {height}x{width} px: with its shorter side at {side} px the longer one has "
            f"{longer} px; cut the image first, or choose `fit`='pad' or 'stretch'."
        )
    return (longer, side) if height >= width else (side, longer)


def _resize_with_pillow(stack: np.ndarray, size: tuple[int, int], resample: int) -> Tensor:
    """(B, H, W, 3) uint8 to (B, *size, 3)."""
    height, width = size
    resized = [np.asarray(Image.fromarray(one).resize((width, height), resample)) for one in stack]
    return torch.from_numpy(np.stack(resized))


def _resize_in_bytes(stack: np.ndarray, size: tuple[int, int], resample: int) -> Tensor:
    """(B, H, W, 3) uint8 to (B, *size, 3)."""
    pixels = torch.from_numpy(stack).permute(0, 3, 1, 2)  # channels last in memory: the fast case
    resized = nn.functional.interpolate(pixels, size, mode=TORCH_MODES[resample], antialias=True)
    return resized.permute(0, 2, 3, 1)
