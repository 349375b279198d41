"""Fashion-MNIST: 70,000 grey pictures of 28 px of ten kinds of clothes.

Xiao, Rasul and Vollgraf 2017, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms" (https://arxiv.org/abs/1708.07747), MIT licence, in Debian's package `dataset-fashion-mnist`. The
files have the idx format of MNIST: two zero bytes, the kind of number (8: uint8), the count of dimensions,
each as a big-endian 32-bit number, then the numbers.
"""

import gzip
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from datasets import ClassLabel, Dataset, DatasetInfo, Features, Image, load_dataset

__all__ = ["FASHION_CLASSES", "fashion_mnist"]

FASHION_CLASSES = (
    "t-shirt or top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
DEBIAN_FOLDER = "/usr/share/datasets/fashion-mnist"
HOMEPAGE = "https://github.com/zalandoresearch/fashion-mnist"
HUB_ID = "zalando-datasets/fashion_mnist"
PREFIXES = {"train": "train", "test": "t10k"}


def fashion_mnist(source: str | Path = DEBIAN_FOLDER, split: Literal["train", "test"] = "train") -> Dataset:
    """The pictures of one split, in the official order.

    Args:
        source: A folder with the four idx files, compressed by gzip or not, by default where Debian
            puts them; or an id of the Hub, "zalando-datasets/fashion_mnist".
        split: "train" (60,000 rows) or "test" (10,000).

    Returns:
        Columns `image` (grey) and `label`, a `ClassLabel` over `FASHION_CLASSES`; chance is 1 in 10.

    Raises:
        FileNotFoundError: The folder or a file is missing; the message says how to get it.
        ValueError: An unknown split; or a file is cut short, damaged or of another kind.
    """
    if split not in PREFIXES:
        raise ValueError(f"Fashion-MNIST has the splits 'train' and 'test', not {split!r}.")
    features = Features({"image": Image(), "label": ClassLabel(names=list(FASHION_CLASSES))})
    folder = Path(source)
    if not folder.is_dir():
        if folder.is_absolute() or str(source).count("/") != 1:
            raise FileNotFoundError(
                f"There is no folder {source}; install Debian's package (`apt install "
                "dataset-fashion-mnist`), or unpack it elsewhere (`dpkg -x`) and give the folder, or give "
                f"the Hub's {HUB_ID!r}."
            )
        rows = load_dataset(str(source), split=split).select_columns(["image", "label"])
        return rows.cast_column("label", features["label"])
    prefix = PREFIXES[split]
    images = _read_idx(folder, f"{prefix}-images-idx3-ubyte", 3)  # (N, 28, 28)
    labels = _read_idx(folder, f"{prefix}-labels-idx1-ubyte", 1)  # (N,)
    if len(images) != len(labels):
        raise ValueError(f"{folder} has {len(images)} images but {len(labels)} labels of {split!r}.")
    if len(labels) and labels.max() >= len(FASHION_CLASSES):
        raise ValueError(
            f"{folder}: label {labels.max()} of {split!r} is not below {len(FASHION_CLASSES)}, so these are "
            "labels of other data."
        )
    info = DatasetInfo(license="MIT", homepage=HOMEPAGE, features=features)
    data = {"image": [{"bytes": _pgm(image), "path": None} for image in images], "label": labels.tolist()}
    return Dataset.from_dict(data, features=features, info=info)


def _read_idx(folder: Path, name: str, dimensions: int) -> np.ndarray:
    """The uint8 array in a file of MNIST's format."""
    path = next((file for file in (folder / f"{name}.gz", folder / name) if file.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"{folder} has neither {name}.gz nor {name}; give the folder of the four idx files, which "
            f"Debian's package puts in {DEBIAN_FOLDER}."
        )
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is damaged or cut short ({error}); fetch it again.") from error
    head = 4 + 4 * dimensions
    if len(data) < head or data[:4] != bytes([0, 0, 8, dimensions]):
        raise ValueError(
            f"{path} begins with {data[:4]!r}, not {bytes([0, 0, 8, dimensions])!r}: it is no idx file of "
            f"uint8 in {dimensions} dimensions. Fetch it again."
        )
    shape = tuple(np.frombuffer(data, ">u4", dimensions, offset=4).tolist())
    wanted = int(np.prod(shape))
    if len(data) - head != wanted:
        raise ValueError(
            f"{path} has {len(data) - head} numbers where its head, {shape}, says {wanted}; fetch it again."
        )
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


def _pgm(image: np.ndarray) -> bytes:
    """A grey picture as a file of the simplest format: packing 60,000 as PNG takes many seconds."""
    height, width = image.shape
    return f"P5 {width} {height} 255\n".encode() + image.tobytes()
