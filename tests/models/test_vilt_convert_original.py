"""ViLT in its authors' layout and ours, by an encoder written out from the paper's code in a few lines."""

import pytest
import torch
from torch.nn.functional import cross_entropy, gelu, interpolate, layer_norm, linear
from torch.testing import assert_close
from vilt_tiny import images, scrambled, texts, tiny_config

from hf_mm.models.vilt.convert_vilt_original import load_original_vilt, to_original_vilt_state_dict
from hf_mm.models.vilt.heads_vilt import (
    MMViltForImageAndTextRetrieval,
    MMViltForImagesAndTextClassification,
    MMViltForQuestionAnswering,
)
from hf_mm.models.vilt.modeling_vilt import MMViltModel
from hf_mm.models.vilt.pretraining_vilt import MMViltForPreTraining
from hf_mm.models.vilt.text_heads_vilt import MMViltForTokenClassification

EXACT = {"rtol": 1e-5, "atol": 1e-5}
ORIGINAL = {"hidden_size": 128, "num_attention_heads": 2, "layer_norm_eps": 1e-6}  # heads of 64, as theirs
HEADS = {
    MMViltModel: {},
    MMViltForQuestionAnswering: {"num_labels": 5},
    MMViltForImagesAndTextClassification: {"num_labels": 2},
    MMViltForImageAndTextRetrieval: {},
    MMViltForPreTraining: {"tie_word_embeddings": False},
}


def config_of(model_class, **changes):
    return tiny_config(**(ORIGINAL | HEADS.get(model_class, {}) | changes))


def batch():
    return {**texts((6, 6)), **images(((3, 5), (3, 5)))}


def original_encoder(w, ids, pixels):
    """`transformer` of a text and an image without padding: states before the pooler."""

    def norm(x, name, eps):
        return layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)

    text = w["text_embeddings.word_embeddings.weight"][ids]
    text = text + w["text_embeddings.token_type_embeddings.weight"][0]
    text = text + w["text_embeddings.position_embeddings.weight"][: ids.shape[1]]
    text = norm(text, "text_embeddings.LayerNorm", 1e-12) + w["token_type_embeddings.weight"][0]
    kernel, bias = w["transformer.patch_embed.proj.weight"], w["transformer.patch_embed.proj.bias"]
    grid = torch.nn.functional.conv2d(pixels, kernel, bias, stride=kernel.shape[-1])
    table = w["transformer.pos_embed"]
    side = int((table.shape[1] - 1) ** 0.5)
    square = table[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    places = interpolate(square, size=grid.shape[2:], mode="bilinear", align_corners=True)
    image = (grid + places).flatten(2).transpose(1, 2)
    begin = (w["transformer.cls_token"] + table[:, :1]).expand(len(ids), -1, -1)
    image = torch.cat((begin, image), dim=1) + w["token_type_embeddings.weight"][1]
    x = torch.cat((text, image), dim=1)
    for number in range(2):
        block = f"transformer.blocks.{number}"
        y = norm(x, f"{block}.norm1", 1e-6)
        y = linear(y, w[f"{block}.attn.qkv.weight"], w[f"{block}.attn.qkv.bias"])
        q, k, v = y.unflatten(-1, (3, 2, 64)).permute(2, 0, 3, 1, 4)
        y = ((q @ k.transpose(-1, -2) / 8).softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
        x = x + linear(y, w[f"{block}.attn.proj.weight"], w[f"{block}.attn.proj.bias"])
        y = gelu(
            linear(norm(x, f"{block}.norm2", 1e-6), w[f"{block}.mlp.fc1.weight"], w[f"{block}.mlp.fc1.bias"])
        )
        x = x + linear(y, w[f"{block}.mlp.fc2.weight"], w[f"{block}.mlp.fc2.bias"])
    return norm(x, "transformer.norm", 1e-6)


def saved(model, path, **beside):
    weights = to_original_vilt_state_dict(model)
    torch.save({"state_dict": weights, "epoch": 3, **beside}, path)
    return weights


def test_the_encoder_of_a_checkpoint_has_the_states_of_its_authors_code(tmp_path):
    weights = saved(scrambled(MMViltModel(config_of(MMViltModel))), tmp_path / "vilt.ckpt")
    ours, inputs = load_original_vilt(tmp_path / "vilt.ckpt"), batch()
    got = ours(**inputs)
    expected = original_encoder(weights, inputs["input_ids"], inputs["pixel_values"])
    assert_close(got.last_hidden_state, expected, **EXACT)
    pooled = torch.tanh(linear(expected[:, 0], weights["pooler.dense.weight"], weights["pooler.dense.bias"]))
    assert_close(got.pooler_output, pooled, **EXACT)


def original_words(w, states):
    """`mlm_score` of the six places of the text."""
    x = gelu(linear(states[:, :6], *(w[f"mlm_score.transform.dense.{name}"] for name in ("weight", "bias"))))
    norm = [w[f"mlm_score.transform.LayerNorm.{name}"] for name in ("weight", "bias")]
    return linear(layer_norm(x, (128,), *norm, 1e-12), w["mlm_score.decoder.weight"], w["mlm_score.bias"])


def original_match(w, states):
    """`itm_score` of pooled states."""
    pooled = torch.tanh(linear(states[:, 0], w["pooler.dense.weight"], w["pooler.dense.bias"]))
    return linear(pooled, w["itm_score.fc.weight"], w["itm_score.fc.bias"])


def test_its_words_and_matches_are_those_of_its_authors_code(tmp_path):
    weights = saved(scrambled(MMViltForPreTraining(config_of(MMViltForPreTraining))), tmp_path / "vilt.ckpt")
    ours, inputs = load_original_vilt(tmp_path / "vilt.ckpt"), batch()
    states = original_encoder(weights, inputs["input_ids"], inputs["pixel_values"])
    words = ours.mlm_head(ours.vilt(**inputs).last_hidden_state[:, :6])
    assert_close(words, original_words(weights, states), **EXACT)
    assert_close(ours(**inputs).logits, original_match(weights, states), **EXACT)


def test_losses_and_gradients_are_those_of_its_authors_code(tmp_path):
    """Of hidden words and of matching; gradients by its authors' names, as if they were weights."""
    saved(scrambled(MMViltForPreTraining(config_of(MMViltForPreTraining))), tmp_path / "vilt.ckpt")
    ours, inputs = load_original_vilt(tmp_path / "vilt.ckpt"), batch()
    weights = {
        name: weight.detach().clone().requires_grad_()
        for name, weight in to_original_vilt_state_dict(ours).items()
    }
    labels, matched = torch.full((2, 6), -100), torch.tensor([1, 0])
    labels[0, 2], labels[1, 3], labels[1, 4] = 7, 30, 2
    hidden = inputs["input_ids"].masked_fill(labels != -100, 38)
    asked = {"mlm_input_ids": hidden, "mlm_labels": labels, "itm_labels": matched}
    out = ours(**inputs, **asked)
    words = original_words(weights, original_encoder(weights, hidden, inputs["pixel_values"]))
    pairs = original_match(weights, original_encoder(weights, inputs["input_ids"], inputs["pixel_values"]))
    losses = cross_entropy(words.flatten(0, 1), labels.flatten()), cross_entropy(pairs, matched)
    assert_close((out.mlm_loss, out.itm_loss), losses, **EXACT)
    (out.mlm_loss + out.itm_loss).backward()
    sum(losses).backward()
    with torch.no_grad():
        for weight in ours.parameters():
            weight.copy_(weight.grad)
    expected = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
    found = to_original_vilt_state_dict(ours)
    assert len(expected) > 40
    assert_close({name: found[name] for name in expected}, expected, **EXACT)


@pytest.mark.parametrize("model_class", HEADS)
def test_every_head_comes_back_from_its_authors_names_bit_for_bit(model_class, tmp_path):
    model = scrambled(model_class(config_of(model_class)))
    saved(model, tmp_path / "vilt.ckpt")
    again = load_original_vilt(tmp_path / "vilt.ckpt")
    assert type(again) is model_class
    assert not again.training
    assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert (again.config.layer_norm_eps, again.config.text_layer_norm_eps) == (1e-6, 1e-12)
    assert again.config.num_labels == model.config.num_labels


def test_names_are_those_of_its_authors_code():
    names = set(to_original_vilt_state_dict(MMViltForPreTraining(config_of(MMViltForPreTraining))))
    assert {
        "text_embeddings.LayerNorm.weight",
        "transformer.blocks.1.attn.qkv.bias",
        "transformer.patch_embed.proj.weight",
        "mlm_score.bias",
        "mlm_score.decoder.weight",
        "itm_score.fc.weight",
    } <= names
    answers = to_original_vilt_state_dict(MMViltForQuestionAnswering(config_of(MMViltForQuestionAnswering)))
    assert answers["vqa_classifier.3.weight"].shape == (5, 256)


def test_heads_that_rank_are_of_ranking_though_matching_is_beside_them(tmp_path):
    weights = to_original_vilt_state_dict(
        MMViltForImageAndTextRetrieval(config_of(MMViltForImageAndTextRetrieval))
    )
    beside = {"itm_score.fc.weight": torch.zeros(2, 128), "itm_score.fc.bias": torch.zeros(2)}
    buffer = {"text_embeddings.position_ids": torch.arange(12)[None]}
    torch.save(weights | beside | buffer, tmp_path / "irtr.pt")
    assert isinstance(load_original_vilt(tmp_path / "irtr.pt"), MMViltForImageAndTextRetrieval)


def test_answers_are_named_by_the_caller(tmp_path):
    saved(MMViltForQuestionAnswering(config_of(MMViltForQuestionAnswering)), tmp_path / "vqa.ckpt")
    answers = dict(enumerate(("yes", "no", "red", "two", "cat")))
    assert load_original_vilt(tmp_path / "vqa.ckpt", id2label=answers).config.id2label == answers


class Extra:
    """Something that is no number, as Lightning stores."""


def test_a_file_that_holds_more_than_numbers_needs_an_explicit_yes(tmp_path):
    saved(MMViltModel(config_of(MMViltModel)), tmp_path / "vilt.ckpt", callbacks=Extra())
    with pytest.raises(ValueError, match="holds more than weights, or is damaged; if you trust"):
        load_original_vilt(tmp_path / "vilt.ckpt")
    assert isinstance(load_original_vilt(tmp_path / "vilt.ckpt", weights_only=False), MMViltModel)


def test_what_is_no_such_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not there; wanted a file of weights"):
        load_original_vilt(tmp_path / "none.ckpt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds no weights by name"):
        load_original_vilt(tmp_path / "list.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"no weight that means `vilt.embeddings.text.tokens.weight`"):
        load_original_vilt(tmp_path / "other.pt")
    weights = saved(MMViltModel(config_of(MMViltModel)), tmp_path / "vilt.ckpt")
    del weights["transformer.norm.weight"]
    torch.save(weights, tmp_path / "part.pt")
    with pytest.raises(ValueError, match=r"`norm.weight` is missing"):
        load_original_vilt(tmp_path / "part.pt")


def test_what_its_authors_code_cannot_express_is_refused():
    with pytest.raises(
        ValueError, match="`layer_norm_eps`=1e-12 cannot be exported, ViLT's code has 1e-06 only"
    ):
        to_original_vilt_state_dict(MMViltModel(config_of(MMViltModel, layer_norm_eps=1e-12)))
    kinds = MMViltForTokenClassification(config_of(MMViltForTokenClassification))
    with pytest.raises(ValueError, match=r"`token_classifier.*has no place in a `dandelin/ViLT` checkpoint"):
        to_original_vilt_state_dict(kinds)
