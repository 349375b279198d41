"""Boxes as anyone may hold them, as checked shares of their picture: x1, y1, x2, y2 in 0..1.

Shapes: R boxes of one picture.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["box_shares"]

ROUNDING_OF_SHARES = 1e-4  # so far may a box reach out of its picture; it is then cut


def box_shares(
    boxes: Any, image_size: Sequence[int] | None = None, box_format: str = "shares", name: str = "The picture"
) -> Tensor:
    """Boxes as shares of their picture.

    Args:
        boxes: (R, 4) numbers, x1, y1, x2, y2.
        image_size: Width and height in pixels; needed for boxes in pixels alone.
        box_format: "shares" of width and height, or "pixels".
        name: What to call the picture in errors.

    Returns:
        (R, 4) float32 on the CPU, x1 < x2 and y1 < y2.

    Raises:
        ValueError: There is no box; one is no box, has no area or reaches out of the picture; or shares were
            given for pixels, pixels for shares.
    """
    if box_format not in ("shares", "pixels"):
        raise ValueError(f"`box_format`={box_format!r} must be 'shares' of the image or 'pixels'.")
    found = torch.as_tensor(boxes).detach().float().cpu()
    if not found.numel():
        raise ValueError(f"{name} has no regions; leave it out, or give the whole image as one region.")
    if found.ndim != 2 or found.shape[1] != 4:
        raise ValueError(
            f"{name}: `boxes` must be (regions, 4), x1, y1, x2, y2 of each, got {tuple(found.shape)}."
        )
    if box_format == "pixels":
        found = found / torch.tensor([*_size(found, image_size, name)] * 2)
    most = float(torch.as_tensor(boxes).max())
    if box_format == "shares" and most > 2:
        raise ValueError(
            f"{name}: `boxes` must be x1, y1, x2, y2 as shares of the image in 0..1, got a maximum of "
            f"{most:.6g}; divide by width and height, or give `image_size` and `box_format='pixels'`."
        )
    _refuse_boxes(found, boxes, name, "0..1" if box_format == "shares" else f"its {_written(image_size)} px")
    return found.clamp(0, 1)


def _size(boxes: Tensor, image_size: Sequence[int] | None, name: str) -> tuple[float, float]:
    """Width and height of a picture whose boxes are in pixels."""
    if image_size is None:
        raise ValueError(f"{name} has boxes in pixels but no `image_size`; give (width, height).")
    width, height = (float(side) for side in image_size)
    if min(width, height) < 1:
        raise ValueError(f"{name} has the `image_size` {tuple(image_size)}; give width and height in pixels.")
    if boxes.max() <= 1 and min(width, height) > 2:
        raise ValueError(
            f"{name} of {_written(image_size)} px has boxes up to {float(boxes.max()):.4g} px, which look "
            "like shares of the image; set `box_format='shares'`."
        )
    return width, height


def _written(image_size: Sequence[int] | None) -> str:
    return "x".join(f"{side:g}" for side in image_size or ())


def _refuse_boxes(shares: Tensor, given: Any, name: str, limits: str) -> None:
    """The first box that is none, by its number and as it was given."""
    outside = ~((shares >= -ROUNDING_OF_SHARES) & (shares <= 1 + ROUNDING_OF_SHARES)).all(1)  # also NaN
    empty = (shares[:, 2:] <= shares[:, :2]).any(1)
    wrong = (outside | empty).nonzero()
    if not len(wrong):
        return
    row = int(wrong[0])
    box = [round(number, 4) for number in torch.as_tensor(given)[row].tolist()]
    if outside[row]:
        raise ValueError(
            f"{name}, region {row}: the box {box} is not in the image, {limits}; cut it to the image, or "
            "leave the region out."
        )
    raise ValueError(
        f"{name}, region {row}: the box {box} has no area; give x1, y1, x2, y2 with x1 < x2 and y1 < y2 "
        "(x, y, width and height are another form)."
    )
