"""transformers' LXMERT and ours: the same numbers from the same weights, read and written both ways."""

import json

import pytest
import torch
import transformers
from region_bert_peers import (
    EXACT,
    LXMERT_SIZES,
    assert_same_gradients,
    converted,
    drawn,
    hidden_words,
    load,
    lxmert,
    lxmert_inputs,
    two_segments,
)
from region_bert_tiny import MASK, SIZES
from regions_tiny_rows import tokenizer
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

import hf_mm
from hf_mm import MMRegionBertConfig
from hf_mm.hub.export import export
from hf_mm.models.region_bert.convert_region_bert_lxmert import LXMERT_CHECKPOINT

UNMOVED = ("positions.weight", "token_types.weight")  # whose first rows theirs takes for padding
TASKS = {"mlm": 1.0, "itm": 1.0, "answer": 1.0, "object": 1.0, "attribute": 1.0, "smooth": 1.0}


def real(batch):
    return batch["attention_mask"].bool(), batch["region_mask"].bool()


def test_the_encoder_has_their_states_and_gradients_on_padded_texts_and_regions(tmp_path):
    """But those of the first position and segment, which theirs takes for padding and never moves."""
    theirs, batch = lxmert(), two_segments()
    ours = converted(theirs, tmp_path)
    words, regions = real(batch)
    features = [batch["region_features"].clone().requires_grad_() for _ in range(2)]
    got = ours(**(batch | {"region_features": features[0]}))
    expected = theirs(**lxmert_inputs(batch | {"region_features": features[1]}))
    pairs = [
        (got.last_hidden_state[words], expected.language_output[words]),
        (got.region_last_hidden_state[regions], expected.vision_output[regions]),
        (got.pooler_output, expected.pooled_output),
    ]
    for mine, other in pairs:
        assert_close(mine, other, **EXACT)
    for side in (0, 1):
        draw = torch.Generator().manual_seed(1)
        sum((pair[side] * torch.randn(pair[side].shape, generator=draw)).mean() for pair in pairs).backward()
    assert_same_gradients(ours, theirs, LXMERT_CHECKPOINT, UNMOVED)
    assert_close(features[0].grad, features[1].grad, **EXACT)


def test_hidden_states_and_attentions_are_theirs(tmp_path):
    theirs, batch = lxmert(), two_segments()
    ours = converted(theirs, tmp_path)
    ours.set_attn_implementation("eager")
    asked = {"output_hidden_states": True, "output_attentions": True}
    got, expected = ours(**batch, **asked), theirs(**lxmert_inputs(batch), **asked)
    words, regions = real(batch)
    both = (
        (got.hidden_states[1:], expected.language_hidden_states, words),
        (got.region_hidden_states, expected.vision_hidden_states, regions),
        (heads_last(got.attentions[:2]), heads_last(expected.language_attentions), words),
        (heads_last(got.region_attentions[:1]), heads_last(expected.vision_attentions), regions),
        (heads_last(got.cross_attentions), heads_last(expected.cross_encoder_attentions), words),
    )
    for mine, other, places in both:
        assert len(mine) == len(other) > 0
        for of_mine, of_other in zip(mine, other, strict=True):
            assert_close(of_mine[places], of_other[places], **EXACT)


def heads_last(attentions):
    """(B, H, Q, K) weights as (B, Q, H, K)."""
    return [weights.transpose(1, 2) for weights in attentions]


def test_answers_have_their_scores_loss_and_gradients(tmp_path):
    theirs, batch = lxmert("MMRegionBertForQuestionAnswering"), two_segments()
    ours = converted(theirs, tmp_path, "MMRegionBertForQuestionAnswering")
    labels = torch.tensor([4, 0, 2])
    got, expected = ours(**batch, labels=labels), theirs(**lxmert_inputs(batch), labels=labels)
    assert_close(got.logits, expected.question_answering_score, **EXACT)
    assert_close(got.loss, expected.loss, **EXACT)
    got.loss.backward()
    expected.loss.backward()
    assert_same_gradients(ours, theirs, LXMERT_CHECKPOINT, UNMOVED)


def pretraining_batch():
    """Hidden words and regions, a pair that does not belong together, and answers."""
    batch = two_segments()
    hidden, labels = hidden_words(batch)
    masked = (torch.arange(6) % 2 == 1) & batch["region_mask"].bool()
    objects, attributes = (torch.arange(18).view(3, 6) % count for count in (6, 4))
    attributes[0, 1] = -100  # a hidden region without an attribute
    return batch | {
        "mlm_input_ids": batch["input_ids"].masked_fill(hidden, MASK),
        "mlm_labels": labels,
        "masked_regions": masked,
        "object_labels": objects,
        "attribute_labels": attributes,
        "itm_region_index": torch.tensor([1, 1, 2]),
        "itm_labels": torch.tensor([0, 1, 1]),
        "answer_labels": torch.tensor([3, 1, -100]),
    }


def seen_by_theirs(batch):
    """What theirs is shown: first hidden words and regions with what is hidden, then whole pairs."""
    inputs = lxmert_inputs({name: batch[name] for name in ("attention_mask", "token_type_ids")})
    image = {name: batch[name] for name in ("region_features", "region_boxes", "region_mask")}
    visible = ~batch["masked_regions"].unsqueeze(2)
    first = image | {"region_features": image["region_features"] * visible}
    second = {name: values[batch["itm_region_index"]] for name, values in image.items()}
    return (
        {"input_ids": batch["mlm_input_ids"], **inputs, **lxmert_inputs(first)},
        {"input_ids": batch["input_ids"], **inputs, **lxmert_inputs(second)},
    )


def object_labels(batch, counted):
    """Labels as theirs takes them: which class, and how much a region counts."""
    return {
        "obj": (batch["object_labels"], counted),
        "attr": (batch["attribute_labels"], counted),
        "feat": (batch["region_features"], counted),
    }


def test_pretraining_has_their_losses_and_gradients_where_theirs_counts_hidden_regions_alone(tmp_path):
    """Theirs divides by all regions: told here to multiply by all and divide by hidden ones."""
    theirs, batch = lxmert("MMRegionBertForPreTraining"), pretraining_batch()
    batch["attribute_labels"][0, 1] = 3  # theirs has no regions without one
    ours = converted(theirs, tmp_path, "MMRegionBertForPreTraining")
    assert ours.config.task_weights == TASKS
    masked = batch["masked_regions"]
    theirs.visual_loss_normalizer = masked.numel() / masked.sum().item()
    guessing, pairs = seen_by_theirs(batch)
    counted = object_labels(batch, masked.float())
    answers = batch["answer_labels"].masked_fill(batch["itm_labels"] == 0, -100)
    first = theirs(**guessing, labels=batch["mlm_labels"], obj_labels=counted)
    second = theirs(**pairs, matched_label=batch["itm_labels"], ans=answers)
    got = ours(**batch)
    assert_close(got.logits, second.cross_relationship_score, **EXACT)
    assert_close(got.loss, first.loss + second.loss, **EXACT)
    got.loss.backward()
    (first.loss + second.loss).backward()
    assert_same_gradients(ours, theirs, LXMERT_CHECKPOINT, UNMOVED)


def test_losses_of_regions_are_the_formula_over_hidden_ones_though_theirs_run_over_all_boxes(tmp_path):
    """https://github.com/airsplay/lxmert/issues/41: a box that is not hidden gives its label away."""
    theirs, batch = lxmert("MMRegionBertForPreTraining"), pretraining_batch()
    ours = converted(theirs, tmp_path, "MMRegionBertForPreTraining")
    guessing, _ = seen_by_theirs(batch)
    scores = theirs.obj_predict_head(theirs.lxmert(**guessing).vision_output)
    masked, got = batch["masked_regions"], ours(**batch)
    objects, attributes = batch["object_labels"], batch["attribute_labels"]
    assert_close(got.object_loss, cross_entropy(scores["obj"][masked], objects[masked]), **EXACT)
    assert_close(got.attribute_loss, cross_entropy(scores["attr"][masked], attributes[masked]), **EXACT)
    away = (scores["feat"] - batch["region_features"])[masked].abs()
    smooth = torch.where(away < 1, away.square() / 2, away - 0.5).mean()
    assert_close(got.smooth_loss, smooth, **EXACT)
    everything = theirs(**guessing, obj_labels=object_labels(batch, torch.ones(3, 6))).loss
    batch["object_labels"] = objects.where(masked, 0)  # what cannot matter
    assert ours(**batch).object_loss == got.object_loss
    assert (
        theirs(**guessing, obj_labels=object_labels(batch, torch.ones(3, 6))).loss - everything
    ).abs() > 0.1


def test_words_of_a_pretraining_folder_have_their_scores(tmp_path):
    theirs, batch = lxmert("MMRegionBertForPreTraining"), two_segments()
    ours = converted(theirs, tmp_path, "MMRegionBertForMaskedLM")
    words, _ = real(batch)
    expected = theirs(**lxmert_inputs(batch)).prediction_logits
    assert_close(ours(**batch).logits[words], expected[words], **EXACT)


def test_answers_of_a_pretraining_folder_begin_those_of_questions_as_theirs_do(tmp_path):
    theirs, batch = lxmert("MMRegionBertForPreTraining"), two_segments()
    ours = converted(theirs, tmp_path, "MMRegionBertForQuestionAnswering")
    assert_close(ours(**batch).logits, theirs(**lxmert_inputs(batch)).question_answering_score, **EXACT)


def test_tasks_that_theirs_was_told_to_leave_out_have_no_head_or_no_weight(tmp_path):
    flags = {
        "task_qa": False,
        "task_matched": False,
        "visual_attr_loss": False,
        "visual_loss_normalizer": 13.34,
    }
    theirs = lxmert("MMRegionBertForPreTraining", **flags)
    ours = converted(theirs, tmp_path / "ours", "MMRegionBertForPreTraining")
    assert ours.config.task_weights == {"mlm": 1.0, "itm": 0.0, "object": 2.0, "smooth": 2.0}
    ours.save_pretrained(tmp_path / "again")
    export(tmp_path / "again", tmp_path / "theirs")
    config = transformers.LxmertConfig.from_pretrained(tmp_path / "theirs")
    assert {name: getattr(config, name) for name in flags} == flags
    assert (config.task_mask_lm, config.task_obj_predict, config.visual_obj_loss) == (True, True, True)


def tiny_lxmert(**changes):
    layers = ["text", "text", "region", "cross", "cross"]
    sizes = SIZES | {"num_attribute_classes": 4, "num_labels": 5, "task_weights": TASKS, "layers": layers}
    return MMRegionBertConfig.preset("lxmert", **(sizes | changes))


@pytest.mark.parametrize("name", LXMERT_CHECKPOINT.classes)
def test_an_export_loads_in_plain_transformers_with_the_same_outputs(name, tmp_path):
    ours, batch = drawn(getattr(hf_mm, name)(tiny_lxmert())), two_segments()
    ours.save_pretrained(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "theirs")
    model = getattr(transformers, LXMERT_CHECKPOINT.classes[name])
    theirs = model.from_pretrained(tmp_path / "theirs").eval()
    got, expected = ours(**batch), theirs(**lxmert_inputs(batch))
    if name == "MMRegionBertModel":
        assert_close(got.pooler_output, expected.pooled_output, **EXACT)
    elif name == "MMRegionBertForPreTraining":
        assert_close(got.logits, expected.cross_relationship_score, **EXACT)
    else:
        assert_close(got.logits, expected.question_answering_score, **EXACT)
    again = load(name, tmp_path / "theirs")
    assert_close(again.state_dict(), ours.state_dict(), rtol=0, atol=0)


def test_an_export_takes_the_tokenizer_along(tmp_path):
    hf_mm.MMRegionBertModel(tiny_lxmert()).save_pretrained(tmp_path / "ours")
    processor = hf_mm.MMRegionProcessor(tokenizer(), max_length=9)
    processor.save_pretrained(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "theirs")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    assert again("is it a red cat ?")["input_ids"] == processor("is it a red cat ?")["input_ids"][0].tolist()
    assert again.model_max_length == 9
    assert not list((tmp_path / "theirs").glob("*.py"))


def write_old(model, folder):
    """A folder of earlier days: pickled, norms under BERT's first names, the shared table twice."""
    folder.mkdir()
    weights = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): weight
        for name, weight in model.state_dict().items()
    }
    torch.save(weights, folder / "pytorch_model.bin")
    config = {
        "model_type": "lxmert",
        "architectures": [type(model).__name__],
        "torch_dtype": "float32",
        "num_hidden_layers": {"cross_encoder": 2, "language": 2, "vision": 1},
        "hidden_dropout_prob": 0,
        "attention_probs_dropout_prob": 0,
        **{name: getattr(model.config, name) for name in ("vocab_size", "hidden_size", "intermediate_size")},
        "num_attention_heads": 4,
        "max_position_embeddings": 14,
        **LXMERT_SIZES,
    }
    (folder / "config.json").write_text(json.dumps(config))


def test_files_of_earlier_days_load(tmp_path):
    theirs, batch = lxmert("MMRegionBertForPreTraining"), two_segments()
    write_old(theirs, tmp_path / "old")
    ours = load("MMRegionBertForPreTraining", tmp_path / "old")
    assert (ours.config.hidden_dropout, ours.config.num_labels, ours.config.pad_token_id) == (0.0, 5, 0)
    assert ours.mlm_head.decoder.weight is ours.region_bert.embeddings.tokens.weight
    expected = theirs(**lxmert_inputs(batch))
    assert_close(ours(**batch).logits, expected.cross_relationship_score, **EXACT)


def test_the_names_of_answers_are_kept_where_there_are_as_many(tmp_path):
    names = {number: f"answer {number}" for number in range(5)}
    lxmert("MMRegionBertForQuestionAnswering", id2label=names).save_pretrained(tmp_path)
    assert load("MMRegionBertForQuestionAnswering", tmp_path).config.id2label == names


def test_boxes_of_other_numbers_are_refused(tmp_path):
    lxmert(visual_pos_dim=7).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="`visual_pos_dim`=7 cannot be loaded, only 4: a box is x1, y1, x2, y2"
    ):
        hf_mm.MMRegionBertModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"region_location": "box5"},
            "`region_location`='box5' cannot be exported, transformers' LxmertModel",
        ),
        (
            {"pooler_act": "relu"},
            "`pooler_act`='relu' cannot be exported, transformers' LxmertModel has 'tanh'",
        ),
        ({"layer_norm_eps": 1e-5}, "`layer_norm_eps`=1e-05 cannot be exported"),
        ({"layers": ["joint"]}, r"`layers`=\['joint'\] cannot be exported"),
        ({"region_intermediate_size": 64}, "`region_intermediate_size`=64 cannot be exported"),
    ],
)
def test_what_theirs_cannot_express_is_refused(changes, words, tmp_path):
    hf_mm.MMRegionBertModel(tiny_lxmert(**changes)).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match=words):
        export(tmp_path / "ours", tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize(
    "tasks",
    [{"mlm": 1.0}, {"mlm": 1.0, "itm": 0.5}, {**TASKS, "smooth": 2.0}, {"mlm": 1.0, "itm": 1.0, "mrfr": 1.0}],
)
def test_tasks_that_theirs_does_not_know_or_weighs_otherwise_are_refused(tasks, tmp_path):
    hf_mm.MMRegionBertForPreTraining(tiny_lxmert(task_weights=tasks)).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match="cannot be exported: LxmertForPreTraining has words"):
        export(tmp_path / "ours", tmp_path / "theirs")
