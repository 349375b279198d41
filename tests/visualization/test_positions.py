"""Similarity of positions: closed forms of planted tables, the same for every tower."""

import pytest
import torch
from torch.testing import assert_close
from transformers import ViTConfig, ViTModel
from visualization.seen_tiny import SIDE, TOWERS, WIDTHS, mm_vit, tower

import hf_mm


def table(model, kind):
    positions = model.embeddings.positions if kind == "mm_vit" else None
    if positions is None and hasattr(model.embeddings, "position_embeddings"):
        positions = model.embeddings.position_embeddings
    return model.embeddings.position_embedding.weight if positions is None else positions


@pytest.mark.parametrize("kind", [kind for kind in TOWERS if kind != "dinov3_vit"])
def test_one_hot_positions_are_similar_to_themselves_alone(kind):
    model = tower(kind)
    rows = table(model, kind)
    with torch.no_grad():  # [CLS] and its like come first and are not shown
        rows.fill_(9.0).view(-1, 16)[-16:] = torch.eye(16) * torch.arange(1, 17)
    assert_close(hf_mm.position_similarity(model).flatten(2).flatten(0, 1), torch.eye(16))


def test_row_and_column_are_not_exchanged():
    model = mm_vit()
    with torch.no_grad():  # a vector for each row
        model.embeddings.positions[0, 1:] = torch.eye(16)[:4].repeat_interleave(4, dim=0)
    similarity = hf_mm.position_similarity(model)
    assert_close(similarity[1, 3], torch.eye(4)[1].unsqueeze(1).expand(4, 4))


def test_opposite_positions_have_minus_one_and_empty_ones_zero():
    model = mm_vit()
    with torch.no_grad():
        model.embeddings.positions[0, 1:] = 0
        model.embeddings.positions[0, 1], model.embeddings.positions[0, 16] = 2.0, -3.0
    similarity = hf_mm.position_similarity(model)
    assert similarity[0, 0, 3, 3].item() == pytest.approx(-1)
    assert similarity[0, 1].abs().max() == 0


def test_a_table_that_is_not_square_keeps_its_shape():
    model = ViTModel(ViTConfig(**(WIDTHS | SIDE | {"image_size": (8, 16)})))
    similarity = hf_mm.position_similarity(model)
    assert similarity.shape == (2, 4, 2, 4)
    rows = model.embeddings.position_embeddings[0, 1:].detach()
    assert similarity[1, 2, 0, 3].item() == pytest.approx(
        torch.cosine_similarity(rows[6], rows[3], dim=0).item()
    )


def test_a_model_without_a_table_is_refused():
    with pytest.raises(ValueError, match="dinov3_vit has no table of positions"):
        hf_mm.position_similarity(tower("dinov3_vit"))


def test_the_figure_puts_each_grid_where_its_patch_is():
    similarity = torch.linspace(-1, 1, 64).view(2, 4, 2, 4)
    figure = hf_mm.position_figure(similarity)
    tiles, scale = figure.axes
    shown = torch.as_tensor(tiles.images[0].get_array().filled(float("nan")))
    assert shown.shape == (2 * 3 - 1, 4 * 5 - 1)
    assert_close(shown[3:5, 10:14], similarity[1, 2])
    assert shown[2].isnan().all()
    assert scale.get_ylabel() == "cosine similarity"
