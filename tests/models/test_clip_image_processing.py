"""CLIP's image processor: transformers' pixels bit for bit, or within a level of them, and its files."""

import io
import json

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import (
    AutoImageProcessor,
    CLIPImageProcessorPil,
    SiglipImageProcessorPil,
    ViTImageProcessorPil,
)

from hf_mm import MMCLIPImageProcessor, register

SIZES = [(48, 64), (64, 48), (32, 32), (33, 200), (200, 33), (31, 31), (7, 5), (4, 90), (90, 4), (99, 101)]
SMALL = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}


def picture(height, width, seed=0):
    """Smooth shapes and some noise, (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    smooth = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return (smooth + rng.integers(-20, 20, smooth.shape)).clip(0, 255).astype(np.uint8)


def noise(height, width, mode="RGB"):
    channels = {"RGB": (3,), "L": (), "RGBA": (4,), "LA": (2,), "CMYK": (4,)}[mode]
    array = np.random.default_rng(0).integers(0, 256, (height, width, *channels), dtype=np.uint8)
    return Image.frombytes(mode, (width, height), array.tobytes())


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(processor, images, **options):
    return processor(images, return_tensors="pt", **options)["pixel_values"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resample", range(6))
def test_every_shape_and_filter_is_clips_bit_for_bit(size, resample):
    image, options = noise(*size), SMALL | {"resample": resample}
    expected = pixels(CLIPImageProcessorPil(**options), image)
    assert torch.equal(pixels(MMCLIPImageProcessor(**options), image), expected)


@pytest.mark.parametrize("size", [(768, 1024), (1024, 768), (300, 2000), (223, 225), (224, 224), (56, 31)])
def test_clips_own_224_px_are_bit_for_bit(size):
    image = noise(*size)
    assert torch.equal(pixels(MMCLIPImageProcessor(), image), pixels(CLIPImageProcessorPil(), image))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "CMYK"])
def test_every_mode_is_clips_bit_for_bit(mode):
    image = noise(50, 70, mode)
    expected = pixels(CLIPImageProcessorPil(**SMALL), image)
    assert torch.equal(pixels(MMCLIPImageProcessor(**SMALL), image), expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_files_and_bytes_are_clips_bit_for_bit(kind, mode, tmp_path):
    data = encoded(noise(90, 70, mode), kind)
    path = tmp_path / "picture"
    path.write_bytes(data)
    expected = pixels(CLIPImageProcessorPil(**SMALL), Image.open(path))
    for source in (data, path, str(path), Image.open(path), {"bytes": data, "path": None}):
        assert torch.equal(pixels(MMCLIPImageProcessor(**SMALL), source), expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1 / 127.5},
        {"rescale_factor": 1 / 7, "image_mean": 0.3, "image_std": 0.7},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.9, 0.8, 0.7]},
        {"do_resize": False},
        {"do_center_crop": False, "size": {"height": 20, "width": 36}},
        {"size": {"height": 40, "width": 60}, "crop_size": {"height": 32, "width": 30}},
        {"size": {"shortest_edge": 40}, "crop_size": {"height": 24, "width": 36}},
        {"size": {"shortest_edge": 20}, "crop_size": {"height": 33, "width": 40}},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(48, 64), (15, 90), (33, 12)])
def test_every_setting_is_clips_bit_for_bit(changes, size):
    image, options = noise(*size), SMALL | changes
    expected = pixels(CLIPImageProcessorPil(**options), image)
    got = pixels(MMCLIPImageProcessor(**options), image)
    assert got.dtype == expected.dtype
    assert torch.equal(got, expected)


@pytest.mark.parametrize("theirs", [SiglipImageProcessorPil, ViTImageProcessorPil])
def test_files_of_siglip_and_vit_are_read_and_stretch_bit_for_bit(theirs, tmp_path):
    processor = theirs(size={"height": 24, "width": 24})
    processor.save_pretrained(tmp_path)
    ours = MMCLIPImageProcessor.from_pretrained(tmp_path)
    assert not ours.do_center_crop
    for size in SIZES:
        assert torch.equal(pixels(ours, noise(*size)), pixels(processor, noise(*size)))


OPENAI = {
    "crop_size": 32,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 32,
}
OLD_VIT = {
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ViTFeatureExtractor",
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
    "size": 32,
}
SWITCHED_OFF = {"do_pad": False, "pad_size": None, "data_format": "channels_first", "device": None}


@pytest.mark.parametrize(
    ("fields", "theirs"), [(OPENAI, CLIPImageProcessorPil), (OLD_VIT, ViTImageProcessorPil)]
)
def test_old_files_with_integer_sizes_mean_what_they_meant(fields, theirs, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields | SWITCHED_OFF))
    ours = MMCLIPImageProcessor.from_pretrained(tmp_path)
    assert torch.equal(pixels(ours, noise(50, 70)), pixels(theirs.from_pretrained(tmp_path), noise(50, 70)))


def test_a_folder_of_transformers_stays_transformers_for_the_auto_class(tmp_path):
    register()
    CLIPImageProcessorPil(**SMALL).save_pretrained(tmp_path)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is CLIPImageProcessorPil


def levels_apart(image, **options):
    raw = {"do_rescale": False, "do_normalize": False} | options
    exact, fast = (pixels(MMCLIPImageProcessor(exact=e, **raw), image).int() for e in (True, False))
    return (exact - fast).abs()


@pytest.mark.parametrize("size", [(768, 1024), (1024, 768), (480, 640)])
def test_in_bytes_a_photo_is_within_one_level(size):
    smooth = Image.fromarray(picture(size[0] // 4, size[1] // 4))
    photo = encoded(smooth.resize((size[1], size[0]), Image.Resampling.BICUBIC), "JPEG", quality=90)
    assert levels_apart(photo).max() <= 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resample", range(6))
@pytest.mark.parametrize("changes", [SMALL, {"size": {"height": 32, "width": 32}}], ids=["crop", "stretch"])
def test_in_bytes_noise_and_enlarged_pictures_are_close(size, resample, changes):
    apart = levels_apart(picture(*size), resample=resample, **changes)
    assert apart.max() <= 3  # where two roundings add up
    assert (apart > 1).float().mean() < 5e-3


def test_in_bytes_normalising_is_the_same_but_for_the_last_bits():
    image = picture(32, 32)
    exact, fast = (pixels(MMCLIPImageProcessor(exact=e, **SMALL), image) for e in (True, False))
    assert not torch.equal(exact, fast)
    torch.testing.assert_close(fast, exact, rtol=0, atol=2e-6)


@pytest.mark.parametrize("exact", [True, False])
def test_a_batch_of_mixed_sizes_is_the_images_one_by_one(exact):
    processor = MMCLIPImageProcessor(size=32, exact=exact)
    images = [picture(*size, seed=i) for i, size in enumerate([*SIZES, *SIZES[::-1]])]
    singles = torch.cat([pixels(processor, image) for image in images])
    assert torch.equal(pixels(processor, images), singles)
    assert singles.is_contiguous()
    assert torch.equal(processor(images)["pixel_values"], singles)
    assert isinstance(processor(images, return_tensors="np")["pixel_values"], np.ndarray)


def test_a_photo_is_turned_as_its_exif_says_and_16_bits_are_scaled():
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = encoded(noise(40, 30), "PNG", exif=exif)
    processor = MMCLIPImageProcessor(size=32)
    upright = noise(40, 30).transpose(Image.Transpose.ROTATE_270)
    assert torch.equal(pixels(processor, lying), pixels(processor, upright))
    deep = np.arange(1600, dtype=np.uint16).reshape(40, 40) * 40
    shallow = ((deep.astype(int) * 255 + 32767) // 65535).astype(np.uint8)
    assert torch.equal(pixels(processor, Image.fromarray(deep)), pixels(processor, shallow))


def test_fields_can_be_changed_for_one_call_and_the_crop_follows_the_size():
    processor, image = MMCLIPImageProcessor(), picture(64, 90)
    small = pixels(MMCLIPImageProcessor(size=32), image)
    assert torch.equal(pixels(processor, image, size=32), small)
    assert torch.equal(pixels(processor, image, size={"shortest_edge": 32}), small)
    wide = pixels(processor, image, size={"height": 20, "width": 30})
    assert wide.shape == (1, 3, 20, 30)
    assert pixels(processor, image, crop_size={"height": 100, "width": 90}).shape == (1, 3, 100, 90)
    assert pixels(processor, image, size=32, do_center_crop=False).shape == (1, 3, 32, 32)
    assert not torch.equal(pixels(processor, image, exact=False, size=32), small)


def test_saved_and_reloaded_it_is_the_same(tmp_path):
    register()
    processor = MMCLIPImageProcessor(size={"height": 20, "width": 30}, exact=False, image_mean=0.5)
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "hf_mm_clip.py").exists()
    again = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(again) is MMCLIPImageProcessor
    assert again.to_dict() | {"auto_map": None} == processor.to_dict() | {"auto_map": None}
    assert torch.equal(pixels(again, picture(40, 50)), pixels(processor, picture(40, 50)))
    assert AutoImageProcessor.from_pretrained(tmp_path, exact=True).exact


def test_transformers_can_read_what_we_save(tmp_path):
    MMCLIPImageProcessor(size=32, exact=False).save_pretrained(tmp_path)
    theirs = CLIPImageProcessorPil.from_pretrained(tmp_path)
    image = picture(40, 50)
    assert torch.equal(pixels(theirs, image), pixels(MMCLIPImageProcessor(size=32), image))


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        (
            {"exactly": True},
            TypeError,
            "`exactly` is no field of MMCLIPImageProcessor; it has do_convert_rgb",
        ),
        ({"do_pad": True}, TypeError, "`do_pad` is no field of MMCLIPImageProcessor"),
        ({"exact": "yes"}, StrictDataclassError, "exact"),
        ({"size": {"longest_edge": 32}}, ValueError, r"`size` must be .*got \{'longest_edge': 32\}"),
        ({"size": 0}, ValueError, r"`size` must be .*at least 1; got"),
        (
            {"crop_size": {"shortest_edge": 32}},
            ValueError,
            r"`crop_size` must be .*got \{'shortest_edge': 32\}",
        ),
        ({"resample": 9}, ValueError, r"`resample` must be a filter of Pillow's, 0 to 5 .*got 9"),
        ({"do_convert_rgb": False}, ValueError, "`do_convert_rgb`=False: pictures always become RGB here"),
        ({"image_std": 0.0}, ValueError, "`image_std` is divided by and must not hold 0"),
        ({"image_mean": [0.5, 0.5]}, ValueError, "`image_mean` must be one number or three"),
    ],
)
def test_what_does_not_fit_is_named(fields, error, message):
    with pytest.raises(error, match=message):
        MMCLIPImageProcessor(**fields)


def test_pictures_that_cannot_be_used_are_named():
    processor = MMCLIPImageProcessor(size=32)
    broken = encoded(noise(40, 40), "JPEG")[:-300]
    with pytest.raises(ValueError, match=r"image 1 cannot be read as an image: \d+ bytes"):
        processor([picture(40, 40), broken])
    with pytest.raises(FileNotFoundError, match=r"image 0: there is no file nowhere.jpg"):
        processor("nowhere.jpg")
    with pytest.raises(ValueError, match="`images` holds no image"):
        processor([])
    with pytest.raises(ValueError, match=r"image 1 becomes 32x64 px, image 0 32x32 px; give `size`"):
        processor([picture(40, 40), picture(40, 80)], size={"shortest_edge": 32}, do_center_crop=False)
    with pytest.raises(ValueError, match="image 0 is 1x5000 px: with its shorter side at 224 px"):
        MMCLIPImageProcessor()(picture(1, 5000))
