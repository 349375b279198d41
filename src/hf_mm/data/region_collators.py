"""Rows of questions, expressions or statements to the batches of the heads of region BERTs.

Questions: Tan and Bansal 2019, "LXMERT", section 4.1 (https://arxiv.org/abs/1908.07490). Expressions that
refer to a region, and captions: Lu et al. 2019, "ViLBERT", section 3.2 (https://arxiv.org/abs/1908.02265);
Zhou et al. 2020, "Unified Vision-Language Pre-Training for Image Captioning and VQA"
(https://arxiv.org/abs/1909.11059).

Shapes: B rows, L tokens, I pictures of a row, R regions of the picture with most, F width of a region's
feature, A answers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..imaging.box_shares import box_shares
from ..imaging.boxes import box_iou
from ..models.region_bert.processing_region_bert import MMRegionProcessor
from .answer_labels import AnswerLabels
from .region_rows import RegionRows
from .row_columns import need_columns, read_class, read_text

__all__ = ["PairsOfRegionsCollator", "RegionQuestionCollator", "RegionSelectionCollator"]

LEAST_OVERLAP = 0.5  # of a region with the box that is meant, for it to be the right one


class RegionQuestionCollator:
    """Makes a batch of questions about pictures, with labels for `MMRegionBertForQuestionAnswering`.

    Args:
        processor: Of the model.
        label2id: Number of each answer, of the model's config.
        regions_column: Regions as the processor takes them, or the id of the picture in `store`.
        question_column: A text.
        answer_column: The right answer, the answers of ten people, or a score for each answer: see
            `answer_scores`.
        store: Regions by the id of the picture.
        box_format: Boxes are "shares" of the image, or "pixels".
        unknown_answers: As `AnswerLabels` takes it.
        soft: As `AnswerLabels` takes it.
        masked_answer: Put the tokenizer's mask behind each question, for models whose answer is read there.
        truncation: Cut questions that are too long; otherwise they are an error.

    Raises:
        ValueError: Numbers of answers that may be unknown, or a tokenizer without the mask that is wanted.
    """

    def __init__(
        self,
        processor: MMRegionProcessor,
        label2id: Mapping[str, int],
        regions_column: str = "regions",
        question_column: str = "question",
        answer_column: str = "answer",
        store: Mapping[Any, Mapping[str, Any]] | None = None,
        box_format: str = "shares",
        unknown_answers: bool = False,
        soft: bool = True,
        masked_answer: bool = False,
        truncation: bool = False,
    ) -> None:
        if masked_answer and processor.tokenizer.mask_token is None:
            raise ValueError("The tokenizer has no `mask_token` to read answers at; add one.")
        self.processor = processor
        self.answers = AnswerLabels(label2id, unknown_answers, soft)
        self.regions = RegionRows(regions_column, store)
        self.question_column = question_column
        self.answer_column = answer_column
        self.box_format = box_format
        self.masked_answer = masked_answer
        self.truncation = truncation

    def __call__(self, rows: Sequence[dict]) -> dict[str, Tensor]:
        """Inputs of the model.

        Returns:
            `input_ids`, `attention_mask` and `token_type_ids` (B, L), `region_features` (B, R, F),
            `region_boxes` (B, R, 4), `region_mask` (B, R) and `labels`: (B, A) float32, the score of each
            answer, or without `soft` (B,) int64.

        Raises:
            ValueError: A row lacks a column or regions, its answer is not in `label2id`, its question is too
                long, or its regions cannot be used.
        """
        columns = {"regions_column": self.regions.column, "question_column": self.question_column}
        need_columns(rows, **columns, answer_column=self.answer_column)
        labels = self.answers([row[self.answer_column] for row in rows])
        questions = [read_text(row, self.question_column, number) for number, row in enumerate(rows)]
        if self.masked_answer:
            questions = [f"{question} {self.processor.tokenizer.mask_token}" for question in questions]
        regions = self.regions(rows)
        inputs = self.processor(questions, regions, box_format=self.box_format, truncation=self.truncation)
        return {**inputs, "labels": labels}


class RegionSelectionCollator:
    """Makes a batch of expressions, each of which means one region, for `MMRegionBertForRegionSelection`.

    Args:
        processor: Of the model.
        regions_column: Regions as the processor takes them, or the id of the picture in `store`.
        expression_column: A text, such as "the red triangle".
        label_column: The number of the right region; or the box that is meant, for regions that a detector
            found.
        store: Regions by the id of the picture.
        box_format: Boxes, of regions and of labels, are "shares" of the image, or "pixels".
        soft: Labels are how much each region overlaps the right one. `False` for the number of the right one;
            of a box that is meant the region that overlaps it most, by half at least.
        truncation: Cut expressions that are too long; otherwise they are an error.
    """

    def __init__(
        self,
        processor: MMRegionProcessor,
        regions_column: str = "regions",
        expression_column: str = "expression",
        label_column: str = "label",
        store: Mapping[Any, Mapping[str, Any]] | None = None,
        box_format: str = "shares",
        soft: bool = False,
        truncation: bool = False,
    ) -> None:
        self.processor = processor
        self.regions = RegionRows(regions_column, store)
        self.expression_column = expression_column
        self.label_column = label_column
        self.box_format = box_format
        self.soft = soft
        self.truncation = truncation

    def __call__(self, rows: Sequence[dict]) -> dict[str, Tensor]:
        """Inputs of the model.

        Returns:
            `input_ids`, `attention_mask` and `token_type_ids` (B, L), `region_features` (B, R, F),
            `region_boxes` (B, R, 4), `region_mask` (B, R) and `labels`: (B,) int64, or with `soft` (B, R)
            float32 in 0..1, -100 at padding.

        Raises:
            ValueError: A row lacks a column or regions, its label is no region or box, no region is where it
                is meant, its expression is too long, or its regions cannot be used.
        """
        columns = {"regions_column": self.regions.column, "expression_column": self.expression_column}
        need_columns(rows, **columns, label_column=self.label_column)
        regions = self.regions(rows)
        inputs = self.processor(
            [read_text(row, self.expression_column, number) for number, row in enumerate(rows)],
            regions,
            box_format=self.box_format,
            truncation=self.truncation,
        )
        counts = inputs["region_mask"].sum(dim=1).tolist()
        boxes = [boxes[:count] for boxes, count in zip(inputs["region_boxes"], counts, strict=True)]
        labels = [
            self._label(row[self.label_column], boxes[number], regions[number].get("image_size"), number)
            for number, row in enumerate(rows)
        ]
        if self.soft:
            return {**inputs, "labels": pad_sequence(labels, batch_first=True, padding_value=-100.0)}
        return {**inputs, "labels": torch.stack(labels)}

    def _label(self, label: Any, boxes: Tensor, image_size: Any, number: int) -> Tensor:
        """The number of the right region, or its overlap (r,) with each."""
        name = f"Row {number} of the batch"
        if isinstance(label, int) and not isinstance(label, bool):
            if not 0 <= label < len(boxes):
                raise ValueError(
                    f"{name} has the label {label} in {self.label_column!r} and {len(boxes)} regions; give "
                    "the number of one of them, from 0."
                )
            return box_iou(boxes, boxes[label : label + 1])[:, 0] if self.soft else torch.tensor(label)
        if not isinstance(label, Tensor | Sequence) or isinstance(label, str) or len(label) != 4:
            raise ValueError(
                f"{name} has {label!r:.80} in {self.label_column!r}; give the number of the right region, or "
                "the box that is meant, x1, y1, x2, y2."
            )
        meant = box_shares([list(label)], image_size, self.box_format, f"{name}, {self.label_column!r}")
        overlaps = box_iou(boxes, meant)[:, 0]  # (r,)
        if self.soft:
            return overlaps
        if overlaps.max() < LEAST_OVERLAP:
            raise ValueError(
                f"{name}: no region overlaps the box {[round(float(side), 4) for side in label]} in "
                f"{self.label_column!r} by half, at most by {float(overlaps.max()):.2f}; leave the row out, "
                "or pass `soft=True`."
            )
        return overlaps.argmax()


class PairsOfRegionsCollator:
    """Makes a batch of statements about pairs of pictures, for `MMRegionBertForImagesAndTextClassification`.

    Suhr et al. 2019, "A Corpus for Reasoning About Natural Language Grounded in Photographs" (NLVR2,
    https://arxiv.org/abs/1811.00491).

    Args:
        processor: Of the model.
        num_images: I, pictures of a row, of the model's config.
        regions_column: A list of the regions of I pictures as the processor takes them, or of the ids of the
            pictures in `store`.
        statement_column: A text.
        label_column: Whether it is true, or the number of a class.
        store: Regions by the id of the picture.
        box_format: Boxes are "shares" of the image, or "pixels".
        truncation: Cut statements that are too long; otherwise they are an error.
    """

    def __init__(
        self,
        processor: MMRegionProcessor,
        num_images: int = 2,
        regions_column: str = "regions",
        statement_column: str = "statement",
        label_column: str = "label",
        store: Mapping[Any, Mapping[str, Any]] | None = None,
        box_format: str = "shares",
        truncation: bool = False,
    ) -> None:
        self.processor = processor
        self.num_images = num_images
        self.regions = RegionRows(regions_column, store)
        self.statement_column = statement_column
        self.label_column = label_column
        self.box_format = box_format
        self.truncation = truncation

    def __call__(self, rows: Sequence[dict]) -> dict[str, Tensor]:
        """Inputs of the model.

        Returns:
            `input_ids`, `attention_mask` and `token_type_ids` (B, L), `region_features` (B, I, R, F),
            `region_boxes` (B, I, R, 4), `region_mask` (B, I, R) and `labels` (B,) int64.

        Raises:
            ValueError: A row lacks a column or a picture, its label is no class, its statement is too long,
                or its regions cannot be used.
        """
        columns = {"regions_column": self.regions.column, "statement_column": self.statement_column}
        need_columns(rows, **columns, label_column=self.label_column)
        labels = torch.tensor([read_class(row, self.label_column, n) for n, row in enumerate(rows)])
        inputs = self.processor(
            [read_text(row, self.statement_column, number) for number, row in enumerate(rows)],
            [self._pictures(row[self.regions.column], number) for number, row in enumerate(rows)],
            box_format=self.box_format,
            truncation=self.truncation,
        )
        return {**inputs, "labels": labels}

    def _pictures(self, values: Any, number: int) -> list[Mapping[str, Any]]:
        found = list(values) if isinstance(values, list | tuple) else [values]
        if len(found) != self.num_images:
            raise ValueError(
                f"Row {number} of the batch has {len(found)} pictures in {self.regions.column!r}, the model "
                f"compares `num_images`={self.num_images}; give a list of so many in each row."
            )
        return [self.regions.of(value, number) for value in found]
