"""LoRA on chosen towers: what is hit, saved with what joins the towers, reloaded and merged."""

import pytest
import torch
from models import clip_tiny
from models.vlm_tiny import batch_of, pictures, text_config, tiny_model, words
from peft import PeftModel
from torch.testing import assert_close
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    GPT2Config,
)

from hf_mm import MMCLIPForImageClassification
from hf_mm.registry import register
from hf_mm.training.lora import add_lora, lora_targets
from hf_mm.training.towers import tower_of

INPUTS = batch_of([[60] * 4 + words(6)]) | {"pixel_values": pictures(1)}


def tuned(model, steps=2, **settings):
    """A model with adapters after a few steps, so that they are no longer idle."""
    adapted = add_lora(model, 2, **settings).train()
    optimizer = torch.optim.AdamW([w for w in adapted.parameters() if w.requires_grad], lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        adapted(**INPUTS, labels=INPUTS["input_ids"]).loss.backward()
        optimizer.step()
    return adapted.eval()


@pytest.mark.parametrize("towers", [("language",), ("vision", "language"), ("vision",)])
def test_adapters_sit_where_asked_and_the_connector_is_trained_whole(towers):
    model = add_lora(tiny_model(), 2, towers=towers)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    adapters = {tower_of(model, name) for name in trained if "lora_" in name}
    assert adapters == set(towers)
    whole = [name for name in trained if "lora_" not in name]
    assert whole
    assert {tower_of(model, name) for name in whole} == {"connector"}
    assert not any("lm_head" in name for name in trained)


def test_every_linear_layer_of_a_tower_is_hit():
    targets = lora_targets(tiny_model(), ["language"])
    assert len(targets) == 2 * 7  # q, k, v, o, gate, up and down of two blocks
    assert lora_targets(
        tiny_model(text_config=GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4)), ["language"]
    )


def test_adapters_and_connector_come_back_and_merge(tmp_path):
    register()
    base = tiny_model()
    base.save_pretrained(tmp_path / "base")
    base = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    adapted = tuned(base)
    expected = adapted(**INPUTS).logits
    assert not torch.allclose(expected, tiny_model()(**INPUTS).logits)
    adapted.save_pretrained(tmp_path / "adapter")

    fresh = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    assert_close(PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()(**INPUTS).logits, expected)
    direct = AutoModelForImageTextToText.from_pretrained(tmp_path / "adapter").eval()
    assert_close(direct(**INPUTS).logits, expected)

    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
    assert_close(again(**INPUTS).logits, expected, rtol=1e-5, atol=1e-5)


CLIP_PROJECTIONS = {"text": "text_projection", "vision": "visual_projection"}


def learned(adapted, inputs, steps=2):
    """A model with adapters after a few steps on its own loss."""
    optimizer = torch.optim.AdamW([w for w in adapted.parameters() if w.requires_grad], lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        adapted.train()(**inputs).loss.backward()
        optimizer.step()
    return adapted.eval()


@pytest.mark.parametrize("towers", [["text"], ["vision"], ["text", "vision"]], ids="-".join)
def test_the_towers_of_clip_are_adapted_apart(towers):
    """The projections of the adapted towers are trained whole; the rest, the temperature too, is frozen."""
    model = add_lora(clip_tiny.tiny_model(), 2, towers=towers)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert {tower_of(model, name) for name in trained if "lora_" in name} == set(towers)
    assert sum("lora_A" in name for name in trained) == 2 * 6 * len(
        towers
    )  # q, k, v, o, fc1 and fc2 of two blocks
    whole = {name.split(".")[2] for name in trained if "lora_" not in name}
    assert whole == {CLIP_PROJECTIONS[tower] for tower in towers}


def test_projections_can_be_adapted_like_the_rest():
    model = add_lora(clip_tiny.tiny_model(), 2, towers=["text"], train_connector=False)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert all("lora_" in name for name in trained)
    assert any("text_projection" in name for name in trained)


def test_adapters_of_clip_come_back_and_merge(tmp_path):
    register()
    clip_tiny.tiny_model().save_pretrained(tmp_path / "base")
    inputs = clip_tiny.pairs()
    adapted = add_lora(AutoModel.from_pretrained(tmp_path / "base"), 2, towers=["text", "vision"])
    learned(adapted, inputs | {"return_loss": True})
    expected = adapted(**inputs).logits_per_image
    assert not torch.allclose(expected, clip_tiny.tiny_model()(**inputs).logits_per_image)
    adapted.save_pretrained(tmp_path / "adapter")

    fresh = AutoModel.from_pretrained(tmp_path / "base")
    again = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    assert_close(again(**inputs).logits_per_image, expected)
    direct = AutoModel.from_pretrained(tmp_path / "adapter").eval()
    assert_close(direct(**inputs).logits_per_image, expected)

    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = AutoModel.from_pretrained(tmp_path / "merged").eval()
    assert_close(merged(**inputs).logits_per_image, expected, rtol=1e-5, atol=1e-5)


def test_a_classifier_is_trained_whole_on_an_adapted_tower(tmp_path):
    register()
    torch.manual_seed(0)
    config = clip_tiny.tiny_config(num_labels=3)
    MMCLIPForImageClassification(config).save_pretrained(tmp_path / "base")
    inputs = {"pixel_values": clip_tiny.pictures(3), "labels": torch.tensor([0, 2, 1])}
    adapted = add_lora(
        AutoModelForImageClassification.from_pretrained(tmp_path / "base"), 2, towers=["vision"]
    )
    learned(adapted, inputs)
    adapted.save_pretrained(tmp_path / "adapter")
    direct = AutoModelForImageClassification.from_pretrained(tmp_path / "adapter").eval()
    assert_close(direct(**inputs).logits, adapted(**inputs).logits)
    before = AutoModelForImageClassification.from_pretrained(tmp_path / "base").classifier.weight
    assert not torch.equal(adapted.get_base_model().classifier.weight, before)


def test_a_tower_without_linear_layers_is_refused():
    model = clip_tiny.tiny_model(vision_config=clip_tiny.resnet_config())
    message = r"No linear layer to adapt in `towers`=\['vision'\] but visual_projection, trained whole"
    with pytest.raises(ValueError, match=message):
        add_lora(model, 2, towers=["vision"])


def test_checkpointing_changes_no_gradient_of_the_adapters():
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = add_lora(tiny_model(), 2).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable()
        model(**INPUTS, labels=INPUTS["input_ids"]).loss.backward()
        grads.append({n: w.grad for n, w in model.named_parameters() if w.requires_grad})
    assert_close(grads[0], grads[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "`rank`=0 must be at least 1"),
        ({"rank": 2, "towers": ()}, r"No linear layer to adapt in `towers`=\[\]"),
        (
            {"rank": 2, "towers": ("text",)},
            r"in `towers`=\['text'\]; linear layers by tower: vision: \d+; conn",
        ),
    ],
)
def test_nothing_to_adapt_is_said(settings, message):
    with pytest.raises(ValueError, match=message):
        add_lora(tiny_model(text_config=text_config()), **settings)
