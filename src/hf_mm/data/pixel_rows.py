"""Small pictures kept in memory as bytes, and batches of random views of them for generators.

Decoding 60,000 small files takes seconds, reading them again at each step would take longer than a small
model's step. So they are decoded once; a batch is then one gather from a tensor.

Shapes: N pictures, B of a batch, C channels, S pixels a side.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Image
from PIL import Image as PILImage
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..imaging.loading import load_rgb
from ..imaging.views import fit_views
from .row_columns import batch_generator, caption_texts, draw_below

__all__ = ["PixelCollator", "PixelRows"]


@dataclass(frozen=True, eq=False)
class PixelRows(Sequence):
    """Square pictures of one size, with their classes and texts where they have any.

    `from_dataset` makes them out of a data set. A row is a dictionary of `pixels` (C, S, S) uint8, `number`
    (its place in the whole set) and, where there are any, `label` and `texts`. Slices, lists of numbers and
    `__getitems__` (by which a `DataLoader` asks for a whole batch) give `PixelRows` again.

    Args:
        pixels: (N, C, S, S) uint8.
        labels: (N,) class ids; `None` without classes.
        class_names: Name of each class.
        texts: One or several of each picture; `None` without texts.
        numbers: (N,) places in the whole set that these are of; by default 0 to N - 1.

    Raises:
        ValueError: Shapes or lengths do not fit.
    """

    pixels: Tensor
    labels: Tensor | None = None
    class_names: tuple[str, ...] = ()
    texts: tuple[tuple[str, ...], ...] | None = None
    numbers: Tensor | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.pixels.shape)
        if self.pixels.dtype != torch.uint8 or len(shape) != 4 or shape[2] != shape[3]:
            raise ValueError(
                "`pixels` must be uint8 (pictures, channels, side, side), got "
                f"{shape} of {self.pixels.dtype}."
            )
        for name in ("labels", "texts", "numbers"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.pixels):
                raise ValueError(f"`{name}` has {len(values)} entries for {len(self.pixels)} pictures.")
        if self.numbers is None:
            object.__setattr__(self, "numbers", torch.arange(len(self.pixels)))

    @classmethod
    def from_dataset(
        cls,
        dataset: Dataset,
        image_size: int,
        channels: int = 3,
        image_column: str = "image",
        label_column: str | None = None,
        text_column: str | None = None,
        resize: bool = False,
    ) -> "PixelRows":
        """Decode the pictures of a data set.

        Args:
            dataset: Has a column of pictures, of any kind that `load_rgb` reads.
            image_size: S.
            channels: 3, to which grey pictures are widened; or 1, for grey pictures only.
            image_column: Of the pictures.
            label_column: Of the classes, a `ClassLabel`; `None` without classes.
            text_column: Of a text, or a list of texts, for each picture; `None` without texts.
            resize: Resize the shorter side to `image_size` and cut the middle out; else pictures of another
                size are an error.

        Raises:
            ValueError: There are no rows, an unknown column, or a faulty row, which is named: a picture of
                another size, with colours for one channel, or a class id out of range.
        """
        _check_options(dataset, channels, image_size, image_column, label_column, text_column)
        labels, names = _read_classes(dataset, label_column)
        texts = None
        if text_column is not None:
            column = dataset.select_columns([text_column])
            texts = tuple(tuple(caption_texts(row, text_column, number)) for number, row in enumerate(column))
        pixels = torch.empty(len(dataset), channels, image_size, image_size, dtype=torch.uint8)
        images = dataset.select_columns([image_column])
        if isinstance(dataset.features[image_column], Image):
            images = images.cast_column(image_column, Image(decode=False))  # errors then name the row
        for number, row in enumerate(images):
            pixels[number] = _square(row[image_column], number, image_size, channels, resize)
        return cls(pixels, labels, names, texts)

    @property
    def image_size(self) -> int:
        """S, in pixels."""
        return self.pixels.shape[-1]

    @property
    def channels(self) -> int:
        """C."""
        return self.pixels.shape[1]

    def __len__(self) -> int:
        return len(self.pixels)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: "slice | Sequence[int] | Tensor") -> "PixelRows": ...
    def __getitem__(self, index: "int | slice | Sequence[int] | Tensor") -> "dict[str, Any] | PixelRows":
        if isinstance(index, slice):
            return self.__getitems__(range(len(self))[index])
        if not isinstance(index, int | np.integer):
            return self.__getitems__(index)
        number = range(len(self))[int(index)]  # an IndexError where a list would raise it
        row: dict[str, Any] = {"pixels": self.pixels[number], "number": int(self.rows[number])}
        if self.labels is not None:
            row["label"] = int(self.labels[number])
        if self.texts is not None:
            row["texts"] = self.texts[number]
        return row

    def __getitems__(self, indices: "Sequence[int] | Tensor") -> "PixelRows":
        """Several rows at once."""
        wanted = torch.as_tensor(indices if isinstance(indices, Tensor) else list(indices)).long()
        return PixelRows(
            self.pixels[wanted],
            None if self.labels is None else self.labels[wanted],
            self.class_names,
            None if self.texts is None else tuple(self.texts[index] for index in wanted.tolist()),
            self.rows[wanted],
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    @property
    def rows(self) -> Tensor:
        """(N,) places in the whole set."""
        assert self.numbers is not None
        return self.numbers

    def pixel_values(self) -> Tensor:
        """All pictures as a model sees them.

        Returns:
            (N, C, S, S) floats in [-1, 1].
        """
        return _to_floats(self.pixels)


@dataclass(frozen=True)
class PixelCollator:
    """Rows of `PixelRows` to a batch: `pixel_values` (B, C, S, S) in [-1, 1] and what else the rows have.

    `class_labels` (B,) with classes; `input_ids` and `attention_mask` (B, L) of one text of each, drawn, with
    a tokenizer. The draws follow from `seed` and from which rows the batch holds, so that a run that is
    resumed sees what it would have seen.

    Args:
        flip: Mirror half of the pictures left to right; not where left and right have a meaning.
        pad_crop_px: Most that a picture moves each way; what comes in repeats its edge.
        seed: Another seed, other draws; `None` draws from torch's own generator.
        tokenizer: For texts; without it they are left out.
        max_text_tokens: Longest text; by default as the tokenizer says.

    Raises:
        ValueError: A move below 0; a tokenizer but rows without texts; a text that is too long, with its row.
    """

    flip: bool = False
    pad_crop_px: int = 0
    seed: int | None = 0
    tokenizer: PreTrainedTokenizerBase | None = None
    max_text_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.pad_crop_px < 0:
            raise ValueError(f"`pad_crop_px`={self.pad_crop_px} must be 0 or more; 0 moves nothing.")

    def __call__(self, rows: "PixelRows | Sequence[dict[str, Any]]") -> dict[str, Tensor]:
        """The batch."""
        if not isinstance(rows, PixelRows):
            rows = _stack(rows)
        draws = batch_generator(self.seed, rows.rows.tolist())
        batch = {"pixel_values": _to_floats(self._views(rows.pixels, draws))}
        if rows.labels is not None:
            batch["class_labels"] = rows.labels
        if self.tokenizer is not None:
            batch |= self._encode(rows, draws)
        return batch

    def _views(self, pixels: Tensor, draws: torch.Generator | None) -> Tensor:
        """Mirrored and moved pictures (B, C, S, S), in one gather."""
        if not self.flip and not self.pad_crop_px:
            return pixels
        count, channels, side, _ = pixels.shape
        most = self.pad_crop_px
        shifts = torch.randint(-most, most + 1, (2, count, 1), generator=draws)
        places = (torch.arange(side) + shifts).clamp(0, side - 1)  # (2, B, S)
        rows, columns = places
        if self.flip:
            mirrored = torch.rand(count, 1, generator=draws) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        picture = torch.arange(count)[:, None, None, None]
        channel = torch.arange(channels)[None, :, None, None]
        return pixels[picture, channel, rows[:, None, :, None], columns[:, None, None, :]]

    def _encode(self, rows: PixelRows, draws: torch.Generator | None) -> dict[str, Tensor]:
        """One text of each row, padded on the right."""
        assert self.tokenizer is not None
        if rows.texts is None:
            raise ValueError(
                "`tokenizer` is given but the rows have no texts; make them with `text_column`, or leave the "
                "tokenizer out."
            )
        chosen = [texts[draw_below(len(texts), draws)] for texts in rows.texts]
        most = self.tokenizer.model_max_length if self.max_text_tokens is None else self.max_text_tokens
        encoded = self.tokenizer(
            chosen, padding=True, padding_side="right", return_tensors="pt", verbose=False
        )
        mask = encoded["attention_mask"]
        for text, length, number in zip(chosen, mask.sum(1).tolist(), rows.rows.tolist(), strict=True):
            if length > most:
                raise ValueError(
                    f"Row {number}: the text {text!r:.80} has {length} tokens, the context has {most}; "
                    "shorten it or raise `max_text_tokens`."
                )
        return {"input_ids": encoded["input_ids"], "attention_mask": mask}


def _check_options(
    dataset: Dataset,
    channels: int,
    image_size: int,
    image_column: str,
    label_column: str | None,
    text_column: str | None,
) -> None:
    if channels not in (1, 3):
        raise ValueError(f"`channels`={channels} must be 3 (colours) or 1 (grey).")
    if image_size < 1:
        raise ValueError(f"`image_size`={image_size} must be at least 1 px.")
    if not len(dataset):
        raise ValueError("`dataset` has no rows; there is nothing to learn from.")
    wanted = {"image_column": image_column, "label_column": label_column, "text_column": text_column}
    for argument, column in wanted.items():
        if column is not None and column not in dataset.column_names:
            raise ValueError(f"`{argument}`={column!r} is no column; there are {dataset.column_names}.")


def _read_classes(dataset: Dataset, column: str | None) -> tuple[Tensor | None, tuple[str, ...]]:
    """(N,) class ids, and the names of the classes."""
    if column is None:
        return None, ()
    feature = dataset.features[column]
    if not isinstance(feature, ClassLabel):
        raise ValueError(
            f"`label_column`={column!r} has {feature}, not classes; make them by "
            f"`dataset.class_encode_column({column!r})`."
        )
    names = tuple(feature.names)
    found = list(dataset[column])
    for number, label in enumerate(found):
        if not isinstance(label, int) or not 0 <= label < len(names):
            raise ValueError(f"Row {number}: the class id {label} is not one of 0..{len(names) - 1}.")
    return torch.tensor(found), names


def _square(image: object, number: int, image_size: int, channels: int, resize: bool) -> Tensor:
    """One picture as (C, S, S) bytes."""
    pixels = load_rgb(image, f"Row {number}")  # (H, W, 3)
    if pixels.shape[:2] != (image_size, image_size):
        if not resize:
            raise ValueError(
                f"Row {number} is {pixels.shape[0]}x{pixels.shape[1]} px, not {image_size}x{image_size}; "
                "resize the pictures or pass `resize=True`."
            )
        size = (image_size, image_size)
        view = fit_views([pixels], image_size, size, PILImage.Resampling.BICUBIC, exact=True)[0]
    else:
        view = torch.from_numpy(pixels.transpose(2, 0, 1))
    if channels == 1:
        if not (view == view[:1]).all():
            raise ValueError(
                f"Row {number} has colours but `channels`=1 holds grey pictures only; pass `channels=3`, or "
                "make the pictures grey."
            )
        return view[:1]
    return view


def _stack(rows: Sequence[dict[str, Any]]) -> PixelRows:
    """Single rows as they come out of `PixelRows`."""
    if not rows:
        raise ValueError("A batch of no rows was given; a batch has at least one.")
    first = rows[0]
    return PixelRows(
        torch.stack([row["pixels"] for row in rows]),
        torch.tensor([row["label"] for row in rows]) if "label" in first else None,
        (),
        tuple(row["texts"] for row in rows) if "texts" in first else None,
        torch.tensor([row["number"] for row in rows]),
    )


def _to_floats(pixels: Tensor) -> Tensor:
    """0..255 to [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1)
