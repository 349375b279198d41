"""Composed pictures show what they say they show, and an expression fits one object of each."""

import random
from collections import Counter
from functools import cache

import numpy as np
import pytest
from datasets import Image

from hf_mm import easy_vqa_captions, easy_vqa_referring
from hf_mm.data.easy_vqa import shape_mask
from hf_mm.data.referring import _places


@cache
def referring(split="test", rows=60, **more):
    return easy_vqa_referring(split, rows, **more)


def stored(data):
    """Rows with the bytes of their pictures."""
    return list(data.cast_column("image", Image(decode=False)))


def test_an_expression_fits_the_labelled_object_alone():
    for row in referring():
        assert row["expression"] == f"the {row['objects'][row['label']]}"
        assert Counter(row["objects"])[row["objects"][row["label"]]] == 1


def test_neither_word_alone_finds_the_object():
    for row in referring():
        colour, shape = row["objects"][row["label"]].split()
        others = [name.split() for number, name in enumerate(row["objects"]) if number != row["label"]]
        assert any(other[0] == colour for other in others)
        assert any(other[1] == shape for other in others)


def test_every_object_lies_in_its_box_as_in_the_picture_it_is_from():
    names = {row["image_id"]: row for row in easy_vqa_captions("test")}
    for row in referring().select(range(12)):
        pixels = np.asarray(row["image"])
        inside = np.zeros(pixels.shape[:2], bool)
        for name, (x1, y1, x2, y2), source in zip(row["objects"], row["boxes"], row["sources"], strict=True):
            assert names[source]["caption"] == name
            box = (slice(int(y1), int(y2)), slice(int(x1), int(x2)))
            assert not inside[box].any()  # no overlap
            inside[box] = True
            original = np.asarray(names[source]["image"].convert("RGB"))
            mask = shape_mask(original)
            rows, columns = np.nonzero(mask)
            assert pixels[box].shape[:2] == (np.ptp(rows) + 1, np.ptp(columns) + 1)
            shown = pixels[box].reshape(-1, 3)
            cut = original[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].reshape(-1, 3)
            drawn = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].reshape(-1)
            np.testing.assert_array_equal(shown[drawn], cut[drawn])
        assert len(np.unique(pixels[~inside], axis=0)) == 1  # nothing beside the boxes


def test_train_and_test_share_no_object():
    """Ids of both splits begin at 0: objects are cut from images of their own split."""
    for split in ("train", "test"):
        names = {row["image_id"]: row["caption"] for row in stored(easy_vqa_captions(split))}
        for row in stored(referring(split)):
            assert [names.get(source) for source in row["sources"]] == row["objects"]


def test_same_seed_same_pictures_and_another_seed_others():
    few, many = stored(easy_vqa_referring("test", 5)), stored(referring())
    assert few == many[:5]
    assert stored(easy_vqa_referring("test", 5, seed=1)) != few


def test_numbers_of_objects_and_places_of_the_right_one_vary_evenly():
    rows = stored(referring(rows=600))
    counts = Counter(len(row["boxes"]) for row in rows)
    assert set(counts) == set(range(4, 10))
    assert min(counts.values()) > 70  # of 100
    first = sum(row["label"] == 0 for row in rows) / len(rows)
    assert first == pytest.approx(np.mean([1 / len(row["boxes"]) for row in rows]), abs=0.05)


def test_the_number_of_objects_can_be_fixed_and_the_picture_larger():
    rows = easy_vqa_referring("test", 3, objects=(3, 3), side_px=224)
    assert [len(row["boxes"]) for row in rows] == [3, 3, 3]
    assert rows[0]["image"].size == (224, 224)


def test_nine_of_the_largest_find_room_in_the_smallest_picture():
    boxes = _places([(35, 35)] * 9, 144, random.Random(0))
    assert len(boxes) == 9
    assert np.min(boxes) >= 0
    assert np.max(boxes) <= 144


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objects": (2, 5)}, r"`objects`=\(2, 5\) must be the fewest and the most, 3 to 9"),
        ({"objects": (6, 5)}, r"`objects`=\(6, 5\) must be"),
        ({"rows": 0}, "`rows`=0 must be at least 1"),
        ({"side_px": 64}, "`side_px`=64 at least 144"),
        ({"split": "validation"}, "splits 'train' and 'test', not 'validation'"),
    ],
)
def test_what_cannot_be_composed_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        easy_vqa_referring(**changes)
