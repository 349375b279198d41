"""transformers' ViLT and ours: the same numbers from the same weights, read and written both ways."""

import json

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from vilt_tiny import MIXED, SIZES, images, mixed, peer_config, scrambled, texts, tiny_config

import hf_mm
from hf_mm.hub.export import export
from hf_mm.models.vilt.convert_vilt import VILT_CHECKPOINT
from hf_mm.models.vilt.modeling_vilt import MMViltModel
from hf_mm.models.vilt.text_heads_vilt import MMViltForMaskedLM

EXACT = {"rtol": 1e-5, "atol": 1e-5}
HEADS = [ours for ours in VILT_CHECKPOINT.classes if ours != "MMViltModel"]
LENGTHS, GRIDS = MIXED


def theirs(name="ViltModel", **changes):
    return scrambled(getattr(transformers, VILT_CHECKPOINT.classes.get(name, name))(peer_config(**changes)))


def load(model_class, folder, **options):
    """Load and insist that every weight found its place."""
    model, report = model_class.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(report.values()), report
    return model.eval()


def converted(model, folder, name):
    model.save_pretrained(folder)
    return load(getattr(hf_mm, name), folder)


def batch_of(name):
    """Inputs and labels that a head of this name takes; images of many sizes wherever theirs keeps up."""
    batch = mixed()
    if name == "MMViltForImagesAndTextClassification":
        pairs = {name: values.unflatten(0, (3, 2)) for name, values in images(GRIDS + GRIDS[::-1]).items()}
        return {**texts(LENGTHS), **pairs}, torch.tensor([1, 0, 4])
    if name == "MMViltForQuestionAnswering":
        return batch, torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    if name == "MMViltForImageAndTextRetrieval":
        return batch, None
    labels = (batch["input_ids"] % 5).masked_fill(batch["attention_mask"] == 0, -100)
    labels[1, 3] = -100
    return batch, labels


def scored(labels):
    """What to compare: rows, or of a head of words the places that have a label."""
    of_rows = labels is None or labels.ndim == 1 or labels.is_floating_point()
    return slice(None) if of_rows else labels != -100


@pytest.mark.parametrize("grids", [GRIDS, ((3, 5),) * 3, ((4, 4),) * 3, ((1, 7), (6, 1), (1, 1))])
def test_the_encoder_has_their_states_for_images_of_any_size(grids, tmp_path):
    """Theirs shuffles the patches of the largest images, so those are compared as a set."""
    model = theirs()
    ours = converted(model, tmp_path, "MMViltModel")
    batch = {**texts(LENGTHS), **images(grids)}
    got, expected = ours(**batch), model(**batch)
    assert_close(got.pooler_output, expected.pooler_output, **EXACT)
    assert got.last_hidden_state.shape == expected.last_hidden_state.shape
    for row, (length, (rows, columns)) in enumerate(zip(LENGTHS, grids, strict=True)):
        mine, other = got.last_hidden_state[row], expected.last_hidden_state[row]
        assert_close(mine[:length], other[:length], **EXACT)
        assert_close(mine[9], other[9], **EXACT)
        mine, other = (states[10 : 10 + rows * columns] for states in (mine, other))
        place = torch.cdist(mine.double(), other.double()).argmin(dim=1)
        assert place.unique().numel() == rows * columns
        assert_close(mine, other[place], **EXACT)


def test_patches_that_theirs_keeps_in_order_are_in_its_order(tmp_path):
    """Of an image that is not the largest it takes them row by row."""
    model = theirs()
    ours = converted(model, tmp_path, "MMViltModel")
    batch = mixed()
    got, expected = ours(**batch).last_hidden_state, model(**batch).last_hidden_state
    assert_close(got[1:, 10:14], expected[1:, 10:14], **EXACT)


def test_hidden_states_and_attentions_are_theirs(tmp_path):
    """Of a row without padding in its text and with an image that theirs does not shuffle."""
    model = theirs()
    ours = converted(model, tmp_path, "MMViltModel")
    for part in (model, ours):
        part.set_attn_implementation("eager")
    batch = {**texts(LENGTHS), **images([(2, 2), (2, 1), (1, 2)])}
    shuffled = {"output_hidden_states": True, "output_attentions": True}
    got, expected = ours(**batch, **shuffled), model(**batch, **shuffled)
    for mine, other in zip(got.hidden_states, expected.hidden_states, strict=True):
        assert_close(mine[1, :12], other[1, :12], **EXACT)
    for mine, other in zip(got.attentions, expected.attentions, strict=True):
        assert_close(mine[1, :, :12, :12], other[1, :, :12, :12], **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", HEADS)
def test_every_head_has_their_outputs_loss_and_gradients(name, dtype, tmp_path):
    """In double precision to ten more digits: what is left in float32 is rounding."""
    near = EXACT if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-12}
    model = theirs(name, num_labels=5, num_images=2)
    ours = converted(model, tmp_path, name).to(dtype)
    batch, labels = in_dtype(dtype, *batch_of(name))
    asked = {} if labels is None else {"labels": labels}
    got, expected = ours(**batch, **asked), model.to(dtype)(**batch, **asked)
    assert_close(got.logits[scored(labels)], expected.logits[scored(labels)], **near)
    if labels is None:  # theirs has no loss here
        got.loss, expected.loss = got.logits.square().sum(), expected.logits.square().sum()
    assert_close(got.loss, expected.loss, **near)
    got.loss.backward()
    expected.loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert_close(
        {name: weight.grad for name, weight in ours.named_parameters()},
        VILT_CHECKPOINT.weights_from(gradients),
        **near,
    )


def in_dtype(dtype, batch, labels):
    """Inputs and labels whose floats are of this precision."""
    cast = {n: v.to(dtype) if v.is_floating_point() else v for n, v in batch.items()}
    return cast, labels if labels is None or not labels.is_floating_point() else labels.to(dtype)


@pytest.mark.parametrize("name", HEADS)
def test_an_export_loads_in_plain_transformers_with_the_same_outputs(name, tmp_path):
    ours = scrambled(getattr(hf_mm, name)(tiny_config(num_labels=5)))
    ours.save_pretrained(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "theirs")
    model = getattr(transformers, VILT_CHECKPOINT.classes[name]).from_pretrained(tmp_path / "theirs").eval()
    batch, labels = batch_of(name)
    assert_close(model(**batch).logits[scored(labels)], ours(**batch).logits[scored(labels)], **EXACT)
    again = load(getattr(hf_mm, name), tmp_path / "theirs")
    assert_close(again.state_dict(), ours.state_dict(), rtol=0, atol=0)


def write_version_4(model, folder, own_words):
    """A folder as transformers 4 wrote it: saved position ids, the bias of the words in the old place."""
    folder.mkdir(exist_ok=True)
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    weights["mlm_score.bias"] = weights["mlm_score.decoder.bias"].clone()
    if own_words:
        weights["mlm_score.decoder.weight"] = torch.randn_like(weights["mlm_score.decoder.weight"])
        del weights["mlm_score.decoder.bias"]
    else:
        del weights["mlm_score.decoder.weight"]
    weights["vilt.embeddings.text_embeddings.position_ids"] = torch.arange(12)[None]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = {
        **SIZES,
        "model_type": "vilt",
        "architectures": [type(model).__name__],
        "torch_dtype": "float32",
        "modality_type_vocab_size": 3,
        "hidden_dropout_prob": 0,
        "attention_probs_dropout_prob": 0,
        "max_image_length": -1,
        "num_images": -1,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("own_words", [True, False])
def test_files_of_version_4_load_with_a_table_of_words_of_their_own_or_shared(own_words, tmp_path):
    model = theirs("MMViltForMaskedLM")
    write_version_4(model, tmp_path, own_words)
    ours = load(MMViltForMaskedLM, tmp_path)
    assert ours.config.tie_word_embeddings is not own_words
    table = load_file(tmp_path / "model.safetensors").get("mlm_score.decoder.weight")
    if own_words:
        assert_close(ours.mlm_head.decoder.weight, table, rtol=0, atol=0)
        with torch.no_grad():
            model.mlm_score.decoder.weight = torch.nn.Parameter(table)
    batch = mixed()
    real = batch["attention_mask"].bool()
    assert_close(ours(**batch).logits[real], model(**batch).logits[real], **EXACT)
    ours.save_pretrained(tmp_path / "again")
    export(tmp_path / "again", tmp_path / "five")
    other = transformers.ViltForMaskedLM.from_pretrained(tmp_path / "five").eval()
    assert_close(other(**batch).logits[real], model(**batch).logits[real], **EXACT)


def test_the_limit_of_patches_and_older_fields_are_read(tmp_path):
    theirs(max_image_length=7, patch_size=[8, 8], hidden_dropout_prob=0).save_pretrained(tmp_path)
    config = load(MMViltModel, tmp_path).config
    assert (config.max_patches, config.patch_size, config.hidden_dropout) == (7, 8, 0.0)


def test_the_encoder_of_a_head_loads_alone_and_begins_another(tmp_path):
    model = theirs("MMViltForQuestionAnswering", num_labels=5)
    model.save_pretrained(tmp_path)
    ours = load(MMViltModel, tmp_path)
    assert_close(ours(**mixed()).pooler_output, model.vilt(**mixed()).pooler_output, **EXACT)
    head, report = hf_mm.MMViltForImageAndTextRetrieval.from_pretrained(tmp_path, output_loading_info=True)
    assert report["missing_keys"] == {"rank_output.weight", "rank_output.bias"}
    assert_close(head.eval().vilt(**mixed()).pooler_output, model.vilt(**mixed()).pooler_output, **EXACT)


def test_what_theirs_cannot_express_is_refused(tmp_path):
    MMViltModel(tiny_config(text_layer_norm_eps=1e-6)).save_pretrained(tmp_path / "ours")
    with pytest.raises(
        ValueError, match="`text_layer_norm_eps`=1e-06 cannot be exported, transformers' ViltM"
    ):
        export(tmp_path / "ours", tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


def test_oblong_patches_are_refused(tmp_path):
    theirs().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"patch_size": [8, 16]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises((ValueError, StrictDataclassError), match=r"`patch_size`=\[8, 16\] cannot be loaded"):
        MMViltModel.from_pretrained(tmp_path)
