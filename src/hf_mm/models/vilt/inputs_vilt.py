"""What ViLT is given: images that go with texts, or an error that says why not.

Shapes: I images, C channels, Y x X pixels, P patch side, G x F patches, D width.
"""

import torch
from torch import Tensor

from .configuration_vilt import MMViltConfig
from .layout_vilt import PatchGrids

__all__ = ["check_images", "mask_grids", "patch_grids"]


def check_images(
    config: MMViltConfig,
    rows: int,
    pixel_values: Tensor | None,
    pixel_mask: Tensor | None,
    patch_embeds: Tensor | None,
    image_index: Tensor | None,
) -> None:
    """Refuse images that do not go with `rows` texts.

    Raises:
        ValueError: None or both kinds are given, or shapes and numbers do not go together.
    """
    if (pixel_values is None) == (patch_embeds is None):
        raise ValueError("Give either `pixel_values` or `patch_embeds`, one of them.")
    if pixel_values is not None:
        if pixel_values.ndim != 4:
            raise ValueError(
                f"`pixel_values` must be (images, {config.num_channels}, height, width), got "
                f"{tuple(pixel_values.shape)}."
            )
        images, sides = len(pixel_values), tuple(pixel_values.shape[2:])
    else:
        assert patch_embeds is not None
        if patch_embeds.ndim != 4:
            raise ValueError(
                f"`patch_embeds` must be (images, rows, columns, {config.hidden_size}), got "
                f"{tuple(patch_embeds.shape)}; `embed_patches` makes them."
            )
        images, sides = len(patch_embeds), tuple(n * config.patch_size for n in patch_embeds.shape[1:3])
    if pixel_mask is not None and tuple(pixel_mask.shape) != (images, *sides):
        raise ValueError(
            f"`pixel_mask` must be {(images, *sides)} as the images are, got {tuple(pixel_mask.shape)}."
        )
    if image_index is None and images != rows:
        raise ValueError(
            f"{rows} texts and {images} images: give one image for each text, or say by `image_index` which "
            "image goes with each text."
        )
    if image_index is not None and (image_index.shape != (rows,) or image_index.is_floating_point()):
        raise ValueError(
            f"`image_index` must be ({rows},) numbers of images, got {tuple(image_index.shape)} of "
            f"{image_index.dtype}."
        )


def patch_grids(patch_embeds: Tensor, pixel_mask: Tensor | None, patch_size: int) -> PatchGrids:
    """The grids of images of which (I, G, F, D) patches and an (I, Y, X) mask are given.

    A patch is part of its image when its upper left pixel is.
    """
    if pixel_mask is not None:
        return PatchGrids.of_mask(pixel_mask[:, ::patch_size, ::patch_size].bool())
    images, rows, columns = patch_embeds.shape[:3]
    return PatchGrids.of_mask(patch_embeds.new_ones(images, rows, columns, dtype=torch.bool))


def mask_grids(pixel_values: Tensor, pixel_mask: Tensor | None, patch_size: int) -> PatchGrids:
    """The same of (I, C, Y, X) pixels."""
    return patch_grids(pixel_values[:, 0, ::patch_size, ::patch_size].unsqueeze(3), pixel_mask, patch_size)
