"""Tokenizers from nothing: any text, single digits, one token per turn; captions and words."""

from functools import partial

import pytest
import torch
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

from hf_mm import train_bert_tokenizer, train_caption_tokenizer, train_tokenizer, train_word_tokenizer
from hf_mm.data.chat_templates import CHATML_TEMPLATE, PLAIN_CHAT_TEMPLATE, read_chat_template


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


CAPTIONS = ["A red dog", "a red cat", "two dogs and 12 cats"] * 5


def test_captions_are_lower_cased_and_stand_between_start_and_end():
    tokenizer = train_caption_tokenizer(CAPTIONS, 400)
    ids = tokenizer("A  RED\n dog ")["input_ids"]
    assert tokenizer.decode(ids) == "<|startoftext|> a red dog<|endoftext|>"
    assert ids[0] == tokenizer.bos_token_id == 0
    assert ids[-1] == tokenizer.eos_token_id == 1  # not 2, which transformers' CLIP takes for a quirk
    assert tokenizer.pad_token_id == 2
    assert tokenizer.convert_ids_to_tokens(ids[1:-1]) == ["\u0120a", "\u0120red", "\u0120dog"]
    assert set(tokenizer("a")) == {"input_ids", "attention_mask"}


def test_any_caption_comes_back_and_digits_are_single():
    tokenizer = train_caption_tokenizer(CAPTIONS, 400)
    for text in ("größer 日本 🎈", "12 dogs, a cat's", "x"):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert tokenizer.tokenize("12")[-2:] == ["1", "2"]


def test_a_long_caption_is_cut_to_the_context_with_its_end_kept():
    tokenizer = train_caption_tokenizer(CAPTIONS, 400, max_length=6)
    ids = tokenizer("a red dog " * 9, truncation=True)["input_ids"]
    assert len(ids) == 6 == tokenizer.model_max_length
    assert ids[-1] == tokenizer.eos_token_id


def test_the_stock_text_tower_of_clip_finds_the_end():
    """What transformers pools is the state at the first end token, whatever the padding behind it."""
    tokenizer = train_caption_tokenizer(CAPTIONS, 400)
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), **sizes, **ids)).eval()
    rows = tokenizer(["a red dog", "a dog and two red cats"], padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(**rows)
    end = rows["attention_mask"][0].sum() - 1
    torch.testing.assert_close(out.pooler_output[0], out.last_hidden_state[0, end])


@pytest.mark.parametrize("train", [train_caption_tokenizer, train_word_tokenizer])
def test_tokenizers_of_captions_survive_saving_and_do_not_depend_on_chance(train, tmp_path):
    tokenizer = train(CAPTIONS, 300)
    assert train(CAPTIONS, 300).get_vocab() == tokenizer.get_vocab()
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("A red dog's bone, 12", "two unseen words"):
        assert again(text).data == tokenizer(text).data
    assert again.model_max_length == tokenizer.model_max_length


def test_the_commonest_words_are_tokens_and_others_unknown():
    tokenizer = train_word_tokenizer([*CAPTIONS, "a zebra", "a yak"], 6)
    assert tokenizer.get_vocab() == {"<pad>": 0, "<unk>": 1, "a": 2, "red": 3, "12": 4, "and": 5}
    assert tokenizer("A RED zebra, and a dog.")["input_ids"] == [2, 3, 1, 1, 5, 2, 1, 1]


def test_vocabularies_of_captions_without_room_are_refused():
    with pytest.raises(ValueError, match=r"`vocab_size`=258 is less than 256 bytes and 3 special tokens"):
        train_caption_tokenizer(["a"], 258)
    with pytest.raises(ValueError, match=r"`vocab_size`=2 has no room for a word beside <pad> and <unk>"):
        train_word_tokenizer(["a"], 2)


def test_chatml_has_no_system_prompt_and_marks_what_the_assistant_says():
    tokenizer = train_tokenizer(["a"], 400, ["<image>", "<|im_start|>", "<|im_end|>"], CHATML_TEMPLATE)
    image, text = {"type": "image"}, {"type": "text", "text": "a?"}
    chat = [{"role": "user", "content": [image, text]}, {"role": "assistant", "content": "b"}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False)
    assert rendered == "<|im_start|>user\n<image>a?<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
    prompt = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    assert rendered.startswith(prompt)
    marked = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    said = [i for i, m in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(said) == "b<|im_end|>"


def test_chat_templates_are_read_by_name_or_from_a_file(tmp_path):
    (tmp_path / "mine.jinja").write_text("{{ messages }}")
    assert read_chat_template(str(tmp_path / "mine.jinja")) == "{{ messages }}"
    assert read_chat_template("chatml") == CHATML_TEMPLATE
    with pytest.raises(FileNotFoundError, match=r"`chat_template`='mine' is neither 'chatml' nor a file"):
        read_chat_template("mine")


def test_bert_pieces_are_lower_case_and_stand_between_their_special_tokens():
    tokenizer = train_bert_tokenizer(["Is there a red circle?", "a blue circle"], 200, max_length=9)
    ids = tokenizer("A RED circle")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "a", "red", "circle", "[SEP]"]
    special = [tokenizer.pad_token_id, tokenizer.unk_token_id, *ids[:1], *ids[-1:], tokenizer.mask_token_id]
    assert special == [0, 1, 2, 3, 4]
    assert tokenizer.model_max_length == 9
    with pytest.raises(ValueError, match="`texts` has no word to learn"):
        train_bert_tokenizer([])


def test_pieces_of_words_are_numbered_alike_each_time():
    texts = ["a violet hexagon beside the crimson parallelogram", "is there no octagon?", "Yellow, not brown"]
    vocabularies = [train_bert_tokenizer(order, 120).get_vocab() for order in (texts, texts[::-1]) * 4]
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)
