"""Encoded rows to the inputs of a vision-language model."""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from ..imaging.loading import load_rgb
from ..models.vlm.chat_vlm import IGNORED_LABEL, filler_id
from ..models.vlm.processing_vlm import MMVLMProcessor

__all__ = ["VLMCollator"]


class VLMCollator:
    """Pads rows of `encode_rows` on the right and processes their images.

    Args:
        processor: The one the rows were encoded with.
        packed: Whether the rows are packed.
        pad_to_multiple_of: Make the length a multiple of this.
        augment: Called with each image as PIL picture, returns the picture to train on; of the same size,
            if the image processor makes crops.
        labelled_logits: Add `logits_to_keep`, so that the model computes logits only where a label follows:
            the same loss for a fraction of the work where few tokens are answers. The `logits` are then
            (labelled tokens, words); `False` gives those of all tokens.

    Raises:
        ValueError: The tokenizer has no token to pad with.
    """

    def __init__(
        self,
        processor: MMVLMProcessor,
        packed: bool = True,
        pad_to_multiple_of: int | None = None,
        augment: Callable[[Image.Image], Image.Image] | None = None,
        labelled_logits: bool = True,
    ) -> None:
        tokenizer = processor.tokenizer
        filler = filler_id(tokenizer)
        if filler is None:
            raise ValueError(
                "The tokenizer has no `pad_token`; set one, such as `tokenizer.pad_token = '<pad>'`."
            )
        self.processor = processor
        self.packed = packed
        self.pad_to_multiple_of = pad_to_multiple_of
        self.augment = augment
        self.labelled_logits = labelled_logits
        self.fillers = {"input_ids": filler, "labels": IGNORED_LABEL}
        if packed:
            self.fillers |= {"position_ids": 0, "document_ids": 0, "branch_ids": 0}

    def __call__(self, rows: Sequence[dict]) -> dict[str, Tensor]:
        """Inputs of the model: `attention_mask` only for unpacked rows, pixels only if there are images.

        `loss_weights` where a row has them; `mm_token_type_ids`, 1 on the tokens of images, where the model
        lets these see each other.

        Raises:
            ValueError: A row lacks a column, has nothing to learn from, or an image that cannot be read.
            FileNotFoundError: An image file is missing.
        """
        for number, row in enumerate(rows):
            missing = [name for name in ("images", *self.fillers) if name not in row]
            if missing:
                raise ValueError(
                    f"Row {number} of the batch has no {missing}, only {sorted(row)}; encode rows with "
                    f"`packed={self.packed}`, and keep all columns (`remove_unused_columns=False`)."
                )
            _check_learnable(row, f"Row {number} of the batch")
        batch = {name: self._pad([row[name] for row in rows], value) for name, value in self.fillers.items()}
        if any("loss_weights" in row for row in rows):
            batch["loss_weights"] = self._pad([_weights(row) for row in rows], 0.0)
        if self.processor.return_mm_token_type_ids:
            image_ids = torch.tensor(sorted(self.processor.unlabelled_ids))
            batch["mm_token_type_ids"] = torch.isin(batch["input_ids"], image_ids).long()
        if not self.packed:
            batch["attention_mask"] = self._pad([[1] * len(row["input_ids"]) for row in rows], 0)
        if self.labelled_logits:
            batch["logits_to_keep"] = (
                torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100) != -100
            )
        images = [
            load_rgb(image, f"Row {number} of the batch, image {i}")
            for number, row in enumerate(rows)
            for i, image in enumerate(row["images"])
        ]
        if self.augment is not None:
            images = [self.augment(Image.fromarray(image)) for image in images]
        if images:
            batch |= self.processor.image_processor(images, return_tensors="pt")
        return batch

    def _pad(self, sequences: list[list], value: float) -> Tensor:
        multiple = self.pad_to_multiple_of or 1
        length = -(-max(map(len, sequences)) // multiple) * multiple
        return torch.tensor([[*sequence, *[value] * (length - len(sequence))] for sequence in sequences])


def _weights(row: dict) -> list[float]:
    return row["loss_weights"] if "loss_weights" in row else [1.0] * len(row["labels"])


def _check_learnable(row: dict, name: str) -> None:
    """Raise if the loss of a row would be 0 whatever the model says; the first token is never predicted."""
    labelled = [place for place, label in enumerate(row["labels"]) if place and label != IGNORED_LABEL]
    if not labelled:
        raise ValueError(
            f"{name} has {len(row['labels'])} tokens but no label after the first, so nothing to learn from; "
            "leave it out, or encode it by `encode_rows`."
        )
    weights = _weights(row)
    if len(weights) != len(row["labels"]) or not any(weights[place] for place in labelled):
        raise ValueError(
            f"{name} has {len(row['labels'])} tokens and {len(weights)} `loss_weights`, "
            f"{sum(weights[: len(row['labels'])]):.4g} in all; give each labelled token a weight above 0."
        )
