"""Placeholders become as many tokens as images have features, and labels are what the assistant says."""

import pytest
import torch
from chat_tiny import CHATML, FORGETFUL, PARTS_ONLY, learnt, picture, processor, tokenizer, turn
from PIL import Image
from transformers import AutoProcessor, ByT5Tokenizer

from hf_mm.data.chat_templates import COMPACT_CHAT_TEMPLATE
from hf_mm.data.tokenizer import train_tokenizer
from hf_mm.models.vlm.image_processing_vlm import MMVLMImageProcessor
from hf_mm.models.vlm.processing_vlm import CHAT_TEMPLATE, MMVLMProcessor, user_message

PLAIN = COMPACT_CHAT_TEMPLATE.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
CHAT = [turn("user", picture(), "is it red?"), turn("assistant", "no")]
LONGER = [*CHAT, turn("user", "blue?"), turn("assistant", "yes")]


def labelled(processor, chat, **kwargs):
    return processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_labels=True, **kwargs)


# ---- placeholders


def test_a_placeholder_becomes_one_token_per_feature_where_it_stands():
    p = processor()
    ids = p(images=picture(), text="is <image> red?")["input_ids"][0]
    words = p.tokenizer.encode("is <image> red?")
    place = words.index(p.image_token_id)
    assert ids == [*words[:place], *[p.image_token_id] * 4, *words[place + 1 :]]


@pytest.mark.parametrize(("height", "width", "tokens"), [(480, 640, 740), (768, 1024, 1196), (336, 336, 316)])
def test_crops_give_the_layout_of_molmo(height, width, tokens):
    images = MMVLMImageProcessor(size=336, patch_size=14, pooling_size=2, max_crops=12)
    p = MMVLMProcessor(images, tokenizer())
    assert len(p.image_tokens(Image.new("RGB", (width, height)))) == tokens


def test_the_size_in_a_file_is_the_size_as_seen(tmp_path):
    p = processor(max_crops=6, side=64)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    picture(width=200, height=80).save(tmp_path / "a.jpg", exif=exif)
    assert p.image_tokens(tmp_path / "a.jpg") == p.image_tokens(picture(width=80, height=200))
    assert p.image_tokens(str(tmp_path / "a.jpg")) != p.image_tokens(picture(width=200, height=80))


def test_the_layout_of_an_image_is_start_rows_with_columns_end():
    p = processor(max_crops=4, side=64)
    names = p.tokenizer.convert_ids_to_tokens(p.image_tokens(picture(width=64, height=64)))
    view = ["<im_start>", *(["<image>"] * 4 + ["<im_col>"]) * 4, "<im_end>"]
    assert names == view + view


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"pooling_size": 1},
            "`pooling_size`=1 for one call would change the tokens of images, .* `pooling_size`=2",
        ),
        (
            {"size": {"height": 64, "width": 64}},
            "`size`={'height': 64, 'width': 64} for one call would change",
        ),
        ({"images_kwargs": {"patch_size": 4}}, "`patch_size`=4 for one call .*; make another processor with"),
    ],
)
def test_a_call_that_would_change_the_tokens_of_images_is_refused(change, message):
    p = processor()
    with pytest.raises(ValueError, match=message):
        p(images=picture(), text="<image> red?", **change)
    same = p(images=picture(), text="<image> red?", pooling_size=2, size=32, do_normalize=False)
    assert same["input_ids"] == p(images=picture(), text="<image> red?")["input_ids"]


@pytest.mark.parametrize(("most", "grid"), [(0, [0, 0]), (1, [1, 1]), (12, [8, 1])])
def test_fewer_or_more_crops_for_one_call_have_their_tokens(most, grid):
    p = processor(max_crops=4, side=64)
    out = p(images=picture(width=64, height=264), text="<image>", max_crops=most)
    assert [list(map(int, row)) for row in out["image_grids"]] == [grid]
    layout = p.tokenizer.encode(p.image_layout(grid), add_special_tokens=False)
    assert [token for token in out["input_ids"][0] if token in p.unlabelled_ids] == layout


@pytest.mark.parametrize("side", ["left", "right"])
def test_each_row_of_a_mixed_batch_is_the_row_alone(side):
    p = processor()
    texts = ["no image", "<image> one", "two <image> apart <image>"]
    images = [[], [picture(1)], [picture(2), picture(3)]]
    batch = p(images=images, text=texts, padding=True, padding_side=side, return_tensors="pt")
    pixels = []
    for row, (text, pictures) in enumerate(zip(texts, images, strict=True)):
        alone = p(images=pictures or None, text=text, return_tensors="pt")
        kept = batch["attention_mask"][row].bool()
        assert torch.equal(batch["input_ids"][row][kept], alone["input_ids"][0])
        pixels += [alone["pixel_values"]] if pictures else []
    assert torch.equal(batch["pixel_values"], torch.cat(pixels))
    padded = batch["attention_mask"][0]
    assert padded[0 if side == "left" else -1] == 0


def test_flat_images_are_dealt_out_in_order():
    p = processor()
    texts = ["<image>", "none", "<image><image>"]
    pictures = [picture(i) for i in range(3)]
    flat = p(images=pictures, text=texts, padding=True, return_tensors="pt")
    nested = p(images=[pictures[:1], [], pictures[1:]], text=texts, padding=True, return_tensors="pt")
    assert torch.equal(flat["pixel_values"], nested["pixel_values"])
    assert torch.equal(flat["input_ids"], nested["input_ids"])


@pytest.mark.parametrize(
    ("images", "texts", "message"),
    [
        ([[picture()], [picture()]], ["<image>", "<image><image>"], "Row 1 has 2 `<image>` but 1 images"),
        ([[picture()], [picture()]], ["<image>", "none"], "Row 1 has 0 `<image>` but 1 images"),
        ([picture()], ["<image>", "<image>"], "Row 1 has 1 `<image>` but 0 images"),
        (None, ["<image>"], "Row 0 has 1 `<image>` but 0 images"),
        ([[picture()]], ["<image>", "none", "none"], "`images` has 1 rows, `text` 3"),
    ],
)
def test_placeholders_without_images_name_the_row_and_both_counts(images, texts, message):
    with pytest.raises(ValueError, match=message):
        processor()(images=images, text=texts)


def test_a_broken_image_names_its_row(tmp_path):
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(ValueError, match=r"Row 1, image 0.*cut\.png"):
        processor()(images=[[picture()], [str(tmp_path / "cut.png")]], text=["<image>", "<image>"])


def test_cutting_into_an_image_names_the_row():
    p = processor()
    with pytest.raises(
        ValueError, match="Row 1 has 4 `<image>` tokens, of which 2 are left after cutting to 3"
    ):
        p(images=[[], [picture()]], text=["no", "no<image>"], truncation=True, max_length=3)


# ---- tokens


def test_a_missing_image_token_says_how_to_add_it():
    bare = train_tokenizer(["a"], 400)
    images = MMVLMImageProcessor(size=64, patch_size=8, pooling_size=2, max_crops=4, crop_margin_patches=2)
    with pytest.raises(ValueError, match=r"no token '<image>'.*add_image_tokens\(tokenizer, crops=True\)"):
        MMVLMProcessor(images, bare)
    assert MMVLMProcessor.add_image_tokens(bare, crops=True) == 4
    assert MMVLMProcessor.add_image_tokens(bare, crops=True) == 0
    assert MMVLMProcessor(images, bare).image_token_id == bare.convert_tokens_to_ids("<image>")


def test_saved_and_loaded_it_is_the_same(tmp_path):
    p = processor(CHATML, max_crops=4, side=64, image_end_token="<|im_end|>")
    p.save_pretrained(tmp_path)
    q = AutoProcessor.from_pretrained(tmp_path)
    assert type(q) is MMVLMProcessor
    assert q.to_dict() == {name: value for name, value in p.to_dict().items() if name != "auto_map"}
    assert q.chat_template == CHATML
    assert q.image_end_token == "<|im_end|>"
    for name, value in labelled(p, LONGER, return_tensors="pt").items():
        assert torch.equal(value, labelled(q, LONGER, return_tensors="pt")[name])


def test_model_inputs_and_decoding_are_those_of_the_parts():
    p = processor()
    assert {"input_ids", "attention_mask", "pixel_values", "image_grids"} <= set(p.model_input_names)
    ids = p.tokenizer("yes<eos>")["input_ids"]
    assert p.decode(ids, skip_special_tokens=True) == "yes"
    assert (
        p.post_process_image_text_to_text([ids]) == p.batch_decode([ids], skip_special_tokens=True) == ["yes"]
    )


# ---- chats


@pytest.mark.parametrize("template", [COMPACT_CHAT_TEMPLATE, CHAT_TEMPLATE, CHATML, PARTS_ONLY])
def test_images_inside_messages_are_found_with_any_template(template):
    p = processor(template)
    chat = p.apply_chat_template(CHAT, tokenize=True, return_dict=True, return_tensors="pt")
    text = p.apply_chat_template(CHAT)
    assert text.count("<image>") == 1
    by_hand = p(images=picture(), text=text, return_tensors="pt")
    assert torch.equal(chat["input_ids"], by_hand["input_ids"])
    assert torch.equal(chat["pixel_values"], by_hand["pixel_values"])


def test_a_batch_of_chats_may_end_with_the_prompt_to_answer():
    p = processor()
    chats = [[user_message("red?", images=0)], [turn("user", picture(), picture(1), "same?")]]
    batch = p.apply_chat_template(
        chats,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={"padding": True, "padding_side": "left"},
    )
    ends = p.tokenizer.convert_ids_to_tokens(batch["input_ids"][:, -1].tolist())
    assert ends == ["<|assistant|>"] * 2
    assert batch["pixel_values"].shape[0] == 2


def test_an_image_that_opens_a_turn_has_its_own_line_where_a_template_knows_text_only():
    p = processor(CHATML)
    assert "user\n<image>\nis it red?<|im_end|>" in p.apply_chat_template(CHAT)
    inside = [turn("user", "is (", picture(), ") red?"), turn("assistant", "no")]
    assert "user\nis (<image>) red?<|im_end|>" in p.apply_chat_template(inside)


def test_without_a_template_of_the_tokenizer_ours_serves():
    words = tokenizer()
    words.chat_template = None
    p = MMVLMProcessor(MMVLMImageProcessor(size=32, patch_size=8, pooling_size=2), words)
    assert p.apply_chat_template(CHAT) == "USER: <image>\nis it red?\nASSISTANT: no<eos>"
    assert p.apply_chat_template(CHAT[:1], add_generation_prompt=True).endswith("red?\nASSISTANT:")
    assert learnt(p, labelled(p, CHAT)["labels"][0]) == [" no<eos>"]


def test_a_tokenizer_that_cannot_end_an_answer_is_refused():
    words = tokenizer()
    words.chat_template = words.eos_token = None
    with pytest.raises(ValueError, match="neither a chat template nor an `eos_token`"):
        MMVLMProcessor(MMVLMImageProcessor(size=32, patch_size=8, pooling_size=2), words)


def test_the_callers_messages_stay_as_they_are():
    chat = [turn("user", picture(), "red?"), turn("assistant", "no")]
    before = [dict(message) for message in chat]
    labelled(processor(CHATML), chat)
    assert chat == before


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ([], "The conversation is empty"),
        ([{"role": "user", "content": [{"type": "video"}]}], "A part is a text or an image"),
        ([{"role": "user"}], "needs a `role` and a `content`"),
    ],
)
def test_malformed_chats_are_refused(chat, message):
    with pytest.raises(ValueError, match=message):
        processor().apply_chat_template(chat)


def test_a_template_that_renders_nothing_we_have_is_refused():
    with pytest.raises(ValueError, match="renders neither image parts nor '<image>' in a text"):
        processor("{{ messages[0]['body'] }}").apply_chat_template(CHAT)


# ---- labels


@pytest.mark.parametrize(
    ("template", "space", "end"),
    [
        (COMPACT_CHAT_TEMPLATE, " ", "<eos>"),
        (PLAIN, " ", "<eos>"),
        (CHATML, "", "<|im_end|>"),
        (PARTS_ONLY, "", "<eos>"),
    ],
)
def test_labels_are_the_assistants_tokens_and_the_end_of_its_turns(template, space, end):
    p = processor(template)
    for labels in (labelled(p, LONGER)["labels"], labelled(p, [CHAT, LONGER])["labels"][1:]):
        assert learnt(p, labels[0]) == [f"{space}no{end}", f"{space}yes{end}"]


def test_marked_and_compared_templates_give_the_same_labels():
    marked, compared = (labelled(processor(template), LONGER) for template in (COMPACT_CHAT_TEMPLATE, PLAIN))
    assert marked["labels"] == compared["labels"]
    assert marked["input_ids"] == compared["input_ids"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_follow_the_padding(side):
    p = processor()
    call = {"padding": True, "padding_side": side}
    batch = labelled(p, [CHAT, LONGER], return_tensors="pt", processor_kwargs=call)
    for row, chat in enumerate([CHAT, LONGER]):
        kept = batch["attention_mask"][row].bool()
        assert batch["labels"][row][kept].tolist() == labelled(p, chat)["labels"][0]
        assert (batch["labels"][row][~kept] == -100).all()


def test_no_token_of_an_image_is_a_label_even_if_the_assistant_shows_it():
    p = processor(max_crops=4, side=64)
    chat = [turn("user", "draw"), turn("assistant", "here: ", picture(), "!")]
    batch = labelled(p, chat)
    image = set(p.image_tokens(picture()))
    assert len(image) == 4
    assert not image & set(batch["labels"][0])
    assert learnt(p, batch["labels"][0]) == [" here: ", " !<eos>"]


def test_labels_survive_cutting():
    p = processor()
    whole = labelled(p, LONGER)["labels"][0]
    length = len(whole) - 2
    cut = labelled(p, LONGER, processor_kwargs={"truncation": True, "max_length": length})
    assert cut["labels"][0] == whole[:length]


def test_a_row_cut_before_its_answer_is_refused():
    p = processor()
    with pytest.raises(ValueError, match="Row 0 keeps none of the assistant's tokens in its 6"):
        labelled(p, CHAT, processor_kwargs={"truncation": True, "max_length": 6})


def test_a_template_that_renders_beginnings_in_another_way_is_refused():
    p = processor(FORGETFUL)
    assert learnt(p, labelled(p, CHAT)["labels"][0]) == ["no<eos>"]
    with pytest.raises(ValueError, match=r"Row 0: .*the first 2 turns in another way .* all 4: .*generation"):
        labelled(p, LONGER)


def test_a_template_that_prompts_for_what_no_answer_has_is_refused():
    p = processor(CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>' }}{% endif"))
    with pytest.raises(
        ValueError, match=r"the prompt to turn 2 in another way .*'<think>' in the place of 'no<"
    ):
        labelled(p, CHAT)


def test_a_chat_without_an_assistant_has_nothing_to_learn_from():
    with pytest.raises(ValueError, match=r"Row 1: .*no assistant's turn to learn from, only \['user'\]"):
        labelled(processor(), [CHAT, CHAT[:1]])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"tokenize": False}, "needs `tokenize=True`"),
        ({"return_dict": False}, "`return_dict=True`"),
        ({"add_generation_prompt": True}, "leave `add_generation_prompt` out"),
    ],
)
def test_labels_need_a_finished_chat_and_tokens(kwargs, message):
    kwargs = {"tokenize": True, "return_dict": True, "return_labels": True} | kwargs
    with pytest.raises(ValueError, match=message):
        processor().apply_chat_template(CHAT, **kwargs)


def test_labels_need_a_tokenizer_that_knows_offsets():
    slow = ByT5Tokenizer()
    MMVLMProcessor.add_image_tokens(slow)
    p = MMVLMProcessor(MMVLMImageProcessor(size=32, patch_size=8, pooling_size=2), slow)
    with pytest.raises(ValueError, match="fast tokenizer, got ByT5Tokenizer"):
        labelled(p, CHAT)


def test_assistant_masks_are_where_the_labels_are():
    p = processor(CHATML)
    batch = labelled(p, LONGER, return_assistant_tokens_mask=True, return_tensors="pt")
    assert torch.equal(batch["assistant_masks"].bool(), batch["labels"] != -100)
