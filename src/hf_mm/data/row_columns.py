"""What collators ask of the rows of a batch: that columns are there, what is in them, and which to draw."""

import hashlib
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image

from ..imaging.loading import load_rgb

__all__ = [
    "batch_generator",
    "caption_texts",
    "draw_below",
    "drawing_from",
    "need_columns",
    "read_class",
    "read_image",
    "read_images",
    "read_text",
]


def need_columns(rows: Sequence[dict], **columns: str) -> None:
    """Refuse rows that lack a column.

    Args:
        rows: Of a batch.
        **columns: Names of columns, by the argument that gives them.

    Raises:
        ValueError: There is no row, or one lacks a column; it is named.
    """
    if not rows:
        raise ValueError("A batch of no rows was given; a batch has at least one.")
    for number, row in enumerate(rows):
        missing = [name for name in columns.values() if name not in row]
        if missing:
            arguments = ", ".join(f"`{argument}`" for argument in columns)
            raise ValueError(
                f"Row {number} of the batch has no {missing}, only {sorted(row)}; name the columns by "
                f"{arguments}, and keep them (`remove_unused_columns=False`)."
            )


def read_text(row: dict, column: str, number: int) -> str:
    """The text of a row.

    Raises:
        ValueError: It is no text, or empty.
    """
    text = row[column]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"Row {number} of the batch has {text!r:.80} in {column!r}; give a text.")
    return text


def read_class(row: dict, column: str, number: int) -> int:
    """The class of a row, where true is 1.

    Raises:
        ValueError: It is none.
    """
    label = row[column]
    if not isinstance(label, int) or label < 0:
        raise ValueError(
            f"Row {number} of the batch has {label!r:.80} in {column!r}; give `True` or `False`, or the "
            "number of a class."
        )
    return int(label)


def read_image(
    image: object, name: str, augment: Callable[[Image.Image], Image.Image] | None = None
) -> np.ndarray | Image.Image:
    """A picture of a row, changed by `augment` where that is given.

    Raises:
        ValueError: It cannot be read.
        FileNotFoundError: Its file is missing.
    """
    pixels = load_rgb(image, name)
    return pixels if augment is None else augment(Image.fromarray(pixels))


def read_images(
    rows: Sequence[dict],
    column: str,
    augment: Callable[[Image.Image], Image.Image] | None = None,
    generator: torch.Generator | None = None,
) -> list[np.ndarray | Image.Image]:
    """The picture of each row of a batch, see `read_image`; with a `generator`, `augment` draws from that."""
    with drawing_from(None if augment is None else generator):
        return [
            read_image(row[column], f"Row {number} of the batch, {column!r}", augment)
            for number, row in enumerate(rows)
        ]


@contextmanager
def drawing_from(generator: torch.Generator | None) -> Generator[None]:
    """Inside, torch's own generator of the CPU goes on from a draw of this one; afterwards as if never used.

    Args:
        generator: `None` changes nothing.
    """
    if generator is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        yield


def caption_texts(row: dict, column: str, number: int) -> list[str]:
    """The captions of a row, one text or a list of texts; empty ones are left out.

    Raises:
        ValueError: There is none, or something that is no text.
    """
    value = row[column]
    texts = [value] if isinstance(value, str) else value
    if isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts):
        texts = [text for text in texts if text.strip()]
        if texts:
            return texts
    raise ValueError(
        f"Row {number} of the batch has {value!r:.80} in {column!r}; give a text or a list of texts, or "
        "leave the row out."
    )


def batch_generator(seed: int | None, content: object) -> torch.Generator | None:
    """A source of chance that follows from a seed and what is in the batch, and from nothing else.

    The same batch gives the same draws in any worker or resumed run, however many were fetched ahead.

    Args:
        seed: Another seed, other draws; `None` for torch's own generator.
        content: Of the batch, with a `repr` that tells it from others.
    """
    if seed is None:
        return None
    digest = hashlib.sha256(repr((seed, content)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))


def draw_below(count: int, generator: torch.Generator | None) -> int:
    """A number from 0 to `count` - 1; draws only where there is a choice."""
    return int(torch.randint(count, (), generator=generator)) if count > 1 else 0
