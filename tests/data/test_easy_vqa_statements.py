"""Statements about pairs: as true as they are labelled, balanced, and of the split's own pictures."""

import pytest
from datasets import Image

from hf_mm.data.easy_vqa import easy_vqa_captions
from hf_mm.data.easy_vqa_statements import KINDS, easy_vqa_statements


@pytest.fixture(scope="module")
def rows():
    made = easy_vqa_statements("test", 400).cast_column("images", [Image(decode=False)])
    names = easy_vqa_captions("test").cast_column("image", Image(decode=False))
    return list(made), {row["image"]["path"]: row["caption"].split() for row in names}


def test_what_is_said_is_as_true_as_its_label(rows):
    """Read from the words alone, not by the functions that made them."""
    made, names = rows
    for row in made:
        shown = [names[image["path"]] for image in row["images"]]
        words = row["statement"].rstrip(".").split()
        if row["kind"] == "both":
            right = all(shape == words[-1] for _, shape in shown)
        elif row["kind"] == "left":
            right = shown[0] == words[-2:]
        elif row["kind"] == "same":
            right = shown[0][1] == shown[1][1]
        else:
            right = sum(colour == words[-1] for colour, _ in shown) == {"one": 1, "none": 0}[row["kind"]]
        assert right == bool(row["label"]), row


def test_half_of_each_kind_is_true(rows):
    made, _ = rows
    for kind in KINDS:
        labels = [row["label"] for row in made if row["kind"] == kind]
        assert len(labels) == 80
        assert sum(labels) == 40


def test_pairs_are_of_two_pictures_and_a_seed_repeats_them(rows):
    made, _ = rows
    assert all(len({image["path"] for image in row["images"]}) == 2 for row in made)
    again = easy_vqa_statements("test", 400)
    assert again["statement"] == [row["statement"] for row in made]
    assert easy_vqa_statements("test", 400, seed=1)["statement"] != again["statement"]
