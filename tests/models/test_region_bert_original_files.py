"""Files of authors' own code: which class they are of, and what is said of those that do not fit."""

import json

import pytest
import torch
from region_bert_originals import (
    ANSWERS,
    BERT_JSON,
    HEADS,
    INNER,
    VILBERT_JSON,
    WIDTH,
    filled,
    linear,
    lxmert_pretraining,
    merged,
    norm,
    oscar_base,
    oscar_pretraining,
    save,
    uniter_base,
    uniter_pretraining,
    vilbert_base,
    vl_bert_pretraining,
)
from safetensors.torch import save_file
from torch.testing import assert_close

from hf_mm.models.region_bert.configuration_region_bert import MMRegionBertConfig
from hf_mm.models.region_bert.convert_region_bert_original import (
    load_original_region_bert,
    to_original_region_bert_state_dict,
)
from hf_mm.models.region_bert.heads_region_bert import (
    MMRegionBertForImageAndTextRetrieval,
    MMRegionBertForImagesAndTextClassification,
    MMRegionBertForQuestionAnswering,
)
from hf_mm.models.region_bert.modeling_region_bert import MMRegionBertModel
from hf_mm.models.region_bert.selection_region_bert import MMRegionBertForRegionSelection
from hf_mm.models.region_bert.text_heads_region_bert import MMRegionBertForMaskedLM


def mlp_head(name, width, hidden, classes):
    return merged(
        linear(f"{name}.0", hidden, width), norm(f"{name}.2", hidden), linear(f"{name}.3", classes, hidden)
    )


def lxmert_fine_tuned(head):
    """The encoder as `lxrt_encoder.model.bert`, by several devices."""
    encoder = {
        name.replace("module.bert", "lxrt_encoder.model.module.bert"): weight
        for name, weight in lxmert_pretraining().items()
        if name.startswith("module.bert")
    }
    return encoder | filled(head, 9)


FINE_TUNED = {
    "answers of UNITER": (
        filled(uniter_base() | mlp_head("vqa_output", WIDTH, 2 * WIDTH, ANSWERS)),
        BERT_JSON,
        MMRegionBertForQuestionAnswering,
    ),
    "ranking of UNITER": (
        filled(uniter_base() | linear("rank_output", 1, WIDTH) | linear("itm_output", 2, WIDTH)),
        BERT_JSON,
        MMRegionBertForImageAndTextRetrieval,
    ),
    "regions of UNITER": (
        filled(uniter_base() | linear("re_output", 1, WIDTH)),
        BERT_JSON,
        MMRegionBertForRegionSelection,
    ),
    "answers of ViLBERT": (
        filled(vilbert_base() | mlp_head("vil_prediction.logit_fc", 24, 48, ANSWERS)),
        VILBERT_JSON,
        MMRegionBertForQuestionAnswering,
    ),
    "pairs of ViLBERT": (
        filled(vilbert_base() | mlp_head("vil_binary_prediction.logit_fc", 48, 48, 2)),
        VILBERT_JSON,
        MMRegionBertForImagesAndTextClassification,
    ),
    "answers of OSCAR": (
        filled(oscar_base() | linear("classifier", ANSWERS, WIDTH)),
        BERT_JSON,
        MMRegionBertForQuestionAnswering,
    ),
    "answers of LXMERT": (
        lxmert_fine_tuned(mlp_head("logit_fc", WIDTH, 2 * WIDTH, ANSWERS)),
        BERT_JSON,
        MMRegionBertForQuestionAnswering,
    ),
    "pairs of LXMERT": (
        lxmert_fine_tuned(mlp_head("logit_fc", 2 * WIDTH, 2 * WIDTH, 2)),
        BERT_JSON,
        MMRegionBertForImagesAndTextClassification,
    ),
    "UNITER alone": (filled(uniter_base()), BERT_JSON, MMRegionBertModel),
}


@pytest.mark.parametrize("name", FINE_TUNED)
def test_heads_say_which_class_a_file_is_of(name, tmp_path):
    weights, config, model_class = FINE_TUNED[name]
    model = load_original_region_bert(save(tmp_path, weights, config))
    assert type(model) is model_class
    if name.startswith("answers"):
        assert model.config.num_labels == ANSWERS


def test_answers_of_vl_bert_are_read_from_the_token_that_is_hidden(tmp_path):
    head = merged(
        linear("final_mlp.0.dense", WIDTH, WIDTH),
        norm("final_mlp.0.LayerNorm"),
        linear("final_mlp.2", ANSWERS, WIDTH),
        linear("vlbert.pooler.dense", WIDTH, WIDTH),  # made there, and used by nothing
    )
    encoder = {
        name: weight
        for name, weight in vl_bert_pretraining().items()
        if not any(part in name for part in ("_head", "object_mask", "aux_text"))
    }
    weights = encoder | {f"module.{name}": weight for name, weight in filled(head).items()}
    path = save(tmp_path, weights, file="vl-bert_base_vqa-best.model", optimizer={"lr": 1e-4})
    model = load_original_region_bert(path, num_attention_heads=HEADS)
    assert type(model) is MMRegionBertForQuestionAnswering
    assert (model.config.answer_state, model.config.classifier) == ("before_end", "transform")
    assert not model.config.region_mask_token
    assert_close(model.answer_classifier[2].weight, weights["module.final_mlp.2.weight"], rtol=0, atol=0)


def test_captions_of_oscar_keep_a_decoder_of_their_own(tmp_path):
    """`BertForImageCaptioning` has no pooler's head, and its words need not be tied."""
    weights = oscar_pretraining()
    weights = {name: weight for name, weight in weights.items() if "seq_relationship" not in name}
    weights["cls.predictions.decoder.weight"] = weights["cls.predictions.decoder.weight"] + 1
    path = save(tmp_path, weights, BERT_JSON)
    model = load_original_region_bert(path, model_class=MMRegionBertForMaskedLM)
    assert not model.config.tie_word_embeddings
    decoder = weights["cls.predictions.decoder.weight"]
    assert_close(model.mlm_head.decoder.weight, decoder, rtol=0, atol=0)


def test_answers_are_named_by_the_caller(tmp_path):
    weights, config, _ = FINE_TUNED["answers of UNITER"]
    answers = dict(enumerate(("yes", "no", "red", "two", "cat")))
    model = load_original_region_bert(save(tmp_path, weights, config), id2label=answers)
    assert model.config.id2label == answers


def test_a_file_of_safetensors_and_a_config_elsewhere_are_read(tmp_path):
    weights = {name: weight.clone() for name, weight in uniter_pretraining().items()}
    save_file(weights, tmp_path / "uniter.safetensors")
    (tmp_path / "uniter-base.json").write_text(json.dumps(BERT_JSON))
    model = load_original_region_bert(
        tmp_path / "uniter.safetensors", config=tmp_path / "uniter-base.json", leave_out=["cls.*"]
    )
    assert model.config.num_attention_heads == HEADS
    assert "mlm" not in model.config.task_weights


def test_old_names_of_norms_are_read(tmp_path):
    weights = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): weight
        for name, weight in oscar_pretraining().items()
    }
    model = load_original_region_bert(save(tmp_path, weights, BERT_JSON, config_file="bert_config.json"))
    scale = weights["bert.embeddings.LayerNorm.gamma"]
    assert_close(model.region_bert.embeddings.norm.weight, scale, rtol=0, atol=0)


def test_what_does_not_fit_is_named_as_it_is_called_there(tmp_path):
    weights = uniter_pretraining()
    del weights["itm_output.bias"], weights["uniter.encoder.layer.1.attention.self.key.bias"]
    weights["nlvr2_output.weight"] = torch.zeros(2, 2 * WIDTH)
    weights["uniter.encoder.layer.1.intermediate.dense.bias"] = torch.zeros(INNER + 1)
    path = save(tmp_path, weights, BERT_JSON)
    with pytest.raises(ValueError, match="in the layout of ChenRocks/UNITER") as refusal:
        load_original_region_bert(path)
    missing = "missing: `itm_output.bias` (2,), `uniter.encoder.layer.1.attention.self.key.bias` (32,)"
    assert missing in str(refusal.value)
    assert "without a place: `nlvr2_output.weight` (2, 64)" in str(refusal.value)
    wanted = "of another shape: `uniter.encoder.layer.1.intermediate.dense.bias` (49,), wanted (48,)"
    assert wanted in str(refusal.value)


def test_what_is_not_wanted_is_left_out_when_the_caller_says_so(tmp_path):
    path = save(tmp_path, uniter_pretraining() | {"other.weight": torch.zeros(2)}, BERT_JSON)
    with pytest.raises(ValueError, match=r"without a place: `other.weight` \(2,\)"):
        load_original_region_bert(path)
    model = load_original_region_bert(path, leave_out=["other.*", "cls.*", "feat_*", "region_*", "itm_*"])
    assert type(model) is MMRegionBertModel


def test_heads_of_other_classes_are_not_read_when_one_is_named(tmp_path):
    """ViLBERT's models of tasks hold a head for each of them."""
    heads = mlp_head("vil_prediction.logit_fc", 24, 48, ANSWERS) | linear("vil_logit", 1, 24)
    path = save(tmp_path, filled(vilbert_base() | heads | linear("vision_logit", 1, 40)), VILBERT_JSON)
    with pytest.raises(ValueError, match=r"without a place: `vil_logit.bias` \(1,\)"):
        load_original_region_bert(path)
    model = load_original_region_bert(path, model_class=MMRegionBertForRegionSelection)
    assert type(model) is MMRegionBertForRegionSelection
    more = filled(vilbert_base() | heads | {"bert.embeddings.task_embeddings.weight": (20, WIDTH)})
    path = save(tmp_path, more, VILBERT_JSON)
    with pytest.raises(
        ValueError, match=r"without a place: `bert.embeddings.task_embeddings.weight` \(20, 32\)\."
    ):
        load_original_region_bert(path, model_class=MMRegionBertForQuestionAnswering)


def test_a_name_with_and_without_what_training_adds_is_refused(tmp_path):
    weights = uniter_pretraining()
    path = save(tmp_path, weights | {"module.itm_output.bias": weights["itm_output.bias"]}, BERT_JSON)
    with pytest.raises(
        ValueError, match=r"two weights mean `itm_output.bias`; `module.itm_output.bias` is the"
    ):
        load_original_region_bert(path)


def test_values_of_vilbert_without_a_counterpart_are_refused(tmp_path):
    path = save(tmp_path, filled(vilbert_base()), VILBERT_JSON | {"fusion_method": "concat"})
    with pytest.raises(ValueError, match=r"`fusion_method`='concat' is none of \['mul', 'sum'\]"):
        load_original_region_bert(path)
    path = save(tmp_path, filled(vilbert_base()), VILBERT_JSON | {"v_hidden_act": "relu"})
    with pytest.raises(ValueError, match="`v_hidden_act`='relu' is not `hidden_act`='gelu'"):
        load_original_region_bert(path)


def test_what_is_no_such_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not there; wanted a file of weights"):
        load_original_region_bert(tmp_path / "none.pt")
    with pytest.raises(ValueError, match=r"has \[\] where one file of weights is wanted"):
        load_original_region_bert(tmp_path)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(
        ValueError, match="has `weight` and 1 names in all, not those of a layout that is known"
    ):
        load_original_region_bert(tmp_path)
    with pytest.raises(ValueError, match="`layout`='albert' is none of"):
        load_original_region_bert(tmp_path, "albert")
    with pytest.raises(
        ValueError, match=r"`uniter.embeddings.word_embeddings.weight` is not there, and nothing"
    ):
        load_original_region_bert(tmp_path, "uniter")
    with pytest.raises(FileNotFoundError, match=r"`config`='no.json' is not there; wanted a JSON file"):
        load_original_region_bert(tmp_path, config="no.json")


def test_a_second_eps_of_oscar_is_refused(tmp_path):
    weights = oscar_pretraining(img_norm=True)
    path = save(tmp_path, weights, BERT_JSON | {"img_layer_norm_eps": 1e-5})
    with pytest.raises(ValueError, match="`img_layer_norm_eps`=1e-05 is not `layer_norm_eps`=1e-12"):
        load_original_region_bert(path)


def test_what_authors_code_cannot_express_is_refused():
    small = {
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "depth": 1,
        "vocab_size": 40,
    }
    other = MMRegionBertConfig.preset("uniter", pooler_act="relu", region_feature_size=8, **small)
    with pytest.raises(
        ValueError, match="`pooler_act`='relu' cannot be exported, the code of ChenRocks/UNITER"
    ):
        to_original_region_bert_state_dict(MMRegionBertModel(other), "uniter")
    oscar = MMRegionBertConfig.preset("oscar", region_feature_size=8, **small)
    with pytest.raises(ValueError, match="cannot be exported"):
        to_original_region_bert_state_dict(MMRegionBertModel(oscar), "uniter")
