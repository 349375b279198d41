"""Operations on pictures, by hand on their pixels, and how they are drawn."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_mm import RandAugment
from hf_mm.imaging.rand_augment import AUGMENTATIONS

BLACK = (0, 0, 0)


def picture(height=20, width=30):
    pixels = np.random.default_rng(0).integers(40, 200, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def changed(name, strength, image=None):
    return np.asarray(AUGMENTATIONS[name](image or picture(), strength, BLACK)).astype(int)


PLAIN = np.asarray(picture()).astype(int)


@pytest.mark.parametrize("name", sorted(set(AUGMENTATIONS) - {"autocontrast", "equalize"}))
def test_without_strength_nothing_changes(name):
    assert np.array_equal(changed(name, 0.0), PLAIN)


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("strength", [-1.0, 1.0])
def test_the_size_stays(name, strength):
    assert changed(name, strength).shape == (20, 30, 3)


def test_translations_move_by_a_share_of_the_side():
    """Of 30 columns and 20 rows 45 % at most; black comes in."""
    right, down = changed("translate_x", -10 / 13.595), changed("translate_y", 5 / 9.063)
    assert np.array_equal(right[:, 10:], PLAIN[:, :20])
    assert not right[:, :10].any()
    assert np.array_equal(down[:15], PLAIN[5:])
    assert not down[15:].any()


def test_shears_move_each_line_further_than_the_last():
    sheared = changed("shear_x", 1.0)
    for row in range(20):
        moved = int(0.3 * (row + 0.5) + 0.5)
        assert np.array_equal(sheared[row, : 30 - moved - 1], PLAIN[row, moved:29])
    turned = np.transpose(changed("shear_y", 1.0, picture().transpose(Image.Transpose.TRANSPOSE)), (1, 0, 2))
    assert np.array_equal(turned, sheared)


def test_rotations_are_by_thirty_degrees_at_most():
    assert np.array_equal(changed("rotate", -1.0), np.asarray(picture().rotate(-30)).astype(int))


def test_colours_are_changed_as_the_names_say():
    assert np.abs(changed("brightness", -1.0) - 0.1 * PLAIN).max() <= 1
    assert np.abs(changed("brightness", 1.0) - (1.9 * PLAIN).clip(0, 255)).max() <= 1
    grey = np.asarray(picture().convert("L")).astype(int)[..., None]
    assert np.abs(changed("color", -1.0) - (grey + 0.1 * (PLAIN - grey))).max() <= 1
    middle = round(grey.mean())
    assert np.abs(changed("contrast", -1.0) - (middle + 0.1 * (PLAIN - middle))).max() <= 1
    assert np.array_equal(changed("posterize", 0.5), PLAIN & 0b11111100)
    assert np.array_equal(changed("solarize", 0.5), np.where(PLAIN < 128, PLAIN, 255 - PLAIN))
    assert (changed("autocontrast", 0.3).min(), changed("autocontrast", 0.3).max()) == (0, 255)


def test_torchs_seed_reproduces_the_draw():
    images, augment = [], RandAugment(3, 20)
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        images.append(np.asarray(augment(picture())))
    assert np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])


def test_all_operations_but_those_left_out_are_drawn():
    augment = RandAugment(2, 9, without=("color", "solarize"))
    torch.manual_seed(0)
    drawn = [augment.draw() for _ in range(200)]
    assert {len(of_one) for of_one in drawn} == {2}
    assert {name for of_one in drawn for name, _ in of_one} == set(AUGMENTATIONS) - {"color", "solarize"}
    assert {strength for of_one in drawn for _, strength in of_one} == {-0.3, 0.3}


def test_operations_are_done_one_after_the_other():
    augment = RandAugment(3, 20)
    torch.manual_seed(4)
    expected = picture()
    for name, strength in augment.draw():
        expected = AUGMENTATIONS[name](expected, strength, BLACK)
    torch.manual_seed(4)
    assert np.array_equal(np.asarray(augment(picture())), np.asarray(expected))


def test_inversion_and_cutout_are_not_among_them():
    assert not {name for name in AUGMENTATIONS if "inver" in name or "cut" in name}


def test_what_comes_in_from_outside_has_the_colour_asked_for():
    torch.manual_seed(0)
    others = tuple(name for name in AUGMENTATIONS if name != "translate_x")
    moved = np.asarray(RandAugment(1, 30, others, fill=(9, 8, 7))(picture()))
    assert any(np.array_equal(column, np.full((20, 3), (9, 8, 7))) for column in (moved[:, 0], moved[:, -1]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"operations": 0}, "`operations`=0 must be at least 1"),
        ({"magnitude": 31}, "`magnitude`=31 must be from 0 to 30"),
        ({"without": ("invert",)}, r"`without`=\('invert',\) must name some, not all, of identity, autoc"),
        ({"without": tuple(AUGMENTATIONS)}, "must name some, not all"),
    ],
)
def test_what_cannot_be_drawn_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        RandAugment(**fields)


def test_pictures_that_are_not_rgb_are_named():
    with pytest.raises(ValueError, match='The picture is L, "RGB" is needed'):
        RandAugment()(picture().convert("L"))
