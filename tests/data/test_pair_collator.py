"""Batches of pairs with transformers' own processor: one caption of several, faulty rows by number."""

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessorPil, CLIPProcessor, PreTrainedTokenizerFast

from hf_mm import PairCollator, RandomViews

WORDS = ["<pad>", "<bos>", "<eos>", "a", "red", "blue", "small", "dog", "cat"]


@pytest.fixture(scope="module")
def processor():
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", model_max_length=6)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    return CLIPProcessor(pictures, fast)


def _row(caption, value=0, size=(8, 8)):
    return {"image": Image.new("RGB", size, (value, value, value)), "caption": caption}


def _words(batch):
    return [" ".join(WORDS[i] for i in ids if i) for ids in batch["input_ids"].tolist()]


def test_batches_are_what_the_processor_makes(processor):
    rows = [_row("a dog", 10), _row("a small red cat", 200, size=(20, 10))]
    batch = PairCollator(processor)(rows)
    wanted = processor(
        images=[row["image"] for row in rows],
        text=[row["caption"] for row in rows],
        padding=True,
        return_tensors="pt",
    )
    assert list(batch) == ["pixel_values", "input_ids", "attention_mask"]
    for name in batch:
        torch.testing.assert_close(batch[name], wanted[name], rtol=0, atol=0)


def test_captions_are_padded_to_the_longest_and_cut_to_the_context(processor):
    batch = PairCollator(processor)([_row("a dog"), _row("a small red blue small red blue dog")])
    assert batch["input_ids"].shape == (2, 6)
    assert batch["attention_mask"].sum(1).tolist() == [2, 6]


def test_grey_pictures_and_rows_of_few_pixels_are_read(processor):
    rows = [{"image": Image.new("L", (5, 3), 9), "caption": "a dog"}, _row("a cat", 9, size=(5, 3))]
    pixels = PairCollator(processor)(rows)["pixel_values"]
    assert pixels.shape == (2, 3, 8, 8)
    torch.testing.assert_close(pixels[0], pixels[1])


def _many(count=64):
    return [_row(["red", "blue", "small"]) for _ in range(count)]


def test_each_of_several_captions_is_drawn_about_as_often(processor):
    words = _words(PairCollator(processor)(_many(300)))
    for word in ("red", "blue", "small"):
        assert 70 <= words.count(word) <= 130


def test_the_same_batch_draws_the_same_captions_anywhere(processor):
    first = _words(PairCollator(processor, seed=3)(_many()))
    torch.manual_seed(99)
    assert _words(PairCollator(processor, seed=3)(_many())) == first
    workers = DataLoader(_many(), batch_size=64, num_workers=1, collate_fn=PairCollator(processor, seed=3))
    assert _words(next(iter(workers))) == first
    assert _words(PairCollator(processor, seed=4)(_many())) != first


def test_shuffled_epochs_draw_other_captions_and_again_the_same(processor):
    rows = [_row([f"{a} {b}" for a in ("red", "blue", "small")], i) for i, b in enumerate(["dog", "cat"] * 8)]

    def epoch(seed):
        generator = torch.Generator().manual_seed(seed)
        loader = DataLoader(rows, 4, shuffle=True, generator=generator, collate_fn=PairCollator(processor))
        batches = list(loader)
        pixels = torch.cat([batch["pixel_values"][:, 0, 0, 0] for batch in batches])
        words = [word for batch in batches for word in _words(batch)]
        return [words[i] for i in pixels.argsort()]

    assert epoch(0) == epoch(0)
    assert epoch(0) != epoch(1)


def test_empty_ones_of_several_captions_are_never_drawn(processor):
    batch = PairCollator(processor)([_row(["", "dog", " "]) for _ in range(40)])
    assert set(_words(batch)) == {"dog"}


def test_equal_captions_of_a_batch_stay(processor):
    assert _words(PairCollator(processor)([_row("a dog", 1), _row("a dog", 2)])) == ["a dog", "a dog"]


def test_views_replace_the_pixels(processor):
    batch = PairCollator(processor, augment=lambda pixels: -pixels)([_row("a dog", 10)])
    plain = PairCollator(processor)([_row("a dog", 10)])
    torch.testing.assert_close(batch["pixel_values"], -plain["pixel_values"])


def test_columns_can_have_other_names(processor):
    rows = [{"photo": np.zeros((9, 9, 3), np.uint8), "text": "a dog"}]
    assert _words(PairCollator(processor, "photo", "text")(rows)) == ["a dog"]
    with pytest.raises(
        ValueError, match=r"Row 0 of the batch has no \['image', 'caption'\], only \['photo', "
    ):
        PairCollator(processor)(rows)


@pytest.mark.parametrize("caption", ["", " ", [], ["", " "]])
def test_rows_without_a_caption_are_named(processor, caption):
    with pytest.raises(
        ValueError, match=r"Row 1 of the batch has no caption in 'caption': .*; leave the row out"
    ):
        PairCollator(processor)([_row("a dog"), _row(caption)])


@pytest.mark.parametrize("caption", [None, 3, ["a", None]])
def test_captions_that_are_no_text_are_refused(processor, caption):
    with pytest.raises(
        ValueError, match=r"Row 0 of the batch has .* in 'caption'; a caption is a text or a list"
    ):
        PairCollator(processor)([_row(caption)])


def test_pictures_that_cannot_be_read_are_named(processor):
    with pytest.raises(ValueError, match=r"Row 1 of the batch, 'image' cannot be read as an image"):
        PairCollator(processor)([_row("a dog"), {"image": b"no", "caption": "a cat"}])


def test_the_same_batch_gets_the_same_views_and_leaves_the_generator_alone(processor):
    collate = PairCollator(processor, augment=RandomViews())
    rows = [_row("a dog", 10), _row("a cat", 200)]
    before = torch.get_rng_state()
    first = collate(rows)["pixel_values"]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(collate(rows)["pixel_values"], first)
    assert not torch.equal(collate(rows[::-1])["pixel_values"], first.flip(0))
