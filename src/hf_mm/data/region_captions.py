"""Regions and captions to the batches on which region BERTs learn to write.

Zhou et al. 2020, "Unified Vision-Language Pre-Training for Image Captioning and VQA"
(https://arxiv.org/abs/1909.11059).

Shapes: B rows, L tokens, R regions of the picture with most, F width of a region's feature.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..models.region_bert.processing_region_bert import MMRegionProcessor
from .caption_encoding import encode_captions
from .region_rows import RegionRows
from .row_columns import batch_generator, caption_texts, draw_below, need_columns

__all__ = ["RegionCaptionCollator"]


class RegionCaptionCollator:
    """Makes a batch of texts to be written about pictures, for `MMRegionBertForImageToText`.

    Each text is a prompt, which may be empty, and a caption that follows it. The model reads the prompt with
    the regions and learns to write the caption, to its end. Tags are not read.

    Args:
        processor: Of the model.
        regions_column: Regions as the processor takes them, or the id of the picture in `store`.
        caption_column: A text, or a list of texts of which one is drawn.
        prompt_column: A text before the caption, such as a question; `None` for none.
        store: Regions by the id of the picture.
        box_format: Boxes are "shares" of the image, or "pixels".
        seed: Draw captions by it and by the batch alone; `None` draws from torch's own generator.
    """

    def __init__(
        self,
        processor: MMRegionProcessor,
        regions_column: str = "regions",
        caption_column: str = "caption",
        prompt_column: str | None = None,
        store: Mapping[Any, Mapping[str, Any]] | None = None,
        box_format: str = "shares",
        seed: int | None = None,
    ) -> None:
        self.processor = processor
        self.regions = RegionRows(regions_column, store)
        self.caption_column = caption_column
        self.prompt_column = prompt_column
        self.box_format = box_format
        self.seed = seed

    def __call__(self, rows: Sequence[dict]) -> dict[str, Tensor]:
        """Inputs of the model.

        Returns:
            `input_ids`, `attention_mask` and `token_type_ids` (B, L), `labels` (B, L), the token at each
            place of the caption and of what ends it, -100 elsewhere; `region_features` (B, R, F),
            `region_boxes` (B, R, 4) and `region_mask` (B, R).

        Raises:
            ValueError: A row lacks a column, regions or a caption, a text is too long, or regions cannot be
                used.
        """
        columns = {"regions_column": self.regions.column, "caption_column": self.caption_column}
        if self.prompt_column is not None:
            columns["prompt_column"] = self.prompt_column
        need_columns(rows, **columns)
        captions = [caption_texts(row, self.caption_column, number) for number, row in enumerate(rows)]
        generator = batch_generator(self.seed, captions)
        texts = [of_row[draw_below(len(of_row), generator)] for of_row in captions]
        prompts = ["" if self.prompt_column is None else row[self.prompt_column] for row in rows]
        text = encode_captions(self.processor, prompts, texts)
        del text["prefix_mask"]  # that is where there is no label
        return {**text, **self.processor.encode_regions(self.regions(rows), self.box_format)}
