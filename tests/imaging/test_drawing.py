"""Points that can be seen, and pages that hold everything they should."""

import numpy as np
import pytest
from PIL import Image, ImageColor

from hf_mm.imaging.drawing import POINT, RIGHT, WRONG, AnsweredImage, answer_grid, draw_points


def has_color(image, name, box=None):
    pixels = np.array(image.crop(box) if box else image).astype(int)
    return bool((np.abs(pixels - ImageColor.getrgb(name)).max(-1) <= 2).any())


@pytest.mark.parametrize("size", [(8, 8), (64, 64), (640, 480), (3, 2000)])
def test_a_point_is_seen_where_it_is_at_any_size(size):
    image = Image.new("RGB", size, "white")
    x, y = 0.5 * size[0], 0.25 * size[1]
    drawn = draw_points(image, [(x, y)])
    factor = drawn.width / size[0]
    assert factor == int(factor)
    assert max(drawn.size) >= 256
    middle = (round(x * factor), round(y * factor))
    assert has_color(drawn, POINT, (middle[0] - 1, middle[1] - 1, middle[0] + 1, middle[1] + 1))
    far = drawn.height * 3 // 4
    assert not has_color(drawn, POINT, (0, far, drawn.width, drawn.height))


def test_points_at_the_edge_and_no_points_are_fine():
    image = np.zeros((100, 300, 3), np.uint8)
    assert has_color(draw_points(image, [(0, 0), (300, 100)]), POINT)
    np.testing.assert_array_equal(np.array(draw_points(image, [])), image)


def test_drawing_leaves_the_image_as_it_was():
    image = Image.new("RGB", (300, 300), "white")
    draw_points(image, [(150, 150)])
    assert image.getextrema() == ((255, 255),) * 3


def test_a_ring_is_open_in_the_middle():
    ring = draw_points(Image.new("RGB", (300, 300), "black"), [(150, 150)], filled=False, color="red")
    assert has_color(ring, "red")
    assert has_color(ring, "black", (149, 149, 151, 151))


def card(answer, reference=None, **more):
    return AnsweredImage(Image.new("RGB", (40, 30), "white"), "what is it?", answer, reference, **more)


@pytest.mark.parametrize(
    ("item", "verdict"),
    [
        (card("dog", "dog"), True),
        (card(" Dog\n", "dog"), True),
        (card("cat", "dog"), False),
        (card("cat"), None),
        (card("near enough", "exactly", correct=True), True),
        (card("dog", "dog", correct=False), False),
    ],
)
def test_right_answers_are_green_and_wrong_ones_red(item, verdict):
    page = answer_grid([item])
    assert item.verdict() is verdict
    assert has_color(page, RIGHT) is (verdict is True)
    assert has_color(page, WRONG) is (verdict is False)


def test_points_in_the_answer_are_drawn():
    point = '<point x="50.0" y="50.0" alt="dog">dog</point>'
    assert has_color(answer_grid([card(point)]), POINT)
    assert not has_color(answer_grid([card("dog")]), POINT)


def test_the_page_has_its_rows_and_columns():
    width, height = answer_grid([card("a")] * 3, columns=3, cell_px=120).size
    gap = 120 // 16 if 120 // 16 > 6 else 6
    assert width == 3 * 120 + 4 * gap
    taller = answer_grid([card("a")] * 7, columns=3, cell_px=120)
    assert taller.width == width
    assert taller.height == 3 * (height - gap) + gap
    assert answer_grid([card("a")] * 2, columns=5, cell_px=120).width < width


def test_long_texts_wrap_and_stay_on_the_card():
    long = card("word " * 60 + "Donaudampfschifffahrtsgesellschaftskapitaen" * 3, "short")
    page = answer_grid([long], columns=1, cell_px=120)
    assert page.height > answer_grid([card("word", "short")], columns=1, cell_px=120).height + 200
    margin = np.array(page)[:, -6:]
    assert (margin == 255).all()


@pytest.mark.parametrize("text", ["", "   ", "日本語 é ñ", "a\nb\tc"])
def test_odd_texts_are_drawn(text):
    page = answer_grid([AnsweredImage(np.zeros((5, 5), np.uint8), text, text, "x")], cell_px=64)
    assert min(page.size) > 64


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: answer_grid([]), "`items` is empty"),
        (lambda: answer_grid([card("a")], columns=0), "`columns`=0 must be at least 1"),
        (lambda: answer_grid([card("a")], cell_px=10), "`cell_px`=10 at least 64"),
    ],
)
def test_pages_that_cannot_be_are_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
