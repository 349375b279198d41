"""The components of the patch filters are those planted in them, shown with zero as grey."""

import pytest
import torch
from torch.testing import assert_close
from visualization.seen_tiny import TOWERS, mm_vit, tower

import hf_mm
from hf_mm.visualization.vision_parts import vision_parts


@torch.no_grad()
def plant(model, spreads, mean=0.0):
    """Filters that vary along orthogonal patterns, by so much; returns the patterns (K, C, P, P)."""
    filters = model.embeddings.patches.projection.weight
    patterns = torch.linalg.qr(torch.randn(48, len(spreads), generator=torch.Generator().manual_seed(1))).Q.T
    amounts = torch.linalg.qr(torch.randn(len(filters), len(spreads) + 1)).Q  # orthogonal, one to be centred
    amounts = torch.linalg.qr(amounts - amounts.mean(dim=0)).Q[:, : len(spreads)]
    filters.copy_((mean + (amounts * torch.tensor(spreads)) @ patterns).unflatten(1, (3, 4, 4)))
    return patterns.unflatten(1, (3, 4, 4))


@pytest.mark.parametrize("mean", [0.0, 5.0])
def test_planted_components_come_back_in_the_order_of_their_spread(mean):
    model = mm_vit()
    patterns = plant(model, [1.0, 4.0, 2.0], mean)
    found = hf_mm.filter_components(model, 3) * 2 - 1  # zero is 0 again
    for component, pattern in zip(found.permute(0, 3, 1, 2), patterns[[1, 2, 0]], strict=True):
        flat = pattern.flatten()
        assert_close(component, pattern / flat[flat.abs().argmax()], rtol=1e-4, atol=1e-4)


def test_each_component_is_shown_by_its_own_largest_entry_which_is_white():
    found = hf_mm.filter_components(mm_vit())
    assert found.shape == (15, 4, 4, 3)  # 16 filters have 15 directions around their mean
    assert_close(found.amax(dim=(1, 2, 3)), torch.ones(15))
    assert found.min() >= 0


def test_there_are_28_of_a_wide_model():
    assert len(hf_mm.filter_components(mm_vit(hidden_size=64))) == 28


@pytest.mark.parametrize("kind", TOWERS)
def test_components_explain_the_filters_of_every_known_tower(kind):
    model = tower(kind)
    rows = vision_parts(model).patch_filters.flatten(1)
    found = hf_mm.filter_components(model).permute(0, 3, 1, 2).flatten(1) * 2 - 1
    directions = torch.nn.functional.normalize(found, dim=1)
    centred = rows - rows.mean(dim=0)
    assert_close(directions @ directions.T, torch.eye(15), rtol=1e-4, atol=1e-4)
    assert_close(centred @ directions.T @ directions, centred, rtol=1e-3, atol=1e-3)


def test_grey_filters_are_shown_grey():
    found = hf_mm.filter_components(mm_vit(num_channels=1))
    assert_close(found[..., 0], found[..., 2], rtol=0, atol=0)


def test_behind_a_stem_the_way_out_is_named():
    model = mm_vit(stem_channels=[8, 10])
    with pytest.raises(
        ValueError, match=r"see 10 features of a convolutional stem .* `stem_filters\(model\)`"
    ):
        hf_mm.filter_components(model)


def test_the_filters_of_a_stem_are_its_first_convolution():
    model = mm_vit(stem_channels=[8, 10])
    weight = model.embeddings.patches.stem.stages[0].weight.detach()
    shown = hf_mm.stem_filters(model)
    assert shown.shape == (8, 3, 3, 3)
    expected = weight[2] / weight[2].abs().max()
    assert_close(shown[2].permute(2, 0, 1) * 2 - 1, expected)


def test_without_a_stem_the_way_out_is_named():
    with pytest.raises(ValueError, match=r"MMViTModel has no convolutional stem; show `filter_components"):
        hf_mm.stem_filters(mm_vit())


def test_channels_that_are_no_colours_are_refused():
    with pytest.raises(ValueError, match="Filters of 4 channels cannot be shown as colours"):
        hf_mm.filter_components(mm_vit(num_channels=4))


@pytest.mark.parametrize("count", [0, 16])
def test_a_count_that_is_not_there_is_refused(count):
    with pytest.raises(
        ValueError, match=rf"`count`={count} must be in 1..15: there are 16 filters of 48 numbers"
    ):
        hf_mm.filter_components(mm_vit(), count)


def test_the_figure_has_a_picture_for_each_component():
    figure = hf_mm.filter_figure(hf_mm.filter_components(mm_vit()), "A title")
    assert len(figure.axes) == 15
    assert figure.get_suptitle() == "A title"
