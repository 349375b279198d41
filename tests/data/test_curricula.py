"""Curricula: what is taught is never asked, and each data set brings the questions that it says."""

import io
import json

import numpy as np
import pytest
import torch
from chat_tiny import picture
from datasets import Dataset

from hf_mm import curriculum
from hf_mm.data.curricula import EMOJI_QUESTIONS, questions_of
from hf_mm.data.easy_vqa import SHAPES, easy_vqa_pointing, shape_centre, shape_mask
from hf_mm.data.viewed import ViewedCollator
from hf_mm.imaging.loading import load_rgb
from hf_mm.imaging.points import NO_POINTS, parse_points

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72">'
    '<rect x="{x}" y="{x}" width="20" height="{x}"/></svg>'
)


@pytest.fixture(scope="module")
def pointing():
    return curriculum("easy-vqa-points")


def test_every_image_is_asked_for_its_shape_and_for_one_that_it_lacks():
    rows = easy_vqa_pointing("test")
    present, absent = rows[0::2], rows[1::2]
    assert present["image_id"] == absent["image_id"]
    assert set(present["question_type"]) == {"present"}
    assert set(absent["answer"]) == {NO_POINTS}
    assert not any(a == b for a, b in zip(present["question"], absent["question"], strict=True))
    assert {question.split()[-1] for question in absent["question"]} == {f"{shape}." for shape in SHAPES}


def test_the_right_point_of_a_shape_lies_in_its_mask(pointing):
    for row in pointing.test[:200:2]:
        (mask,), (thing,) = row["masks"], parse_points(row["answer"], width=64, height=64, strict=True)
        ((x, y),) = thing.points
        assert mask[int(y), int(x)]
        assert thing.label in row["question"]


def test_what_is_not_there_has_no_mask(pointing):
    assert all(row["masks"] == [] for row in pointing.test[1::2])


def test_pointing_is_learnt_from_training_images_only(pointing):
    taught = {row["images"][0]["path"] for row in (*pointing.align, *pointing.train)}
    asked = {row["images"][0]["path"] for row in pointing.test}
    assert len(taught) > 3000
    assert len(asked) > 800
    assert not taught & asked


def test_a_mask_is_what_differs_from_the_background():
    image = np.full((6, 8, 3), 200, np.uint8)
    image[2:4, 3:7] = 10
    mask = shape_mask(image)
    assert mask.sum() == 8
    assert mask[2:4, 3:7].all()
    assert shape_centre(image) == (5.0, 3.0)


@pytest.fixture
def emoji(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "color" / "svg").mkdir(parents=True)
    entries = []
    for number in range(40):
        code = f"1F{number:03X}"
        drawing = SVG.format(x=5 + number % 40)
        (tmp_path / "color" / "svg" / f"{code}.svg").write_text(drawing)
        entries.append(
            {
                "hexcode": code,
                "annotation": f"thing{number} of{number}",
                "group": "animals-nature",
                "subgroups": "animal-bug",
                "tags": "a, b, c" if number % 2 else "",
                "openmoji_tags": "",
                "openmoji_author": "me",
                "skintone": "",
            }
        )
    (tmp_path / "data" / "openmoji.json").write_text(json.dumps(entries))
    return tmp_path


def test_emoji_are_named_grouped_and_described_beside_questions_about_shapes(emoji, monkeypatch, tmp_path):
    monkeypatch.setattr("hf_mm.data.openmoji.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    made = curriculum("openmoji", openmoji_folder=emoji)
    kinds = {row["question_type"] for row in made.test}
    assert {"emoji caption", "emoji name", "emoji group", "emoji keywords", "presence"} <= kinds
    asked = {load_rgb(row["images"][0]).tobytes() for row in made.test if "emoji" in row["question_type"]}
    taught = [row for row in made.train if load_rgb(row["images"][0]).shape == (64, 64, 3)]
    assert asked
    assert not asked & {load_rgb(row["images"][0]).tobytes() for row in taught}
    named = next(
        row
        for row in made.train
        if row["conversations"][0][0]["content"][-1].get("text") in EMOJI_QUESTIONS.values()
    )
    answers = [chat[-1]["content"] for chat in named["conversations"]]
    assert answers[2] == "animals nature"
    assert all(len(row["conversations"]) == 1 for row in made.align)
    assert made.views


def test_of_own_rows_a_twentieth_is_asked_and_not_taught(tmp_path):
    files = []
    for number in range(40):
        buffer = io.BytesIO()
        picture(number, 16, 16).save(buffer, "PNG")
        files.append({"bytes": buffer.getvalue(), "path": None})
    rows = {"image": files, "question": ["what?"] * 40, "answer": [str(number) for number in range(40)]}
    Dataset.from_dict(rows).to_parquet(tmp_path / "rows.parquet")
    made = curriculum(str(tmp_path / "rows.parquet"))
    assert [row["answer"] for row in made.test] == ["0", "1"]
    assert {row["answer"] for row in questions_of(made.train)}.isdisjoint({"0", "1"})
    with pytest.raises(ValueError, match=r"`columns`='image,answer' must name three columns"):
        curriculum(str(tmp_path / "rows.parquet"), "image,answer")


def test_pictures_are_seen_another_way_and_batches_without_pictures_stay():
    def batch(rows):
        ids = torch.tensor([[row] for row in rows])
        return {"input_ids": ids, "pixel_values": torch.ones(len(rows), 3, 4, 4)} if rows else {}

    def brighter(pixels, generator):
        return pixels + torch.rand(len(pixels), 1, 1, 1, generator=generator)

    seen = ViewedCollator(batch, brighter, seed=1)
    once = seen([3, 4])["pixel_values"]
    torch.rand(5)  # what else draws in the meantime changes nothing
    assert seen([3, 4])["pixel_values"].equal(once)
    assert not seen([4, 3])["pixel_values"].equal(once)
    assert not ViewedCollator(batch, brighter, seed=2)([3, 4])["pixel_values"].equal(once)
    assert (once > 1).all()
    assert seen([]) == {}


def test_each_of_several_pictures_of_a_row_is_seen_in_its_own_way():
    def brighter(pixels, generator):
        return pixels + torch.rand(len(pixels), 1, 1, 1, generator=generator)

    batch = {"input_ids": torch.tensor([[1], [2]]), "pixel_values": torch.zeros(2, 3, 1, 4, 4)}
    seen = ViewedCollator(lambda rows: dict(batch), brighter, seed=1)([])["pixel_values"]
    assert seen.shape == (2, 3, 1, 4, 4)
    assert len(seen.unique()) == 6
