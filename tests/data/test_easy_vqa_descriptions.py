"""Captions of easy-VQA's pictures say what questions and answers bear out, and never what is vague."""

import numpy as np
import pytest
import torch

from hf_mm import described_shapes, easy_vqa_captions, easy_vqa_descriptions, generation_rows
from hf_mm.data.easy_vqa import shape_centre


@pytest.fixture(scope="module")
def described():
    return easy_vqa_descriptions("test")


def test_every_picture_has_captions_that_agree_with_the_official_answers(described):
    assert len(described) == 1000
    official = {row["image_id"]: row["caption"] for row in easy_vqa_captions("test").remove_columns("image")}
    assert len(official) == 888
    plain = {row["image_id"]: row["caption"][-1] for row in described.remove_columns("image")}
    assert all(plain[number] in (f"a {text}", text) for number, text in official.items())


def test_what_is_said_of_the_place_is_not_vague(described):
    certain = described.filter(lambda place: bool(place), input_columns="place")
    assert len(certain) == 669
    for row in certain.select(range(0, 669, 13)):
        x, y = shape_centre(np.asarray(row["image"].convert("RGB")))
        across = "left" if x < 64 / 3 - 1 else "right" if x > 128 / 3 + 1 else ""
        down = "top" if y < 64 / 3 - 1 else "bottom" if y > 128 / 3 + 1 else ""
        assert row["place"] == (f"{down} {across}".strip() or "middle")
        assert row["place"] in row["caption"][0]


def test_words_that_would_be_vague_are_left_out(described):
    assert (list(described["size"]).count(""), list(described["place"]).count("")) == (177, 331)
    for row in described.remove_columns("image"):
        sized = [text for text in row["caption"] if {"small", "big", "little", "large"} & set(text.split())]
        placed = [text for text in row["caption"] if {"at", "on", "in"} & set(text.split())]
        assert bool(sized) == bool(row["size"])
        assert bool(placed) == bool(row["place"])


def test_rows_to_draw_have_the_captions_and_the_24_classes(described):
    rows = generation_rows("easy-vqa", "test", 32)
    assert rows.pixels.shape == (1000, 3, 32, 32)
    assert [list(texts) for texts in rows.texts] == list(described["caption"])
    assert rows.labels.tolist() == list(described["label"])
    assert rows.class_names[rows.labels[0]] in rows.texts[0][-1]
    whole = torch.from_numpy(np.asarray(described[0]["image"].convert("RGB")).copy()).float()
    assert torch.equal(rows.pixels[0, :, 3, 5], whole[6:8, 10:12].mean((0, 1)).round().byte())


def test_captions_can_be_asked_for_again(described):
    prompts = described_shapes(described)
    assert [prompt.text for prompt in prompts] == [texts[0] for texts in described["caption"]]
    assert sum(prompt.place is None for prompt in prompts) == 331
    assert (prompts[0].colour, prompts[0].shape) == (described[0]["colour"], described[0]["shape"])
