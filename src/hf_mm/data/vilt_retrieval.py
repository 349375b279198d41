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
from .row_columns import batch_generator, caption_texts, need_columns, read_images
from .text_candidates import TextCandidates

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
        self.processor = processor
        self.candidates = TextCandidates(texts, candidates)
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
        generator, draw = batch_generator(self.seed, captions), self.candidates.draw
        texts = [text for number, true in enumerate(captions) for text in draw(true, number, generator)]
        images = read_images(rows, self.image_column, self.augment, generator)
        return {
            **self.processor(images=images, text=texts, truncation=self.truncation),
            "image_index": torch.arange(len(rows)).repeat_interleave(self.candidates.count),
            "labels": torch.zeros(len(rows), dtype=torch.int64),
        }
