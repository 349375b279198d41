"""Shares of words and regions are those of the attention and the plan; boxes are drawn where they are."""

import numpy as np
import pytest
import torch
from models.region_bert_tiny import NAMES, scrambled, tiny_config
from models.regions_tiny_rows import BOXES, WIDTH, regions, tokenizer
from peft import LoraConfig, get_peft_model
from PIL import Image, ImageColor
from scipy.optimize import linprog
from torch.testing import assert_close
from visualization.seen_tiny import clip

from hf_mm import (
    MMRegionBertForRegionSelection,
    MMRegionBertModel,
    MMRegionProcessor,
    WordRegions,
    draw_regions,
    word_region_attention,
    word_region_figure,
    word_region_transport,
)
from hf_mm.visualization.regions import COLORS

TEXT = "a red  cats it?"
WORDS = ["a", "red", "cats", "it?"]
TOKENS = [[1], [2], [3, 4], [5, 6]]  # of each word; 0 is [CLS], 7 [SEP]


def model_of(name="uniter", **changes):
    torch.manual_seed(0)
    return scrambled(MMRegionBertModel(tiny_config(name, region_feature_size=WIDTH, **changes)))


def processor(name="uniter"):
    return MMRegionProcessor(tokenizer(), max_length=14, max_tags=2 if name == "oscar" else 0)


def attention_by_hand(model, name, stream):
    """Weights of each block as the model itself gives them, averaged over heads."""
    model.set_attn_implementation("eager")
    inputs = processor(name)(text=TEXT, regions=regions(5))
    with torch.no_grad():
        outputs = model(**inputs, output_attentions=True)
    return [weights[0].double().mean(dim=0) for weights in outputs[stream]]


def expected_shares(look):
    """(T, R) to (W, R)."""
    taken = torch.stack([look[places].mean(dim=0) for places in TOKENS])
    return (taken / taken.sum(dim=1, keepdim=True)).float()


@pytest.mark.parametrize("method", ["last", "mean"])
def test_one_stream_looks_at_regions_behind_the_text_and_its_tags(method):
    model = model_of("oscar")
    found = word_region_attention(model, processor("oscar"), regions(5), TEXT, method)
    blocks = attention_by_hand(model, "oscar", "attentions")
    look = blocks[-1] if method == "last" else torch.stack(blocks).mean(dim=0)
    assert found.words == WORDS
    assert_close(found.shares, expected_shares(look[:, -5:]), rtol=1e-4, atol=1e-6)
    assert_close(found.boxes, torch.tensor(BOXES))
    assert found.shares.std(dim=0).max() > 1e-4  # not all words alike


@pytest.mark.parametrize("name", ["lxmert", "vilbert"])
def test_two_streams_look_by_their_cross_attention_the_whole_image_left_out(name):
    model = model_of(name)
    found = word_region_attention(model, processor(), regions(5), TEXT)
    look = attention_by_hand(model, name, "cross_attentions")[-1]
    assert look.shape == (8, 6 if name == "vilbert" else 5)
    assert_close(found.shares, expected_shares(look[:, -5:]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("look", "name"),
    [(word_region_attention, name) for name in NAMES]
    + [(word_region_transport, name) for name in NAMES if name != "vilbert"],  # its widths differ, see below
)
def test_regions_in_another_order_have_the_same_shares(look, name):
    """In every model: so no share is that of a neighbour, of the whole image or of [END]."""
    order = [3, 0, 4, 2, 1]
    given = regions(5)
    other = {
        key: [value[place] for place in order] if isinstance(value, list) else value
        for key, value in given.items()
    }
    other |= {key: value[order] for key, value in given.items() if isinstance(value, torch.Tensor)}
    other["tags"] = given["tags"]  # what is read is the same
    model = model_of(name)
    found, again = (look(model, processor(name), part, TEXT) for part in (given, other))
    assert_close(again.shares, found.shares[:, order], rtol=1e-3, atol=1e-5)
    assert_close(again.boxes, found.boxes[order])
    assert_close(found.shares.sum(dim=1), torch.ones(4))


def spread(model):
    """States so far apart that one plan alone is the cheapest."""
    with torch.no_grad():
        for block in model.joint_blocks:
            for norm in (block.attention_norm, block.mlp_norm):
                norm.weight.fill_(1)
                norm.bias.zero_()
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(3)
    return model


def test_transport_is_the_exact_plan_of_words_to_regions():
    model = spread(model_of())
    with torch.no_grad():
        outputs = model(**processor()(text=TEXT, regions=regions(5)))
    words, seen = (
        torch.nn.functional.normalize(part[0].double(), dim=-1)
        for part in (outputs.last_hidden_state[:, 1:7], outputs.region_last_hidden_state)
    )
    cost = (1 - words @ seen.T).numpy()
    sums = np.concatenate([np.kron(np.eye(6), np.ones(5)), np.kron(np.ones(6), np.eye(5))])
    masses = np.concatenate([np.full(6, 1 / 6), np.full(5, 1 / 5)])
    plan = linprog(cost.ravel(), A_eq=sums, b_eq=masses, bounds=(0, None)).x.reshape(6, 5)
    expected = np.stack([plan[np.array(places) - 1].sum(0) for places in TOKENS])
    expected /= expected.sum(axis=1, keepdims=True)
    found = word_region_transport(model, processor(), regions(5), TEXT, beta=0.1, iterations=3000)
    assert_close(found.shares.double(), torch.tensor(expected), rtol=0, atol=0.02)


@pytest.mark.parametrize("look", [word_region_attention, word_region_transport])
def test_heads_and_adapters_are_looked_through_and_the_model_is_as_before(look):
    torch.manual_seed(0)
    config = tiny_config(region_feature_size=WIDTH, hidden_dropout=0.5)
    model = scrambled(MMRegionBertForRegionSelection(config)).train()
    found = look(model, processor(), regions(5), TEXT).shares
    assert model.config._attn_implementation == "sdpa"
    assert all(part.training for part in model.modules())
    assert_close(look(model.region_bert.eval(), processor(), regions(5), TEXT).shares, found)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    assert_close(look(adapted, processor(), regions(5), TEXT).shares, found)


def test_the_word_of_a_region_has_the_largest_share_of_it():
    shares = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.5, 0.4]])
    found = WordRegions(["cat", "dog"], shares, torch.tensor(BOXES[:3]))
    assert found.word_of_each_region() == ["cat", "dog", "dog"]


def color_at(image, x, y):
    return "#{:02x}{:02x}{:02x}".format(*image.getpixel((round(x), round(y))))


@pytest.mark.parametrize("size", [(64, 64), (1000, 500), (30, 90)])
def test_boxes_are_drawn_where_they_are_at_any_size(size):
    picture = Image.new("RGB", size, "white")
    drawn = draw_regions(picture, [[0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 1.0, 0.25]])
    width, height = drawn.width - 1, drawn.height - 1
    assert max(drawn.size) >= 480
    for number, (x, y) in enumerate([(0.25, 0.7), (0.0, 0.1)]):
        assert color_at(drawn, x * width, y * height) == COLORS[number]
    assert color_at(drawn, 0.75 * width, 0.7 * height) == COLORS[0]
    assert color_at(drawn, 0.5 * width, 0.7 * height) == "#ffffff"  # not filled
    assert picture.getextrema() == ((255, 255),) * 3  # the given picture is as it was


def inked(image, color):
    return (np.abs(np.asarray(image).astype(int) - ImageColor.getrgb(color)).max(-1) == 0).sum()


def test_labels_stand_on_a_ground_of_their_colour_and_never_on_each_other():
    picture = Image.new("RGB", (480, 480), "white")
    boxes = [[0.3, 0.3, 0.6, 0.6]] * 3
    labels = ["red triangle", "", "gray"]
    colors = ["#ff0000", "#00ff00", "#0000ff"]
    plain = draw_regions(picture, boxes, colors=colors)
    drawn = draw_regions(picture, boxes, labels, colors)
    assert inked(plain, "#0000ff") < 1200
    assert inked(drawn, "#0000ff") - inked(plain, "#0000ff") > 300
    alone = draw_regions(picture, boxes[:1], labels[:1], colors[:1])
    outline = inked(draw_regions(picture, boxes[:1], colors=colors[:1]), "#ff0000")
    assert inked(drawn, "#ff0000") >= inked(alone, "#ff0000") - outline  # nothing lies on its ground
    assert inked(drawn, "#00ff00") == 0  # an empty label has no ground, and the box lies under another


def test_no_boxes_and_labels_at_the_border_are_fine():
    white = np.full((480, 480, 3), 255, np.uint8)
    np.testing.assert_array_equal(np.asarray(draw_regions(white, [])), white)
    drawn = draw_regions(white, [[0.0, 0.0, 0.1, 0.1], [0.9, 0.9, 1.0, 1.0]], ["first", "a long label " * 9])
    assert drawn.size == (480, 480)
    assert inked(drawn, COLORS[1]) > 300


@pytest.mark.parametrize(
    ("boxes", "more", "message"),
    [
        ([[0, 0, 64, 48]], {}, r"`boxes` must be shares of the image in 0..1, got 0 to 64; divide"),
        (BOXES, {"labels": ["a"]}, "`labels` has 1 entries for 5 `boxes`; give one for each"),
        (BOXES, {"colors": ["red"] * 6}, "`colors` has 6 entries for 5 `boxes`"),
    ],
)
def test_what_cannot_be_drawn_is_named(boxes, more, message):
    with pytest.raises(ValueError, match=message):
        draw_regions(Image.new("RGB", (64, 48)), boxes, **more)


@pytest.mark.parametrize("names", [None, ["$dog", "cat", "red", "blue", "a"]])
def test_the_figure_has_the_boxes_and_the_share_of_every_word_and_region(names, tmp_path):
    shares = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    found = WordRegions(["a", "$5", "cat"], shares, torch.tensor(BOXES))
    figure = word_region_figure(np.zeros((48, 64, 3), np.uint8), found, names, "Where $5 is")
    figure.savefig(tmp_path / "regions.png")
    picture, heat = figure.axes[:2]
    labels = names or [str(number) for number in range(1, 6)]
    words = [f"{name}: {word}" for name, word in zip(labels, found.word_of_each_region(), strict=True)]
    drawn = draw_regions(np.zeros((48, 64, 3), np.uint8), BOXES, words)
    np.testing.assert_array_equal(picture.images[0].get_array(), np.asarray(drawn))
    assert_close(torch.tensor(heat.images[0].get_array().data), shares)
    assert [label.get_text() for label in heat.get_xticklabels()] == labels
    assert [label.get_text() for label in heat.get_yticklabels()] == found.words
    with pytest.raises(ValueError, match="`names` has 1 entries for 5 regions"):
        word_region_figure(np.zeros((48, 64, 3), np.uint8), found, ["a"])


@pytest.mark.parametrize("look", [word_region_attention, word_region_transport])
@pytest.mark.parametrize(
    ("model", "text", "message"),
    [
        (model_of, " ", "`text`=' ' has no word; give at least one"),
        (model_of, "a " * 13, "`text` has 15 tokens, special ones included, and the model reads 14"),
        (clip, "a", r"CLIPModel is no model of type mm_region_bert .*of patches see `word_attention`"),
    ],
)
def test_what_cannot_be_looked_at_is_named(look, model, text, message):
    with pytest.raises(ValueError, match=message):
        look(model(), processor(), regions(5), text)


def test_a_way_that_a_model_does_not_have_is_named():
    with pytest.raises(ValueError, match="`method`='first' must be 'last' or 'mean'"):
        word_region_attention(model_of(), processor(), regions(5), TEXT, "first")
    with pytest.raises(ValueError, match="Words are 32 wide and regions 24, which cannot be compared; use"):
        word_region_transport(model_of("vilbert"), processor(), regions(5), TEXT)
    apart = model_of("lxmert", layers=["text", "region"])
    with pytest.raises(
        ValueError, match=r"No block of `layers`=\['text', 'region'\] lets text look at regions"
    ):
        word_region_attention(apart, processor(), regions(5), TEXT)
