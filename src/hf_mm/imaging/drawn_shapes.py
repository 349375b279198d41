"""What one coloured shape on a light background is, read off the pixels: colour, shape, place and size.

For easy-VQA's pictures (Zhou 2019, https://github.com/vzhou842/easy-VQA) and for drawn ones that shall look
like them, with soft edges and noise. How much of a pixel the shape covers follows from its colour between
those of background and shape. The shape is the one of circle, rectangle and triangle that, with the middle
and the spread that were measured, covers most nearly the same.

Shapes: N pictures, H x W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from .pixel_levels import pixel_levels

__all__ = ["PLACES", "SHAPE_COLOURS", "SHAPE_KINDS", "SHAPE_SIZES", "DrawnShape", "measure_shapes"]

SHAPE_COLOURS = {
    "black": (0, 0, 0),
    "blue": (0, 0, 255),
    "brown": (165, 42, 42),
    "gray": (128, 128, 128),
    "green": (0, 255, 0),
    "red": (255, 0, 0),
    "teal": (0, 128, 128),
    "yellow": (255, 255, 0),
}
SHAPE_KINDS = ("circle", "rectangle", "triangle")
PLACES = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
"""Thirds of the picture, row by row; "top" alone is the middle one of the upper three."""
SHAPE_SIZES = ("small", "big")

SMALL_BELOW = 21 / 64
"""The mean side, as a share of the picture's, that parts small from big: half of easy-VQA's are smaller."""
LEAST_CONTRAST = 60.0
"""Levels (root of the sum of squares over red, green and blue) by which a shape must differ."""
LEAST_AREA = 0.004
"""Share of the picture that a shape must cover: easy-VQA's smallest covers 0.012."""
MOST_BESIDE = 0.25
"""More than this share of the largest thing's pixels elsewhere, and there is more than one thing."""
LEAST_OVERLAP = 0.7
"""Intersection over union with the best shape; real pictures have 0.92 and more, blurred ones 0.78."""
FARTHEST_COLOUR = 80.0
CHUNK = 256


@dataclass(frozen=True)
class DrawnShape:
    """What was measured of one picture.

    Args:
        colour: One of `SHAPE_COLOURS`; `None` where nothing is drawn, or in no colour near to one of them.
        shape: One of `SHAPE_KINDS`; `None` where nothing is drawn, several things, or something else.
        x: Of the middle (mean of what is covered), as a share of the width.
        y: The same, of the height.
        side: Geometric mean of width and height of the shape, as a share of the picture's side.
        overlap: Intersection over union with the shape that fits best, 0 to 1.
    """

    colour: str | None
    shape: str | None
    x: float = 0.5
    y: float = 0.5
    side: float = 0.0
    overlap: float = 0.0

    def place(self, margin: float = 0.0) -> str | None:
        """One of `PLACES`.

        Args:
            margin: Share of the picture's side; `None` is given where a border between two places is nearer
                than this, or where nothing is drawn.
        """
        if (
            not self.side
            or min(abs(at - line) for at in (self.x, self.y) for line in (1 / 3, 2 / 3)) < margin
        ):
            return None
        return PLACES[3 * min(int(3 * self.y), 2) + min(int(3 * self.x), 2)]

    def size(self, margin: float = 0.0) -> str | None:
        """One of `SHAPE_SIZES`.

        Args:
            margin: Share of the picture's side; `None` is given where what parts small from big is nearer
                than this, or where nothing is drawn.
        """
        if not self.side or abs(self.side - SMALL_BELOW) < margin:
            return None
        return SHAPE_SIZES[int(self.side >= SMALL_BELOW)]


def measure_shapes(pictures: Tensor | Sequence[object]) -> list[DrawnShape]:
    """Measure pictures of one shape each.

    Args:
        pictures: (N, 3, H, W), floats in [-1, 1] or uint8; or N pictures of one size, of PIL or uint8 arrays
            (H, W, 3).

    Returns:
        What each shows.

    Raises:
        ValueError: They are no pictures of three channels, or not of one size.
    """
    if isinstance(pictures, Tensor):
        levels = pixel_levels(pictures, "pictures")
    elif len(pictures):
        arrays = [np.asarray(picture) for picture in pictures]
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1 or arrays[0].ndim != 3:
            raise ValueError(f"`pictures` are {sorted(shapes)}; give RGB pictures of one size.")
        levels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    else:
        return []
    if levels.shape[1] != 3:
        raise ValueError(f"`pictures` have {levels.shape[1]} channels; give RGB pictures of one size.")
    return [shape for chunk in levels.split(CHUNK) for shape in _measure(chunk.cpu().float())]


def _measure(pixels: Tensor) -> list[DrawnShape]:
    """Of (N, 3, H, W) floats."""
    height, width = pixels.shape[2:]
    background = pixels.flatten(2).median(2).values[:, :, None, None]  # (N, 3, 1, 1); shapes cover a third
    apart = (pixels - background).square().sum(1).sqrt()  # (N, H, W)
    smooth = avg_pool2d(apart, 3, 1, 1, count_include_pad=False)
    peak = smooth.amax((1, 2))  # (N,)
    colours = _median_colours(pixels, smooth > 0.75 * peak[:, None, None])  # (N, 3)
    direction = colours[:, :, None, None] - background
    covered = ((pixels - background) * direction).sum(1) / direction.square().sum(1).clamp(min=1)
    inside, beside = _largest_thing(covered > 0.5)
    weight = (2 * covered - 0.5).clamp(0, 1) * _widened(
        inside.float()
    )  # (N, H, W); soft edges become half as wide
    drawn = (peak >= LEAST_CONTRAST) & (weight.sum((1, 2)) >= LEAST_AREA * height * width)
    weight[~drawn] = 1.0  # of these nothing is told
    kinds, measured = _best_shapes(weight)
    whole = (measured[:, 3] >= LEAST_OVERLAP) & (beside <= MOST_BESIDE)
    return [
        DrawnShape(_name_colour(colour), kind if one else None, *numbers) if there else DrawnShape(None, None)
        for there, colour, kind, one, numbers in zip(
            drawn.tolist(), colours, kinds, whole.tolist(), measured.tolist(), strict=True
        )
    ]


def _median_colours(pixels: Tensor, mask: Tensor) -> Tensor:
    """(N, 3) medians of the pixels (N, 3, H, W) of each mask (N, H, W)."""
    chosen = pixels.masked_fill(~mask[:, None], torch.nan)
    return chosen.flatten(2).nanmedian(2).values.nan_to_num()


def _name_colour(colour: Tensor) -> str | None:
    """The nearest name, unless even that is far."""
    palette = torch.tensor(list(SHAPE_COLOURS.values()), dtype=torch.float32)
    distances = (palette - colour).square().sum(1).sqrt()
    nearest = int(distances.argmin())
    return list(SHAPE_COLOURS)[nearest] if distances[nearest] <= FARTHEST_COLOUR else None


def _largest_thing(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Of the things in each mask (N, H, W), where pixels that touch are one thing, that of most pixels.

    Returns:
        Its mask (N, H, W), and the pixels of all others as a share of its own (N,).
    """
    count, height, width = mask.shape
    numbers = torch.arange(1, height * width + 1, dtype=torch.float32).unflatten(0, (height, width)) * mask
    while True:  # each thing takes the largest number of its pixels
        spread = _widened(numbers) * mask
        if torch.equal(spread, numbers):
            break
        numbers = spread
    counts = torch.zeros(count, height * width + 1)
    counts.scatter_add_(1, numbers.long().flatten(1), mask.float().flatten(1))
    most, largest = counts.max(1)
    return (numbers == largest[:, None, None]) & mask, (counts.sum(1) - most) / most.clamp(min=1)


def _widened(values: Tensor) -> Tensor:
    """The largest of each pixel and its eight neighbours (N, H, W); many times as fast as pooling."""
    wide = values.clone()
    wide[:, :, 1:] = torch.maximum(wide[:, :, 1:], values[:, :, :-1])
    wide[:, :, :-1] = torch.maximum(wide[:, :, :-1], values[:, :, 1:])
    most = wide.clone()
    most[:, 1:] = torch.maximum(most[:, 1:], wide[:, :-1])
    most[:, :-1] = torch.maximum(most[:, :-1], wide[:, 1:])
    return most


def _best_shapes(weight: Tensor) -> tuple[list[str], Tensor]:
    """Of what is covered (N, H, W), the kinds; and (N, 4): x, y, side and overlap."""
    height, width = weight.shape[1:]
    area = weight.sum((1, 2))
    across, down = (torch.arange(width) + 0.5) / width, (torch.arange(height) + 0.5) / height
    columns, rows = weight.sum(1) / area[:, None], weight.sum(2) / area[:, None]  # (N, W), (N, H)
    x, y = columns @ across, rows @ down  # (N,)
    spread_x = (columns * (across - x[:, None]).square()).sum(1).sqrt()
    spread_y = (rows * (down - y[:, None]).square()).sum(1).sqrt()
    fine_x = (_fine(width) - x[:, None]) / spread_x[:, None].clamp(min=1e-6)  # (N, 2 W)
    fine_y = (_fine(height) - y[:, None]) / spread_y[:, None].clamp(min=1e-6)
    overlaps, sides = [], []
    for kind in SHAPE_KINDS:
        wide, high, drawn = _draw(kind, fine_x[:, None, :], fine_y[:, :, None])
        ideal = avg_pool2d(drawn.float(), 2)  # (N, H, W), with soft edges
        both, either = torch.minimum(ideal, weight), torch.maximum(ideal, weight)
        overlaps.append(both.sum((1, 2)) / either.sum((1, 2)))
        sides.append((wide * spread_x * high * spread_y).sqrt())
    overlap, best = torch.stack(overlaps).max(0)  # (N,)
    side = torch.stack(sides).gather(0, best[None])[0]
    return [SHAPE_KINDS[number] for number in best.tolist()], torch.stack([x, y, side, overlap], dim=1)


def _draw(kind: str, x: Tensor, y: Tensor) -> tuple[float, float, Tensor]:
    """A shape of spread 1 each way about its middle.

    Returns:
        Its width and height, and which of the places (x across, y down) are inside.
    """
    if kind == "circle":
        return 4.0, 4.0, x.square() + y.square() <= 4  # the spread of a disc is half of its radius
    if kind == "rectangle":
        half = 3**0.5
        return 2 * half, 2 * half, (x.abs() <= half) & (y.abs() <= half)
    wide, high = 24**0.5, 18**0.5  # stands on its base, the middle at a third of its height
    below_tip = y + high * 2 / 3
    return wide, high, (below_tip >= 0) & (below_tip <= high) & (x.abs() <= below_tip * (wide / high / 2))


def _fine(length: int) -> Tensor:
    """The middles of halves of pixels, as shares."""
    return (torch.arange(2 * length) + 0.5) / (2 * length)
