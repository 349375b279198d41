"""Maps of words are those of the plan and the attention, token by token; both leave the model as it was."""

import numpy as np
import pytest
import torch
from evaluation.pairs_tiny import own_processor, own_vilt, pictures, transformers_vilt
from peft import LoraConfig, get_peft_model
from scipy.optimize import linprog
from torch.testing import assert_close
from visualization.seen_tiny import clip, pixels

from hf_mm import WordMaps, train_caption_tokenizer, word_attention, word_map_figure, word_transport
from hf_mm.visualization.vision_parts import record_attention, vision_parts
from hf_mm.visualization.word_maps import stand_out, words_and_tokens

TEXT = "a red  circles on?"
WORDS = ["a", "red", "circles", "on?"]
TOKENS = [
    [1],
    [2],
    [3, 4],
    [5, 6],
]  # of each word; "circle", "##s" and "on", "?" are two; 0 is [CLS], 7 [SEP]
PICTURE = pictures(4)[3]  # 90 px wide and 40 high: 4 x 6 patches


def inputs():
    return own_processor()(images=PICTURE, text=TEXT, return_tensors="pt")


def grid():
    return tuple(side // 8 for side in inputs()["pixel_values"].shape[-2:])


def exact_plan(cost):
    """Of the least cost that moves equal shares of rows to equal shares of columns, by linear programming."""
    rows, columns = cost.shape
    sums = [np.kron(np.eye(rows), np.ones(columns)), np.kron(np.ones(rows), np.eye(columns))]
    masses = np.concatenate([np.full(rows, 1 / rows), np.full(columns, 1 / columns)])
    found = linprog(cost.ravel(), A_eq=np.concatenate(sums), b_eq=masses, bounds=(0, None))
    return found.x.reshape(rows, columns)


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("a  red circle", [["\u0120a"], ["\u0120red"], ["\u0120circle"]]),
        ("a red 12 circle", [["\u0120a"], ["\u0120red"], ["\u0120", "1", "2"], ["\u0120circle"]]),
    ],
)
def test_a_token_with_the_blank_before_a_word_is_in_that_word(text, groups):
    tokenizer = train_caption_tokenizer(["a red circle"], 300)
    words, ids, members = words_and_tokens(tokenizer, text, 20)
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert words == text.split()
    found = [[token for token, share in zip(tokens, row, strict=True) if share] for row in members]
    assert found == groups


def test_transport_is_the_exact_plan_of_words_to_patches():
    """Special tokens and the image's [CLS] take no part."""
    model = own_vilt()
    with torch.no_grad():
        states = torch.nn.functional.normalize(model.vilt(**inputs()).last_hidden_state[0], dim=-1)
    cost = 1 - states[1:7] @ states[9:].T  # 6 tokens of words, 8 of the text, then [CLS]
    plan = exact_plan(cost.double().numpy())
    expected = np.stack(
        [plan[np.array(places) - 1].sum(0) / plan[np.array(places) - 1].sum() for places in TOKENS]
    )
    found = word_transport(model, own_processor(), PICTURE, TEXT, beta=0.1, iterations=3000)
    assert found.words == WORDS
    assert found.maps.shape == (4, *grid())
    assert_close(found.maps.flatten(1).double(), torch.tensor(expected), rtol=0, atol=0.02)


def test_more_iterations_come_nearer():
    def distance(iterations):
        maps = word_transport(own_vilt(), own_processor(), PICTURE, TEXT, iterations=iterations).maps
        return (maps - exact).abs().max().item()

    exact = word_transport(own_vilt(), own_processor(), PICTURE, TEXT, beta=0.1, iterations=3000).maps
    assert distance(1000) < distance(50)


@pytest.mark.parametrize("method", ["rollout", "last"])
def test_attention_of_a_word_is_the_mean_over_its_tokens(method):
    model = own_vilt()
    found = word_attention(model, own_processor(), PICTURE, TEXT, method)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(**inputs(), output_attentions=True).attentions
    matrices = [weights[0].double().mean(dim=0).numpy() for weights in attentions]
    taken = matrices[-1]
    if method == "rollout":
        one, two = ((matrix + np.eye(len(matrix))) / 2 for matrix in matrices)
        taken = two @ one
    expected = np.stack([taken[places, 9:].mean(axis=0) for places in TOKENS])
    expected /= expected.sum(axis=1, keepdims=True)
    assert found.words == WORDS
    assert found.maps.shape == (4, *grid())
    assert_close(found.maps.flatten(1).double(), torch.tensor(expected), rtol=1e-4, atol=1e-6)
    assert found.maps.flatten(1).std(dim=0).max() > 1e-4  # not all words alike


@pytest.mark.parametrize("look", [word_transport, word_attention])
def test_the_bare_model_and_one_with_an_adapter_are_looked_at_alike(look):
    model = own_vilt()
    expected = look(model, own_processor(), PICTURE, TEXT).maps
    assert_close(expected.sum(dim=(1, 2)), torch.ones(4))
    assert_close(look(model.vilt, own_processor(), PICTURE, TEXT).maps, expected)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    assert_close(look(adapted, own_processor(), PICTURE, TEXT).maps, expected)


@pytest.mark.parametrize("look", [word_transport, word_attention])
def test_the_model_is_as_before(look):
    model = own_vilt(hidden_dropout=0.5, max_patches=2).train()
    found = look(model, own_processor(), PICTURE, TEXT).maps
    assert model.config._attn_implementation == "sdpa"
    assert all(part.training for part in model.modules())
    assert_close(found, look(model.eval(), own_processor(), PICTURE, TEXT).maps)


def test_what_stands_out_is_more_than_a_standard_deviation_above_the_mean():
    flat = torch.full((1, 2, 5), 0.1)
    one = torch.zeros(1, 2, 5)
    one[0, 1, 4] = 1  # mean 0.1, standard deviation 0.3: three above
    two = torch.zeros(1, 2, 5)
    two[0, 0, 0] = two[0, 1, 1] = 0.5  # mean 0.1, standard deviation 0.2: two above
    expected = torch.cat([flat * 0, one, two])
    assert_close(stand_out(torch.cat([flat, one, two])), expected, rtol=1e-5, atol=1e-5)
    assert stand_out(flat + 1e-8 * torch.randn(1, 2, 5)).max() == 0  # rounding is no reason to shine
    assert stand_out(flat * 0).max() == 0


@pytest.mark.parametrize("words", [1, 4, 5, 11])
def test_the_figure_has_the_picture_and_a_map_for_each_word(words, tmp_path):
    maps = torch.rand(words, 6, 4, generator=torch.Generator().manual_seed(0))
    found = WordMaps([f"${number}" for number in range(words)], maps)
    figure = word_map_figure(np.asarray(PICTURE), found, "Where $5 is")
    figure.savefig(tmp_path / "words.png")
    assert [axes.get_title() for axes in figure.axes] == ["Input", *found.words]
    for axes, heat in zip(figure.axes[1:], stand_out(maps), strict=True):
        assert axes.images[1].get_clim() == (0, 1)
        assert_close(torch.tensor(axes.images[1].get_array().data), heat)


def test_filters_and_positions_are_found_and_attention_needs_a_text():
    model = own_vilt()
    parts = vision_parts(model)
    assert parts.encoder is model.vilt
    assert_close(parts.patch_filters, model.vilt.embeddings.patches.projection.weight)
    assert_close(parts.positions, model.vilt.embeddings.positions[0, 1:].unflatten(0, (4, 4)))
    with pytest.raises(
        ValueError, match="MMViltForImageAndTextRetrieval reads an image only together with a"
    ):
        record_attention(model, pixels())


@pytest.mark.parametrize("look", [word_transport, word_attention])
@pytest.mark.parametrize(
    ("model", "text", "message"),
    [
        (own_vilt, " ", "`text`=' ' has no word; give at least one"),
        (own_vilt, "a " * 11, "`text` has 13 tokens, special ones included, and the model reads 12"),
        (own_vilt, "a \u200b", "`text` has '\\\\u200b', of which the tokenizer keeps nothing; leave it out"),
        (
            transformers_vilt,
            "a",
            r"ViltForImageAndTextRetrieval is no model of type mm_vilt \(found: vilt\).*`MMViltModel.from_p",
        ),
        (clip, "a", r"CLIPModel is no model of type mm_vilt .*CLIP's by `word_relevance`"),
    ],
)
def test_what_cannot_be_looked_at_is_named(look, model, text, message):
    with pytest.raises(ValueError, match=message):
        look(model(), own_processor(), PICTURE, text)


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match="`method`='first' must be 'rollout' or 'last'"):
        word_attention(own_vilt(), own_processor(), PICTURE, TEXT, "first")
