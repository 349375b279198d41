"""Tokenizers from nothing: any text, single digits, one token per turn."""

from functools import partial

import pytest
from transformers import AutoTokenizer

from hf_mm import train_tokenizer
from hf_mm.data.tokenizer import PLAIN_CHAT_TEMPLATE


def test_any_text_comes_back():
    tokenizer = train_tokenizer(["what color is it?", "red"], 400)
    for text in ("red? 12.5", "größer \n 日本 🎈", " <unseen> "):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_digit_is_a_token():
    tokenizer = train_tokenizer(["1234 1234 1234 yes"] * 10, 400)
    assert tokenizer.tokenize("1234") == list("1234")
    assert tokenizer.tokenize("yes") == ["yes"]


def test_special_tokens_are_one_token_and_skipped_when_decoding():
    tokenizer = train_tokenizer(["a"], 400, ["<image>"])
    ids = tokenizer.encode("<image>a<eos>")
    assert len(ids) == 3
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a"
    assert tokenizer.pad_token_id == 0


def test_the_chat_marks_what_the_assistant_says():
    tokenizer = train_tokenizer(["hello"], 400)
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    out = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    assert tokenizer.decode(out["input_ids"]) == "<|user|> a<|assistant|> b<eos>"
    assert out["assistant_masks"] == [0, 0, 0, 0, 1, 1, 1]


def test_a_word_is_one_token_wherever_it_stands():
    tokenizer = train_tokenizer(["red", "is it red"] * 9, 400, ["<image>"])
    chat = [{"role": "user", "content": "red is red"}, {"role": "assistant", "content": "red"}]
    ids = tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
    assert ids.count(tokenizer.convert_tokens_to_ids("\u0120red")) == 3


def test_images_that_open_a_turn_stand_before_it_and_others_where_they_are():
    tokenizer = train_tokenizer(["a"], 400, ["<image>"])
    image, text = {"type": "image"}, {"type": "text", "text": "a"}
    render = partial(tokenizer.apply_chat_template, tokenize=False)
    assert render([{"role": "user", "content": [image, text, image, text]}]) == "<image><|user|> a<image> a"
    assert render([{"role": "user", "content": [text, image]}]) == "<|user|> a<image>"
    assert render([{"role": "user", "content": [image]}]) == "<image><|user|>"


def test_plain_captions_follow_their_image():
    tokenizer = train_tokenizer(["a"], 400, ["<image>"], PLAIN_CHAT_TEMPLATE)
    chat = [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "a cat"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<image> a cat<eos>"


def test_saved_and_loaded_it_is_the_same(tmp_path):
    tokenizer = train_tokenizer(["hello 12"], 400, ["<image>"])
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.chat_template == tokenizer.chat_template
    assert again.encode("<image>hello 12") == tokenizer.encode("<image>hello 12")


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
    with pytest.raises(ValueError, match=r"`vocab_size`=100 is less than 256 bytes and 6 special tokens"):
        train_tokenizer(["a"], 100)
