"""What all figures share: a blank page of matplotlib without its global state, and pictures under heat maps.

matplotlib is imported where it is used: arrays need none.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["HEAT", "blank_figure", "seen_images", "show_heat", "show_picture"]

DIMMED = 0.7  # brightness of a picture under a heat map
HEAT = "inferno"  # dark is little, bright is much, and so it stays in grey print
OPACITY = 0.15, 0.85  # of the heat map where it is 0, and where it is brightest


def blank_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches, known to no `pyplot`: nothing to close, safe in threads.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Figures need matplotlib: pip install 'hf-mm[visualize]'.") from error
    return Figure(figsize=(width, height), layout="constrained")


def seen_images(pixel_values: Tensor, processor: Any) -> np.ndarray:
    """The pictures that a model is given, turned back from what its image processor makes of them.

    They may be cut out of the original and of another shape: attention lies on these, not on the original.

    Args:
        pixel_values: (B, 3, Y, X).
        processor: The image processor, or a processor that holds one.

    Returns:
        (B, Y, X, 3) uint8.
    """
    images = getattr(processor, "image_processor", processor)
    pixels = pixel_values.detach().float().cpu().numpy().transpose(0, 2, 3, 1)
    if images.do_normalize:
        pixels = pixels * np.asarray(images.image_std) + np.asarray(images.image_mean)
    return (pixels.clip(0, 1) * 255).round().astype(np.uint8)


def show_picture(axes: "Axes", picture: np.ndarray, title: str = "") -> None:
    """Draw a picture (Y, X, 3) or (Y, X) of colours, without ticks."""
    axes.imshow(picture)
    axes.set_axis_off()
    axes.set_title(title, fontsize="medium", parse_math=False)  # a word may hold a dollar sign


def show_heat(
    axes: "Axes", picture: np.ndarray, heat: np.ndarray, title: str = "", most: float | None = None
) -> None:
    """Draw a picture (Y, X, 3) under a heat map (G, F) that covers it; `most` is the brightest value."""
    height, width = picture.shape[:2]
    show_picture(axes, (picture * DIMMED).astype(np.uint8), title)
    most = most or float(heat.max()) or 1.0
    axes.imshow(
        heat,
        cmap=HEAT,
        alpha=np.interp(heat, (0, most), OPACITY),
        vmin=0,
        vmax=most,
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        interpolation="bilinear",
    )
