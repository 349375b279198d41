"""Rows of questions, or of statements about several pictures, to the batches of ViLT's heads.

Kim et al. 2021, "ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision", section
4.3 (https://arxiv.org/abs/2102.03334).

Shapes: B rows, L tokens, I pictures of a row, Y x X pixels of the largest picture, A answers.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor

from ..models.vilt.processing_vilt import MMViltProcessor
from .answer_labels import AnswerLabels
from .row_columns import (
    batch_generator,
    drawing_from,
    need_columns,
    read_class,
    read_image,
    read_images,
    read_text,
)

__all__ = ["ViltPairsOfImagesCollator", "ViltQuestionCollator"]


class ViltQuestionCollator:
    """Makes a batch of questions about pictures, with labels for `MMViltForQuestionAnswering`.

    Args:
        processor: Of the model.
        label2id: Number of each answer, of the model's config.
        image_column: Pictures, as `load_rgb` reads them.
        question_column: A text.
        answer_column: The right answer, the answers of ten people, or a score for each answer: see
            `answer_scores`.
        unknown_answers: Take answers that `label2id` lacks for wrong ones; a question that has no other gets
            zeros throughout. Otherwise they are an error.
        soft: Labels are a score for each answer, for the binary cross-entropy of VQA. `False` for the number
            of the one right answer, for the cross-entropy among all.
        truncation: Cut questions that are too long; otherwise they are an error.
        augment: Called with each picture as PIL image, returns the one to train on.
        seed: What `augment` draws follows from it and from the batch alone; `None` for torch's own generator.
    """

    def __init__(
        self,
        processor: MMViltProcessor,
        label2id: Mapping[str, int],
        image_column: str = "image",
        question_column: str = "question",
        answer_column: str = "answer",
        unknown_answers: bool = False,
        soft: bool = True,
        truncation: bool = False,
        augment: Callable[[Image.Image], Image.Image] | None = None,
        seed: int | None = None,
    ) -> None:
        self.processor = processor
        self.answers = AnswerLabels(label2id, unknown_answers, soft)
        self.image_column = image_column
        self.question_column = question_column
        self.answer_column = answer_column
        self.truncation = truncation
        self.augment = augment
        self.seed = seed

    def __call__(self, rows: Sequence[dict]) -> dict[str, Tensor]:
        """Inputs of the model.

        Returns:
            `input_ids`, `attention_mask` and `token_type_ids` (B, L), `pixel_values` (B, 3, Y, X),
            `pixel_mask` (B, Y, X) and `labels`: (B, A) float32, the score of each answer, or without `soft`
            (B,) int64.

        Raises:
            ValueError: A row lacks a column, its answer is not in `label2id`, its question is too long, or
                its picture cannot be used.
            FileNotFoundError: An image file is missing.
        """
        columns = {"image_column": self.image_column, "question_column": self.question_column}
        need_columns(rows, **columns, answer_column=self.answer_column)
        labels = self.answers([row[self.answer_column] for row in rows])
        texts = [read_text(row, self.question_column, number) for number, row in enumerate(rows)]
        images = read_images(rows, self.image_column, self.augment, batch_generator(self.seed, texts))
        inputs = self.processor(images=images, text=texts, truncation=self.truncation)
        return {**inputs, "labels": labels}


class ViltPairsOfImagesCollator:
    """Makes a batch of statements about pairs of pictures, for `MMViltForImagesAndTextClassification`.

    Suhr et al. 2019, "A Corpus for Reasoning About Natural Language Grounded in Photographs" (NLVR2,
    https://arxiv.org/abs/1811.00491).

    Args:
        processor: Of the model.
        num_images: I, pictures of a row, of the model's config.
        images_column: A list of I pictures, as `load_rgb` reads them.
        statement_column: A text.
        label_column: Whether it is true, or the number of a class.
        truncation: Cut statements that are too long; otherwise they are an error.
        augment: Called with each picture as PIL image, returns the one to train on.
        seed: What `augment` draws follows from it and from the batch alone; `None` for torch's own generator.
    """

    def __init__(
        self,
        processor: MMViltProcessor,
        num_images: int = 2,
        images_column: str = "images",
        statement_column: str = "statement",
        label_column: str = "label",
        truncation: bool = False,
        augment: Callable[[Image.Image], Image.Image] | None = None,
        seed: int | None = None,
    ) -> None:
        self.processor = processor
        self.num_images = num_images
        self.images_column = images_column
        self.statement_column = statement_column
        self.label_column = label_column
        self.truncation = truncation
        self.augment = augment
        self.seed = seed

    def __call__(self, rows: Sequence[dict]) -> dict[str, Tensor]:
        """Inputs of the model.

        Returns:
            `input_ids`, `attention_mask` and `token_type_ids` (B, L), `pixel_values` (B, I, 3, Y, X),
            `pixel_mask` (B, I, Y, X) and `labels` (B,) int64.

        Raises:
            ValueError: A row lacks a column or a picture, its label is no class, its statement is too long,
                or a picture cannot be used.
            FileNotFoundError: An image file is missing.
        """
        columns = {"images_column": self.images_column, "statement_column": self.statement_column}
        need_columns(rows, **columns, label_column=self.label_column)
        texts = [read_text(row, self.statement_column, number) for number, row in enumerate(rows)]
        labels = torch.tensor([read_class(row, self.label_column, n) for n, row in enumerate(rows)])
        with drawing_from(None if self.augment is None else batch_generator(self.seed, texts)):
            images = [self._images(row[self.images_column], number) for number, row in enumerate(rows)]
        return {**self.processor(images=images, text=texts, truncation=self.truncation), "labels": labels}

    def _images(self, images: object, number: int) -> list:
        found = list(images) if isinstance(images, list | tuple) else [images]
        if len(found) != self.num_images:
            raise ValueError(
                f"Row {number} of the batch has {len(found)} pictures in {self.images_column!r}, the model "
                f"compares `num_images`={self.num_images}; give a list of so many in each row."
            )
        name = f"Row {number} of the batch, {self.images_column!r}"
        return [read_image(image, f"{name}, picture {i}", self.augment) for i, image in enumerate(found)]
