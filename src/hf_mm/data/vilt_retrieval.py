"""Pictures with one true and several false texts, to the batches on which ViLT learns to rank.

Kim et al. 2021, "ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision", section
4.3 (https://arxiv.org/abs/2102.03334).

Shapes: B pictures, K texts of each, L tokens, Y x X pixels of the largest picture.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from PIL import Image
from torch import Tensor

from ..models.vilt.processing_vilt import MMViltProcessor
from .row_columns import batch_generator, caption_texts, draw_below, need_columns, read_images

__all__ = ["ViltRetrievalCollator"]


class ViltRetrievalCollator:
    """Makes a batch of pictures with K texts each, the first of them true.

    For `MMViltForImageAndTextRetrieval`. False texts are drawn from all texts of the training set but the
    captions of the picture itself: give all captions that are true of it.

    Args:
        processor: Of the model.
        texts: All texts of the training set; those that occur more than once count once.
        candidates: K; 16 in ViLT.
        image_column: Pictures, as `load_rgb` reads them.
        caption_column: A text, or a list of texts of which one is drawn.
        truncation: Cut texts that are too long; otherwise they are an error.
        augment: Called with each picture as PIL image, returns the one to train on.
        seed: Draw by it and by the batch alone; `None` draws from torch's own generator.

    Raises:
        ValueError: Less than two candidates.
    """

    def __init__(
        self,
        processor: MMViltProcessor,
        texts: Iterable[str],
        candidates: int = 16,
        image_column: str = "image",
        caption_column: str = "caption",
        truncation: bool = False,
        augment: Callable[[Image.Image], Image.Image] | None = None,
        seed: int | None = None,
    ) -> None:
        if candidates < 2:
            raise ValueError(f"`candidates`={candidates} must be at least 2: a true text and a false one.")
        self.processor = processor
        self.texts = list(dict.fromkeys(texts))
        self.known = set(self.texts)
        self.candidates = candidates
        self.image_column = image_column
        self.caption_column = caption_column
        self.truncation = truncation
        self.augment = augment
        self.seed = seed

    def __call__(self, rows: Sequence[dict]) -> dict[str, Tensor]:
        """Inputs of the model.

        Returns:
            `input_ids`, `attention_mask` and `token_type_ids` (B * K, L), the texts of a picture side by
            side; `image_index` (B * K,), the picture of each; `pixel_values` (B, 3, Y, X), `pixel_mask` (B,
            Y, X) and `labels` (B,), all 0: the first text is the true one.

        Raises:
            ValueError: A row lacks a column or a caption, there are too few false texts, one is too long, or
                a picture cannot be used.
            FileNotFoundError: An image file is missing.
        """
        need_columns(rows, image_column=self.image_column, caption_column=self.caption_column)
        captions = [caption_texts(row, self.caption_column, number) for number, row in enumerate(rows)]
        generator = batch_generator(self.seed, captions)
        texts = [text for number, true in enumerate(captions) for text in self._draw(true, number, generator)]
        images = read_images(rows, self.image_column, self.augment)
        return {
            **self.processor(images=images, text=texts, truncation=self.truncation),
            "image_index": torch.arange(len(rows)).repeat_interleave(self.candidates),
            "labels": torch.zeros(len(rows), dtype=torch.int64),
        }

    def _draw(self, true: list[str], number: int, generator: torch.Generator | None) -> list[str]:
        """A true text and K - 1 different false ones."""
        false = len(self.texts) - len(self.known & set(true))
        if false < self.candidates - 1:
            raise ValueError(
                f"Row {number} of the batch needs {self.candidates - 1} false texts, `texts` has {false} "
                "that are no captions of its own; give more texts, or fewer `candidates`."
            )
        drawn = {true[draw_below(len(true), generator)]: None}
        barred = set(true)
        while len(drawn) < self.candidates:
            text = self.texts[draw_below(len(self.texts), generator)]
            if text not in barred:
                drawn[text] = None
        return list(drawn)
