"""Corruptions have the published strengths, repeat by their seed, and keep size and kind of a picture."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from hf_mm import corrupt
from hf_mm.imaging.corruptions import CORRUPTIONS, STRENGTHS


def picture(side, seed=0, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, (side, side + 10, 3), dtype=np.uint8)


def distance(one, other):
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


def smooth(side):
    """As photographs are: neighbouring pixels alike."""
    return gaussian_filter(picture(side).astype(float), (4, 4, 0)).round().astype(np.uint8)


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("side", [32, 224])
def test_each_step_is_worse_and_the_size_stays(kind, side):
    clean = picture(side) if kind == "gaussian_blur" else smooth(side)
    steps = [corrupt(clean, kind, severity) for severity in (1, 2, 3, 4, 5)]
    distances = [distance(step, clean) for step in steps]
    assert distances == sorted(distances)
    assert distances[0] > 0
    assert all((step.size, step.mode) == ((side + 10, side), "RGB") for step in steps)


@pytest.mark.parametrize(("side", "column"), [(32, 0), (111, 0), (112, 1), (224, 1)])
def test_noise_has_the_published_deviation(side, column):
    grey = np.full((side, side, 3), 128, np.uint8)
    noisy = np.asarray(corrupt(grey, "gaussian_noise", 1), float)
    assert noisy.std() / 255 == pytest.approx(STRENGTHS["gaussian_noise"][column][0], rel=0.05)
    assert noisy.mean() == pytest.approx(128, abs=1.0)


@pytest.mark.parametrize(
    ("side", "severity", "sigma"), [(40, 1, 0.4), (40, 5, 1.0), (150, 2, 2.0), (150, 5, 6.0)]
)
def test_blur_is_that_of_scipy(side, severity, sigma):
    clean = picture(side)
    expected = gaussian_filter(clean / 255, (sigma, sigma, 0), mode="nearest", truncate=4.0)
    blurred = np.asarray(corrupt(clean, "gaussian_blur", severity), float)
    assert np.abs(blurred - (expected * 255).round()).max() <= 1  # of 255, where rounding falls the other way
    assert (blurred == (expected * 255).round()).mean() > 0.999


def test_contrast_shrinks_around_the_mean_of_each_channel():
    clean = picture(32, low=60, high=200) / np.array([1, 2, 3])
    clean = clean.astype(np.uint8)
    lower = np.asarray(corrupt(clean, "contrast", 5), float)
    means = clean.mean(axis=(0, 1))
    assert np.abs(lower - (means + 0.15 * (clean - means))).max() <= 0.51


def test_jpeg_is_that_of_pillow_at_the_published_quality():
    clean, file = smooth(224), io.BytesIO()
    Image.fromarray(clean).save(file, "JPEG", quality=10)
    assert np.array_equal(corrupt(clean, "jpeg", 4), Image.open(file))


def test_the_seed_decides_the_noise_and_nothing_else_does():
    clean = picture(32, low=100, high=150)
    first = np.asarray(corrupt(clean, "gaussian_noise", 3, seed=1), float)
    np.random.seed(0)
    assert np.array_equal(first, corrupt(clean, "gaussian_noise", 3, seed=1))
    assert not np.array_equal(first, corrupt(clean, "gaussian_noise", 3, seed=2))
    weaker = np.asarray(corrupt(clean, "gaussian_noise", 1, seed=1), float)
    assert np.abs((first - clean) - 2 * (weaker - clean)).max() <= 1.5  # 0.08 is twice 0.04, but for rounding


def test_any_picture_is_read_and_is_not_changed():
    clean = picture(32)
    before = clean.copy()
    for image in (clean, Image.fromarray(clean), clean / 255):
        assert np.array_equal(corrupt(image, "contrast", 2), corrupt(before, "contrast", 2))
    assert np.array_equal(clean, before)
    assert corrupt(Image.new("L", (9, 9)), "jpeg", 1).mode == "RGB"


@pytest.mark.parametrize(
    ("kind", "severity", "message"),
    [
        ("fog", 1, "`kind` is 'fog'; there are: gaussian_noise, gaussian_blur, contrast, jpeg"),
        ("jpeg", 0, "`severity` is 0; it is one of 1, 2, 3, 4, 5"),
        ("jpeg", 6, "`severity` is 6"),
    ],
)
def test_unknown_corruptions_are_refused(kind, severity, message):
    with pytest.raises(ValueError, match=message):
        corrupt(picture(32), kind, severity)
