"""transformers' ViT and ours: the same numbers from the same weights, read and written in both directions."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from hf_mm.hub.export import export
from hf_mm.models.vit.configuration_vit import MMViTConfig
from hf_mm.models.vit.convert_vit import VIT_CHECKPOINT
from hf_mm.models.vit.modeling_vit import MMViTForImageClassification, MMViTModel

SIZES = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
LABELS = {"id2label": {0: "cat", 1: "dog", 2: "owl"}, "label2id": {"cat": 0, "dog": 1, "owl": 2}}
# What transformers 4 called the modules of transformers 5, in the order in which they are replaced.
VERSION_4 = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "layers.": "encoder.layer.",
}
EXACT = {"rtol": 1e-5, "atol": 1e-5}


def scrambled(model):
    """Every weight drawn anew, biases and norms too: a swap of two weights then shows."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.2)
    return model.eval()


def theirs(model_class=ViTForImageClassification, **changes):
    return scrambled(model_class(ViTConfig(**(SIZES | LABELS | changes))))


def pictures(height=32, width=32):
    return torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(1))


def write_version_4(model, folder, names=VERSION_4):
    """A folder as transformers 4 wrote it: other key names, `torch_dtype`, whole numbers for shares."""
    folder.mkdir(exist_ok=True)
    weights = {}
    for name, weight in model.state_dict().items():
        for new, old in names.items():
            name = name.replace(new, old)
        weights[name] = weight.contiguous()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = {
        **SIZES,
        "model_type": "vit",
        "architectures": [type(model).__name__],
        "torch_dtype": "float32",
        "hidden_dropout_prob": 0,
        "attention_probs_dropout_prob": 0,
        "id2label": {"0": "cat", "1": "dog", "2": "owl"},
        "label2id": LABELS["label2id"],
    }
    (folder / "config.json").write_text(json.dumps(config))


def assert_same_classifier(ours, model):
    """Outputs, loss and every gradient, to 1e-5."""
    labels = torch.tensor([0, 2, 1])
    got, expected = ours(pictures(), labels=labels), model(pictures(), labels=labels)
    assert_close(got.logits, expected.logits, **EXACT)
    assert_close(got.loss, expected.loss, **EXACT)
    got.loss.backward()
    expected.loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    assert_close(
        {name: weight.grad for name, weight in ours.named_parameters()},
        VIT_CHECKPOINT.weights_from(gradients),
        **EXACT,
    )


def load(model_class, folder, **options):
    """Load and insist that every weight found its place."""
    model, report = model_class.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(report.values()), report
    return model


def test_a_saved_classifier_loads_with_the_same_outputs_loss_and_gradients(tmp_path):
    model = theirs()
    model.save_pretrained(tmp_path)
    ours = load(MMViTForImageClassification, tmp_path)
    assert ours.config.id2label == LABELS["id2label"]
    assert ours.config.label2id == LABELS["label2id"]
    assert_same_classifier(ours, model)


@pytest.mark.parametrize("names", [VERSION_4, {}], ids=["files", "modules"])
def test_key_names_of_both_versions_load(names, tmp_path):
    model = theirs()
    write_version_4(model, tmp_path, names)
    assert_same_classifier(load(MMViTForImageClassification, tmp_path), model)
    model.save_pretrained(tmp_path / "five")
    ours = MMViTForImageClassification(MMViTConfig(**SIZES))
    saved = load_file(tmp_path / "five" / "model.safetensors")
    assert set(saved) == set(VIT_CHECKPOINT.weights_to(ours.state_dict()))


@pytest.mark.parametrize("pooler", [True, False])
def test_a_saved_encoder_loads_with_and_without_its_pooler(pooler, tmp_path):
    model = scrambled(ViTModel(ViTConfig(**SIZES), add_pooling_layer=pooler))
    model.save_pretrained(tmp_path)
    ours = load(MMViTModel, tmp_path)
    assert ours.config.pooling == ("tanh" if pooler else "cls")
    got = ours(pictures(48, 64), interpolate_pos_encoding=True)
    expected = model(pictures(48, 64), interpolate_pos_encoding=True)
    assert_close(got.last_hidden_state, expected.last_hidden_state, **EXACT)
    assert_close(
        got.pooler_output, expected.pooler_output if pooler else expected.last_hidden_state[:, 0], **EXACT
    )


def test_the_encoder_of_a_classifier_loads_alone(tmp_path):
    model = theirs()
    model.save_pretrained(tmp_path)
    ours = load(MMViTModel, tmp_path)
    assert_close(ours(pictures()).last_hidden_state, model.vit(pictures()).last_hidden_state, **EXACT)


def test_an_encoder_starts_a_classifier_as_in_transformers(tmp_path):
    model = theirs(ViTModel)
    model.save_pretrained(tmp_path)
    ours, report = MMViTForImageClassification.from_pretrained(
        tmp_path, num_labels=7, output_loading_info=True
    )
    assert report["missing_keys"] == {"classifier.weight", "classifier.bias"}
    assert not report["unexpected_keys"]
    assert ours.config.pooling == "cls"
    assert_close(ours.vit(pictures()).pooler_output, model(pictures()).last_hidden_state[:, 0], **EXACT)


def test_a_converted_model_is_saved_as_our_own(tmp_path):
    theirs().save_pretrained(tmp_path / "theirs")
    ours = load(MMViTForImageClassification, tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    again = load(MMViTForImageClassification, tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == "mm_vit"
    assert_close(again(pictures()).logits, ours(pictures()).logits, rtol=0, atol=0)


def test_an_exported_classifier_is_transformers_own_to_the_last_gradient(tmp_path):
    config = MMViTConfig(**SIZES, **LABELS, layer_norm_eps=1e-5, hidden_act="gelu_pytorch_tanh")
    ours = scrambled(MMViTForImageClassification(config))
    ours.save_pretrained(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "theirs")
    model = load(ViTForImageClassification, tmp_path / "theirs")
    assert model.config.id2label == LABELS["id2label"]
    assert_same_classifier(ours, model)


@pytest.mark.parametrize("pooling", ["cls", "tanh"])
def test_an_exported_encoder_is_transformers_own(pooling, tmp_path):
    ours = scrambled(MMViTModel(MMViTConfig(**SIZES, pooling=pooling)))
    ours.save_pretrained(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "theirs")
    model = load(ViTModel, tmp_path / "theirs", add_pooling_layer=pooling == "tanh")
    expected = ours(pictures())
    assert_close(model(pictures()).last_hidden_state, expected.last_hidden_state, **EXACT)
    if pooling == "tanh":
        assert_close(model(pictures()).pooler_output, expected.pooler_output, **EXACT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": [32, 48]}, r"`image_size`=\[32, 48\] cannot be loaded: mm_vit has square images"),
        ({"pooler_act": "relu"}, r"`pooler_act`='relu' and `pooler_output_size`=32 cannot be loaded"),
        ({"pooler_output_size": 16}, r"`pooler_output_size`=16 cannot be loaded: that of mm_vit is tanh"),
    ],
)
def test_what_ours_cannot_express_is_named(changes, message, tmp_path):
    theirs(ViTModel, **changes).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        MMViTModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stem_channels": [8, 16]}, r"`stem_channels`=\[8, 16\] cannot be exported, .* has None only; set"),
        ({"pooling": "mean"}, r"`pooling`='mean' cannot be exported, transformers' ViTForImageCl"),
        ({"embedding_norm": True}, r"`embedding_norm`=True cannot be exported, .* has False only; set it so"),
        ({"patch_bias": False}, r"`patch_bias`=False cannot be exported, .* has True only; set it so"),
        ({"final_norm": False}, r"`final_norm`=False cannot be exported, transformers' ViTForImageClassific"),
    ],
)
def test_what_transformers_cannot_express_is_named_and_nothing_written(changes, message, tmp_path):
    MMViTForImageClassification(MMViTConfig(**SIZES, **changes)).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match=message):
        export(tmp_path / "ours", tmp_path / "theirs")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]
