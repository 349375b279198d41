"""Rows of pictures and captions to the batches that `ContrastiveTrainer` reads."""

import hashlib
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..imaging.loading import load_rgb

__all__ = ["PairCollator"]

INPUTS = ("pixel_values", "input_ids", "attention_mask")


class PairCollator:
    """Makes a batch of pairs; of several captions of a picture it draws one.

    The draw, and torch's generator while `augment` runs, depend on `seed` and on all captions of the batch,
    in their order, and on nothing else. Shuffled rows meet in other batches each epoch, so that other
    captions are drawn; the same batch gives the same draw, in any worker, process or resumed run, however
    many batches were fetched ahead. Without shuffling each epoch has the same captions. (A generator would
    not do: fetching ahead has moved it on by the time a checkpoint keeps its state.)

    Two rows of a batch with the same caption stay both, each a wrong answer of the other that cannot be told
    from the right one. k equal captions keep the softmax loss of their pictures above ln(k) and push apart
    pictures that should be close. With few distinct captions, as names of classes, take small batches or let
    captions say more, and read the loss against that floor.

    Args:
        processor: An `MMCLIPProcessor`, a `CLIPProcessor` or any that takes `images` and `text`. Captions are
            padded to the longest of the batch and cut to the tokenizer's `model_max_length`.
        image_column: Pictures, as `load_rgb` reads them.
        caption_column: A text, or a list of texts, of which empty ones are left out.
        seed: Another seed, other draws.
        augment: Called with the batch's `pixel_values` (B, C, Y, X), returns as many views to train on, such
            as `RandomViews()`.
    """

    def __init__(
        self,
        processor: Callable[..., Any],
        image_column: str = "image",
        caption_column: str = "caption",
        seed: int = 0,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.processor = processor
        self.image_column = image_column
        self.caption_column = caption_column
        self.seed = seed
        self.augment = augment

    def __call__(self, rows: Sequence[dict]) -> dict[str, Tensor]:
        """Inputs of the model.

        Returns:
            `pixel_values` (B, C, Y, X), `input_ids` and `attention_mask` (B, length).

        Raises:
            ValueError: A row lacks a column or a caption, or its image cannot be read; it is named.
            FileNotFoundError: An image file is missing.
        """
        for number, row in enumerate(rows):
            missing = [name for name in (self.image_column, self.caption_column) if name not in row]
            if missing:
                raise ValueError(
                    f"Row {number} of the batch has no {missing}, only {sorted(row)}; name the columns by "
                    "`image_column` and `caption_column`, and keep them (`remove_unused_columns=False`)."
                )
        choices = [self._captions(number, row) for number, row in enumerate(rows)]
        seed = int.from_bytes(hashlib.sha256(repr((self.seed, choices)).encode()).digest()[:8], "little")
        generator = random.Random(seed)
        captions = [generator.choice(texts) for texts in choices]
        images = [
            _unmistakable(
                load_rgb(row[self.image_column], f"Row {number} of the batch, {self.image_column!r}")
            )
            for number, row in enumerate(rows)
        ]
        inputs = self.processor(
            images=images, text=captions, padding=True, truncation=True, return_tensors="pt"
        )
        batch = {name: inputs[name] for name in INPUTS}
        if self.augment is not None:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)  # that of the CPU alone: dropout goes on as it was
                batch["pixel_values"] = self.augment(batch["pixel_values"])
        return batch

    def _captions(self, number: int, row: dict) -> list[str]:
        value = row[self.caption_column]
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"Row {number} of the batch has {value!r:.100} in {self.caption_column!r}; a caption is a "
                "text or a list of texts."
            )
        texts = [text for text in texts if text.strip()]
        if not texts:
            raise ValueError(
                f"Row {number} of the batch has no caption in {self.caption_column!r}: {value!r:.100}; leave "
                "the row out or give one."
            )
        return texts


def _unmistakable(pixels: np.ndarray) -> np.ndarray | Image.Image:
    """A picture of 1, 3 or 4 rows as PIL: processors would take the rows of an array for channels."""
    return Image.fromarray(pixels) if pixels.shape[0] in (1, 3, 4) else pixels
