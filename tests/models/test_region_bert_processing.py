"""The processor of region BERTs: texts, tags and regions to a batch, and what it refuses by row and value."""

import math

import numpy as np
import pytest
import torch
from models.regions_tiny_rows import BOXES, WIDTH, WORDS, regions, tokenizer
from transformers import AutoProcessor, BatchFeature

from hf_mm import MMRegionProcessor, register
from hf_mm.imaging.box_shares import box_shares

PIXELS = torch.tensor([200.0, 100.0, 200.0, 100.0])


def processor_of(**options):
    return MMRegionProcessor(tokenizer(), **options)


def words(ids):
    return [" ".join(WORDS[i] for i in row) for row in ids.tolist()]


def test_texts_and_regions_become_a_padded_batch():
    processor, pictures = processor_of(), [regions(2), regions(4, seed=1)]
    batch = processor(["a dog", "is it a red cat ?"], pictures)
    assert type(batch) is BatchFeature
    assert set(batch) == set(processor.model_input_names)
    assert words(batch["input_ids"])[0] == "[CLS] a dog [SEP] [PAD] [PAD] [PAD] [PAD]"
    assert batch["attention_mask"].sum(1).tolist() == [4, 8]
    assert not batch["token_type_ids"].any()
    assert batch["region_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    for row, (picture, count) in enumerate(zip(pictures, (2, 4), strict=True)):
        assert torch.equal(batch["region_features"][row, :count], picture["features"])
        assert torch.equal(batch["region_boxes"][row, :count], picture["boxes"])
    assert not batch["region_features"][0, 2:].any()
    assert not batch["region_boxes"][0, 2:].any()
    assert {name: batch[name].dtype for name in batch if "region" in name} == {
        "region_features": torch.float32,
        "region_boxes": torch.float32,
        "region_mask": torch.int64,
    }


def test_either_alone_arrays_and_one_of_each():
    processor = processor_of()
    assert set(processor("a dog")) == {"input_ids", "attention_mask", "token_type_ids"}
    alone = processor(regions=regions(2))
    assert {name: tuple(value.shape) for name, value in alone.items()} == {
        "region_features": (1, 2, WIDTH),
        "region_boxes": (1, 2, 4),
        "region_mask": (1, 2),
    }
    lists = {name: np.asarray(value).tolist() for name, value in regions(2).items()}
    arrays = processor("a dog", lists, return_tensors="np")
    assert all(isinstance(value, np.ndarray) for value in arrays.values())
    np.testing.assert_array_equal(arrays["region_features"], alone["region_features"].numpy())


def test_boxes_in_pixels_become_shares():
    pixels = regions(5, boxes=torch.tensor(BOXES) * PIXELS)
    found = processor_of()(regions=pixels, box_format="pixels")["region_boxes"]
    torch.testing.assert_close(found, torch.tensor([BOXES]))


def test_rounding_at_the_border_is_cut_and_no_more():
    box = [[-5e-5, 0.0, 1.00005, 0.5]]
    assert box_shares(box).tolist() == [[0.0, 0.0, 1.0, 0.5]]
    with pytest.raises(ValueError, match=r"region 0: the box \[-0.01, 0.0, 1.0, 0.5\] is not in the image"):
        box_shares([[-0.01, 0.0, 1.0, 0.5]])


def test_pictures_of_one_text_stay_together():
    pairs = [[regions(2), regions(3, seed=1)], [regions(1, seed=2), regions(4, seed=3)]]
    batch = processor_of()(["a dog", "a cat"], pairs)
    assert batch["region_features"].shape == (2, 2, 4, WIDTH)
    assert batch["region_boxes"].shape == (2, 2, 4, 4)
    assert batch["region_mask"].sum(2).tolist() == [[2, 3], [1, 4]]
    assert torch.equal(batch["region_features"][1, 1], pairs[1][1]["features"])
    with pytest.raises(ValueError, match="`regions` 1 has 1 pictures and `regions` 0 has 2; give each text"):
        processor_of()(["a", "a"], [pairs[0], [regions(2)]])
    with pytest.raises(ValueError, match="`regions` 1 has 1 pictures and `regions` 0 has 2"):
        processor_of()(["a", "a"], [pairs[0], regions(2)])
    with pytest.raises(ValueError, match="`regions` 0, picture 1 must have `boxes` and `features`"):
        processor_of()("a", [[regions(2), {"boxes": BOXES}]])


def test_tags_are_a_second_segment():
    batch = processor_of(max_tags=2)(["is it a dog", "cats"], [regions(3), regions(1)])
    assert words(batch["input_ids"]) == [
        "[CLS] is it a dog [SEP] dog cat [SEP]",
        "[CLS] cat ##s [SEP] dog [SEP] [PAD] [PAD] [PAD]",
    ]
    assert batch["token_type_ids"].tolist() == [[0] * 6 + [1] * 3, [0] * 4 + [1] * 2 + [0] * 3]
    assert batch["attention_mask"].sum(1).tolist() == [9, 6]


def test_tags_can_be_given_beside_the_regions():
    processor = processor_of(max_tags=5)
    batch = processor("a dog", regions(2), tags=["red", "blue"])
    assert words(batch["input_ids"]) == ["[CLS] a dog [SEP] red blue [SEP]"]
    several = processor(["a", "it"], [regions(1), regions(2)], tags=[["red"], ["blue", "cat"]])
    assert words(several["input_ids"])[1] == "[CLS] it [SEP] blue cat [SEP]"


def test_segments_do_not_depend_on_the_tokenizers_own_or_the_side_of_padding():
    processor = processor_of(max_tags=2)
    rows = ["is it a dog", "cat"], [regions(2), regions(1)]
    left = processor(*rows, padding_side="left")["token_type_ids"]
    assert left.tolist() == [[0] * 6 + [1] * 3, [0] * 4 + [0] * 3 + [1] * 2]


def test_a_model_without_tags_reads_none_of_them():
    assert words(processor_of()("a dog", regions(2))["input_ids"]) == ["[CLS] a dog [SEP]"]


def test_cut_on_demand_a_text_makes_room_for_all_of_its_tags():
    processor = processor_of(max_tags=2, max_length=8)
    with pytest.raises(
        ValueError, match=r"`text` 0 has 11 tokens, the 3 around it included, and `max_length` is 8"
    ):
        processor("a dog is it a cat", regions(2))
    cut = processor("a dog is it a cat", regions(2), truncation=True)
    assert words(cut["input_ids"]) == ["[CLS] a dog is [SEP] dog cat [SEP]"]
    assert processor_of(max_length=5)("a dog is it", truncation=True)["input_ids"].shape == (1, 5)


@pytest.mark.parametrize(
    ("boxes", "options", "message"),
    [
        ([], {}, "`regions` 1 has no regions; leave it out, or give the whole image as one region"),
        (
            [[1, 2, 3]],
            {},
            r"`regions` 1: `boxes` must be \(regions, 4\), x1, y1, x2, y2 of each, got \(1, 3\)",
        ),
        (
            [[0, 0, 640, 480]],
            {},
            r"`regions` 1: `boxes` must be .* shares of the image in 0..1, got a maximum of 640; divide by",
        ),
        (
            [[0, 0, 0.5, 1], [0, 0, 1.2, 1]],
            {},
            r"`regions` 1, region 1: the box \[0.0, 0.0, 1.2, 1.0\] is not in the image, 0..1; cut it",
        ),
        (
            [[0, math.nan, 1, 1]],
            {},
            r"`regions` 1, region 0: the box \[0.0, nan, 1.0, 1.0\] is not in the image",
        ),
        (
            [[0.5, 0.5, 0.4, 0.6]],
            {},
            r"region 0: the box \[0.5, 0.5, 0.4, 0.6\] has no area; give x1, y1, x2",
        ),
        (
            [[0, 0, 201, 100]],
            {"box_format": "pixels"},
            r"`regions` 1, region 0: the box \[0.*, 201.*\] is not in the image, its 200x100 px",
        ),
        (
            [[0, 0, 0.9, 1]],
            {"box_format": "pixels"},
            "200x100 px has boxes up to 1 px, which look like shares",
        ),
        (
            [[0, 0, 1, 1]],
            {"box_format": "xyxy"},
            "`box_format`='xyxy' must be 'shares' of the image or 'pixels'",
        ),
    ],
)
def test_boxes_that_are_none_are_named_by_row_and_value(boxes, options, message):
    first = regions(1, boxes=[[0, 0, 9, 9]] if options.get("box_format") == "pixels" else [[0, 0, 1, 1]])
    features = torch.zeros(len(boxes), WIDTH)
    with pytest.raises(ValueError, match=message):
        processor_of()(regions=[first, regions(1, boxes=boxes, features=features)], **options)


def test_pixels_need_the_size_of_the_picture():
    pixels = regions(1, boxes=[[0, 0, 90, 90]])
    with pytest.raises(
        ValueError, match=r"`regions` 0 has boxes in pixels but no `image_size`; give \(width, h"
    ):
        processor_of()(regions={**pixels, "image_size": None}, box_format="pixels")
    with pytest.raises(ValueError, match=r"`regions` 0 has the `image_size` \(0, 9\); give width and height"):
        processor_of()(regions={**pixels, "image_size": (0, 9)}, box_format="pixels")


def test_features_of_another_width_detector_or_number_are_named():
    processor = processor_of(feature_size=WIDTH, detector="frcnn")
    ours = regions(2, detector="frcnn")
    assert processor(regions=[ours, regions(2)])["region_features"].shape == (2, 2, WIDTH)
    with pytest.raises(ValueError, match="`regions` 1: `features` is 7 wide, 6 is wanted; extract them with"):
        processor(regions=[ours, regions(2, features=torch.zeros(2, 7))])
    with pytest.raises(ValueError, match="`regions` 1: `features` is 7 wide, 6 is wanted"):
        processor_of()(regions=[ours, regions(2, features=torch.zeros(2, 7))])
    with pytest.raises(
        ValueError, match=r"`regions` 0 has regions of the detector 'detr', the model was .*'frcnn'"
    ):
        processor(regions=regions(2, detector="detr"))
    with pytest.raises(
        ValueError, match=r"`features` must be \(2, width\), a row for each of its 2 boxes, got \(3"
    ):
        processor(regions=regions(2, features=torch.zeros(3, WIDTH)))
    spoilt = torch.zeros(2, WIDTH).index_fill(0, torch.tensor([1]), math.inf)
    with pytest.raises(ValueError, match="`regions` 0, region 1: `features` has a value that is not finite"):
        processor(regions=regions(2, features=spoilt))
    with pytest.raises(ValueError, match=r"`regions` 0 must have `boxes` and `features` .* got \['boxes'\]"):
        processor(regions={"boxes": BOXES})
    with pytest.raises(
        ValueError, match="`regions` 0 must have `boxes` and `features` of each region, got 3"
    ):
        processor(regions=[3])


def test_tags_that_cannot_be_read_are_named():
    processor = processor_of(max_tags=2)
    with pytest.raises(ValueError, match="`tags` are given without `regions`"):
        processor("a dog", tags=["red"])
    with pytest.raises(ValueError, match="`tags` are given without `text`"):
        processor(regions=regions(2), tags=["red"])
    with pytest.raises(
        ValueError, match=r"The model reads up to `max_tags`=2 tags .*; give `regions` with `tags`"
    ):
        processor("a dog")
    with pytest.raises(ValueError, match="`regions` 1 has no `tags`, which the model reads"):
        processor(["a", "a"], [regions(2), regions(2, tags=None)])
    with pytest.raises(ValueError, match="`tags` are given and this processor reads none, `max_tags`=0"):
        processor_of()("a dog", regions(2), tags=["red"])
    with pytest.raises(ValueError, match="1 lists of `tags` for 2 texts"):
        processor(["a", "a"], [regions(2)] * 2, tags=["red"])
    for wrong in ([], ["red", " "], ["red", 3], "red"):
        with pytest.raises(ValueError, match=r"`tags` 1 is .*; give a list of words, at least one"):
            processor(["a", "a"], [regions(2)] * 2, tags=[["red"], wrong])
    with pytest.raises(
        ValueError, match=r"`tags` 0 have 2 tokens, and `max_length`=5 leaves no room .*'dog cat'"
    ):
        processor_of(max_tags=2, max_length=5)("a", regions(2))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a cat", ""], "`text` 1 is empty, ''; leave the row out or write a text"),
        (["a cat", None], "`text` 1 is a NoneType, None; give texts in one flat list"),
        ([], "`text` holds no text"),
        (["a cat", "\x00"], r"`text` 1 is '\\x00', of which the tokenizer keeps nothing"),
    ],
)
@pytest.mark.parametrize("tags", [0, 2])
def test_texts_that_are_none_are_named(texts, message, tags):
    with pytest.raises(ValueError, match=message):
        processor_of(max_tags=tags)(texts, [regions(2)] * len(texts) or None)


def test_what_cannot_be_processed_is_named():
    with pytest.raises(ValueError, match="Neither `text` nor `regions` is given"):
        processor_of()()
    with pytest.raises(ValueError, match="`regions` holds no picture; leave the argument out"):
        processor_of()(regions=[])
    with pytest.raises(ValueError, match="`return_tensors`='tf' must be 'pt' or 'np'"):
        processor_of()("a", return_tensors="tf")
    with pytest.raises(
        TypeError, match="`tokenizer` must be a tokenizer of transformers, got a NoneType; load"
    ):
        MMRegionProcessor(None)
    with pytest.raises(ValueError, match="`max_length`=2 leaves no room for a text beside the 2 tokens"):
        processor_of(max_length=2)
    with pytest.raises(
        ValueError, match="`max_tags`=-1 must be at least 0 and `feature_size`=None at least 1"
    ):
        processor_of(max_tags=-1)
    without = tokenizer()
    without.pad_token = None
    with pytest.raises(ValueError, match="The tokenizer has no `pad_token`; set one"):
        MMRegionProcessor(without)


def test_the_limit_is_what_the_tokenizer_says_if_that_is_less():
    assert processor_of().max_length == 512
    assert MMRegionProcessor(tokenizer(model_max_length=12)).max_length == 12
    assert MMRegionProcessor(tokenizer(model_max_length=12), max_length=20).max_length == 20


def test_saved_and_loaded_a_processor_is_the_same(tmp_path):
    register()
    processor = processor_of(max_length=9, max_tags=2, feature_size=WIDTH, detector="frcnn")
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "hf_mm_region_bert.py").exists()
    expected = processor("a red dog", regions(3))
    for again in (AutoProcessor.from_pretrained(tmp_path), MMRegionProcessor.from_pretrained(tmp_path)):
        assert type(again) is MMRegionProcessor
        assert (again.max_length, again.max_tags) == (9, 2)
        assert (again.feature_size, again.detector) == (WIDTH, "frcnn")
        found = again("a red dog", regions(3))
        assert set(found) == set(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_tags_of_all_pictures_stand_behind_a_text():
    batch = processor_of(max_tags=4)("a dog", [[regions(2), regions(3, seed=1)]])
    assert words(batch["input_ids"]) == ["[CLS] a dog [SEP] dog cat dog cat [SEP]"]
    with pytest.raises(ValueError, match="`regions` 0 has no `tags`, which the model reads"):
        processor_of(max_tags=4)("a dog", [[regions(2), regions(2, tags=None)]])


def test_a_prompt_has_what_begins_a_text_and_not_what_ends_it():
    processor = processor_of(max_length=7)
    out = processor.prompts([regions(2), regions(3)], ["is it a dog ?", "a dog"])
    assert words(out["input_ids"]) == ["[CLS] is it a dog ?", "[PAD] [PAD] [PAD] [CLS] a dog"]
    assert out["attention_mask"].tolist() == [[1] * 6, [0, 0, 0, 1, 1, 1]]
    assert torch.equal(out["region_mask"], processor(regions=[regions(2), regions(3)])["region_mask"])
    assert words(processor.prompts([regions(2)] * 2)["input_ids"]) == ["[CLS]"] * 2
    with pytest.raises(ValueError, match="1 texts for 2 pictures; give one for each, or one for all"):
        processor.prompts([regions(2)] * 2, ["a"])
    with pytest.raises(ValueError, match="`text` 0 begins with 7 tokens, and `max_length`=7 leaves no room"):
        processor.prompts(regions(2), "cat " * 6)


@pytest.mark.slow
def test_it_loads_from_the_hub_without_this_package(stranger, tmp_path):
    processor = processor_of(max_tags=2)
    processor.save_pretrained(tmp_path / "repo")
    torch.save((regions(3), dict(processor("a red dog", regions(3)))), tmp_path / "expected.pt")
    stranger.run(
        "import sys\n"
        f"found, expected = torch.load({str(tmp_path / 'expected.pt')!r})\n"
        "auto = transformers.AutoProcessor\n"
        f"processor = auto.from_pretrained({str(tmp_path / 'repo')!r}, trust_remote_code=True)\n"
        "assert 'hf_mm' not in sys.modules\n"
        "batch = processor('a red dog', found)\n"
        "assert set(batch) == set(expected)\n"
        "assert all(torch.equal(batch[name], expected[name]) for name in expected)\n"
    )
