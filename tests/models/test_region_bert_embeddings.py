"""How a region becomes a token in each model, and the blocks of two streams, against the papers' formulas."""

import math

import pytest
import torch
from region_bert_tiny import mixed, scrambled, tiny_config
from torch.nn.functional import gelu, layer_norm, relu
from torch.testing import assert_close

from hf_mm.models.region_bert.locations_region_bert import locations_of
from hf_mm.models.region_bert.modeling_region_bert import MMRegionBertModel

BOX = torch.tensor([[0.1, 0.2, 0.5, 0.8]])


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        ("box4", [0.1, 0.2, 0.5, 0.8]),
        ("box5", [0.1, 0.2, 0.5, 0.8, 0.24]),
        ("box6", [0.1, 0.2, 0.5, 0.8, 0.4, 0.6]),
        ("box7", [0.1, 0.2, 0.5, 0.8, 0.4, 0.6, 0.24]),
    ],
)
def test_locations_are_the_numbers_of_the_papers(kind, numbers):
    assert_close(locations_of(BOX, kind, 0), torch.tensor([numbers]))


def test_sinusoids_are_those_of_vl_bert():
    """Centre x, centre y, width and height in percent; wave lengths from 1 to 1000, sines before cosines."""
    wanted = []
    for value in (30.0, 50.0, 40.0, 60.0):
        angles = [value / 1000 ** (step / 3) for step in range(3)]
        wanted += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    assert_close(locations_of(BOX, "sinusoid", 3), torch.tensor([wanted]), rtol=1e-5, atol=1e-5)


def without_blocks(name):
    """A model whose states are its embeddings, and its weights by name."""
    model = scrambled(MMRegionBertModel(tiny_config(name, layers=[])))
    return model, {key.removeprefix("region_embeddings."): part for key, part in model.named_parameters()}


def norm(states, weights, name):
    return layer_norm(states, states.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-12)


def dense(states, weights, name):
    return states @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def uniter(features, boxes, weights, ends):
    seen = norm(dense(features, weights, "feature_projection"), weights, "feature_norm")
    located = locations_of(boxes.flatten(0, 1), "box7", 0).unflatten(0, boxes.shape[:2])
    located = norm(dense(located, weights, "location_projection"), weights, "location_norm")
    return norm(seen + located + weights["embeddings.token_types.weight"][1], weights, "norm")


def lxmert(features, boxes, weights, ends):
    seen = norm(dense(features, weights, "feature_projection"), weights, "feature_norm")
    return (seen + norm(dense(boxes, weights, "location_projection"), weights, "location_norm")) / 2


def vilbert(features, boxes, weights, ends):
    features, boxes = with_image(features, boxes)
    area = ((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])).unsqueeze(2)
    located = dense(torch.cat((boxes, area), dim=2), weights, "location_projection")
    return norm(dense(features, weights, "feature_projection") + located, weights, "norm")


def vl_bert(features, boxes, weights, ends):
    features, boxes = with_image(features, boxes)
    geometry = locations_of(boxes.flatten(0, 1), "sinusoid", 2).unflatten(0, boxes.shape[:2])
    seen = relu(dense(torch.cat((features, geometry), dim=2), weights, "feature_projection"))
    states = norm(seen, weights, "feature_norm") + weights["token"]
    states = states + weights["embeddings.positions.weight"][ends].unsqueeze(1)
    return norm(states + weights["embeddings.token_types.weight"][2], weights, "embeddings.norm")


def oscar(features, boxes, weights, ends):
    sides = boxes[..., 2:] - boxes[..., :2]
    return dense(torch.cat((features, boxes, sides), dim=2), weights, "feature_projection")


def visualbert(features, boxes, weights, ends):
    states = dense(features, weights, "feature_projection")
    states = states + weights["positions.weight"][0] + weights["token_types.weight"][1]
    return norm(states, weights, "embeddings.norm")


def with_image(features, boxes):
    """The mean of the regions of each row before them, as large as the image."""
    counts = (boxes.sum(dim=2) > 0).sum(dim=1)
    means = features.sum(dim=1) / counts.unsqueeze(1)
    frames = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(len(boxes), 1, 4)
    return torch.cat((means.unsqueeze(1), features), dim=1), torch.cat((frames, boxes), dim=1)


FORMULAS = {
    "uniter": uniter,
    "lxmert": lxmert,
    "vilbert": vilbert,
    "vl-bert": vl_bert,
    "oscar": oscar,
    "visualbert": visualbert,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_region_becomes_a_token_as_its_paper_says(name):
    (model, weights), batch = without_blocks(name), mixed()
    ends = batch["attention_mask"].sum(dim=1)
    expected = FORMULAS[name](batch["region_features"], batch["region_boxes"], weights, ends)
    real = torch.cat((torch.ones(3, model.config.extra_regions), batch["region_mask"]), dim=1).bool()
    got = model(**batch).region_last_hidden_state
    assert_close(got[real], expected[real], rtol=1e-5, atol=1e-5)


def test_words_of_vl_bert_see_the_image():
    (model, weights), batch = without_blocks("vl-bert"), mixed()
    features, boxes = with_image(batch["region_features"], batch["region_boxes"])
    geometry = locations_of(boxes[:, 0], "sinusoid", 2)
    seen = relu(dense(torch.cat((features[:, 0], geometry), dim=1), weights, "feature_projection"))
    seen = norm(seen, weights, "text_norm").unsqueeze(1)
    ids, positions = batch["input_ids"], weights["embeddings.positions.weight"][:9]
    words = weights["embeddings.tokens.weight"][ids] + positions + weights["embeddings.token_types.weight"][0]
    expected, real = norm(words + seen, weights, "embeddings.norm"), batch["attention_mask"].bool()
    assert_close(model(**batch).last_hidden_state[real], expected[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["uniter", "vl-bert"])
def test_learned_vectors_stand_for_hidden_regions(name):
    (model, weights), batch = without_blocks(name), mixed()
    hidden = torch.zeros(3, 6).bool()
    hidden[:, 1] = True
    got = model(**batch, masked_regions=hidden, **whole(model, batch)).region_last_hidden_state
    batch["region_features"][:, 1] = weights["mask_feature"]
    if name == "vl-bert":  # and another word for [IMG]: as the mask token says
        unlike = model(**batch, **whole(model, mixed())).region_last_hidden_state
        assert not torch.allclose(got[:, 2], unlike[:, 2])
        with torch.no_grad():
            weights["token"].copy_(weights["mask_token"])
    expected = model(**batch, **whole(model, mixed())).region_last_hidden_state
    place = 1 + model.config.extra_regions
    assert_close(got[:, place], expected[:, place])


def whole(model, batch):
    if not model.config.whole_image_region:
        return {}
    return {"image_features": with_image(batch["region_features"], batch["region_boxes"])[0][:, 0]}


def attend(states, context, weights, name, heads):
    """Attention with residual and norm, every place visible."""
    query, key, value = (
        dense(part, weights, f"{name}.{letter}_proj").unflatten(-1, (heads, -1)).transpose(1, 2)
        for letter, part in (("q", states), ("k", context), ("v", context))
    )
    scores = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(dim=-1)
    mixed = dense((scores @ value).transpose(1, 2).flatten(2), weights, f"{name}.o_proj")
    return norm(states + mixed, weights, f"{name}_norm")


def think(states, weights, name):
    inner = gelu(dense(states, weights, f"{name}.fc1"))
    return norm(states + dense(inner, weights, f"{name}.fc2"), weights, f"{name}_norm")


def full_rows(name, layers):
    """A model of these blocks, its weights, rows without padding and their embeddings."""
    batch = {key: values[1:2, :2] for key, values in mixed().items()}
    model, _ = without_blocks(name)
    bare = model(**batch)
    deep = scrambled(MMRegionBertModel(tiny_config(name, layers=layers)))
    deep.embeddings, deep.region_embeddings = model.embeddings, model.region_embeddings
    return deep(**batch), dict(deep.named_parameters()), bare.last_hidden_state, bare.region_last_hidden_state


def test_co_attention_is_vilberts():
    out, weights, text, regions = full_rows("vilbert", ["co"])
    name = "co_blocks.0"
    seen = attend(text, regions, weights, f"{name}.text_attention", 4)
    read = attend(regions, text, weights, f"{name}.region_attention", 4)
    assert_close(out.last_hidden_state, think(seen, weights, f"{name}.text_mlp"), rtol=1e-5, atol=1e-5)
    expected = think(read, weights, f"{name}.region_mlp")
    assert_close(out.region_last_hidden_state, expected, rtol=1e-5, atol=1e-5)


def test_cross_attention_is_lxmerts():
    out, weights, text, regions = full_rows("lxmert", ["cross"])
    name = "cross_blocks.0"
    weights[f"{name}.cross_attention_norm.weight"] = weights[f"{name}.cross_norm.weight"]
    weights[f"{name}.cross_attention_norm.bias"] = weights[f"{name}.cross_norm.bias"]
    seen = attend(text, regions, weights, f"{name}.cross_attention", 4)
    read = attend(regions, text, weights, f"{name}.cross_attention", 4)
    for states, stream, got in (
        (seen, "text", out.last_hidden_state),
        (read, "regions", out.region_last_hidden_state),
    ):
        states = attend(states, states, weights, f"{name}.{stream}.attention", 4)
        assert_close(got, think(states, weights, f"{name}.{stream}.mlp"), rtol=1e-5, atol=1e-5)


def test_vectors_of_text_and_first_region_are_multiplied_in_vilbert():
    (model, weights), batch = without_blocks("vilbert"), mixed()
    out = model(**batch)
    text = relu(dense(out.last_hidden_state[:, 0], weights, "pooler.text"))
    image = relu(dense(out.region_last_hidden_state[:, 0], weights, "pooler.regions"))
    assert_close(out.pooler_output, text * image)
    model.pooler.pooling = "sum"
    assert_close(model(**batch).pooler_output, text + image)
