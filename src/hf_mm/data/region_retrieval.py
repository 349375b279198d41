"""Regions with one true and several false texts, to the batches on which region BERTs learn to rank.

Lu et al. 2019, "ViLBERT", section 3.2, "Caption-Based Image Retrieval" (https://arxiv.org/abs/1908.02265);
with false texts alone: Chen et al. 2020, "UNITER", section 4 (https://arxiv.org/abs/1909.11740).

Shapes: B pictures, K texts of each, L tokens, R regions of the picture with most, F width of a feature.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..models.region_bert.processing_region_bert import MMRegionProcessor
from .region_rows import RegionRows
from .row_columns import batch_generator, caption_texts, need_columns
from .text_candidates import TextCandidates

__all__ = ["RegionRetrievalCollator"]


class RegionRetrievalCollator:
    """Makes a batch of pictures with K texts each, the first of them true.

    For `MMRegionBertForImageAndTextRetrieval`. False texts are drawn from all texts of the training set but
    the captions of the picture itself: give all captions that are true of it. With a processor that reads
    tags each text has those of its picture behind it.

    Args:
        processor: Of the model.
        texts: All texts of the training set; those that occur more than once count once.
        candidates: K.
        regions_column: Regions as the processor takes them, or the id of the picture in `store`.
        caption_column: A text, or a list of texts of which one is drawn.
        store: Regions by the id of the picture.
        box_format: Boxes are "shares" of the image, or "pixels".
        truncation: Cut texts that are too long; otherwise they are an error.
        seed: Draw by it and by the batch alone; `None` draws from torch's own generator.

    Raises:
        ValueError: Less than two candidates.
    """

    def __init__(
        self,
        processor: MMRegionProcessor,
        texts: Iterable[str],
        candidates: int = 4,
        regions_column: str = "regions",
        caption_column: str = "caption",
        store: Mapping[Any, Mapping[str, Any]] | None = None,
        box_format: str = "shares",
        truncation: bool = False,
        seed: int | None = None,
    ) -> None:
        self.processor = processor
        self.candidates = TextCandidates(texts, candidates)
        self.regions = RegionRows(regions_column, store)
        self.caption_column = caption_column
        self.box_format = box_format
        self.truncation = truncation
        self.seed = seed

    def __call__(self, rows: Sequence[dict]) -> dict[str, Tensor]:
        """Inputs of the model.

        Returns:
            `input_ids`, `attention_mask` and `token_type_ids` (B * K, L), the texts of a picture side by
            side; `region_index` (B * K,), the picture of each; `region_features` (B, R, F), `region_boxes`
            (B, R, 4), `region_mask` (B, R) and `labels` (B,), all 0: the first text is the true one.

        Raises:
            ValueError: A row lacks a column, regions or a caption, there are too few false texts, one is too
                long, or regions cannot be used.
        """
        need_columns(rows, regions_column=self.regions.column, caption_column=self.caption_column)
        captions = [caption_texts(row, self.caption_column, number) for number, row in enumerate(rows)]
        generator, draw = batch_generator(self.seed, captions), self.candidates.draw
        texts = [text for number, true in enumerate(captions) for text in draw(true, number, generator)]
        regions = self.regions(rows)
        index = torch.arange(len(rows)).repeat_interleave(self.candidates.count)
        tags = None
        if self.processor.max_tags:
            of_pictures = self.processor.tags_of(regions)
            tags = [of_pictures[picture] for picture in index.tolist()]
        return {
            **self.processor.encode_texts(texts, tags, truncation=self.truncation),
            **self.processor.encode_regions(regions, self.box_format),
            "region_index": index,
            "labels": torch.zeros(len(rows), dtype=torch.int64),
        }
