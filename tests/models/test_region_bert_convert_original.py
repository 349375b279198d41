"""Region BERTs in their authors' layouts, by models written out from the papers in a few lines."""

import pytest
import torch
from region_bert_originals import (
    BERT_JSON,
    CLASSES,
    FEATURE,
    HEADS,
    VILBERT_JSON,
    WORDS,
    lxmert_pretraining,
    oscar_pretraining,
    save,
    uniter_pretraining,
    vilbert_pretraining,
    visualbert_pretraining,
    vl_bert_pretraining,
)
from region_bert_papers import dense, lxmert, oscar, uniter, vilbert, visualbert, vl_bert, word_scores
from torch.nn.functional import gelu, layer_norm, linear
from torch.testing import assert_close

from hf_mm.models.region_bert.convert_region_bert_original import (
    load_original_region_bert,
    to_original_region_bert_state_dict,
)
from hf_mm.models.region_bert.pretraining_region_bert import MMRegionBertForPreTraining

EXACT = {"rtol": 1e-5, "atol": 1e-5}
VL_BERT = {"num_attention_heads": HEADS}  # its sizes stand in a YAML file that is not read
RELEASED = {
    "uniter": (uniter_pretraining, BERT_JSON, {}),
    "vilbert": (vilbert_pretraining, VILBERT_JSON, {}),
    "vl-bert": (vl_bert_pretraining, None, VL_BERT),
    "oscar": (oscar_pretraining, BERT_JSON | {"layer_norm_eps": 1e-12}, {}),
    "lxmert": (lxmert_pretraining, BERT_JSON, {}),
    "visualbert": (visualbert_pretraining, BERT_JSON, {}),
}
# Names that mean nothing, or a weight that is there under another name.
NOT_READ = {
    "uniter": ("feat_regress.weight",),
    "vilbert": ("q_dense",),
    "vl-bert": ("aux_text_visual_embedding",),
}


def folder(tmp_path, layout, **changes):
    make, config, fields = RELEASED[layout]
    weights = make() | changes
    return save(tmp_path / layout, weights, config), weights, fields


def inputs(width=FEATURE, words=6, regions=4):
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(1, WORDS, (2, words), generator=random)
    features = torch.randn(2, regions, width, generator=random)
    corner = 0.5 * torch.rand(2, regions, 2, generator=random)
    boxes = torch.cat((corner, corner + 0.1 + 0.3 * torch.rand(2, regions, 2, generator=random)), dim=2)
    hidden = torch.zeros(2, regions, dtype=torch.bool)
    hidden[0, 1] = hidden[1, 3] = True
    return ids, features, boxes, hidden


@pytest.mark.parametrize("layout", RELEASED)
def test_every_weight_of_a_checkpoint_has_one_place(layout, tmp_path):
    path, weights, fields = folder(tmp_path, layout)
    model = load_original_region_bert(path, **fields)
    assert type(model) is MMRegionBertForPreTraining
    assert not model.training
    back = to_original_region_bert_state_dict(model, layout)
    plain = {name.removeprefix("module."): weight for name, weight in weights.items()}
    for name in [name for name in plain if any(part in name for part in NOT_READ.get(layout, ()))]:
        back.setdefault(name, plain[name])
    assert_close(back, plain, rtol=0, atol=0)


def test_uniter_has_the_states_of_its_paper(tmp_path):
    path, w, _ = folder(tmp_path, "uniter")
    model = load_original_region_bert(path, "uniter")
    ids, features, boxes, hidden = inputs()
    text, regions = uniter(w, ids, features, boxes, hidden, HEADS)
    got = model.region_bert(ids, region_features=features, region_boxes=boxes, masked_regions=hidden)
    assert_close(got.last_hidden_state, text, **EXACT)
    assert_close(got.region_last_hidden_state, regions, **EXACT)
    assert_close(got.pooler_output, dense(w, "uniter.pooler.dense", text[:, 0]).tanh(), **EXACT)
    assert_close(model.mlm_head(text), word_scores(w, "cls.predictions", text), **EXACT)
    match = dense(w, "itm_output", got.pooler_output)
    assert_close(model.itm_head(got.pooler_output), match, **EXACT)


def test_uniter_guesses_regions_as_in_its_paper(tmp_path):
    path, w, _ = folder(tmp_path, "uniter")
    model = load_original_region_bert(path)
    ids, features, boxes, hidden = inputs()
    _, regions = uniter(w, ids, features, boxes, hidden, HEADS)
    states = regions[hidden]

    def transform(name):
        x = gelu(dense(w, f"{name}.net.0", states))
        return layer_norm(x, x.shape[-1:], w[f"{name}.net.2.weight"], w[f"{name}.net.2.bias"], 1e-12)

    guess = linear(transform("feat_regress"), w["feat_regress.weight"].T, w["feat_regress.bias"])
    loss = ((guess - features[hidden]) ** 2).mean()
    image = {"region_features": features, "region_boxes": boxes, "masked_regions": hidden}
    assert_close(model(ids, **image, tasks=("mrfr",)).mrfr_loss, loss, **EXACT)
    scores = torch.rand(2, 4, CLASSES, generator=torch.Generator().manual_seed(1)).softmax(dim=2)
    logits = dense(w, "region_classifier.net.3", transform("region_classifier"))
    wanted = scores[hidden]
    loss = (wanted * (wanted.log() - logits.log_softmax(dim=1))).sum(dim=1).mean()
    got = model(ids, **image, region_class_scores=scores, tasks=("mrc_kl",)).mrc_kl_loss
    assert_close(got, loss, **EXACT)


def test_vilbert_has_the_states_of_its_paper(tmp_path):
    path, w, _ = folder(tmp_path, "vilbert")
    model = load_original_region_bert(path)
    assert model.config.layers == ["text", "co", "region", "text", "co", "region", "text"]
    ids, features, boxes, _ = inputs()
    text, regions, pooled = vilbert(w, ids, features, boxes)
    got = model.region_bert(ids, region_features=features, region_boxes=boxes)
    assert_close(got.last_hidden_state, text, **EXACT)
    assert_close(got.region_last_hidden_state, regions, **EXACT)
    assert_close(got.pooler_output, pooled, **EXACT)
    mismatch, match = dense(w, "cls.bi_seq_relationship", pooled).flip(1).unbind(1)  # 1 is a mismatch there
    assert_close(model.itm_head(pooled), torch.stack((mismatch, match), dim=1), **EXACT)


def test_vl_bert_has_the_states_of_its_paper(tmp_path):
    path, w, fields = folder(tmp_path, "vl-bert")
    model = load_original_region_bert(path, **fields)
    ids, features, boxes, hidden = inputs(width=2048)
    text, regions = vl_bert(w, ids, features, boxes, hidden, HEADS)
    got = model.region_bert(ids, region_features=features, region_boxes=boxes, masked_regions=hidden)
    assert_close(got.last_hidden_state, text, **EXACT)
    assert_close(got.region_last_hidden_state, regions, **EXACT)
    head = "module.vlbert.mvrc_head"
    logits = dense(w, f"{head}.region_cls_pred", gelu(dense(w, f"{head}.transform.dense", regions)))
    assert_close(model.region_classifier(regions), logits, **EXACT)
    words = word_scores(w, "module.vlbert.mlm_head.predictions", text)
    assert_close(model.mlm_head(text), words, **EXACT)


def test_its_config_says_what_shapes_do_not(tmp_path):
    path, _, _ = folder(tmp_path, "vilbert")
    config = load_original_region_bert(path).config
    assert (config.num_attention_heads, config.region_num_attention_heads) == (2, 4)
    assert (config.cross_hidden_size, config.cross_num_attention_heads) == (24, 3)
    assert (config.region_hidden_size, config.region_intermediate_size, config.pooler_size) == (40, 28, 24)
    assert (config.region_location, config.pooling, config.num_region_classes) == ("box5", "product", CLASSES)
    assert config.task_weights == {"mlm": 1.0, "itm": 1.0, "mrc_kl": 1.0}


@pytest.mark.parametrize("layer_norm", [False, True])
def test_oscar_has_the_states_of_its_paper(layer_norm, tmp_path):
    """With a layer norm behind the projection of regions, as OSCAR+ may have it."""
    w = oscar_pretraining(classes=3, img_norm=layer_norm)
    model = load_original_region_bert(save(tmp_path, w, BERT_JSON | {"img_layer_norm_eps": 1e-12}))
    ids, features, boxes, _ = inputs()
    text, regions = oscar(w, ids, features, boxes, HEADS)
    got = model.region_bert(ids, region_features=features, region_boxes=boxes)
    assert_close(got.last_hidden_state, text, **EXACT)
    assert_close(got.region_last_hidden_state, regions, **EXACT)
    pooled = dense(w, "bert.pooler.dense", text[:, 0]).tanh()
    assert_close(model.tag_head(got.pooler_output), dense(w, "cls.seq_relationship", pooled), **EXACT)
    assert model.config.num_tag_classes == 3


def test_lxmert_has_the_states_of_its_paper(tmp_path):
    path, w, _ = folder(tmp_path, "lxmert")
    model = load_original_region_bert(path)
    ids, features, boxes, _ = inputs()
    text, regions = lxmert(w, ids, features, boxes, HEADS)
    got = model.region_bert(ids, region_features=features, region_boxes=boxes)
    assert_close(got.last_hidden_state, text, **EXACT)
    assert_close(got.region_last_hidden_state, regions, **EXACT)


def test_visualbert_has_the_states_of_its_authors_code(tmp_path):
    path, w, _ = folder(tmp_path, "visualbert")
    model = load_original_region_bert(path)
    ids, features, _, _ = inputs()
    text, regions = visualbert(w, ids, features, HEADS)
    got = model.region_bert(ids, region_features=features)
    assert_close(got.last_hidden_state, text, **EXACT)
    assert_close(got.region_last_hidden_state, regions, **EXACT)


@pytest.mark.parametrize("layout", RELEASED)
def test_what_was_read_is_saved_and_loaded_as_our_own(layout, tmp_path):
    path, _, fields = folder(tmp_path, layout)
    model = load_original_region_bert(path, **fields)
    model.save_pretrained(tmp_path / "own")
    again = MMRegionBertForPreTraining.from_pretrained(tmp_path / "own")
    assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert again.config.layers == model.config.layers
