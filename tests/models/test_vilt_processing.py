"""ViLT's processors: transformers' pixels bit for bit, or within a level of them, its texts and its files."""

import io

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    BertTokenizer,
    ConvNextImageProcessorPil,
    ViltImageProcessorPil,
    ViltProcessor,
)

from hf_mm import MMViltImageProcessor, MMViltProcessor, register

SIZES = [(48, 64), (64, 48), (32, 32), (33, 60), (60, 33), (31, 31), (17, 15), (40, 90), (120, 99)]
SMALL = {"size": {"shortest_edge": 32}, "size_divisor": 8}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "dog", "cat", "##s", "is", "there", "?"]


def picture(height, width, seed=0):
    """Smooth shapes and some noise, (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    smooth = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return (smooth + rng.integers(-20, 20, smooth.shape)).clip(0, 255).astype(np.uint8)


def tokenizer(**options):
    return BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, **options)


def processor_of(**options):
    return MMViltProcessor(MMViltImageProcessor(**SMALL), tokenizer(), **options)


def assert_equal(got, expected):
    assert set(got) == set(expected)
    for name in expected:
        assert got[name].dtype == expected[name].dtype
        assert torch.equal(got[name], expected[name])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resample", range(6))
def test_every_shape_and_filter_is_transformers_bit_for_bit(size, resample):
    image, options = picture(*size), SMALL | {"resample": resample}
    expected = ViltImageProcessorPil(**options)(image, return_tensors="pt")
    assert_equal(MMViltImageProcessor(**options)(image), expected)


@pytest.mark.parametrize("size", [(480, 640), (640, 427), (384, 384), (300, 1000), (50, 31)])
def test_vilts_own_384_px_are_bit_for_bit(size):
    image = picture(*size)
    assert_equal(MMViltImageProcessor()(image), ViltImageProcessorPil()(image, return_tensors="pt"))


@pytest.mark.parametrize(
    "changes",
    [
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_rescale": False, "do_normalize": False},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.9, 0.8, 0.7]},
        {"size": 40},
        {"size_divisor": 5},
        {"do_resize": False, "size_divisor": 1},
    ],
    ids=str,
)
def test_a_padded_batch_is_transformers_bit_for_bit(changes):
    images, options = [picture(*size, seed=i) for i, size in enumerate(SIZES)], SMALL | changes
    expected = ViltImageProcessorPil(**options)(images, return_tensors="pt")
    assert_equal(MMViltImageProcessor(**options)(images), expected)


def test_an_image_is_padded_at_the_right_and_the_bottom_and_marked():
    wide, tall = picture(32, 48), picture(48, 32, seed=1)
    both = MMViltImageProcessor(**SMALL)([wide, tall])
    assert both["pixel_values"].shape == (2, 3, 48, 48)
    for row, image in enumerate((wide, tall)):
        alone = MMViltImageProcessor(**SMALL)(image)
        height, width = alone["pixel_values"].shape[-2:]
        assert torch.equal(both["pixel_values"][row, :, :height, :width], alone["pixel_values"][0])
        assert both["pixel_mask"][row, :height, :width].all()
        assert both["pixel_mask"][row].sum() == height * width
        assert (both["pixel_values"][row] * (1 - both["pixel_mask"][row])).abs().sum() == 0


def test_without_padding_there_is_no_mask_and_sizes_must_agree():
    processor = MMViltImageProcessor(**SMALL, do_pad=False)
    same = processor([picture(32, 48), picture(64, 96)])
    assert set(same) == {"pixel_values"}
    assert same["pixel_values"].shape == (2, 3, 32, 48)
    with pytest.raises(ValueError, match=r"must become one size, they become \[\(32, 48\), \(48, 32\)\] px"):
        processor([picture(32, 48), picture(48, 32)])


@pytest.mark.parametrize("size", [*SIZES, (480, 640)])
@pytest.mark.parametrize("resample", [2, 3])
def test_in_bytes_pixels_are_within_a_few_levels(size, resample):
    raw = {**SMALL, "do_rescale": False, "do_normalize": False, "resample": resample}
    exact, fast = (MMViltImageProcessor(exact=e, **raw)(picture(*size)) for e in (True, False))
    assert torch.equal(exact["pixel_mask"], fast["pixel_mask"])
    apart = (exact["pixel_values"].int() - fast["pixel_values"].int()).abs()
    assert apart.max() <= 3  # where two roundings add up
    assert (apart > 1).float().mean() < 5e-3


@pytest.mark.parametrize("exact", [True, False])
def test_any_kind_of_picture_is_read(exact):
    processor, pixels = MMViltImageProcessor(**SMALL, exact=exact), picture(40, 56)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    expected = processor(pixels)
    for source in (Image.fromarray(pixels), file.getvalue(), torch.from_numpy(pixels).permute(2, 0, 1)):
        assert_equal(processor(source), expected)
    grey = Image.fromarray(pixels).convert("L")
    assert_equal(processor(grey), processor(grey.convert("RGB")))
    assert isinstance(processor(pixels, return_tensors="np")["pixel_mask"], np.ndarray)


def test_the_longer_side_has_a_limit_that_can_be_moved():
    long = picture(32, 96)
    assert MMViltImageProcessor(**SMALL)(long)["pixel_values"].shape[-2:] == (16, 48)
    wider = MMViltImageProcessor(size={"shortest_edge": 32, "longest_edge": 96}, size_divisor=8)
    assert wider(long)["pixel_values"].shape[-2:] == (32, 96)
    assert MMViltImageProcessor()(picture(10, 100))["pixel_values"].shape[-2:] == (64, 608)


@pytest.mark.parametrize(("height", "width"), [(10, 300), (300, 10), (1, 2000)])
def test_an_extreme_aspect_ratio_is_an_error_that_says_what_to_do(height, width):
    message = (
        f"image 1 is {height}x{width} px: with its longer side at 639 px the shorter one is below one patch, "
        "`size_divisor`=32 px; cut the image, pad its shorter side"
    )
    with pytest.raises(ValueError, match=message):
        MMViltImageProcessor()([picture(32, 32), picture(height, width)])


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"exactly": True}, TypeError, "`exactly` is no field of MMViltImageProcessor; it has do_convert"),
        ({"do_center_crop": True}, TypeError, "`do_center_crop` is no field of MMViltImageProcessor"),
        ({"exact": "yes"}, StrictDataclassError, "exact"),
        ({"size": {"height": 32, "width": 32}}, ValueError, r"`size` must be .*got \{'height': 32, 'width'"),
        ({"size": {"shortest_edge": 32, "longest_edge": 31}}, ValueError, r"`size` must be .*L no less; got"),
        ({"size": 0}, ValueError, r"`size` must be .*S at least 1"),
        (
            {"size": 16},
            ValueError,
            "`size_divisor`=32 must be at least 1 and at most the shorter side, 16 px",
        ),
        ({"size_divisor": 0}, ValueError, "`size_divisor`=0 must be at least 1"),
        ({"resample": 9}, ValueError, r"`resample` must be a filter of Pillow's, 0 to 5 .*got 9"),
        ({"do_convert_rgb": False}, ValueError, "`do_convert_rgb`=False: pictures always become RGB here"),
        ({"image_std": 0.0}, ValueError, "`image_std` is divided by and must not hold 0"),
    ],
)
def test_fields_that_do_not_fit_are_named(fields, error, message):
    with pytest.raises(error, match=message):
        MMViltImageProcessor(**fields)


def test_pictures_that_cannot_be_used_are_named():
    with pytest.raises(
        ValueError, match="image 1 is 30x32 px, not a multiple of `size_divisor`=32; resize it"
    ):
        MMViltImageProcessor(do_resize=False)([picture(32, 32), picture(30, 32)])
    with pytest.raises(FileNotFoundError, match=r"image 0: there is no file nowhere.jpg"):
        MMViltImageProcessor()("nowhere.jpg")
    with pytest.raises(ValueError, match="`images` holds no image"):
        MMViltImageProcessor()([])


def test_files_of_transformers_are_read_and_ours_are_read_by_transformers(tmp_path):
    theirs = ViltImageProcessorPil(**SMALL, image_mean=[0.4, 0.5, 0.6])
    theirs.save_pretrained(tmp_path / "theirs")
    ours = MMViltImageProcessor.from_pretrained(tmp_path / "theirs")
    images = [picture(40, 60), picture(60, 44)]
    assert_equal(ours(images), theirs(images, return_tensors="pt"))
    MMViltImageProcessor(**SMALL, exact=False).save_pretrained(tmp_path / "ours")
    again = ViltImageProcessorPil.from_pretrained(tmp_path / "ours")
    expected = MMViltImageProcessor(**SMALL)(images)
    assert_equal(again(images, return_tensors="pt"), expected)


def test_images_and_texts_are_what_transformers_makes_of_them():
    images, texts = [picture(40, 60), picture(60, 44)], ["a red dog", "is there a cat ?"]
    theirs = ViltProcessor(ViltImageProcessorPil(**SMALL), tokenizer())
    expected = theirs(images=images, text=texts, padding=True, return_tensors="pt")
    got = processor_of()(images, texts)
    assert_equal(got, expected)
    assert set(got) == set(processor_of().model_input_names)


def test_either_alone_and_options_reach_both():
    processor = processor_of()
    assert set(processor(text="a cat")) == {"input_ids", "attention_mask", "token_type_ids"}
    assert set(processor(images=picture(32, 32))) == {"pixel_values", "pixel_mask"}
    filled = processor(picture(32, 40), "a cat", padding="max_length", images_kwargs={"size": 16})
    assert filled["input_ids"].shape == (1, 40)
    assert filled["pixel_values"].shape == (1, 3, 16, 16)
    arrays = processor(picture(32, 40), "a cat", return_tensors="np")
    assert all(isinstance(value, np.ndarray) for value in arrays.values())


def test_token_types_and_masks_are_there_whatever_the_tokenizer_says():
    plain = tokenizer(model_input_names=["input_ids"])
    out = MMViltProcessor(MMViltImageProcessor(**SMALL), plain)(text=["a cat", "a red dog"])
    assert out["token_type_ids"].tolist() == [[0] * 5] * 2
    assert out["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1] * 5]


def test_lists_of_pictures_stay_together():
    images = [[picture(40, 60), picture(60, 44)], [picture(32, 32), picture(32, 48)]]
    out = processor_of()(images, ["a cat", "a dog"])
    flat = processor_of()([one for pair in images for one in pair])
    assert out["pixel_values"].shape[:3] == (2, 2, 3)
    assert out["pixel_mask"].shape[:2] == (2, 2)
    for name in flat:
        assert torch.equal(out[name].flatten(0, 1), flat[name])
    with pytest.raises(ValueError, match="`images` 1 has 1 pictures and `images` 0 has 2; give each text"):
        processor_of()([images[0], [picture(32, 32)]], ["a cat", "a dog"])


def test_a_text_longer_than_the_positions_is_an_error_that_says_what_to_do():
    message = (
        r"`text` 1 has 42 tokens, the 2 around it included, and `max_length` is 40: 'cat cat .*'\. Shorten "
        "it, or pass `truncation=True` to cut it"
    )
    with pytest.raises(ValueError, match=message):
        processor_of()(text=["a cat", "cat " * 40])
    assert processor_of()(text="cat " * 38)["input_ids"].shape == (1, 40)


def test_cut_on_demand_a_text_keeps_its_end():
    out = processor_of(max_length=7)(text=["a cat", "cat " * 40], truncation=True)
    assert out["input_ids"].shape == (2, 7)
    assert out["input_ids"][1, -1] == WORDS.index("[SEP]")
    assert processor_of()(text="cat " * 9, truncation=True, max_length=5)["input_ids"].shape == (1, 5)


def test_the_limit_is_what_the_tokenizer_says_if_that_is_less():
    images = MMViltImageProcessor(**SMALL)
    assert MMViltProcessor(images, tokenizer()).max_length == 40
    assert MMViltProcessor(images, tokenizer(model_max_length=512)).max_length == 40
    assert MMViltProcessor(images, tokenizer(model_max_length=12)).max_length == 12
    assert MMViltProcessor(images, tokenizer(model_max_length=12), max_length=20).max_length == 20


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a cat", ""], "`text` 1 is empty, ''; leave the row out or write a text"),
        (["a cat", None], "`text` 1 is a NoneType, None; give texts in one flat list"),
        ([], "`text` holds no text"),
        (["a cat", "\x00"], r"`text` 1 is '\\x00', of which the tokenizer keeps nothing"),
    ],
)
def test_texts_that_are_none_are_named(texts, message):
    with pytest.raises(ValueError, match=message):
        processor_of()(text=texts)


def test_what_cannot_be_processed_is_named():
    with pytest.raises(ValueError, match="Neither `images` nor `text` is given"):
        processor_of()()
    with pytest.raises(ValueError, match="takes images and text; got `videos` or `audio`"):
        processor_of()(text="a", videos=[picture(8, 8)])
    with pytest.raises(ValueError, match="`max_length`=2 leaves no room for a text beside the 2 tokens"):
        processor_of(max_length=2)
    without = tokenizer()
    without.pad_token = None
    with pytest.raises(ValueError, match="The tokenizer has no `pad_token`; set one"):
        MMViltProcessor(MMViltImageProcessor(), without)


def test_saved_and_loaded_a_processor_is_the_same(tmp_path):
    register()
    processor = MMViltProcessor(MMViltImageProcessor(**SMALL, exact=False), tokenizer(), max_length=9)
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "hf_mm_vilt.py").exists()
    for again in (AutoProcessor.from_pretrained(tmp_path), MMViltProcessor.from_pretrained(tmp_path)):
        assert type(again) is MMViltProcessor
        assert type(again.image_processor) is MMViltImageProcessor
        assert again.max_length == 9
        assert_equal(again(picture(40, 50), "a red dog"), processor(picture(40, 50), "a red dog"))
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is MMViltImageProcessor


def test_a_folder_of_transformers_vilt_becomes_ours_with_the_same_outputs(tmp_path):
    theirs = ViltProcessor(ViltImageProcessorPil(**SMALL), tokenizer())
    theirs.save_pretrained(tmp_path)
    ours = MMViltProcessor.from_pretrained(tmp_path)
    assert type(ours.image_processor) is MMViltImageProcessor
    expected = theirs(images=picture(40, 60), text="a red dog", return_tensors="pt")
    assert_equal(ours(picture(40, 60), "a red dog"), expected)


def test_image_processors_of_other_models_are_kept():
    other = ConvNextImageProcessorPil(size={"shortest_edge": 32})
    assert MMViltProcessor(other, tokenizer()).image_processor is other


def test_a_prompt_has_what_begins_a_text_and_not_what_ends_it():
    images = [picture(40, 60), picture(60, 44)]
    out = processor_of().prompts(images, ["is there a cat ?", "a dog"])
    words = [[WORDS[i] for i in row] for row in out["input_ids"].tolist()]
    assert words[0] == ["[CLS]", "is", "there", "a", "cat", "?"]
    assert words[1] == ["[PAD]", "[PAD]", "[PAD]", "[CLS]", "a", "dog"]
    assert out["attention_mask"].tolist() == [[1] * 6, [0, 0, 0, 1, 1, 1]]
    assert_equal({name: out[name] for name in ("pixel_values", "pixel_mask")}, processor_of()(images))


def test_without_a_prompt_a_text_begins_with_its_special_token():
    assert processor_of().prompts([picture(32, 32)] * 2)["input_ids"].tolist() == [[2], [2]]
    assert processor_of().prompts([picture(32, 32)] * 2, "a")["input_ids"].tolist() == [[2, 5], [2, 5]]


def test_prompts_that_cannot_go_on_are_named():
    with pytest.raises(ValueError, match="1 texts for 2 pictures; give one for each, or one for all"):
        processor_of().prompts([picture(32, 32)] * 2, ["a"])
    with pytest.raises(ValueError, match="`text` 0 begins with 7 tokens, and `max_length`=7 leaves no room"):
        processor_of(max_length=7).prompts(picture(32, 32), "cat " * 6)
