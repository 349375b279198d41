"""transformers' `vit` as this family's own: one table of names, read in both directions.

Covers what `transformers.ViTModel`, `ViTForImageClassification` and `ViTForMaskedImageModeling` save and have
saved: the files of transformers 4 and 5 have the same names (second column), the modules of transformers 5
others (third column).
"""

from collections.abc import Collection, Mapping

from torch import Tensor
from transformers import PreTrainedConfig

from ...hub.interop import ForeignCheckpoint

__all__ = ["VIT_CHECKPOINT", "ViTCheckpoint"]

# our field: theirs
VIT_FIELDS = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "num_channels": "num_channels",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "hidden_act": "hidden_act",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "qkv_bias": "qkv_bias",
    "layer_norm_eps": "layer_norm_eps",
    "initializer_range": "initializer_range",
    # of every config of transformers
    "id2label": "id2label",
    "label2id": "label2id",
    "problem_type": "problem_type",
    "dtype": "dtype",
}
VIT_SHARES = ("hidden_dropout", "attention_dropout", "layer_norm_eps", "initializer_range")
VIT_SIDES = ("image_size", "patch_size")


class ViTCheckpoint(ForeignCheckpoint):
    """A checkpoint of `transformers.ViTModel` or one of its heads, `classes` below."""

    model_type = "vit"
    classes = {
        "MMViTModel": "ViTModel",
        "MMViTForImageClassification": "ViTForImageClassification",
        "MMViTForMaskedImageModeling": "ViTForMaskedImageModeling",
    }
    fields = VIT_FIELDS
    defaults = {"layer_norm_eps": 1e-12}
    fixed = {"stem_channels": None, "patch_bias": True, "embedding_norm": False, "final_norm": True}
    prefix = "vit."
    names = (
        ("embeddings.cls_token", "embeddings.cls_token"),
        ("embeddings.mask_token", "embeddings.mask_token"),
        ("embeddings.positions", "embeddings.position_embeddings"),
        ("embeddings.patches.projection.*", "embeddings.patch_embeddings.projection.*"),
        (
            "blocks.{}.attention_norm.*",
            "encoder.layer.{}.layernorm_before.*",
            "layers.{}.layernorm_before.*",
        ),
        (
            "blocks.{}.attention.q_proj.*",
            "encoder.layer.{}.attention.attention.query.*",
            "layers.{}.attention.q_proj.*",
        ),
        (
            "blocks.{}.attention.k_proj.*",
            "encoder.layer.{}.attention.attention.key.*",
            "layers.{}.attention.k_proj.*",
        ),
        (
            "blocks.{}.attention.v_proj.*",
            "encoder.layer.{}.attention.attention.value.*",
            "layers.{}.attention.v_proj.*",
        ),
        (
            "blocks.{}.attention.o_proj.*",
            "encoder.layer.{}.attention.output.dense.*",
            "layers.{}.attention.o_proj.*",
        ),
        ("blocks.{}.mlp_norm.*", "encoder.layer.{}.layernorm_after.*", "layers.{}.layernorm_after.*"),
        ("blocks.{}.mlp.fc1.*", "encoder.layer.{}.intermediate.dense.*", "layers.{}.mlp.fc1.*"),
        ("blocks.{}.mlp.fc2.*", "encoder.layer.{}.output.dense.*", "layers.{}.mlp.fc2.*"),
        ("norm.*", "layernorm.*"),
        ("pooler.dense.*", "pooler.dense.*"),
        ("classifier.*", "classifier.*"),
        ("decoder.*", "decoder.0.*"),
    )
    may_lack = (r"pooler\.dense\..*",)  # `ViTModel` of a model without one needs `add_pooling_layer=False`

    def config_from(self, theirs: dict, weights: Collection[str], model_class: type) -> dict:
        """See `ForeignCheckpoint`. A pooler is kept by the bare model; transformers' classifier has none."""
        fields = super().config_from(theirs, weights, model_class)
        fields |= {name: float(fields[name]) for name in VIT_SHARES if name in fields}  # `0` in older files
        fields |= {name: self._side(name, fields[name]) for name in VIT_SIDES if name in fields}
        bare = self.classes.get(model_class.__name__) == "ViTModel"
        if bare and "pooler.dense.weight" in {name.removeprefix(self.prefix) for name in weights}:
            self._check_pooler(theirs, fields.get("hidden_size", 768))
            return fields | {"pooling": "tanh"}
        return fields | {"pooling": "cls"}

    def config_to(self, ours: PreTrainedConfig, model_class: type) -> dict:
        """See `ForeignCheckpoint`. Refuses what transformers' ViT does not have, such as a stem."""
        name = self.classes[model_class.__name__]
        poolings = ("cls", "tanh") if name == "ViTModel" else ("cls",)
        fields = super().config_to(ours, model_class)
        if ours.pooling not in poolings:
            raise ValueError(
                f"`pooling`={ours.pooling!r} cannot be exported, transformers' {name} has "
                f"{' or '.join(map(repr, poolings))} only; share the folder itself, it loads with "
                "`trust_remote_code=True`."
            )
        if name == "ViTForMaskedImageModeling" and ours.normalize_masked_patches:
            raise ValueError(
                f"`normalize_masked_patches`=True cannot be exported, {name} predicts plain pixels only; "
                "export the encoder: load it with `MMViTModel` and save that."
            )
        return fields | {"encoder_stride": ours.patch_size, "pooler_act": "tanh"}

    def weights_from(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `ForeignCheckpoint`. Their decoder of pixels is a 1x1 convolution, ours a linear layer."""
        weights = super().weights_from(theirs)
        if "decoder.weight" in weights:
            weights["decoder.weight"] = weights["decoder.weight"].flatten(1)  # (C * P * P, D)
        return weights

    def weights_to(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `ForeignCheckpoint`."""
        weights = super().weights_to(ours)
        if "decoder.0.weight" in weights:
            weights["decoder.0.weight"] = weights["decoder.0.weight"][
                :, :, None, None
            ]  # (C * P * P, D, 1, 1)
        return weights

    @staticmethod
    def _side(field: str, value: int | list[int]) -> int:
        """A side in pixels, also when it is given for height and width."""
        sides = [value] if isinstance(value, int) else list(value)
        if len(set(sides)) != 1:
            raise ValueError(
                f"`{field}`={value} cannot be loaded: mm_vit has square images and patches only."
            )
        return sides[0]

    @staticmethod
    def _check_pooler(theirs: dict, hidden_size: int) -> None:
        act, size = theirs.get("pooler_act", "tanh"), theirs.get("pooler_output_size") or hidden_size
        if act != "tanh" or size != hidden_size:
            raise ValueError(
                f"A pooler with `pooler_act`={act!r} and `pooler_output_size`={size} cannot be loaded: that "
                f"of mm_vit is tanh and {hidden_size} wide; save it with `add_pooling_layer=False` first."
            )


VIT_CHECKPOINT = ViTCheckpoint()
