"""Drawn shapes are judged by pixels, right on real pictures, and by what a model answers about them."""

import numpy as np
import pytest
import torch
from chat_tiny import processor
from models.vlm_tiny import text_config, tiny_model
from PIL import Image, ImageFilter

from hf_mm import drawn_attribute_results, easy_vqa_classes, generate_answers
from hf_mm.evaluation.drawn_attributes import (
    asked_attributes,
    attribute_accuracy,
    attribute_table,
    measured_attributes,
    place_of_answer,
)
from hf_mm.evaluation.vqa import normalise_answer
from hf_mm.imaging.shape_captions import ShapePrompt

RED = ShapePrompt("a small red circle at the top", "red", "circle", "top", "small")


@pytest.fixture(scope="module")
def official():
    """A third of the official test pictures of known colour and shape: arrays and prompts."""
    rows = easy_vqa_classes("test")
    rows = rows.select(range(0, len(rows), 3))
    prompts = [ShapePrompt(text, *text.split()) for text in rows["caption"]]
    return [np.asarray(image.convert("RGB")) for image in rows["image"]], prompts


def soft(pixels):
    blurred = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(1))
    noise = np.random.default_rng(0).normal(0, 15, pixels.shape)
    return (np.asarray(blurred) + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("spoil", [None, soft])
def test_colours_and_shapes_of_the_real_test_pictures_are_found(official, spoil):
    pictures, prompts = official
    images = [Image.fromarray(pixels if spoil is None else spoil(pixels)) for pixels in pictures]
    results = drawn_attribute_results(images, prompts)
    assert results["pictures"] == 296
    assert results["pixels"]["judged"] == {"colour": 296, "shape": 296, "all": 296}
    assert min(results["pixels"]["accuracy"].values()) >= 0.99


def test_tensors_of_generators_and_pictures_are_judged_alike(official):
    pictures = torch.from_numpy(np.stack(official[0][:20])).permute(0, 3, 1, 2)
    images = [Image.fromarray(pixels) for pixels in official[0][:20]]
    found = measured_attributes(pictures / 127.5 - 1)
    assert found == measured_attributes(images)
    assert set(found[0]) == {"colour", "shape", "place", "size"}


def test_a_picture_counts_when_all_that_was_said_is_right():
    shown = {"colour": "red", "shape": "circle", "place": "top", "size": "small"}
    prompts = [RED, RED, RED, ShapePrompt("a red circle", "red", "circle")]
    found = [shown, {**shown, "place": "left"}, {**shown, "colour": None, "shape": "triangle"}, shown]
    result = attribute_accuracy(prompts, found)
    assert result["accuracy"] == {"colour": 0.75, "shape": 0.75, "place": 2 / 3, "size": 1.0, "all": 0.5}
    assert result["judged"] == {"colour": 4, "shape": 4, "place": 3, "size": 3, "all": 4}
    assert result["errors"]["place"] == {"top: left": 1}
    assert result["errors"]["colour"] == {"red: None": 1}
    real = attribute_accuracy([RED], [{"colour": "red"}])
    table = attribute_table({"drawn": {"pixels": result}, "real": {"answers": real}})
    assert [line.replace(" ", "") for line in table.splitlines()[2:]] == [
        "|drawn|pixels|75.0|75.0|66.7|100.0|50.0|",
        "|real|answers|100.0||||100.0|",
    ]


def test_a_model_is_asked_for_colour_shape_and_place_of_each_picture():
    p = processor()
    text = text_config(vocab_size=len(p.tokenizer), initializer_range=0.3)
    model = tiny_model(text_config=text, image_token_id=p.image_token_id)
    images = [Image.new("RGB", (20, 20), colour) for colour in ("red", "teal")]
    questions = ["what color is the shape?", "what shape is in the image?", "where is the circle?"]
    rows = [{"image": image, "question": question} for image in images for question in questions]
    said = generate_answers(model, p, rows, max_new_tokens=64, progress=False)
    found = asked_attributes(model, p, images, [RED, RED], pointing=True)
    words = [normalise_answer(text) for text in said]
    assert found == [  # it has not learnt to point
        {"colour": words[0], "shape": words[1], "place": None},
        {"colour": words[3], "shape": words[4], "place": None},
    ]
    results = drawn_attribute_results(images, [RED, RED], model, p, pointing=True)
    assert set(results) == {"pictures", "pixels", "answers"}
    assert set(results["answers"]["accuracy"]) == {"colour", "shape", "place", "all"}
    found_out = asked_attributes(model, p, images, [RED, RED], pointing=None)
    assert found_out == [{"colour": one["colour"], "shape": one["shape"]} for one in found]


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        ('<point x="10.0" y="20.0" alt="circle">circle</point>', "top left"),
        ('<point x="50.0" y="80.0" alt="circle">circle</point>', "bottom"),
        ("There are none.", None),
    ],
)
def test_an_answer_that_points_tells_the_place(answer, place):
    assert place_of_answer(answer, Image.new("RGB", (40, 20))) == place


def test_what_does_not_go_together_is_said():
    picture = Image.new("RGB", (16, 16))
    with pytest.raises(ValueError, match=r"There are 1 pictures for 2 `prompts`; give one prompt for each\."):
        drawn_attribute_results([picture], [RED, RED])
    with pytest.raises(ValueError, match="`model` and `processor` go together; give both, or none"):
        drawn_attribute_results([picture], [RED], model=torch.nn.Identity())
