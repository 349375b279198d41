"""Towers by name: what is trained, and at which rate."""

import pytest
import torch
from models.vlm_tiny import batch_of, pictures, text_config, tiny_model, words
from transformers import CLIPVisionConfig, TrainingArguments

from hf_mm.training.lora import add_lora
from hf_mm.training.towers import build_optimizer, parameter_groups, tower_of, train_only


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
