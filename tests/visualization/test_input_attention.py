"""Input attention: closed forms of the rollout, parity with transformers, shapes that are not square."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from visualization.seen_tiny import clip, mm_vit, pixels, tower, vit_classifier

import hf_mm
from hf_mm.models.vit.modeling_vit import MMViTForImageClassification


def weights(blocks=3, heads=2, tokens=5, batch=2):
    scores = torch.randn(blocks, batch, heads, tokens, tokens, generator=torch.Generator().manual_seed(0))
    return list((3 * scores).softmax(dim=-1))


def test_identity_attention_rolls_out_to_the_identity():
    eye = torch.eye(5).expand(2, 3, 5, 5)
    assert_close(hf_mm.attention_rollout([eye] * 4), torch.eye(5).expand(2, 5, 5))


def test_one_uniform_block_keeps_half_of_each_token():
    uniform = torch.full((1, 2, 4, 4), 0.25)
    assert_close(hf_mm.attention_rollout([uniform]), (0.125 + 0.5 * torch.eye(4))[None])


def test_rollout_equals_its_five_lines_of_numpy():
    attentions = weights()
    expected = np.eye(5)
    for block in attentions:
        mean = block[1].numpy().mean(axis=0) + np.eye(5)
        expected = (mean / mean.sum(axis=1, keepdims=True)) @ expected
    rollout = hf_mm.attention_rollout(attentions)
    assert_close(rollout[1], torch.tensor(expected, dtype=torch.float32), rtol=1e-5, atol=1e-6)
    assert_close(rollout.sum(-1), torch.ones(2, 5))


def test_the_last_block_is_the_last_to_be_multiplied():
    """All tokens look at token 2, then all at token 0: what token 0 holds by then is half of token 2."""
    to_two, to_zero = (torch.eye(3)[place].expand(1, 1, 3, 3) for place in (2, 0))
    assert_close(hf_mm.attention_rollout([to_two, to_zero])[0, 0], torch.tensor([0.5, 0.0, 0.5]))
    assert_close(hf_mm.attention_rollout([to_two, to_zero])[0, 1], torch.tensor([0.25, 0.25, 0.5]))


def test_no_attention_is_refused():
    with pytest.raises(ValueError, match="`attentions` is empty"):
        hf_mm.attention_rollout([])


@pytest.mark.parametrize("method", ["rollout", "last"])
def test_shares_are_what_cls_takes_from_the_patches(method):
    model = tower("vit")
    model.set_attn_implementation("eager")
    attentions = model(pixels(), output_attentions=True).attentions
    taken = hf_mm.attention_rollout(attentions) if method == "rollout" else attentions[-1].mean(dim=1)
    expected = taken[:, 0, 1:] / taken[:, 0, 1:].sum(dim=1, keepdim=True)
    found = hf_mm.input_attention(model, pixels(), method)
    assert_close(found, expected.detach().view(2, 4, 4))
    assert_close(found.sum(dim=(1, 2)), torch.ones(2))


@pytest.mark.parametrize("method", ["rollout", "last"])
@pytest.mark.parametrize("query", ["cls", "mean"])
def test_ours_and_transformers_vit_agree_with_the_same_weights(method, query, tmp_path):
    theirs = vit_classifier()
    theirs.save_pretrained(tmp_path)
    ours = MMViTForImageClassification.from_pretrained(tmp_path)
    found = [hf_mm.input_attention(model, pixels(), method, query) for model in (ours, theirs)]
    assert_close(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["rollout", "last"])
def test_a_model_that_pools_patches_is_shown_by_the_mean_of_their_rows(method):
    model = mm_vit(pooling="mean")
    model.set_attn_implementation("eager")
    attentions = model(pixels(), output_attentions=True).attentions
    taken = hf_mm.attention_rollout(attentions) if method == "rollout" else attentions[-1].mean(dim=1)
    expected = taken[:, 1:, 1:].mean(dim=1)
    expected = (expected / expected.sum(dim=1, keepdim=True)).detach().view(2, 4, 4)
    assert_close(hf_mm.input_attention(model, pixels(), method), expected)
    assert (hf_mm.input_attention(model, pixels(), method, query="cls") - expected).abs().max() > 1e-4


@pytest.mark.parametrize("model", [mm_vit, lambda: tower("vit"), clip], ids=["mm_vit", "vit", "clip"])
def test_a_tall_picture_gives_a_tall_map_with_the_bright_patch_in_its_place(model):
    """Keys follow patches: exchanging two patches without positions exchanges their shares."""
    model, picture = model(), pixels(1, 24, 8)
    with pytest.raises(ValueError, match=r"24.8"):
        hf_mm.input_attention(model, picture)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "position" in name:
                weight.zero_()
    exchanged = picture.clone()
    exchanged[..., 0:4, 4:8], exchanged[..., 20:24, 0:4] = picture[..., 20:24, 0:4], picture[..., 0:4, 4:8]
    before, after = (
        hf_mm.input_attention(model, image, interpolate_pos_encoding=True) for image in (picture, exchanged)
    )
    assert before.shape == (1, 6, 2)
    assert_close(after[0, 5, 0], before[0, 0, 1])
    assert_close(after[0, 0, 1], before[0, 5, 0])
    assert_close(after[0, 2], before[0, 2])
    assert (before[0, 0, 1] - before[0, 5, 0]).abs() > 1e-4


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="`method`='first' must be 'rollout' or 'last'"):
        hf_mm.input_attention(mm_vit(), pixels(), "first")


def test_the_figure_has_a_row_for_each_picture_and_a_column_for_each_map():
    pictures = list(np.zeros((3, 24, 8, 3), np.uint8))
    maps = {"one": torch.rand(3, 6, 2), "two": torch.rand(3, 6, 2)}
    figure = hf_mm.attention_figure(pictures, maps)
    assert len(figure.axes) == 9
    assert [axes.get_title() for axes in figure.axes[:3]] == ["Input", "one", "two"]
    heat = figure.axes[5].images[1]
    assert_close(torch.tensor(heat.get_array().data), maps["two"][1])
    assert heat.get_extent() == figure.axes[5].images[0].get_extent()  # the map covers the picture
