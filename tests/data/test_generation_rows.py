"""Pictures by name: digits, clothes, a folder of one's own, and what is said when they are not there."""

import gzip
import json

import numpy as np
import pytest
import torch
from datasets import config
from PIL import Image as PILImage
from sklearn.datasets import load_digits

from hf_mm import generation_rows


def test_digits_are_split_whole_and_scaled_to_bytes():
    train, test = (generation_rows("digits", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (1438, 359)
    images = load_digits().images
    assert torch.equal(test.pixels[0, 0], torch.from_numpy((images[4] * 255 / 16).round().astype(np.uint8)))
    assert test.pixel_values().min() == -1
    assert test.pixel_values().max() == 1
    assert test.labels.tolist() == load_digits().target[4::5].tolist()
    assert len(test.class_names) == 10


def test_digits_of_16_px_are_those_of_8_px_doubled():
    small, large = (generation_rows("digits", "test", size).pixels for size in (8, 16))
    assert torch.equal(large[:, :, ::2, ::2], small)
    assert torch.equal(large[:, :, 1::2, 1::2], small)


def idx(path, array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(gzip.compress(head + array.tobytes()))


def test_clothes_are_padded_with_black(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    idx(tmp_path / "t10k-images-idx3-ubyte.gz", images)
    idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.array([9, 0, 3], np.uint8))
    rows = generation_rows("fashion-mnist", "test", folder=tmp_path)
    assert rows.pixels.shape == (3, 1, 32, 32)
    assert torch.equal(rows.pixels[:, 0, 2:30, 2:30], torch.from_numpy(images))
    assert rows.pixels.sum() == images.sum()
    assert rows.labels.tolist() == [9, 0, 3]
    assert rows.class_names[9] == "ankle boot"
    plain = generation_rows("fashion-mnist", "test", 28, tmp_path)
    assert torch.equal(plain.pixels[:, 0], torch.from_numpy(images))


@pytest.fixture
def emoji(tmp_path, monkeypatch):
    """The unpacked package of OpenMoji, of twenty drawings in two groups."""
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    (tmp_path / "color" / "svg").mkdir(parents=True)
    keys = ("hexcode", "annotation", "group", "subgroups", "tags", "skintone")
    entries = []
    for number in range(20):
        box = f'x="{number * 3}" y="{number * 7 % 50}" width="{9 + number}" height="20" fill="red"'
        drawing = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72"><rect {box}/></svg>'
        (tmp_path / "color" / "svg" / f"A{number}.svg").write_text(drawing)
        name, group = f"{chr(97 + number) * 3}lo", "flags" if number else "animals-nature"
        entries.append(dict(zip(keys, (f"A{number}", name, group, "new", "", ""), strict=True)))
    (tmp_path / "data" / "openmoji.json").write_text(json.dumps(entries))
    return tmp_path


def test_emoji_of_both_splits_have_the_same_classes_and_their_captions(emoji):
    train, test = (generation_rows("openmoji", split, 16, emoji) for split in ("train", "test"))
    assert len(train) + len(test) == 20
    assert len(test) == 4
    assert train.class_names == test.class_names == ("animals-nature", "flags")
    assert train.pixels.shape[1:] == (3, 16, 16)
    assert all(text.endswith((", new", "lo")) for row in train for text in row["texts"])
    assert train.pixel_values().amax((1, 2, 3)).eq(1).all()  # white somewhere


def test_a_folder_of_one_folder_per_class_is_cut_to_squares(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for number, name in enumerate(("cat", "dog")):
        folder = tmp_path / "mine" / "train" / name
        folder.mkdir(parents=True)
        PILImage.new("RGB", (20, 10), (number, 50, 100)).save(folder / "one.png")
    rows = generation_rows(str(tmp_path / "mine"), image_size=8)
    assert rows.pixels.shape == (2, 3, 8, 8)
    assert sorted(zip(rows.labels.tolist(), rows.pixels[:, 0, 0, 0].tolist(), strict=True)) == [
        (0, 0),
        (1, 1),
    ]
    assert rows.class_names == ("cat", "dog")
    with pytest.raises(ValueError, match=r"mine has no split 'test', only \['train'\]; give it a folder"):
        generation_rows(str(tmp_path / "mine"), "test")


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"The folder .* is empty; put pictures into it"):
        generation_rows(str(tmp_path))
    with pytest.raises(ValueError, match=r"`image_size`=30 is not one of \[28, 32\], the sizes of 'fashion"):
        generation_rows("fashion-mnist", image_size=30)
    with pytest.raises(ValueError, match="`split` must be 'train' or 'test', got 'validation'"):
        generation_rows("digits", "validation")
