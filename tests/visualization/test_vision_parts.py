"""The tower of any model is found, and recording its attention leaves the model as it was."""

import pytest
import torch
from hub.sharing_tiny import tiny_vlm
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close
from transformers import CLIPConfig, CLIPForImageClassification, ResNetConfig, ResNetModel
from visualization.seen_tiny import (
    SIDE,
    TOWERS,
    WIDTHS,
    clip,
    mm_clip,
    mm_vit,
    mm_vit_classifier,
    pixels,
    text_fields,
    tower,
    vit_classifier,
)

from hf_mm.visualization.vision_parts import attention_weights_kept, record_attention, vision_parts


@pytest.mark.parametrize("kind", TOWERS)
def test_every_known_tower_gives_its_filters_and_a_position_for_each_patch(kind):
    model = tower(kind)
    parts = vision_parts(model)
    assert parts.encoder is model
    assert parts.patch_filters.shape == (16, 3, 4, 4)
    if kind == "dinov3_vit":
        assert parts.positions is None
    else:
        assert parts.positions.shape == (4, 4, 16)


@pytest.mark.parametrize("kind", TOWERS)
def test_every_known_tower_gives_its_attention_with_the_patches_last(kind):
    others = {"siglip_vision_model": 0, "deit": 2, "dinov2_with_registers": 5}.get(kind, 1)
    attention = record_attention(tower(kind), pixels())
    assert [weights.shape for weights in attention.weights] == [(2, 2, 16 + others, 16 + others)] * 2
    assert attention.grid == (4, 4)
    assert attention.patch_size == (4, 4)
    assert_close(attention.weights[0].sum(-1), torch.ones(2, 2, 16 + others))


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (mm_vit_classifier, "mm_vit"),
        (vit_classifier, "vit"),
        (clip, "clip_vision_model"),
        (mm_clip, "mm_vit"),
        (lambda: tiny_vlm()[0], "mm_vit"),
        (lambda: tiny_vlm("clip_vision_model")[0], "clip_vision_model"),
        (lambda: get_peft_model(mm_vit_classifier(), LoraConfig(r=2, target_modules=["q_proj"])), "mm_vit"),
    ],
    ids=["mm_vit", "vit", "clip", "mm_clip", "mm_vlm", "mm_vlm_clip", "peft"],
)
def test_the_tower_inside_a_larger_model_is_found(model, kind):
    assert vision_parts(model()).encoder.config.model_type == kind


@pytest.mark.parametrize(
    ("model", "query"),
    [
        (lambda: mm_vit(pooling="cls"), "cls"),
        (lambda: mm_vit(pooling="tanh"), "cls"),
        (lambda: mm_vit_classifier(pooling="mean"), "mean"),
        (vit_classifier, "cls"),
        (clip, "cls"),
        (lambda: mm_clip(vision_pooling="mean"), "mean"),
        (mm_clip, "cls"),
        (lambda: tiny_vlm()[0], "mean"),
        (
            lambda: CLIPForImageClassification(
                CLIPConfig(vision_config=WIDTHS | SIDE, text_config=text_fields())
            ),
            "mean",
        ),
        (lambda: tower("siglip_vision_model"), "mean"),
    ],
)
def test_what_the_image_vector_is_read_from_is_known(model, query):
    assert record_attention(model(), pixels()).query == query


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_the_kernel_and_the_mode_are_as_before(kernel):
    model = mm_vit_classifier(attention_dropout=0.5)
    model.set_attn_implementation(kernel)
    model.train()
    model.classifier.eval()
    first, second = (record_attention(model, pixels()).weights for _ in range(2))
    assert_close(first, second, rtol=0, atol=0)  # no dropout
    assert model.config._attn_implementation == kernel
    assert [part.training for part in model.modules()] == [
        part is not model.classifier for part in model.modules()
    ]


def test_the_kernel_and_the_mode_are_as_before_also_after_an_error():
    model = mm_vit_classifier().train()
    with pytest.raises(ValueError, match="is 15x16 px, not a multiple of `patch_size`=4"):
        record_attention(model, pixels(height=15))
    assert model.config._attn_implementation == "sdpa"
    assert all(part.training for part in model.modules())


def test_only_the_kernel_of_the_vision_tower_is_switched():
    model = mm_clip()
    with attention_weights_kept(model.vision_model):
        assert model.vision_model.config._attn_implementation == "eager"
        assert model.text_model.config._attn_implementation == "sdpa"
    assert model.vision_model.config._attn_implementation == "sdpa"


def test_a_half_precision_model_takes_the_pixels_as_they_are():
    attention = record_attention(mm_vit().to(torch.bfloat16), pixels())
    assert attention.weights[0].dtype == torch.bfloat16


def test_a_model_without_patches_is_refused_by_name():
    model = ResNetModel(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    )
    with pytest.raises(
        ValueError, match=r"ResNetModel has 0 vision towers .*\(found: resnet\); known are mm_vit"
    ):
        vision_parts(model)


def test_two_towers_are_refused():
    pair = torch.nn.ModuleList([mm_vit(), tower("vit")])
    with pytest.raises(ValueError, match=r"has 2 vision towers .*\(found: mm_vit, vit\)"):
        vision_parts(pair)


@pytest.mark.parametrize("kind", ["vit", "clip_vision_model", "dinov2"])
def test_a_rest_that_is_no_patch_is_refused_also_where_the_tower_drops_it(kind):
    options = {} if kind == "dinov2" else {"interpolate_pos_encoding": True}
    with pytest.raises(
        ValueError, match="`pixel_values` is 18x24 px, not a multiple of the 4x4 px of a patch"
    ):
        record_attention(tower(kind), pixels(1, 18, 24), **options)


def test_a_missing_cls_token_is_named():
    with pytest.raises(ValueError, match=r"`query`='cls', but siglip_vision_model has no \[CLS\] token"):
        record_attention(tower("siglip_vision_model"), pixels(), query="cls")
