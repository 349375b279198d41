"""easy-VQA as rows: the official split, and captions and places that the pictures bear out."""

import sys

import numpy as np
import pytest
from datasets import Image
from PIL import ImageColor

from hf_mm import easy_vqa, easy_vqa_captions, easy_vqa_classes, easy_vqa_points
from hf_mm.data.easy_vqa import ANSWERS, QUESTION_TYPES, shape_centre


@pytest.mark.parametrize(("split", "rows", "images"), [("train", 38575, 4000), ("test", 9673, 1000)])
def test_rows_are_the_official_ones(split, rows, images):
    data = easy_vqa(split)
    assert len(data) == rows
    assert len(set(data["image_id"])) == images
    assert set(data["answer"]) == set(ANSWERS)
    assert set(data["question_type"]) == set(QUESTION_TYPES)
    assert data[0]["image"].size == (64, 64)


def test_types_follow_the_answers():
    data = easy_vqa("test").remove_columns("image")
    by_type = {kind: set() for kind in QUESTION_TYPES}
    for row in data:
        by_type[row["question_type"]].add(row["answer"])
    assert by_type["presence"] == {"yes", "no"}
    assert by_type["shape"] == {"circle", "rectangle", "triangle"}
    assert len(by_type["colour"]) == 8


def test_no_image_of_the_test_split_is_in_training():
    train, test = ({path["path"] for path in _paths(easy_vqa(split))} for split in ("train", "test"))
    assert not train & test


def test_captions_name_the_colour_that_the_picture_shows():
    captions = easy_vqa_captions("test")
    assert len(captions) == 888  # 112 are left out: their questions do not settle colour and shape
    for row in captions.select(range(0, len(captions), 9)):
        pixels = np.asarray(row["image"].convert("RGB")).reshape(-1, 3)
        colours, counts = np.unique(pixels, axis=0, return_counts=True)
        name = row["caption"].split()[0].replace("green", "lime")  # easy-VQA's green is (0, 255, 0)
        assert tuple(colours[counts.argsort()[-2]]) == ImageColor.getrgb(name)


def test_captions_agree_with_every_answer_about_their_image():
    captions = {row["image_id"]: row["caption"] for row in easy_vqa_captions().remove_columns("image")}
    assert len(captions) == 3578
    for row in easy_vqa().remove_columns("image"):
        words = captions.get(row["image_id"], "").split()
        if words and row["question_type"] != "presence":
            assert row["answer"] in words


def test_the_24_classes_are_named_by_their_captions():
    rows = easy_vqa_classes("test")
    names = rows.features["label"].names
    assert len(rows) == 888
    assert len(names) == len(set(names)) == 24
    assert [names[label] for label in rows["label"]] == list(rows["caption"])
    assert set(rows["label"]) == set(range(24))


def test_points_are_the_middle_of_the_shape():
    points = easy_vqa_points("test")
    assert len(points) == 954
    row = points[1]
    assert row["question"] == "where is the rectangle?"
    assert row["answer"] == '<point x="13.3" y="59.4" alt="rectangle">rectangle</point>'
    assert row["point"] == pytest.approx([8.5, 38.0])


def test_the_middle_is_the_mean_of_the_pixels_that_differ():
    picture = np.full((10, 20, 3), 7, np.uint8)
    picture[2:4, 5:9] = (7, 8, 7)
    assert shape_centre(picture) == (7.0, 3.0)
    with pytest.raises(ValueError, match=r"one colour only, #070707"):
        shape_centre(np.full((4, 4, 3), 7, np.uint8))


def test_unknown_splits_are_refused():
    with pytest.raises(ValueError, match="splits 'train' and 'test', not 'validation'"):
        easy_vqa("validation")


def test_a_missing_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-mm\[demo\]'"):
        easy_vqa("test")


def _paths(data):
    return data.cast_column("image", Image(decode=False))["image"]
