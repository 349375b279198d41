"""CLIP's processor: captions of any tokenizer padded, cut with their end, counted; folders of either kind."""

import logging

import numpy as np
import pytest
import torch
from models.clip_tiny import bag_config, bert_config, resnet_config, text_config, tiny_model
from PIL import Image
from transformers import (
    AutoProcessor,
    BertTokenizer,
    CLIPImageProcessorPil,
    CLIPProcessor,
    CLIPTokenizer,
    ConvNextImageProcessorPil,
    SiglipImageProcessorPil,
    pipeline,
)

from hf_mm import (
    MMCLIPImageProcessor,
    MMCLIPProcessor,
    register,
    train_caption_tokenizer,
    train_word_tokenizer,
)

CAPTIONS = ["a photo of a red dog", "a cat", "this is a photo of two dogs."]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "photo", "of", "red", "."]
LONG = "a red dog " * 20


def clip_tokenizer(**options):
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "a": 3, "b": 4, "b</w>": 5}
    return CLIPTokenizer(vocab=words, merges=[], **options)


TOKENIZERS = {
    "captions": lambda: train_caption_tokenizer(CAPTIONS, 300, max_length=12),
    "words": lambda: train_word_tokenizer(CAPTIONS, 40),
    "clip": lambda: clip_tokenizer(model_max_length=12),
    "bert": lambda: BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, model_max_length=12),
}
ENDS = {"captions": 1, "clip": 1, "bert": 3}  # what stands at the end of a text


def processor_of(kind="captions", **options):
    return MMCLIPProcessor(MMCLIPImageProcessor(size=32), TOKENIZERS[kind](), **options)


def picture(height=40, width=50):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_images_and_captions_become_a_models_inputs(kind):
    processor = processor_of(kind)
    out = processor(images=[picture(), picture(30, 30)], text=["a cat", "a photo of a dog."])
    assert set(out) == {"input_ids", "attention_mask", "pixel_values"} == set(processor.model_input_names)
    assert out["pixel_values"].shape == (2, 3, 32, 32)
    lengths = out["attention_mask"].sum(dim=1)
    assert out["input_ids"].shape == out["attention_mask"].shape == (2, lengths.max())
    alone = processor.tokenizer("a cat")["input_ids"]
    assert out["input_ids"][0, : lengths[0]].tolist() == alone
    assert (out["input_ids"][0, lengths[0] :] == processor.tokenizer.pad_token_id).all()


def test_either_alone_and_any_numbers_of_them():
    processor = processor_of()
    assert set(processor(text="a cat")) == {"input_ids", "attention_mask"}
    assert processor(text="a cat")["input_ids"].ndim == 2
    assert set(processor(images=picture())) == {"pixel_values"}
    out = processor([picture()], CAPTIONS)
    assert (len(out["pixel_values"]), len(out["input_ids"])) == (1, 3)


def test_pixels_are_those_of_the_image_processor_and_options_reach_both():
    processor = processor_of()
    images = processor.image_processor
    assert torch.equal(processor(images=picture())["pixel_values"], images(picture())["pixel_values"])
    out = processor(
        picture(),
        "a cat",
        images_kwargs={"exact": False, "size": 16},
        text_kwargs={"padding": "max_length", "padding_side": "left"},
    )
    assert torch.equal(out["pixel_values"], images(picture(), exact=False, size=16)["pixel_values"])
    assert out["input_ids"].shape == (1, 12)
    assert out["attention_mask"][0, 0] == 0
    arrays = processor(picture(), "a cat", return_tensors="np")
    assert all(isinstance(value, np.ndarray) for value in arrays.values())
    assert processor(text="a cat", add_special_tokens=False)["input_ids"].shape[1] < out["input_ids"].shape[1]


@pytest.mark.parametrize("kind", ENDS)
def test_long_captions_are_cut_to_the_context_with_their_end_kept(kind):
    out = processor_of(kind)(text=["a", LONG])
    assert out["input_ids"].shape == (2, 12)
    assert out["input_ids"][1, -1] == ENDS[kind]
    assert processor_of(kind, max_length=7)(text=LONG)["input_ids"].shape == (1, 7)


def test_cut_captions_are_counted_and_said_once(caplog):
    processor = processor_of()
    with caplog.at_level(logging.WARNING, "hf_mm"):
        processor(text=CAPTIONS[:2])
        assert (processor.truncated_captions, caplog.messages) == (0, [])
        processor(text=[LONG, "a cat", LONG])
        processor(text=[LONG])
    assert processor.truncated_captions == 3
    assert len(caplog.messages) == 1
    assert "2 of 3 captions are longer than the context of 12 tokens and were cut" in caplog.messages[0]


def test_a_caption_that_just_fits_is_not_counted():
    processor = processor_of("bert")
    processor(text=" ".join(["cat"] * 10))
    assert processor.truncated_captions == 0
    processor(text=" ".join(["cat"] * 11))
    assert processor.truncated_captions == 1


def test_a_bag_of_words_has_no_context():
    processor = processor_of("words")
    assert processor.max_length is None
    assert processor(text=LONG)["input_ids"].shape == (1, 60)
    assert processor(text=LONG, max_length=5)["input_ids"].shape == (1, 5)
    assert processor.truncated_captions == 1


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        (["a cat", ""], "`text` 1 is empty, ''; leave the row out or write a caption"),
        (["a cat", "a dog", " \n"], r"`text` 2 is empty, ' \\n'"),
        ("", "`text` 0 is empty"),
        (["a cat", None], "`text` 1 is a NoneType, None; give texts in one flat list"),
        (["a cat", float("nan")], "`text` 1 is a float, nan"),
        ([["a cat", "a dog"]], "`text` 0 is a list"),
        ([], "`text` holds no caption"),
    ],
)
def test_captions_that_are_none_are_named(captions, message):
    with pytest.raises(ValueError, match=message):
        processor_of()(text=captions)


def test_a_caption_that_the_tokenizer_drops_is_named():
    with pytest.raises(ValueError, match=r"`text` 1 is '\\x00', of which the tokenizer keeps nothing"):
        processor_of("bert")(text=["a cat", "\x00"])


def test_what_cannot_be_processed_is_named():
    processor = processor_of()
    with pytest.raises(ValueError, match="Neither `images` nor `text` is given"):
        processor()
    with pytest.raises(ValueError, match="takes images and text; got `videos` or `audio`"):
        processor(text="a", videos=[picture()])
    with pytest.raises(FileNotFoundError, match=r"image 1: there is no file nowhere.jpg"):
        processor(images=[picture(), "nowhere.jpg"])


def test_a_tokenizer_that_cannot_serve_is_refused():
    tokenizer = train_word_tokenizer(CAPTIONS, 40)
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="The tokenizer has no `pad_token`; set one"):
        MMCLIPProcessor(MMCLIPImageProcessor(), tokenizer)
    with pytest.raises(ValueError, match="`max_length`=2 leaves no room for a caption beside the 2 tokens"):
        processor_of(max_length=2)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_saved_and_loaded_it_is_the_same(kind, tmp_path):
    register()
    processor = processor_of(kind, max_length=9)
    processor(text=LONG)
    processor.save_pretrained(tmp_path)
    for again in (AutoProcessor.from_pretrained(tmp_path), MMCLIPProcessor.from_pretrained(tmp_path)):
        assert type(again) is MMCLIPProcessor
        assert type(again.image_processor) is MMCLIPImageProcessor
        assert (again.max_length, again.truncated_captions) == (9, 0)
        rows, expected = (made(images=picture(), text=["a red dog", LONG]) for made in (again, processor))
        assert all(torch.equal(rows[name], expected[name]) for name in expected)


def test_a_folder_of_transformers_clip_becomes_ours_with_the_same_outputs(tmp_path):
    images = CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30})
    theirs = CLIPProcessor(images, clip_tokenizer(model_max_length=8))
    theirs.save_pretrained(tmp_path)
    assert type(AutoProcessor.from_pretrained(tmp_path)) is CLIPProcessor
    ours = MMCLIPProcessor.from_pretrained(tmp_path)
    assert type(ours.image_processor) is MMCLIPImageProcessor
    assert ours.max_length == 8
    image = Image.fromarray(picture())
    expected = theirs(
        images=image, text=["a b", "ab " * 9], padding=True, truncation=True, return_tensors="pt"
    )
    got = ours(images=image, text=["a b", "ab " * 9])
    assert set(got) == set(expected)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_image_processors_of_transformers_become_ours_where_ours_covers_them():
    stretched = MMCLIPProcessor(SiglipImageProcessorPil(size={"height": 16, "width": 16}), clip_tokenizer())
    assert type(stretched.image_processor) is MMCLIPImageProcessor
    assert not stretched.image_processor.do_center_crop
    other = ConvNextImageProcessorPil(size={"shortest_edge": 32})
    kept = MMCLIPProcessor(other, clip_tokenizer())
    assert kept.image_processor is other
    image = Image.fromarray(picture())
    expected = other(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(kept(images=image, text="a")["pixel_values"], expected)


TOWERS = {
    "captions": lambda size: text_config(
        vocab_size=size, bos_token_id=0, eos_token_id=1, pad_token_id=2, max_position_embeddings=20
    ),
    "words": lambda size: bag_config(vocab_size=size, pad_token_id=0),
    "bert": lambda size: bert_config(vocab_size=size),
}


@pytest.mark.parametrize("kind", TOWERS)
def test_the_zero_shot_pipeline_of_transformers_works_on_our_folders(kind, tmp_path):
    register()
    processor = processor_of(kind, max_length=20)
    changes = {"vision_config": resnet_config()} if kind == "bert" else {}
    model = tiny_model(text_config=TOWERS[kind](len(processor.tokenizer)), **changes)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    labels, template, image = ["red dog", "cat"], "a photo of a {}.", Image.fromarray(picture())
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path), trust_remote_code=False)
    scores = classify(image, candidate_labels=labels, hypothesis_template=template)
    with torch.no_grad():
        out = model(**processor(image, [template.format(label) for label in labels]))
    expected = dict(zip(labels, out.logits_per_image.softmax(dim=1)[0].tolist(), strict=True))
    assert {row["label"]: row["score"] for row in scores} == pytest.approx(expected, abs=1e-6)
