"""Batches whose pictures are seen another way each time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .row_columns import batch_generator

__all__ = ["ViewedCollator"]


@dataclass(frozen=True)
class ViewedCollator:
    """A collator, and behind it random views of the pictures.

    The draws follow from `seed` and from the texts of the batch, so that a run that is resumed sees its
    pictures as it would have without the stop, however many batches were fetched ahead.

    Args:
        collator: Makes batches, with `input_ids`, and `pixel_values` (..., 3, S, S) where there are pictures.
        views: (V, 3, S, S) pixels and a source of chance to as many new pixels, such as `RandomViews`.
        seed: Another seed, other views; `None` draws from torch's own generator.
    """

    collator: Callable[[Sequence[dict]], dict[str, Tensor]]
    views: Callable[[Tensor, torch.Generator | None], Tensor]
    seed: int | None = 0

    def __call__(self, rows: Sequence[dict]) -> dict[str, Tensor]:
        """A batch of rows, seen another way."""
        batch = self.collator(rows)
        if "pixel_values" in batch:
            generator = batch_generator(self.seed, batch["input_ids"].tolist())
            pixels = batch["pixel_values"]
            pictures = pixels.flatten(0, -4)  # several pictures of a row are seen each in its own way
            batch["pixel_values"] = self.views(pictures, generator).view_as(pixels)
        return batch
