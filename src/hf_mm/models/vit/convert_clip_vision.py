"""The vision tower of transformers' CLIP as a Vision Transformer of this family: one table of names.

Covers what `transformers.CLIPVisionModel` saves and has saved (transformers 4 put `vision_model.` before
every name, and version 5 reads that too), and the vision tower of a whole `transformers.CLIPModel`. The image
vector (`pooler_output`) and the hidden states are theirs; `last_hidden_state` is theirs after the final norm.
"""

from collections.abc import Collection, Mapping

from torch import Tensor
from transformers import CLIPConfig

from ...hub.interop import ForeignCheckpoint

__all__ = [
    "CLIP_VISION_CHECKPOINT",
    "CLIP_VISION_NAMES",
    "VISION_OF_CLIP_CHECKPOINT",
    "CLIPVisionCheckpoint",
    "add_leading_axes",
    "drop_leading_axes",
]

# our name, the name in the tower
CLIP_VISION_NAMES = (
    ("embeddings.cls_token", "embeddings.class_embedding"),
    ("embeddings.positions", "embeddings.position_embedding.weight"),
    ("embeddings.patches.projection.weight", "embeddings.patch_embedding.weight"),
    ("embeddings.norm.*", "pre_layrnorm.*"),
    ("blocks.{}.attention_norm.*", "encoder.layers.{}.layer_norm1.*"),
    ("blocks.{}.attention.o_proj.*", "encoder.layers.{}.self_attn.out_proj.*"),
    ("blocks.{}.attention.*", "encoder.layers.{}.self_attn.*"),
    ("blocks.{}.mlp_norm.*", "encoder.layers.{}.layer_norm2.*"),
    ("blocks.{}.mlp.*", "encoder.layers.{}.mlp.*"),
    ("norm.*", "post_layernorm.*"),
)
CLIP_VISION_SHARES = ("attention_dropout", "layer_norm_eps", "initializer_range")
CLIP_VISION_SIDES = ("image_size", "patch_size")
# By the end of our name: the axes of length 1 in front, which theirs lack.
LEADING_AXES = {"embeddings.cls_token": 2, "embeddings.positions": 1}


class CLIPVisionCheckpoint(ForeignCheckpoint):
    """A checkpoint of `transformers.CLIPVisionModel`."""

    model_type = "clip_vision_model"
    classes = {"MMViTModel": "CLIPVisionModel"}
    fields = {
        "image_size": "image_size",
        "patch_size": "patch_size",
        "num_channels": "num_channels",
        "hidden_size": "hidden_size",
        "num_hidden_layers": "num_hidden_layers",
        "num_attention_heads": "num_attention_heads",
        "intermediate_size": "intermediate_size",
        "hidden_act": "hidden_act",
        "attention_dropout": "attention_dropout",
        "layer_norm_eps": "layer_norm_eps",
        "initializer_range": "initializer_range",
        "dtype": "dtype",
    }
    defaults = {"patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    fixed = {
        "stem_channels": None,
        "patch_bias": False,
        "embedding_norm": True,
        "final_norm": True,
        "hidden_dropout": 0.0,
        "qkv_bias": True,
        "pooling": "cls",
    }
    names = tuple((ours, f"vision_model.{theirs}", theirs) for ours, theirs in CLIP_VISION_NAMES)
    unused = ("*position_ids", "visual_projection.*")

    def config_from(self, theirs: dict, weights: Collection[str], model_class: type) -> dict:
        """See `ForeignCheckpoint`."""
        fields = super().config_from(theirs, weights, model_class)
        fields |= {name: float(fields[name]) for name in CLIP_VISION_SHARES if name in fields}
        for name in CLIP_VISION_SIDES:
            if not isinstance(fields.get(name, 0), int):
                raise ValueError(
                    f"`{name}`={fields[name]} cannot be loaded: mm_vit has square images and patches only; "
                    "load it with transformers' own class."
                )
        return fields

    def weights_from(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `ForeignCheckpoint`."""
        return add_leading_axes(super().weights_from(theirs))

    def weights_to(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `ForeignCheckpoint`."""
        return super().weights_to(drop_leading_axes(ours))


class VisionOfCLIPCheckpoint(CLIPVisionCheckpoint):
    """The vision tower of a checkpoint of `transformers.CLIPModel`; for reading only."""

    model_type = "clip"
    classes = {}
    unused = (
        *CLIPVisionCheckpoint.unused,
        "text_model.*",
        "text_projection.*",
        "logit_scale",
        "classifier.*",
    )

    def config_from(self, theirs: dict, weights: Collection[str], model_class: type) -> dict:
        """See `ForeignCheckpoint`."""
        whole = CLIPConfig(**theirs).to_dict()  # older files hold each tower twice: knows which one counts
        dtype = theirs.get("dtype", theirs.get("torch_dtype"))
        return super().config_from(whole["vision_config"] | {"dtype": dtype}, weights, model_class)


def add_leading_axes(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under our names, (D,) and (L, D) tables turned into our (1, 1, D) and (1, L, D)."""
    return {name: weight[(None,) * _leading_axes(name)] for name, weight in weights.items()}


def drop_leading_axes(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `add_leading_axes`."""
    return {name: weight[(0,) * _leading_axes(name)] for name, weight in weights.items()}


def _leading_axes(name: str) -> int:
    return next((axes for end, axes in LEADING_AXES.items() if name.endswith(end)), 0)


CLIP_VISION_CHECKPOINT = CLIPVisionCheckpoint()
VISION_OF_CLIP_CHECKPOINT = VisionOfCLIPCheckpoint()
