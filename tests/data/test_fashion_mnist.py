"""Fashion-MNIST from idx files: the pictures and labels as they are, and damaged files by name."""

import gzip
import struct

import numpy as np
import pytest

from hf_mm import fashion_mnist
from hf_mm.data.fashion_mnist import FASHION_CLASSES

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
LABELS = np.arange(12, dtype=np.uint8) % 10


def _idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path):
    for prefix, part in (("train", slice(0, 10)), ("t10k", slice(10, 12))):
        for name, array in (("images-idx3", IMAGES), ("labels-idx1", LABELS)):
            (tmp_path / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(_idx(array[part])))
    return tmp_path


def test_pictures_and_labels_are_those_of_the_files(folder):
    train, test = fashion_mnist(folder), fashion_mnist(folder, "test")
    assert train["label"] == list(range(10))
    assert test["label"] == [0, 1]
    assert train[3]["image"].mode == "L"
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in train["image"]]), IMAGES[:10])
    np.testing.assert_array_equal(np.asarray(test[1]["image"]), IMAGES[11])


def test_classes_have_names_and_the_data_its_licence(folder):
    rows = fashion_mnist(folder)
    assert rows.features["label"].names == list(FASHION_CLASSES)
    assert rows.features["label"].int2str(9) == "ankle boot"
    assert rows.info.license == "MIT"


def test_unpacked_files_are_read_too(folder):
    for path in folder.glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert len(fashion_mnist(folder)) == 10


def test_files_cut_short_are_named(folder):
    path = folder / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is damaged or cut short"):
        fashion_mnist(folder)
    path.write_bytes(gzip.compress(_idx(IMAGES[:10])[:-5]))
    with pytest.raises(ValueError, match=r"has 7835 numbers where its head, \(10, 28, 28\), says 7840"):
        fashion_mnist(folder)


def test_files_of_another_kind_are_named(folder):
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(_idx(IMAGES[:10])))
    with pytest.raises(
        ValueError, match=r"labels-idx1-ubyte\.gz begins with b'\\x00\\x00\\x08\\x03', not .*\\x01"
    ):
        fashion_mnist(folder)
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"labels-idx1-ubyte\.gz is damaged or cut short"):
        fashion_mnist(folder)


def test_pictures_and_labels_must_go_together(folder):
    path = folder / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(_idx(LABELS[:9])))
    with pytest.raises(ValueError, match=r"has 10 images but 9 labels of 'train'"):
        fashion_mnist(folder)
    path.write_bytes(gzip.compress(_idx(LABELS[:10] + 5)))
    with pytest.raises(ValueError, match=r"label 14 of 'train' is not below 10"):
        fashion_mnist(folder)


def test_what_is_missing_says_how_to_get_it(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"apt install dataset-fashion-mnist.*zalando-datasets/fash"):
        fashion_mnist(tmp_path / "nowhere")
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither t10k-labels-idx1-ubyte\.gz nor t10k-labels"):
        fashion_mnist(folder, "test")


def test_unknown_splits_are_refused(folder):
    with pytest.raises(ValueError, match="splits 'train' and 'test', not 'validation'"):
        fashion_mnist(folder, "validation")
