"""Towers by name: what is trained, and at which rate."""

import pytest
import torch
from models import clip_tiny
from models.vlm_tiny import batch_of, pictures, text_config, tiny_model, words
from torch.nn.parallel import DistributedDataParallel
from transformers import CLIPVisionConfig, TrainingArguments

from hf_mm.training.lora import add_lora
from hf_mm.training.towers import (
    bare_model,
    build_optimizer,
    freeze_layers,
    parameter_groups,
    read_rates,
    tower_of,
    train_only,
)


def trained(model):
    return {tower_of(model, name) for name, weight in model.named_parameters() if weight.requires_grad}


def test_only_the_named_towers_are_trained():
    model = tiny_model()
    train_only(model, ["connector"])
    assert trained(model) == {"connector"}
    train_only(model, ["vision", "language"])
    assert trained(model) == {"vision", "language"}


def test_weights_that_feed_nothing_stay_frozen():
    """CLIP's last norm stands behind the state in use; trainable, it would stop distributed training."""
    tower = CLIPVisionConfig(
        image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
    )
    model = tiny_model(vision_config=tower, vision_feature_layer=-2)
    train_only(model, ["vision"])
    frozen = {n for n, w in model.vision_tower.named_parameters() if not w.requires_grad}
    assert frozen == {"encoder.post_layernorm.weight", "encoder.post_layernorm.bias"}


def test_each_tower_has_its_rate_and_norms_do_not_decay():
    model = tiny_model(padding_embedding=True)
    groups = {
        group["name"]: group for group in parameter_groups(model, 1e-3, {"vision": 1e-5}, weight_decay=0.1)
    }
    assert {name: group["lr"] for name, group in groups.items()} == {
        "vision": 1e-5,
        "vision (no decay)": 1e-5,
        "connector": 1e-3,
        "connector (no decay)": 1e-3,
        "language": 1e-3,
        "language (no decay)": 1e-3,
    }
    assert sum(len(group["params"]) for group in groups.values()) == len(list(model.parameters()))
    plain = {id(w) for name, group in groups.items() if "no decay" in name for w in group["params"]}
    assert {w.ndim for w in model.parameters() if id(w) not in plain} <= {2, 3, 4}
    assert id(model.padding_embedding) in plain
    assert id(model.language_model.model.norm.weight) in plain


def test_the_optimizer_moves_each_tower_at_its_rate(tmp_path):
    model = tiny_model().train()
    args = TrainingArguments(tmp_path, learning_rate=1e-2, weight_decay=0.0, use_cpu=True)
    optimizer = build_optimizer(model, args, {"vision": 0.0})
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    inputs = batch_of([[60] * 4 + words(5)]) | {"pixel_values": pictures(1)}
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    optimizer.step()
    moved = {
        tower_of(model, name)
        for name, weight in model.named_parameters()
        if not torch.equal(weight, before[name])
    }
    assert moved == {"connector", "language"}


def test_names_survive_the_wrappers_of_peft():
    groups = parameter_groups(add_lora(tiny_model(), 2), 1e-4, {"connector": 1e-3})
    assert {group["name"] for group in groups} >= {"connector", "language"}


def frozen(model):
    return {name for name, weight in model.named_parameters() if not weight.requires_grad}


@pytest.mark.parametrize("objective", ["softmax", "sigmoid"])
def test_a_locked_image_tower_leaves_text_and_temperature(objective):
    model = clip_tiny.tiny_model(objective=objective)
    train_only(model, ["text", "temperature"])
    assert frozen(model) == {
        name
        for name, _ in model.named_parameters()
        if name.startswith(("vision_model.", "visual_projection."))
    }


def test_temperature_tokens_biases_and_norms_do_not_decay():
    model = clip_tiny.tiny_model(objective="sigmoid", vision_config=clip_tiny.resnet_config())
    names = {id(weight): name for name, weight in model.named_parameters()}
    groups = parameter_groups(model, 1e-3, {"text": 1e-4, "temperature": 1e-2}, weight_decay=0.1)
    assert {group["name"]: group["lr"] for group in groups} == {
        "vision": 1e-3,
        "vision (no decay)": 1e-3,
        "text": 1e-4,
        "text (no decay)": 1e-4,
        "temperature (no decay)": 1e-2,
    }
    spared = {
        names[id(weight)] for group in groups if not group["weight_decay"] for weight in group["params"]
    }
    assert spared == {
        name
        for name, weight in model.named_parameters()
        if weight.ndim < 2 or "bias" in name or "norm" in name
    }
    assert {"logit_scale", "logit_bias", "vision_model.embedder.embedder.normalization.weight"} <= spared
    vit = clip_tiny.tiny_model()
    spared = {
        id(w) for group in parameter_groups(vit, 1e-3) if "no decay" in group["name"] for w in group["params"]
    }
    assert id(vit.vision_model.embeddings.cls_token) in spared


@pytest.mark.parametrize(("tower", "count"), [("text", 0), ("text", 1), ("text", 2), ("vision", 1)])
def test_embeddings_and_first_blocks_can_be_frozen(tower, count):
    model = clip_tiny.tiny_model(vision_config=clip_tiny.vision_config(embedding_norm=True))
    freeze_layers(model, tower, count)
    expected = {f"{tower}_model.embeddings.", *(f"{tower}_model.blocks.{index}." for index in range(count))}
    assert {name for name, _ in model.named_parameters() if name.startswith(tuple(expected))} == frozen(model)


@pytest.mark.parametrize(
    ("changes", "tower", "beginnings"),
    [
        (
            {"text_config": clip_tiny.bert_config()},
            "text",
            ("text_model.embeddings.", "text_model.encoder.layer.0."),
        ),
        (
            {"vision_config": clip_tiny.resnet_config()},
            "vision",
            ("vision_model.embedder.", "vision_model.encoder.stages.0."),
        ),
        ({"vision_config": clip_tiny.vision_config(stem_channels=[8, 8])}, "vision", None),
    ],
    ids=["bert", "resnet", "stem"],
)
def test_blocks_are_found_in_any_tower(changes, tower, beginnings):
    model = clip_tiny.tiny_model(**changes)
    freeze_layers(model, tower, 1)
    beginnings = beginnings or ("vision_model.embeddings.", "vision_model.blocks.0.")
    assert frozen(model) == {name for name, _ in model.named_parameters() if name.startswith(beginnings)}


def test_layers_of_a_language_model_can_be_frozen():
    model = tiny_model()
    before = frozen(model)
    freeze_layers(model, "language", 1)
    beginnings = ("language_model.model.embed_tokens.", "language_model.model.layers.0.")
    assert frozen(model) - before == {n for n, _ in model.named_parameters() if n.startswith(beginnings)}


def test_names_survive_every_wrapper(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        model = add_lora(clip_tiny.tiny_model(), 2, towers=["text"])
        wrapped = DistributedDataParallel(torch.compile(model))
        assert bare_model(wrapped) is model.get_base_model()
        plain = [(group["name"], len(group["params"])) for group in parameter_groups(model, 1e-3)]
        assert [(group["name"], len(group["params"])) for group in parameter_groups(wrapped, 1e-3)] == plain
        assert {name for name, _ in plain} == {"text"}
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("tower", "count", "message"),
    [
        ("text", 3, r"`count`=3 must be 0 to 2, the blocks of the text tower \(text_model\.blocks\)"),
        ("vision", -1, "`count`=-1 must be 0 to 2"),
        ("temperature", 1, "The temperature tower has no list of blocks to freeze; `train_only` freezes"),
        ("language", 1, "No tower 'language'; there are vision, text, temperature"),
    ],
)
def test_layers_that_are_not_there_are_refused(tower, count, message):
    with pytest.raises(ValueError, match=message):
        freeze_layers(clip_tiny.tiny_model(), tower, count)


def test_a_model_without_towers_is_told_what_is_missing():
    with pytest.raises(TypeError, match="Linear declares no `towers`: a dictionary from names of parts"):
        train_only(torch.nn.Linear(2, 2), ["vision"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: train_only(m, ["visoin"]), "No tower 'visoin'; there are vision, connector, language"),
        (lambda m: parameter_groups(m, 1e-3, {"text": 1e-4}), "No tower 'text'"),
        (lambda m: tower_of(m, "lm_head.weight"), "'lm_head.weight' belongs to no tower"),
    ],
)
def test_unknown_towers_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny_model())


def test_a_rate_without_weights_is_refused():
    model = tiny_model(text_config=text_config())
    train_only(model, ["connector"])
    with pytest.raises(ValueError, match="A learning rate is given for vision, which has nothing to train"):
        parameter_groups(model, 1e-3, {"vision": 1e-5})


def test_rates_are_read_from_a_flag():
    assert read_rates("vision=1e-5,text=2e-4") == {"vision": 1e-5, "text": 2e-4}
    assert read_rates(None) == {}
    with pytest.raises(ValueError, match="`tower_rates`='vision:1' must look like"):
        read_rates("vision:1")
