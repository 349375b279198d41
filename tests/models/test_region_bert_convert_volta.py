"""VOLTA's unified checkpoints, by its gated sublayers written out in a few lines."""

import json

import pytest
import torch
from region_bert_originals import FEATURE, VOLTA_JSONS, WORDS, save, volta_pretraining
from region_bert_papers import dense, volta, word_scores
from torch.testing import assert_close

from hf_mm.models.region_bert.convert_region_bert_original import (
    load_original_region_bert,
    to_original_region_bert_state_dict,
)
from hf_mm.models.region_bert.convert_region_bert_volta import VoltaBlocks

EXACT = {"rtol": 1e-5, "atol": 1e-5}
LAYERS = {
    "uniter": ["joint", "joint"],
    "visualbert": ["joint", "joint"],
    "vilbert": ["text", "co", "text", "region"],
    "lxmert": ["text", "region", "text", "cross"],
}


def inputs():
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(1, WORDS, (2, 6), generator=random)
    features = torch.randn(2, 4, FEATURE, generator=random)
    corner = 0.5 * torch.rand(2, 4, 2, generator=random)
    return ids, features, torch.cat((corner, corner + 0.1 + 0.3 * torch.rand(2, 4, 2, generator=random)), 2)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_model_has_the_states_of_its_sublayers(kind, tmp_path):
    w, config = volta_pretraining(kind), VOLTA_JSONS[kind]
    model = load_original_region_bert(save(tmp_path, w, config))
    assert model.config.layers == LAYERS[kind]
    ids, features, boxes = inputs()
    text, regions, pooled = volta(w, config, ids, features, boxes)
    got = model.region_bert(ids, region_features=features, region_boxes=boxes)
    assert_close(got.last_hidden_state, text, **EXACT)
    assert_close(got.region_last_hidden_state, regions, **EXACT)
    assert_close(got.pooler_output, pooled, **EXACT)
    assert_close(model.mlm_head(text), word_scores(w, "cls.predictions", text), **EXACT)
    match = dense(w, "cls.bi_seq_relationship", pooled).flip(1)  # 1 is a mismatch there
    assert_close(model.itm_head(pooled), match, **EXACT)


@pytest.mark.parametrize("kind", LAYERS)
def test_weights_come_back_under_all_their_names(kind, tmp_path):
    w, config = volta_pretraining(kind), VOLTA_JSONS[kind]
    model = load_original_region_bert(save(tmp_path, w, config))
    back = to_original_region_bert_state_dict(model, "volta", config=tmp_path / "config.json")
    assert_close(back, w, rtol=0, atol=0)


def test_losses_on_regions_are_those_of_its_targets(tmp_path):
    model = load_original_region_bert(save(tmp_path, volta_pretraining("lxmert"), VOLTA_JSONS["lxmert"]))
    wanted = {"mlm": 1.0, "itm": 1.0, "object": 6.667, "attribute": 6.667, "smooth": 6.667, "answer": 1.0}
    assert model.config.task_weights == wanted


def refused(tmp_path, match, **changes):
    path = save(tmp_path, volta_pretraining("uniter"), VOLTA_JSONS["uniter"] | changes)
    with pytest.raises(ValueError, match=match):
        load_original_region_bert(path)


def test_names_mean_nothing_without_a_config(tmp_path):
    path = save(tmp_path, volta_pretraining("uniter"))
    with pytest.raises(ValueError, match="VOLTA's config must say `image_embeddings`; put the JSON file"):
        load_original_region_bert(path)
    other = tmp_path / "ctrl_uniter_base.json"
    other.write_text(json.dumps(VOLTA_JSONS["uniter"]))
    assert load_original_region_bert(path, config=other).config.layers == ["joint", "joint"]


def test_what_has_no_counterpart_is_refused(tmp_path):
    refused(tmp_path, "`image_embeddings`='vl-bert' has no counterpart here", image_embeddings="vl-bert")
    refused(tmp_path, "`fusion_method`='vl-bert_vqa' has no counterpart here", fusion_method="vl-bert_vqa")
    refused(tmp_path, "`add_global_imgfeat`='last' has no counterpart", add_global_imgfeat="last")
    refused(tmp_path, "`bert_model`='xlm-roberta-base' has no counterpart", bert_model="xlm-roberta-base")
    refused(tmp_path, "`v_hidden_act`='relu' is not `hidden_act`='gelu'", v_hidden_act="relu")
    refused(tmp_path, "must be one number for the sublayers between", sublayer2num_attention_heads={"0": 4})


def test_sublayers_that_make_no_block_are_named():
    config = VOLTA_JSONS["vilbert"]
    with pytest.raises(
        ValueError, match=r"Sublayer 2 has attention \['tv'\], which with the sublayers behind"
    ):
        VoltaBlocks.of(config | {"vt_attn_sublayers": []})
    with pytest.raises(ValueError, match=r"Sublayer 0 has attention \['tt', 'tv', 'vt', 'vv'\], which"):
        VoltaBlocks.of(VOLTA_JSONS["uniter"] | {"shared_sublayers": [1, 2, 3]})
    with pytest.raises(ValueError, match=r"Sublayer 5 is wanted to be an MLP of \['t', 'v'\], it is one of"):
        VoltaBlocks.of(config | {"v_ff_sublayers": [3]})
