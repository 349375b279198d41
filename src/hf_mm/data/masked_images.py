"""Batches of images with hidden patches, for masked image modelling.

Shapes: B images, N patches.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from transformers import BaseImageProcessor

from ..imaging.loading import load_rgb
from ..objectives.masked_image import block_patch_masks, random_patch_masks

__all__ = ["MaskedImageCollator"]


class MaskedImageCollator:
    """Rows with an image to `pixel_values`, `bool_masked_pos` and `labels` of `MMViTForMaskedImageModeling`.

    Every image of a batch has the same number of hidden patches.

    Args:
        processor: The image processor of the model.
        patch_size: Side of a patch, in pixels, as in the model's config.
        share: Hidden share of an image; SimMIM hides 0.6 of it, BEiT 0.4, MAE 0.75.
        masks: "random", squares of patches anywhere; or "block", rectangles of BEiT.
        unit: Side of the squares, in patches; SimMIM hides 32 px. Only for "random".
        smallest: Least area of a rectangle, in patches. Only for "block".
        image_column: Column of the image, of any kind that `load_rgb` reads.
        seed: Hide the same patches in each batch, so that evaluations can be compared; `None` draws from
            torch's own generator.
    """

    def __init__(
        self,
        processor: BaseImageProcessor,
        patch_size: int,
        share: float = 0.6,
        masks: Literal["random", "block"] = "random",
        unit: int = 1,
        smallest: int = 16,
        image_column: str = "image",
        seed: int | None = None,
    ) -> None:
        if masks not in ("random", "block"):
            raise ValueError(f'`masks`={masks!r} is not known; use "random" or "block".')
        self.processor = processor
        self.patch_size = patch_size
        self.share = share
        self.masks = masks
        self.unit = unit
        self.smallest = smallest
        self.image_column = image_column
        self.seed = seed

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The batch of `rows`; `labels` (B, N) is -100 on visible patches.

        Raises:
            ValueError: There is no such column, an image cannot be read, or its side is not a whole number
                of patches.
        """
        if self.image_column not in rows[0]:
            raise ValueError(
                f"The rows need a column `{self.image_column}`, they have {sorted(rows[0])}; name it by "
                "`image_column`, and with Trainer set `remove_unused_columns=False`."
            )
        images = [load_rgb(row[self.image_column], f"image {i}") for i, row in enumerate(rows)]
        pixel_values = self.processor(images, return_tensors="pt")["pixel_values"]
        height, width = pixel_values.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"The processor makes {height}x{width} px, not a multiple of `patch_size`={self.patch_size}; "
                "use the processor and the patch size of one model."
            )
        masks = self._draw(len(rows), (height // self.patch_size, width // self.patch_size))  # (B, N)
        labels = torch.where(masks, 1, -100)
        return {"pixel_values": pixel_values, "bool_masked_pos": masks, "labels": labels}

    def _draw(self, rows: int, grid: tuple[int, int]) -> Tensor:
        generator = None if self.seed is None else torch.Generator().manual_seed(self.seed)
        if self.masks == "random":
            return random_patch_masks(rows, grid, self.share, self.unit, generator)
        return block_patch_masks(rows, grid, self.share, self.smallest, generator)
