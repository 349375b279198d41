"""Proposals: boxes of drawn things, counted by hand."""

import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image, ImageDraw

from hf_mm import connected_components, region_proposals, sliding_grid


def drawing(width=40, height=20):
    picture = Image.new("RGB", (width, height), (200, 220, 240))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((4, 2, 7, 5), fill="red")  # 16 px
    draw.rectangle((20, 10, 29, 13), fill="blue")  # 40 px
    draw.point((35, 15), fill="black")
    return picture


def test_things_are_boxed_the_largest_first():
    expected = [[20 / 40, 10 / 20, 30 / 40, 14 / 20], [4 / 40, 2 / 20, 8 / 40, 6 / 20]]
    found = connected_components(drawing())
    assert found.dtype == np.float32
    assert_allclose(found, expected, rtol=1e-6)
    assert_allclose(connected_components(np.array(drawing())), expected, rtol=1e-6)


def test_specks_count_when_they_are_asked_for():
    assert_allclose(connected_components(drawing(), min_pixels=1)[2], [35 / 40, 0.75, 36 / 40, 0.8])


def test_pixels_that_touch_at_a_corner_are_one_thing():
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[1:3, 1:3] = pixels[3:5, 3:5] = 255
    assert_allclose(connected_components(pixels), [[1 / 8, 1 / 8, 5 / 8, 5 / 8]])


def test_of_equal_things_the_upper_left_comes_first():
    pixels = np.zeros((8, 8, 3), np.uint8)
    for top, left in ((5, 0), (0, 5), (0, 0)):
        pixels[top : top + 2, left : left + 2] = 255
    assert_allclose(connected_components(pixels)[:, :2] * 8, [[0, 0], [5, 0], [0, 5]])


def test_faint_differences_belong_to_the_background():
    pixels = np.full((8, 8, 3), 100, np.uint8)
    pixels[2:4, 2:4] = 107
    assert connected_components(pixels).shape == (0, 4)
    assert len(connected_components(pixels, min_difference=7)) == 1


def test_windows_go_from_edge_to_edge():
    square = Image.new("RGB", (10, 10))
    whole, *quarters = sliding_grid(square, (1.0, 0.5), overlap=0.0).tolist()
    assert whole == [0, 0, 1, 1]
    assert quarters == [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]]
    assert len(sliding_grid(square, (0.5,), overlap=0.5)) == 9


def test_windows_of_a_wide_picture_are_square_and_cover_it():
    boxes = sliding_grid(Image.new("RGB", (25, 10)), (1.0,), overlap=0.0) * [25, 10, 25, 10]
    assert_allclose(boxes, [[0, 0, 10, 10], [7.5, 0, 17.5, 10], [15, 0, 25, 10]], rtol=1e-6)


def test_proposals_are_things_and_then_windows():
    picture = drawing()
    things, windows = connected_components(picture), sliding_grid(picture, (0.5,), overlap=0.0)
    assert_allclose(region_proposals(picture, (0.5,)), np.concatenate([things, windows]))


def test_a_picture_of_one_colour_has_its_windows():
    assert region_proposals(Image.new("RGB", (8, 8)), (1.0,)).tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: connected_components(drawing(), min_difference=0), "`min_difference`=0 must be in 1..255"),
        (lambda: connected_components(drawing(), min_pixels=0), "`min_pixels`=0 at least 1"),
        (lambda: sliding_grid(drawing(), ()), r"`windows`=\(\) must be shares"),
        (lambda: sliding_grid(drawing(), (2.0,)), r"`windows`=\(2.0,\) must be shares"),
        (lambda: sliding_grid(drawing(), overlap=1.0), "`overlap`=1.0 from 0 to below 1"),
    ],
)
def test_numbers_out_of_range_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_without_scipy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.ndimage", None)
    with pytest.raises(ImportError, match=r"need scipy: pip install 'hf-mm\[regions\]'"):
        connected_components(drawing())
