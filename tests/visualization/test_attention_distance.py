"""Mean attention distance: closed forms, and the same through a model."""

import pytest
import torch
from torch.testing import assert_close
from visualization.seen_tiny import mm_vit, pixels, tower

import hf_mm
from hf_mm.visualization.vision_parts import record_attention


def uniform(tokens, blocks=1, heads=2, batch=3):
    return [torch.full((batch, heads, tokens, tokens), 1 / tokens)] * blocks


@pytest.mark.parametrize("others", [0, 1, 2])
@pytest.mark.parametrize(("grid", "side"), [((1, 7), (5, 4)), ((7, 1), (4, 5))])
def test_uniform_attention_along_a_line_has_the_known_mean_distance(grid, side, others):
    """The mean of |i - j| over n x n is (n^2 - 1) / 3n."""
    found = hf_mm.mean_attention_distance(uniform(7 + others, blocks=2), grid, side)
    assert_close(found, torch.full((2, 2), 4 * (49 - 1) / 21))


def test_uniform_attention_on_a_grid_has_the_mean_of_all_distances():
    found = hf_mm.mean_attention_distance(uniform(13), (3, 4), (2, 8))
    places = [(2 * row, 8 * column) for row in range(3) for column in range(4)]
    expected = sum(((a - c) ** 2 + (b - d) ** 2) ** 0.5 for a, b in places for c, d in places) / 144
    assert_close(found, torch.full((1, 2), expected))


def test_a_head_that_looks_at_its_own_patch_has_distance_zero_and_one_that_looks_right_a_patch():
    stay, right = torch.eye(4), torch.eye(4)[[1, 2, 3, 2]]
    found = hf_mm.mean_attention_distance([torch.stack((stay, right))[None]], (1, 4), (16, 16))
    assert_close(found, torch.tensor([[0.0, 16.0]]))


def test_attention_to_cls_is_left_out_of_the_weights():
    """Half of it goes to [CLS]; of the rest all goes to the neighbour."""
    weights = torch.tensor([[1.0, 0, 0], [0.5, 0, 0.5], [0.5, 0.5, 0]]).expand(1, 1, 3, 3)
    assert_close(hf_mm.mean_attention_distance([weights], (1, 2), (8, 8)), torch.tensor([[8.0]]))


def test_a_grid_of_more_patches_than_tokens_is_refused():
    with pytest.raises(ValueError, match=r"`grid`=\(4, 4\) is 16 patches, but `attentions` are of 9 tokens"):
        hf_mm.mean_attention_distance(uniform(9), (4, 4), (4, 4))


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_the_batch_size_changes_nothing(batch_size):
    model, images = tower("vit"), pixels(3)
    attention = record_attention(model, images)
    expected = hf_mm.mean_attention_distance(attention.weights, (4, 4), (4, 4))
    found = hf_mm.attention_distance(model, images, batch_size)
    assert found.shape == (2, 2)
    assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_model_without_preferences_looks_at_all_of_a_wide_picture_alike():
    model = mm_vit()
    with torch.no_grad():
        for block in model.blocks:
            block.attention.q_proj.weight.zero_()
    found = hf_mm.attention_distance(model, pixels(2, 8, 24), interpolate_pos_encoding=True)
    assert_close(found, hf_mm.mean_attention_distance(uniform(13, blocks=2), (2, 6), (4, 4)))


def test_the_figure_has_a_dot_for_each_head_over_its_block():
    figure = hf_mm.distance_figure(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    (axes,) = figure.axes
    dots = torch.tensor(axes.collections[0].get_offsets().data)
    assert dots.tolist() == [[1, 1], [1, 2], [2, 3], [2, 4], [3, 5], [3, 6]]
    assert "px" in axes.get_ylabel()


def test_the_figure_has_a_line_where_all_patches_are_alike():
    uniform = hf_mm.uniform_distance((1, 7), (5, 4))
    assert uniform == pytest.approx(4 * 48 / 21)
    (axes,) = hf_mm.distance_figure(torch.ones(2, 2), uniform).axes
    assert axes.lines[0].get_ydata()[0] == uniform
    assert axes.get_ylim()[1] > uniform
