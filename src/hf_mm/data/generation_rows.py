"""Pictures to learn to draw, by name: digits, clothes, coloured shapes, emoji, or a user's own.

The digits are those of Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits"
(https://doi.org/10.24432/C50P49), as scikit-learn carries them: 1,797 of 8 px with 17 levels of grey. For
clothes see `fashion_mnist.py`, for shapes `easy_vqa_captions.py`, for emoji `openmoji.py`.
"""

from importlib import import_module
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Image, load_dataset
from torch.nn.functional import avg_pool2d, pad

from .easy_vqa_captions import easy_vqa_descriptions
from .fashion_mnist import DEBIAN_FOLDER, fashion_mnist
from .openmoji import openmoji
from .pixel_rows import PixelRows

__all__ = ["generation_rows"]

DIGIT_PX, FASHION_PX, SHAPES_PX = 8, 28, 64
DIGIT_LEVELS = 16
SIZES = {"digits": (8, 16), "fashion-mnist": (32, 28), "easy-vqa": (64, 32)}
TEXT_COLUMNS = ("text", "caption")


def generation_rows(
    name: str,
    split: Literal["train", "test"] = "train",
    image_size: int | None = None,
    folder: str | Path | None = None,
    channels: int = 3,
) -> PixelRows:
    """The pictures of one split, decoded into memory.

    Args:
        name: "digits": grey, 8 px, or 16 by doubling, with 10 classes; every fifth is a test picture.
            "fashion-mnist": grey, 28 px, by default padded with black to 32, with 10 classes; the official
            splits. "easy-vqa": one coloured shape, 64 px, or 32 by halving, with captions of colour, shape,
            place and size, and 24 classes, each a colour and a shape; the official splits. "openmoji":
            colours on white, 32 px by default, with captions, and their groups as classes; the test emoji
            have no near-twin in training. Otherwise a folder of pictures (of one folder per class, or with a
            `metadata.csv` with a `text` column) or an id of the Hub: the shorter side resized, the middle cut
            out.
        split: "train" or "test". A folder or Hub id needs to have it.
        image_size: In pixels; what `name` says by default, 32 for pictures of your own.
        folder: Where the files of "fashion-mnist" are (Debian's folder by default), or the unpacked npm
            package `openmoji` ("package" by default).
        channels: Of pictures of your own, 3 or 1.

    Raises:
        FileNotFoundError: The files are not there, or a folder has no pictures.
        ImportError: A package that a source needs is not installed.
        ValueError: An unknown split, a size that the source does not have, or a faulty row.
    """
    if split not in ("train", "test"):
        raise ValueError(f"`split` must be 'train' or 'test', got {split!r}.")
    if name in SIZES:
        image_size = SIZES[name][0] if image_size is None else image_size
        if image_size not in SIZES[name]:
            raise ValueError(
                f"`image_size`={image_size} is not one of {sorted(SIZES[name])}, the sizes of {name!r} in px."
            )
    image_size = 32 if image_size is None else image_size
    if name == "digits":
        return _digits(split, image_size)
    if name == "fashion-mnist":
        return _fashion(split, image_size, DEBIAN_FOLDER if folder is None else folder)
    if name == "easy-vqa":
        return _shapes(split, image_size)
    if name == "openmoji":
        return _emoji(split, image_size, "package" if folder is None else folder)
    return _own(name, split, image_size, channels)


def _digits(split: str, image_size: int) -> PixelRows:
    try:
        found = import_module("sklearn.datasets").load_digits()
    except ImportError as error:
        raise ImportError("The digits come with scikit-learn: pip install 'hf-mm[eval]'.") from error
    rows = np.arange(len(found.images))
    rows = rows[(rows % 5 == 4) == (split == "test")]
    pixels = (found.images[rows] * (255 / DIGIT_LEVELS)).round().astype(np.uint8)  # (N, 8, 8)
    times = image_size // DIGIT_PX
    pixels = pixels.repeat(times, axis=1).repeat(times, axis=2)
    labels = torch.from_numpy(found.target[rows]).long()
    return PixelRows(torch.from_numpy(pixels)[:, None], labels, tuple(map(str, range(10))))


def _fashion(split: Literal["train", "test"], image_size: int, folder: str | Path) -> PixelRows:
    rows = PixelRows.from_dataset(fashion_mnist(folder, split), FASHION_PX, channels=1, label_column="label")
    border = (image_size - FASHION_PX) // 2
    return PixelRows(pad(rows.pixels, (border,) * 4), rows.labels, rows.class_names)


def _shapes(split: Literal["train", "test"], image_size: int) -> PixelRows:
    rows = easy_vqa_descriptions(split)
    found = PixelRows.from_dataset(rows, SHAPES_PX, label_column="label", text_column="caption")
    if image_size == SHAPES_PX:
        return found
    halved = avg_pool2d(found.pixels.float(), 2).round().byte()
    return PixelRows(halved, found.labels, found.class_names, found.texts)


def _emoji(split: Literal["train", "test"], image_size: int, folder: str | Path) -> PixelRows:
    emoji = openmoji(folder, split, image_size)
    groups = sorted(set(openmoji(folder, "all", image_size)["group"]))  # the same classes in both splits
    emoji = emoji.cast_column("group", ClassLabel(names=groups))
    return PixelRows.from_dataset(emoji, image_size, label_column="group", text_column="caption")


def _own(name: str, split: str, image_size: int, channels: int) -> PixelRows:
    path = Path(name)
    if path.is_dir() and not any(file.is_file() for file in path.rglob("*")):
        raise FileNotFoundError(f"The folder {name} is empty; put pictures into it, or name another.")
    rows = load_dataset(name)
    if split not in rows:
        raise ValueError(f"{name} has no split {split!r}, only {sorted(rows)}; give it a folder {split!r}.")
    found: Dataset = rows[split]
    pictures = [column for column, feature in found.features.items() if isinstance(feature, Image)]
    classes = [column for column, feature in found.features.items() if isinstance(feature, ClassLabel)]
    texts = [column for column in TEXT_COLUMNS if column in found.column_names]
    if len(pictures) != 1 or len(classes) > 1:
        raise ValueError(
            f"{name} has the image columns {pictures} and the class columns {classes}, not one and at most "
            "one; choose with `PixelRows.from_dataset`."
        )
    return PixelRows.from_dataset(
        found,
        image_size,
        channels,
        image_column=pictures[0],
        label_column=classes[0] if classes else None,
        text_column=texts[0] if texts else None,
        resize=True,
    )
