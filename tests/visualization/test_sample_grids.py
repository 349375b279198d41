"""Grids, strips and neighbours: every pixel in its place, grey stays grey, faults are named."""

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from hf_mm import film_strip, neighbour_grid, pixel_levels, sample_grid


def noise(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def pixels(image):
    """(C, H, W) uint8 of a PIL image."""
    return pixel_tensor(image) if image.mode == "L" else pixel_tensor(image).permute(2, 0, 1)


def pixel_tensor(image):
    levels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return levels.reshape(image.height, image.width, *([] if image.mode == "L" else [3]))


def test_levels_are_those_a_written_picture_has():
    values = torch.tensor([-1.2, -1.0, 0.0, 1.0, 1.5]).reshape(1, 1, 1, 5)
    assert pixel_levels(values).flatten().tolist() == [0, 0, 128, 255, 255]
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert_close(pixel_levels(levels.float() / 127.5 - 1), levels, rtol=0, atol=0)
    assert pixel_levels(levels) is levels


def test_each_picture_of_a_grid_stands_enlarged_in_its_place():
    pictures = noise(5, 3, 8, 8)
    grid = sample_grid(pictures, 3, gap_px=2, least_px=16)
    assert (grid.mode, grid.size) == ("RGB", (3 * 18 + 2, 2 * 18 + 2))
    for number, levels in enumerate(pixel_levels(pictures)):
        left, top = 2 + 18 * (number % 3), 2 + 18 * (number // 3)
        tile = pixels(grid)[:, top : top + 16, left : left + 16]
        assert_close(tile[:, ::2, ::2], levels, rtol=0, atol=0)
        assert_close(tile[:, 1::2, 1::2], levels, rtol=0, atol=0)
    assert (pixels(grid)[:, 20:, 38:] == 255).all()  # where there is no sixth picture


def test_grey_pictures_make_a_grey_page_and_colours_a_coloured_one():
    assert sample_grid(noise(2, 1, 8, 8), row_labels=["digits"]).mode == "L"
    grey, coloured = Image.new("L", (8, 8)), Image.new("RGB", (8, 8), "red")
    assert sample_grid([grey, coloured]).mode == "RGB"


def test_labels_take_room_on_the_left_and_titles_above():
    bare = sample_grid(noise(4, 1, 8, 8), 2)
    told = sample_grid(noise(4, 1, 8, 8), 2, row_labels=["a", "a long label"], titles=["x", "y"])
    assert told.width > bare.width + 40
    assert told.height > bare.height + 8
    corner = pixels(told)[-bare.height :, -bare.width :]
    assert_close(corner, pixels(bare), rtol=0, atol=0)
    assert (pixels(told)[:, : told.width - bare.width] < 128).any()  # ink


def test_a_film_is_a_row_and_several_films_are_rows():
    frames = noise(2, 5, 3, 8, 8)
    one, two = film_strip(frames[0]), film_strip(frames)
    assert one.width == two.width
    assert_close(pixels(two)[:, : one.height], pixels(one), rtol=0, atol=0)
    assert film_strip(list(frames)).tobytes() == two.tobytes()
    as_pil = [Image.fromarray(part.permute(1, 2, 0).numpy()) for part in pixel_levels(frames[0])]
    assert film_strip(as_pil).tobytes() == one.tobytes()


def test_neighbours_stand_beside_their_sample_with_their_distances():
    samples, beside = noise(2, 1, 8, 8), noise(6, 1, 8, 8).reshape(2, 3, 1, 8, 8)
    bare = neighbour_grid(samples, beside)
    told = neighbour_grid(samples, beside, torch.rand(2, 3), labels=["0", "1"])
    assert bare.mode == "L"
    assert told.height > bare.height
    assert bare.width == 4 * (56 + 2) + 2 + 56 // 4  # the sample stands off


def test_neighbours_are_named_behind_their_distances():
    samples, beside = noise(2, 1, 8, 8), noise(2, 1, 1, 8, 8)
    told = neighbour_grid(samples, beside, [[1.5], [2.0]], texts=[["cat"], ["dog"]])
    assert told.size == neighbour_grid(samples, beside, texts=[["cat"], ["dog"]]).size
    other = neighbour_grid(samples, beside, [[1.5], [2.0]], texts=[["cat"], ["cow"]])
    differs = (pixels(told) != pixels(other)).nonzero()
    assert len(differs)
    assert differs[:, 0].min() > told.height * 3 // 4  # in the last line, below the second neighbour
    with pytest.raises(ValueError, match=r"`texts` must be 2 x 1, got rows of \[1\]"):
        neighbour_grid(samples, beside, texts=[["cat"]])


def test_faults_are_named():
    broken = noise(3, 1, 8, 8)
    broken[1, 0, 3, 3] = torch.nan
    with pytest.raises(ValueError, match="`pictures` hold NaN or infinity in picture 1"):
        sample_grid(broken)
    with pytest.raises(ValueError, match=r"must be \(pictures, 1 or 3 channels, height, width\), got \(2, 4"):
        sample_grid(noise(2, 4, 8, 8))
    with pytest.raises(ValueError, match=r"`pictures` are floats from 0 to 255; bring them to \[-1, 1\]"):
        sample_grid(torch.tensor([0.0, 255.0]).reshape(2, 1, 1, 1))
    with pytest.raises(TypeError, match=r"`pixel_values` are torch\.int64; give floats"):
        pixel_levels(torch.zeros(1, 1, 2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="`pictures` is empty; there is nothing to draw"):
        sample_grid([])
    with pytest.raises(ValueError, match="`columns`=0 must be at least 1"):
        sample_grid(noise(2, 1, 8, 8), 0)
    with pytest.raises(ValueError, match="`gap_px`=-1 must be at least 0 and `least_px`=56 at least 1"):
        sample_grid(noise(2, 1, 8, 8), gap_px=-1)
    with pytest.raises(ValueError, match="1 labels for 2 rows; give one for each"):
        sample_grid(noise(4, 1, 8, 8), 2, row_labels=["a"])
    with pytest.raises(ValueError, match=r"The pictures are \[\(8, 8\), \(9, 8\)\] px wide and high"):
        sample_grid([Image.new("L", (8, 8)), Image.new("L", (9, 8))])
    with pytest.raises(ValueError, match=r"`frames` are films of \[2, 3\] frames"):
        film_strip([noise(2, 1, 8, 8), noise(3, 1, 8, 8)])
    with pytest.raises(ValueError, match=r"2 `samples` but neighbours of 1, \[3\] each"):
        neighbour_grid(noise(2, 1, 8, 8), noise(1, 3, 1, 8, 8))
    with pytest.raises(ValueError, match=r"`distances` must be 2 x 1, got rows of \[2, 2\]"):
        neighbour_grid(noise(2, 1, 8, 8), noise(2, 1, 1, 8, 8), torch.zeros(2, 2))
