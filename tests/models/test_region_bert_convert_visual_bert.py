"""transformers' VisualBERT and ours: the same numbers from the same weights, read and written both ways."""

import json

import pytest
import torch
import transformers
from region_bert_peers import (
    EXACT,
    VISUAL_BERT_SIZES,
    assert_same_gradients,
    converted,
    drawn,
    hidden_words,
    load,
    two_segments,
    visual_bert,
    visual_bert_inputs,
)
from region_bert_tiny import SIZES, regions, texts
from torch.testing import assert_close

import hf_mm
from hf_mm import MMRegionBertConfig
from hf_mm.hub.export import export
from hf_mm.models.region_bert.convert_region_bert_visual_bert import VISUAL_BERT_CHECKPOINT

ANSWERS = "MMRegionBertForQuestionAnswering"
CHOICES = "MMRegionBertForImageAndTextRetrieval"
IMAGES = "MMRegionBertForImagesAndTextClassification"
PRETRAINING = "MMRegionBertForPreTraining"


def split(states, batch):
    """States of text and of regions, where these are real, of (B, L + R, D)."""
    words, seen = batch["attention_mask"].bool(), batch["region_mask"].bool()
    length = words.shape[1]
    return states[:, :length][words], states[:, length:][seen]


def assert_same_loss_and_gradients(ours, theirs, got, expected):
    assert_close(got, expected, **EXACT)
    got.backward()
    expected.backward()
    assert_same_gradients(ours, theirs, VISUAL_BERT_CHECKPOINT)


def test_the_encoder_has_their_states_and_gradients_on_padded_texts_and_regions(tmp_path):
    theirs, batch = visual_bert(), two_segments()
    ours = converted(theirs, tmp_path)
    features = [batch["region_features"].clone().requires_grad_() for _ in range(2)]
    got = ours(**(batch | {"region_features": features[0]}))
    expected = theirs(**visual_bert_inputs(batch | {"region_features": features[1]}))
    words, seen = split(expected.last_hidden_state, batch)
    pairs = [
        (got.last_hidden_state[batch["attention_mask"].bool()], words),
        (got.region_last_hidden_state[batch["region_mask"].bool()], seen),
        (got.pooler_output, expected.pooler_output),
    ]
    for mine, other in pairs:
        assert_close(mine, other, **EXACT)
    losses = []
    for side in (0, 1):
        draw = torch.Generator().manual_seed(1)
        losses.append(
            sum((pair[side] * torch.randn(pair[side].shape, generator=draw)).mean() for pair in pairs)
        )
    assert_same_loss_and_gradients(ours, theirs, *losses)
    assert_close(features[0].grad, features[1].grad, **EXACT)


def test_hidden_states_and_attentions_are_theirs(tmp_path):
    theirs, batch = visual_bert(), two_segments()
    ours = converted(theirs, tmp_path)
    ours.set_attn_implementation("eager")
    asked = {"output_hidden_states": True, "output_attentions": True}
    got, expected = ours(**batch, **asked), theirs(**visual_bert_inputs(batch), **asked)
    places = torch.cat((batch["attention_mask"], batch["region_mask"]), dim=1).bool()
    assert len(got.hidden_states) == len(expected.hidden_states) == 3
    for mine, other in zip(got.hidden_states[1:], expected.hidden_states[1:], strict=True):
        assert_close(mine[places], other[places], **EXACT)
    words, _ = split(expected.hidden_states[0], batch)
    assert_close(got.hidden_states[0][:, :9][batch["attention_mask"].bool()], words, **EXACT)
    for mine, other in zip(got.attentions, expected.attentions, strict=True):
        assert_close(mine.transpose(1, 2)[places], other.transpose(1, 2)[places], **EXACT)


@pytest.mark.parametrize("scored", [True, False])
def test_answers_have_their_scores_loss_and_gradients(scored, tmp_path):
    """Read from the token before the last; probabilities of answers, or one that is right."""
    theirs, batch = visual_bert(ANSWERS, num_labels=5), two_segments()
    ours = converted(theirs, tmp_path, ANSWERS)
    right = torch.tensor([4, 0, 2])
    labels = torch.nn.functional.one_hot(right, 5).float()
    if scored:
        labels = torch.rand(3, 5, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    inputs = visual_bert_inputs(batch)
    assert_close(ours(**batch).logits, theirs(**inputs).logits, **EXACT)
    got = ours(**batch, labels=labels if scored else right)
    assert_same_loss_and_gradients(ours, theirs, got.loss, theirs(**inputs, labels=labels).loss)


def test_statements_about_two_images_have_their_scores_loss_and_gradients(tmp_path):
    """The regions of both images stand side by side."""
    theirs = visual_bert("MMRegionBertForImagesAndTextClassification", num_labels=3)
    ours = converted(theirs, tmp_path, IMAGES)
    batch = texts((5, 9, 3)) | {
        name: values.unflatten(0, (3, 2)) for name, values in regions((4, 2, 6, 1, 3, 5)).items()
    }
    labels = torch.tensor([2, 0, 1])
    joined = {name: v.flatten(1, 2) if name.startswith("region") else v for name, v in batch.items()}
    got, expected = ours(**batch, labels=labels), theirs(**visual_bert_inputs(joined), labels=labels)
    assert_close(got.logits, expected.logits, **EXACT)
    assert_same_loss_and_gradients(ours, theirs, got.loss, expected.loss)


def test_choices_have_their_scores_loss_and_gradients(tmp_path):
    theirs = visual_bert(CHOICES)
    ours = converted(theirs, tmp_path, CHOICES)
    batch = texts((5, 9, 3, 6)) | regions((4, 2, 6, 3))
    labels = torch.tensor([1, 0])
    grouped = {name: values.unflatten(0, (2, 2)) for name, values in visual_bert_inputs(batch).items()}
    got, expected = ours(**batch, labels=labels), theirs(**grouped, labels=labels)
    assert_close(got.logits.view(2, 2), expected.logits, **EXACT)
    assert_same_loss_and_gradients(ours, theirs, got.loss, expected.loss)


def test_pretraining_has_their_logits_losses_and_gradients(tmp_path):
    """Label 1 is a mismatch over there, a match here."""
    theirs, batch = visual_bert(PRETRAINING), two_segments()
    ours = converted(theirs, tmp_path, PRETRAINING)
    _, labels = hidden_words(batch)
    matched = torch.tensor([0, 1, 1])
    task = {"mlm_input_ids": batch["input_ids"], "mlm_labels": labels, "itm_labels": matched}
    got = ours(**batch, **task)
    padded = torch.cat((labels, torch.full((3, 6), -100)), dim=1)
    expected = theirs(**visual_bert_inputs(batch), labels=padded, sentence_image_labels=1 - matched)
    assert_close(got.logits, expected.seq_relationship_logits.flip(1), **EXACT)
    assert_same_loss_and_gradients(ours, theirs, got.loss, expected.loss)


def test_words_of_a_pretraining_folder_have_their_scores(tmp_path):
    theirs, batch = visual_bert(PRETRAINING), two_segments()
    ours = converted(theirs, tmp_path, "MMRegionBertForMaskedLM")
    words, _ = split(theirs(**visual_bert_inputs(batch)).prediction_logits, batch)
    assert_close(ours(**batch).logits[batch["attention_mask"].bool()], words, **EXACT)


def tiny_visual_bert(**changes):
    return MMRegionBertConfig.preset("visualbert", 2, **(SIZES | {"num_labels": 5} | changes))


@pytest.mark.parametrize("name", VISUAL_BERT_CHECKPOINT.classes)
def test_an_export_loads_in_plain_transformers_with_the_same_outputs(name, tmp_path):
    ours, batch = drawn(getattr(hf_mm, name)(tiny_visual_bert(num_images=1))), two_segments()
    ours.save_pretrained(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "theirs")
    model = getattr(transformers, VISUAL_BERT_CHECKPOINT.classes[name])
    theirs = model.from_pretrained(tmp_path / "theirs").eval()
    inputs = visual_bert_inputs(batch)
    if name == IMAGES:
        batch = {n: v.unsqueeze(1) if n.startswith("region") else v for n, v in batch.items()}
    if name == CHOICES:
        inputs = {name: values.unsqueeze(1) for name, values in inputs.items()}
    got, expected = ours(**batch), theirs(**inputs)
    if name == "MMRegionBertModel":
        assert_close(got.pooler_output, expected.pooler_output, **EXACT)
    elif name == PRETRAINING:
        assert_close(got.logits, expected.seq_relationship_logits.flip(1), **EXACT)
    else:
        assert_close(got.logits, expected.logits, **EXACT)
    again = load(name, tmp_path / "theirs")
    assert_close(again.state_dict(), ours.state_dict(), rtol=0, atol=0)


def write_version_4(model, folder):
    """A folder as transformers 4 wrote it: saved positions, the shared table and the bias of words twice."""
    folder.mkdir()
    weights = model.state_dict() | {"visual_bert.embeddings.position_ids": torch.arange(14)[None]}
    torch.save(weights, folder / "pytorch_model.bin")
    config = {
        **{name: getattr(model.config, name) for name in ("vocab_size", "hidden_size", "intermediate_size")},
        **VISUAL_BERT_SIZES,
        "model_type": "visual_bert",
        "architectures": [type(model).__name__],
        "torch_dtype": "float32",
        "num_attention_heads": 4,
        "max_position_embeddings": 14,
        "hidden_dropout_prob": 0,
        "attention_probs_dropout_prob": 0,
        "bypass_transformer": False,
        "special_visual_initialize": True,
    }
    (folder / "config.json").write_text(json.dumps(config))


def test_files_of_version_4_load(tmp_path):
    theirs, batch = visual_bert(PRETRAINING), two_segments()
    assert "cls.predictions.decoder.bias" in theirs.state_dict()
    write_version_4(theirs, tmp_path / "old")
    ours = load(PRETRAINING, tmp_path / "old")
    assert ours.mlm_head.decoder.weight is ours.region_bert.embeddings.tokens.weight
    expected = theirs(**visual_bert_inputs(batch)).seq_relationship_logits.flip(1)
    assert_close(ours(**batch).logits, expected, **EXACT)


def test_a_folder_of_phrases_gives_its_encoder(tmp_path):
    """Its attention from phrases to regions is no head of ours."""
    config = visual_bert().config
    theirs, batch = drawn(transformers.VisualBertForRegionToPhraseAlignment(config)), two_segments()
    ours = converted(theirs, tmp_path)
    expected = theirs.visual_bert(**visual_bert_inputs(batch)).pooler_output
    assert_close(ours(**batch).pooler_output, expected, **EXACT)


def test_regions_that_pass_one_block_are_refused(tmp_path):
    visual_bert(bypass_transformer=True).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="`bypass_transformer`=True cannot be loaded: regions pass all blocks"
    ):
        hf_mm.MMRegionBertModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("MMRegionBertModel", {"region_location": "box4"}, "`region_location`='box4' cannot be exported"),
        ("MMRegionBertModel", {"region_type": 0}, "`region_type`=0 cannot be exported, transformers' Visu"),
        (
            ANSWERS,
            {"answer_state": "pooled"},
            "`answer_state`='pooled' cannot be exported, .* 'before_end' only",
        ),
        (ANSWERS, {"answers_as_distribution": False}, "`answers_as_distribution`=False cannot be exported"),
        (IMAGES, {"images_together": False}, "`images_together`=False cannot be exported"),
        (PRETRAINING, {"task_weights": {"mlm": 1.0}}, "`task_weights`={'mlm': 1.0} cannot be exported"),
    ],
)
def test_what_theirs_cannot_express_is_refused(name, changes, words, tmp_path):
    getattr(hf_mm, name)(tiny_visual_bert(**changes)).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match=words):
        export(tmp_path / "ours", tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()
