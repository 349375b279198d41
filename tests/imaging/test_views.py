"""Views: what Pillow's `resize` and a cut give, to the bit or within a level, whatever the shape."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_mm.imaging import views
from hf_mm.imaging.views import fit_views

SHAPES = [(48, 64), (64, 48), (32, 32), (31, 200), (200, 31), (7, 5), (1, 9), (9, 1), (100, 101), (33, 64)]


def picture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))


def by_pillow(image, size, window, resample):
    top, left, high, wide = window
    resized = Image.fromarray(image).resize(size[::-1], resample)
    return np.array(resized.crop((left, top, left + wide, top + high)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("resample", range(6))
def test_the_middle_of_a_resized_picture_is_pillows_to_the_bit(shape, resample):
    image = picture(*shape)
    short, longer = min(shape), 32 * max(shape) // min(shape)
    size = (longer, 32) if shape[0] == max(shape) else (32, longer)
    size = (32, 32) if shape[0] == shape[1] == short else size
    window = ((size[0] - 32) // 2, (size[1] - 32) // 2, 32, 32)
    got = fit_views([image], 32, (32, 32), resample, exact=True)
    np.testing.assert_array_equal(got[0].permute(1, 2, 0).numpy(), by_pillow(image, size, window, resample))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("resample", [2, 3])
def test_in_bytes_the_window_is_that_of_the_whole_resized_picture(shape, resample):
    """Cutting before resizing moves no filter: equal to resizing all and cutting then."""
    stack = torch.from_numpy(picture(*shape))[None].permute(0, 3, 1, 2)
    for size in ((40, 90), (90, 40), (64, 64), (256, 30), (shape[0] * 2, shape[1] * 3)):
        high, wide = min(24, size[0]), min(20, size[1])
        top, left = (size[0] - high) // 2, (size[1] - wide) // 2
        whole = torch.nn.functional.interpolate(stack, size, mode=views.TORCH_MODES[resample], antialias=True)
        expected = whole[0, :, top : top + high, left : left + wide].int()
        got = fit_views([picture(*shape)], size, (high, wide), resample, exact=False)[0].int()
        assert (got - expected).abs().max() <= 1
        assert (got != expected).float().mean() < 0.01


@pytest.mark.parametrize(("old", "new"), [(49, 32), (207, 224), (11, 15)])
def test_in_bytes_no_pixel_is_lost_where_the_factor_is_rounded_down(old, new):
    assert int(old * (new / old)) < new
    exact, fast = (fit_views([picture(old, old)], new, None, 3, exact=e).int() for e in (True, False))
    assert fast.shape == exact.shape == (1, 3, new, new)
    assert (fast - exact).abs().max() <= 2


@pytest.mark.parametrize("shape", [(48, 6400), (6400, 48)])
def test_in_bytes_only_what_is_shown_is_resized(shape, monkeypatch):
    sizes = []
    original = torch.nn.functional.interpolate

    def watched(pixels, *args, **kwargs):
        sizes.append(pixels.shape[2:].numel())
        return original(pixels, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "interpolate", watched)
    fit_views([picture(*shape)], 24, (24, 24), 3, exact=False)
    assert sizes[0] < 0.03 * 48 * 6400  # the longer side is whole multiples: both ends are cut off


def test_within_a_level_of_pillow():
    for shape in ((300, 400), (480, 200), (90, 300)):
        image = picture(*shape)
        exact, fast = (fit_views([image], 64, (64, 64), 3, exact=e).int() for e in (True, False))
        assert (fast - exact).abs().max() <= 1


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("shape", [(5, 8), (20, 7), (6, 30), (11, 11)])
def test_a_picture_smaller_than_the_view_lies_on_black(exact, shape):
    image = picture(*shape) | 1  # no black of its own
    view = fit_views([image], None, (12, 10), 3, exact=exact)[0].permute(1, 2, 0).numpy()
    high, wide = min(shape[0], 12), min(shape[1], 10)
    below, beside = (12 - high + 1) // 2, (10 - wide + 1) // 2
    top, left = (shape[0] - high) // 2, (shape[1] - wide) // 2
    part = view[below : below + high, beside : beside + wide]
    np.testing.assert_array_equal(part, image[top : top + high, left : left + wide])
    assert (view > 0).all(axis=2).sum() == high * wide


@pytest.mark.parametrize("exact", [True, False])
def test_a_batch_of_mixed_shapes_is_the_pictures_one_by_one(exact, monkeypatch):
    images = [picture(*shape, seed=i) for i, shape in enumerate([*SHAPES, *SHAPES[::-1]])]
    singles = torch.cat([fit_views([image], 16, (16, 24), 3, exact=exact) for image in images])
    assert torch.equal(fit_views(images, 16, (16, 24), 3, exact=exact), singles)
    monkeypatch.setattr(views, "STACKED_BYTES", 1)
    assert torch.equal(fit_views(images, 16, (16, 24), 3, exact=exact), singles)


def test_views_that_would_differ_in_size_are_refused():
    with pytest.raises(ValueError, match=r"image 1 becomes 20x30 px, image 0 20x20 px; give `size` as"):
        fit_views([picture(40, 40), picture(40, 60)], 20, None, 3, exact=True)


def test_a_picture_too_narrow_to_resize_is_refused():
    with pytest.raises(
        ValueError, match=r"image 0 is 1x2000 px: with its shorter side at 336 px the longer one has 672000"
    ):
        fit_views([picture(1, 2000)], 336, (336, 336), 3, exact=False)
