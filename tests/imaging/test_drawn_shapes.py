"""A coloured shape is measured right, sharp or soft, and what is none is not taken for one."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from hf_mm import measure_shapes, shape_prompts
from hf_mm.imaging.drawn_shapes import PLACES, SHAPE_COLOURS, SHAPE_KINDS, SHAPE_SIZES, DrawnShape
from hf_mm.imaging.shape_captions import describe_shape


def picture(shape, colour, box, px=64, background=(240, 245, 235)):
    """A shape in a box of pixels, with soft edges."""
    large = Image.new("RGB", (4 * px, 4 * px), background)
    left, top, right, bottom = (4 * edge for edge in box)
    draw = ImageDraw.Draw(large)
    if shape == "circle":
        draw.ellipse((left, top, right, bottom), colour)
    elif shape == "rectangle":
        draw.rectangle((left, top, right, bottom), colour)
    else:
        draw.polygon([((left + right) / 2, top), (left, bottom), (right, bottom)], colour)
    return large.resize((px, px), Image.Resampling.BOX)


def spoilt(image, seed):
    """As a generator draws: soft, with noise."""
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(0.8)), float)
    noise = np.random.default_rng(seed).normal(0, 12, soft.shape)
    return (soft + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def drawn():
    """All colours and shapes: their words, and pictures of 12 and 26 px wide shapes."""
    words = [(colour, shape) for colour in SHAPE_COLOURS for shape in SHAPE_KINDS]
    boxes = [(5, 8, 17, 20), (30, 20, 56, 46)]
    return [
        (colour, shape, size, picture(shape, SHAPE_COLOURS[colour], box))
        for colour, shape in words
        for size, box in zip(SHAPE_SIZES, boxes, strict=True)
    ]


@pytest.mark.parametrize("soft", [False, True])
def test_colour_shape_and_size_are_read_off_sharp_and_soft_pictures(drawn, soft):
    images = [np.asarray(image) for *_, image in drawn]
    found = measure_shapes([spoilt(image, n) for n, (*_, image) in enumerate(drawn)] if soft else images)
    assert [(one.colour, one.shape, one.size()) for one in found] == [row[:3] for row in drawn]
    assert min(one.overlap for one in found) > (0.8 if soft else 0.93)


def test_middle_and_side_are_those_that_were_drawn():
    rectangle, circle, triangle = measure_shapes(
        [picture(shape, "red", (10, 20, 30, 40)) for shape in ("rectangle", "circle", "triangle")]
    )
    for one in (rectangle, circle, triangle):
        assert one.side * 64 == pytest.approx(20, abs=0.5)
        assert one.x * 64 == pytest.approx(20.1, abs=0.2)
    assert rectangle.y * 64 == pytest.approx(circle.y * 64, abs=0.2)
    assert triangle.y * 64 == pytest.approx(20 + 20 * 2 / 3, abs=0.2)  # as its mass lies


def test_pictures_of_any_kind_and_size_measure_alike():
    image = picture("circle", "teal", (20, 4, 44, 28))
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)[None]
    assert measure_shapes([image]) == measure_shapes([array]) == measure_shapes(tensor)
    assert measure_shapes(tensor) == measure_shapes(tensor / 127.5 - 1)
    small = measure_shapes([image.resize((32, 32), Image.Resampling.BOX)])[0]
    assert (small.colour, small.shape, small.place(), small.size()) == ("teal", "circle", "top", "big")
    assert measure_shapes([]) == []


def test_what_is_no_single_shape_of_a_known_colour_is_not_named():
    two = picture("circle", "red", (5, 5, 25, 25))
    two.paste(picture("circle", "red", (5, 5, 25, 25)).crop((4, 4, 27, 27)), (36, 36))
    cross = picture("rectangle", "red", (10, 28, 54, 34))
    cross.paste("red", (28, 10, 34, 54))
    pink = picture("circle", (255, 110, 200), (20, 20, 40, 40))
    empty = Image.new("RGB", (64, 64), "white")
    found = measure_shapes([two, cross, pink, empty])
    assert [(one.colour, one.shape) for one in found] == [
        ("red", None),
        ("red", None),
        (None, "circle"),
        (None, None),
    ]
    assert (found[3].place(), found[3].size()) == (None, None)


def test_places_are_thirds_and_vague_ones_are_left_out():
    at = [(x, y) for y in (0.2, 0.5, 0.8) for x in (0.2, 0.5, 0.8)]
    assert [DrawnShape("red", "circle", x, y, 0.2).place(0.1) for x, y in at] == list(PLACES)
    border = DrawnShape("red", "circle", 0.35, 0.1, 0.34)
    assert (border.place(0.01), border.place(0.03)) == ("top", None)
    assert (border.size(0.01), border.size(0.03)) == ("big", None)


def test_captions_say_the_same_in_several_ways_and_prompts_say_all():
    assert describe_shape("red", "circle", "top left", "small") == [
        "a small red circle at the top left",
        "there is a little red circle at the top left",
        "a picture of a small red circle at the top left",
        "small red circle, top left",
        "at the top left, a small red circle",
        "a red circle at the top left",
        "a small red circle",
        "a red circle",
    ]
    assert describe_shape("red", "circle", "middle")[-2:] == ["in the middle, a red circle", "a red circle"]
    assert describe_shape("red", "circle") == [
        "a red circle",
        "there is a red circle",
        "a picture of a red circle",
        "red circle",
    ]
    prompts = shape_prompts()
    assert len({prompt.text for prompt in prompts}) == len(prompts) == 8 * 3 * 9 * 2
    assert prompts[0].text == "a small black circle at the top left"


def test_grey_pictures_and_several_sizes_are_refused():
    with pytest.raises(ValueError, match="`pictures` have 1 channels; give RGB pictures of one size"):
        measure_shapes(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"`pictures` are \[\(8, 8, 3\), \(9, 9, 3\)\]; give RGB pictures"):
        measure_shapes([Image.new("RGB", (side, side)) for side in (8, 9)])
