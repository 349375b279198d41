"""The feature map of any backbone, and what boxes hold on it: features for regions that are given.

He et al. 2017, "Mask R-CNN" (https://arxiv.org/abs/1703.06870): one pass over the picture, then each box
reads the map (`roi_align`). A convolutional network gives a map itself; the tokens of a ViT are laid out as
one.

Shapes: B pictures, C channels, H x W pixels, Y x X cells, r boxes of one picture, h x w bins, P classes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..imaging.roi_align import roi_align

__all__ = ["Backbone", "feature_map", "image_pixels", "read_boxes"]

Backbone = nn.Module | Callable[[Tensor], Tensor | tuple[Tensor, Tensor]]
"""An `AutoBackbone`, an `AutoModel` for vision, or anything that makes a map (B, C, Y, X) of pixels, or that
and a map of logits (B, P, Y, X) of classes."""


def feature_map(backbone: Any, pixel_values: Tensor, layer: int = -1) -> tuple[Tensor, Tensor | None]:
    """Run a backbone.

    Args:
        backbone: See `Backbone`; a model that is not in evaluation mode is run as it is.
        pixel_values: (B, 3, H, W).
        layer: Which of the maps of an `AutoBackbone`, or of the hidden states of an `AutoModel`; -1 is the
            last, as the model gives it.

    Returns:
        The map (B, C, Y, X), and the logits (B, P, Y, X) of a callable that gives them, else `None`.

    Raises:
        ValueError: What it gives is no map.
    """
    if not hasattr(backbone, "config"):
        if layer != -1:
            raise ValueError(f"`layer`={layer} is for models of transformers; build the map in the callable.")
        found = backbone(pixel_values)
        maps, classes = found if isinstance(found, tuple) else (found, None)
        return _is_map(maps, backbone), classes
    outputs = backbone(pixel_values=pixel_values, **({} if layer == -1 else {"output_hidden_states": True}))
    if outputs.get("feature_maps") is not None:
        return _is_map(_pick(outputs["feature_maps"], layer, backbone), backbone), None
    states = outputs.get("last_hidden_state") if layer == -1 else outputs.get("hidden_states")
    if layer != -1:
        states = _pick(states, layer, backbone)
    if isinstance(states, Tensor) and states.ndim == 3:
        states = _tokens_as_map(states, pixel_values, backbone)
    return _is_map(states, backbone), None


def read_boxes(
    maps: Tensor, boxes: Sequence[Tensor], seen: Tensor, bins: int, sampling_ratio: int | None
) -> list[Tensor]:
    """What boxes hold on the maps of their pictures.

    Args:
        maps: (B, C, Y, X).
        boxes: (r, 4) shares of each picture.
        seen: (B, 2), which share of the map's width and height the picture takes; the rest is padding.
        bins: Per side, h = w.
        sampling_ratio: As `roi_align` takes it.

    Returns:
        (r, C * h * w) of each picture, channel by channel.
    """
    counts = torch.tensor([len(part) for part in boxes])
    image_index = torch.arange(len(boxes)).repeat_interleave(counts).to(maps.device)
    cells = torch.tensor([maps.shape[3], maps.shape[2]], device=maps.device)  # (2,)
    scale = (seen.to(maps.device) * cells).repeat(1, 2)  # (B, 4)
    on_map = torch.cat(list(boxes)).to(maps.device) * scale[image_index]
    found = roi_align(maps, on_map, image_index, bins, sampling_ratio)  # (all r, C, h, w)
    return list(found.flatten(1).split(counts.tolist()))


def image_pixels(image_processor: Any, pictures: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Pixels as an image processor makes them, of the whole of each picture.

    Args:
        image_processor: Of the backbone.
        pictures: What it reads.

    Returns:
        `pixel_values` (B, 3, H, W), and (B, 2): which share of W and H the picture takes.

    Raises:
        ValueError: The processor cuts pictures: boxes would lie elsewhere.
    """
    if getattr(image_processor, "do_center_crop", None):
        raise ValueError(
            f"The image processor {type(image_processor).__name__} cuts pictures (`do_center_crop`), and "
            "boxes would miss; set `do_center_crop=False` and `size` to a height and a width."
        )
    inputs = image_processor(images=list(pictures), return_tensors="pt")
    pixels = inputs["pixel_values"]
    mask = inputs.get("pixel_mask")
    if mask is None:
        return pixels, torch.ones(len(pixels), 2)
    widths, heights = mask.any(1).sum(1) / mask.shape[2], mask.any(2).sum(1) / mask.shape[1]
    return pixels, torch.stack([widths, heights], dim=1)


def _pick(maps: Any, layer: int, backbone: Any) -> Any:
    if not maps or not -len(maps) <= layer < len(maps):
        raise ValueError(
            f"`layer`={layer} is none of the {len(maps or ())} layers that {type(backbone).__name__} gives."
        )
    return maps[layer]


def _tokens_as_map(states: Tensor, pixel_values: Tensor, backbone: Any) -> Tensor:
    """The patches' states, (B, tokens, C), as (B, C, Y, X); what stands before them is left out."""
    patch = backbone.config.patch_size
    sides = (patch, patch) if isinstance(patch, int) else tuple(patch)
    rows, columns = (length // side for length, side in zip(pixel_values.shape[2:], sides, strict=True))
    if states.shape[1] < rows * columns:
        raise ValueError(
            f"{type(backbone).__name__} gives {states.shape[1]} tokens for {rows} x {columns} patches; open "
            "it by `AutoBackbone`, which gives maps."
        )
    return states[:, -rows * columns :].unflatten(1, (rows, columns)).permute(0, 3, 1, 2)


def _is_map(found: Any, backbone: Any) -> Tensor:
    if not isinstance(found, Tensor) or found.ndim != 4:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"The backbone {type(backbone).__name__} gives no map (images, channels, rows, columns) but "
            f"{shape}; give a bare vision model."
        )
    return found
