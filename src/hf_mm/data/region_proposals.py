"""Regions without a detector: what stands out from the background, and windows on a grid.

Both look at pixels alone and always find the same. For pictures of things on one colour, and to have regions
of any picture at all; a trained detector finds better ones (`RegionFeatureExtractor`).

Shapes: r regions, H x W pixels.
"""

import math
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

from ..imaging.loading import image_size, load_rgb

__all__ = ["connected_components", "region_proposals", "sliding_grid"]


def connected_components(image: Any, min_difference: int = 8, min_pixels: int = 4) -> np.ndarray:
    """Boxes of what differs from the background, the most frequent colour; pixels that touch are one thing.

    Args:
        image: Anything that `hf_mm.load_rgb` reads.
        min_difference: Levels, of 255, by which a channel must differ.
        min_pixels: Things of fewer pixels are left out.

    Returns:
        (r, 4) float32, x1, y1, x2, y2 as shares of the image, the thing of most pixels first and of equal
        ones the upper, then the left one; none where nothing differs.

    Raises:
        ImportError: scipy is not installed.
        ValueError: The image cannot be read, or a number is out of its range.
    """
    if not 1 <= min_difference <= 255 or min_pixels < 1:
        raise ValueError(
            f"`min_difference`={min_difference} must be in 1..255, `min_pixels`={min_pixels} at least 1."
        )
    pixels = load_rgb(image)
    try:
        ndimage = import_module("scipy.ndimage")
    except ImportError as error:
        raise ImportError("Connected components need scipy: pip install 'hf-mm[regions]'.") from error
    touching = np.ones((3, 3))  # also at corners
    labels, count = ndimage.label(foreground(pixels, min_difference), touching)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    places = [(rows.start, rows.stop, cols.start, cols.stop) for rows, cols in ndimage.find_objects(labels)]
    order = sorted(range(count), key=lambda i: (-areas[i], places[i]))
    height, width = pixels.shape[:2]
    boxes = [
        (left / width, top / height, right / width, bottom / height)
        for top, bottom, left, right in (places[i] for i in order if areas[i] >= min_pixels)
    ]
    return np.array(boxes, np.float32).reshape(-1, 4)


def foreground(pixels: np.ndarray, min_difference: int = 8) -> np.ndarray:
    """The pixels (H, W) bool that differ from the most frequent colour of `pixels` (H, W, 3) uint8."""
    colours = pixels.reshape(-1, 3).astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    values, counts = np.unique(colours, return_counts=True)
    background = int(values[counts.argmax()])
    channels = np.array([background >> 16, background >> 8 & 255, background & 255])
    return (np.abs(pixels.astype(np.int16) - channels) >= min_difference).any(axis=2)


def sliding_grid(image: Any, windows: Sequence[float] = (1.0, 0.5), overlap: float = 0.5) -> np.ndarray:
    """Boxes of square windows that slide over the image, those of each size from edge to edge.

    Args:
        image: Anything that `hf_mm.load_rgb` reads; only its size counts.
        windows: Sides of the windows as shares of the shorter side of the image.
        overlap: Share of a window that the next one overlaps at least.

    Returns:
        (r, 4) float32, x1, y1, x2, y2 as shares of the image, size by size, row by row.

    Raises:
        ValueError: The image cannot be read, or a number is out of its range.
    """
    if not windows or not all(0 < side <= 1 for side in windows) or not 0 <= overlap < 1:
        raise ValueError(
            f"`windows`={tuple(windows)} must be shares above 0 and up to 1, at least one; `overlap`="
            f"{overlap} from 0 to below 1."
        )
    height, width = image_size(image)
    boxes = []
    for share in windows:
        side = share * min(height, width)
        lefts, tops = (_starts(length, side, overlap) for length in (width, height))
        boxes += [
            (left / width, top / height, (left + side) / width, (top + side) / height)
            for top in tops
            for left in lefts
        ]
    return np.array(boxes, np.float32).clip(0, 1)


def region_proposals(
    image: Any, windows: Sequence[float] = (1.0, 0.5), overlap: float = 0.0, min_difference: int = 8
) -> np.ndarray:
    """What stands out, the largest first, then the windows of a grid.

    Args:
        image: Anything that `hf_mm.load_rgb` reads.
        windows: As `sliding_grid` takes them.
        overlap: As `sliding_grid` takes it.
        min_difference: As `connected_components` takes it.

    Returns:
        (r, 4) float32, x1, y1, x2, y2 as shares of the image.

    Raises:
        ImportError: scipy is not installed.
        ValueError: The image cannot be read, or a number is out of its range.
    """
    pixels = load_rgb(image)
    return np.concatenate(
        [connected_components(pixels, min_difference), sliding_grid(pixels, windows, overlap)]
    )


def _starts(length: float, side: float, overlap: float) -> list[float]:
    """Where windows begin along one side, evenly, the first and the last at the edges."""
    steps = math.ceil((length - side) / (side * (1 - overlap)) - 1e-9)
    return [(length - side) * step / steps for step in range(steps + 1)] if steps > 0 else [0.0]
