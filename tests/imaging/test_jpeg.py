"""JPEG files by simplejpeg: the same pixels as by Pillow, and Pillow's word wherever the two could differ."""

import io
import sys

import numpy as np
import pytest
from PIL import Image, features

from hf_mm.imaging.jpeg import decode_jpeg, jpeg_decoder
from hf_mm.imaging.loading import load_rgb


@pytest.fixture(autouse=True)
def forget_the_decoder():
    jpeg_decoder.cache_clear()
    yield
    jpeg_decoder.cache_clear()


def picture(height, width):
    rng = np.random.default_rng(height)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
    smooth = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((smooth + rng.integers(-30, 30, smooth.shape)).clip(0, 255).astype(np.uint8))


def jpeg(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **({"quality": 88} | options))
    return file.getvalue()


def decoded(data):
    return decode_jpeg(Image.open(io.BytesIO(data)), data)


def by_pillow(data):
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("size", [(64, 96), (37, 53), (1, 17), (9, 1), (241, 130)])
@pytest.mark.parametrize("progressive", [False, True])
def test_the_pixels_are_pillows(size, subsampling, progressive):
    for quality in (30, 95):
        data = jpeg(picture(*size), quality=quality, subsampling=subsampling, progressive=progressive)
        np.testing.assert_array_equal(decoded(data), by_pillow(data))


def test_grey_files_become_rgb_and_so_do_those_stored_as_rgb():
    grey = jpeg(picture(40, 30).convert("L"))
    np.testing.assert_array_equal(decoded(grey), by_pillow(grey))
    stored = jpeg(picture(40, 30), keep_rgb=True)
    np.testing.assert_array_equal(decoded(stored), by_pillow(stored))


@pytest.mark.parametrize("orientation", range(10))
def test_every_exif_orientation_is_pillows(orientation, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(picture(24, 40), exif=exif)
    assert decoded(data) is not None
    fast = load_rgb(data)
    assert fast.flags.c_contiguous
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    jpeg_decoder.cache_clear()
    np.testing.assert_array_equal(fast, load_rgb(data))


def test_without_the_package_pillow_decodes_to_the_same_pixels(monkeypatch):
    data = jpeg(picture(60, 80))
    fast = load_rgb(data)
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    jpeg_decoder.cache_clear()
    assert jpeg_decoder() is None
    assert decoded(data) is None
    np.testing.assert_array_equal(load_rgb(data), fast)


def test_a_pillow_on_another_library_decodes_by_itself(monkeypatch):
    monkeypatch.setattr(features, "check_feature", lambda name: False)
    assert jpeg_decoder() is None


def test_other_files_are_left_to_pillow():
    png = io.BytesIO()
    picture(8, 8).save(png, "PNG")
    assert decoded(png.getvalue()) is None
    cmyk = jpeg(picture(20, 30).convert("CMYK"))
    assert decoded(cmyk) is None
    np.testing.assert_array_equal(load_rgb(cmyk), by_pillow(cmyk))


def test_a_file_that_is_cut_off_is_left_to_pillow_and_named():
    data = jpeg(picture(64, 96))[:-200]
    assert decoded(data) is None
    with pytest.raises(ValueError, match=r"image 3 cannot be read as an image: \d+ bytes.*truncated"):
        load_rgb(data, "image 3")


def test_a_file_with_a_flaw_that_pillow_forgives_is_read_as_pillow_reads_it():
    data = jpeg(picture(64, 96))
    scan = data.index(b"\xff\xda")
    flawed = data[:scan] + b"\x00\x00" + data[scan:]  # stray bytes before a marker
    assert decoded(flawed) is None
    np.testing.assert_array_equal(load_rgb(flawed), by_pillow(flawed))


def test_an_image_beyond_pillows_limit_is_an_error_here_too(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match="DecompressionBombError"):
        load_rgb(jpeg(picture(64, 96)))


def test_a_path_and_a_row_of_a_data_set_are_decoded_alike(tmp_path):
    data = jpeg(picture(30, 41))
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    for source in (path, str(path), {"bytes": data, "path": None}, bytearray(data)):
        np.testing.assert_array_equal(load_rgb(source), by_pillow(data))
