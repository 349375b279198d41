"""Random views of a batch of pictures, for training on few: moved, scaled, turned, mirrored, recoloured.

One affine resampling for the whole batch instead of an operation for each picture.

Shapes: B pictures, C channels, Y x X pixels.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["RandomViews"]


@dataclass(frozen=True)
class RandomViews:
    """Draws another view of each picture of a batch; call it with `pixel_values`.

    What a view shows beyond the picture repeats its edge. Recolouring assumes pixels around zero, as image
    processors make them.

    Args:
        shift: Most a picture moves, as a share of its side.
        scale: Least and most that it grows, as a factor.
        degrees: Most it turns, either way.
        mirror: Share of pictures mirrored left to right; 0 where left and right have a meaning.
        contrast: Most its contrast changes, as a factor minus one: 0.2 is 0.8 to 1.2.
        brightness: Most it gets lighter or darker, in the unit of the pixels.
        saturation: As `contrast`, for the distance of the colours from grey.
    """

    shift: float = 0.08
    scale: tuple[float, float] = (0.85, 1.15)
    degrees: float = 12.0
    mirror: float = 0.5
    contrast: float = 0.2
    brightness: float = 0.1
    saturation: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(
                f"`scale`={self.scale} must be two factors above 0, the smaller first; (1.0, 1.0) for none."
            )
        if not 0 <= self.mirror <= 1:
            raise ValueError(f"`mirror`={self.mirror} is a share of the pictures and must be from 0 to 1.")

    def __call__(self, pixel_values: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B, C, Y, X) float pixels to as many new ones, drawn from torch's generator or `generator`."""
        if pixel_values.ndim != 4 or not pixel_values.is_floating_point():
            raise ValueError(
                "`pixel_values` must be floats (batch, channels, height, width), got "
                f"{tuple(pixel_values.shape)} of {pixel_values.dtype}."
            )
        draws = torch.rand(8, len(pixel_values), 1, 1, generator=generator).to(pixel_values)  # (8, B, 1, 1)
        views = self._moved(pixel_values, draws[:5, :, 0, 0])
        return self._recoloured(views, 2 * draws[5:].unsqueeze(-1) - 1)

    def _moved(self, pictures: Tensor, draws: Tensor) -> Tensor:
        low, high = map(math.log, self.scale)
        zoom = torch.exp(low + (high - low) * draws[0])  # (B,)
        angle = math.radians(self.degrees) * (2 * draws[1] - 1)
        flip = 1 - 2 * (draws[2] < self.mirror).to(draws)
        cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
        move = 2 * self.shift * (2 * draws[3:5] - 1)  # (2, B), the grid runs from -1 to 1
        top = torch.stack((cos * flip, -sin, move[0]), dim=-1)  # (B, 3)
        bottom = torch.stack((sin * flip, cos, move[1]), dim=-1)
        matrix = torch.stack((top, bottom), dim=1)  # (B, 2, 3)
        grid = nn.functional.affine_grid(matrix, list(pictures.shape), align_corners=False)
        return nn.functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)

    def _recoloured(self, pictures: Tensor, draws: Tensor) -> Tensor:
        """`draws` is (3, B, 1, 1, 1) in -1..1."""
        grey = pictures.mean(dim=1, keepdim=True)
        pictures = grey + (pictures - grey) * (1 + self.saturation * draws[0])
        return pictures * (1 + self.contrast * draws[1]) + self.brightness * draws[2]
