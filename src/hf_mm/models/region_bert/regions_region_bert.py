"""What a detector found in pictures, checked and padded to a batch.

Shapes: B pictures, R regions of the one with most, r of one picture, F width of a region's feature.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...imaging.box_shares import box_shares

__all__ = ["padded_regions"]


def padded_regions(
    regions: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    box_format: str = "shares",
    feature_size: int | None = None,
    detector: str | None = None,
) -> dict[str, Tensor]:
    """Regions of pictures as one batch.

    Args:
        regions: Of each of B pictures: `boxes` (r, 4), `features` (r, F), and where they are known
            `image_size` (width, height) in pixels and the name of the `detector`.
        names: What to call each picture in errors.
        box_format: Boxes are "shares" of the image, or "pixels".
        feature_size: F of the model; by default that of the first picture.
        detector: The detector that the model was trained on; by default any. Pictures that do not name theirs
            are taken as they are.

    Returns:
        `region_features` (B, R, F) and `region_boxes` (B, R, 4) float32, zeros at padding, and `region_mask`
        (B, R) int64, 1 on regions.

    Raises:
        ValueError: A picture has no regions, features of another width or detector, values that are not
            finite, or boxes that are none in the picture.
    """
    features, boxes = [], []
    for found, name in zip(regions, names, strict=True):
        if not isinstance(found, Mapping) or not {"boxes", "features"} <= set(found):
            given = sorted(map(str, found)) if isinstance(found, Mapping) else f"{found!r:.80}"
            raise ValueError(f"{name} must have `boxes` and `features` of each region, got {given}.")
        _check_detector(found, detector, name)
        boxes.append(box_shares(found["boxes"], found.get("image_size"), box_format, name))
        features.append(_features(found["features"], len(boxes[-1]), feature_size, name))
        feature_size = features[-1].shape[1]
    mask = pad_sequence(
        [torch.ones(len(of_image), dtype=torch.int64) for of_image in boxes], batch_first=True
    )
    return {
        "region_features": pad_sequence(features, batch_first=True),
        "region_boxes": pad_sequence(boxes, batch_first=True),
        "region_mask": mask,
    }


def _check_detector(found: Mapping[str, Any], detector: str | None, name: str) -> None:
    other = found.get("detector")
    if detector is not None and other is not None and other != detector:
        raise ValueError(
            f"{name} has regions of the detector {other!r}, the model was trained on those of {detector!r}; "
            "features of one say nothing to the other: extract them with the same detector."
        )


def _features(features: Any, count: int, width: int | None, name: str) -> Tensor:
    """(r, F) float32."""
    found = torch.as_tensor(features).detach().float().cpu()
    if found.ndim != 2 or len(found) != count:
        raise ValueError(
            f"{name}: `features` must be ({count}, width), a row for each of its {count} boxes, got "
            f"{tuple(found.shape)}."
        )
    if width is not None and found.shape[1] != width:
        raise ValueError(
            f"{name}: `features` is {found.shape[1]} wide, {width} is wanted; extract them with the detector "
            "of the model (`feature_size`) for all pictures."
        )
    if not found.isfinite().all():
        row = int((~found.isfinite()).any(1).nonzero()[0])
        raise ValueError(
            f"{name}, region {row}: `features` has a value that is not finite; extract them anew."
        )
    return found
