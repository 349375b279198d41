"""transformers' `vilt` as this family's own: one table of names, read in both directions.

Covers what `transformers.ViltModel` and its heads save and have saved (`dandelin/vilt-b32-*`): the names are
the same in transformers 4 and 5, but for the bias of the words and saved position ids.
"""

from collections.abc import Collection, Mapping

from torch import Tensor
from transformers import PreTrainedConfig

from ...hub.interop import ForeignCheckpoint, require_fields

__all__ = ["VILT_CHECKPOINT", "ViltCheckpoint"]

# our field: theirs
VILT_FIELDS = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "modality_type_vocab_size": "modality_type_vocab_size",
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
    "pad_token_id": "pad_token_id",
    # of every config of transformers
    "id2label": "id2label",
    "label2id": "label2id",
    "problem_type": "problem_type",
    "dtype": "dtype",
}
VILT_SHARES = ("hidden_dropout", "attention_dropout", "layer_norm_eps", "initializer_range")
VILT_SIDES = ("image_size", "patch_size")
TOKEN_TABLE = "vilt.embeddings.text.tokens.weight"
WORD_TABLE = "mlm_head.decoder.weight"  # absent where it is the table of tokens
OLD_BIAS, NEW_BIAS = "mlm_score.bias", "mlm_score.decoder.bias"


class ViltCheckpoint(ForeignCheckpoint):
    """A checkpoint of `transformers.ViltModel` or one of its heads, `classes` below."""

    model_type = "vilt"
    classes = {
        "MMViltModel": "ViltModel",
        "MMViltForMaskedLM": "ViltForMaskedLM",
        "MMViltForQuestionAnswering": "ViltForQuestionAnswering",
        "MMViltForImageAndTextRetrieval": "ViltForImageAndTextRetrieval",
        "MMViltForImagesAndTextClassification": "ViltForImagesAndTextClassification",
        "MMViltForTokenClassification": "ViltForTokenClassification",
    }
    fields = VILT_FIELDS
    prefix = "vilt."
    names = (
        ("embeddings.text.tokens.weight", "embeddings.text_embeddings.word_embeddings.weight"),
        ("embeddings.text.positions.weight", "embeddings.text_embeddings.position_embeddings.weight"),
        ("embeddings.text.token_types.weight", "embeddings.text_embeddings.token_type_embeddings.weight"),
        ("embeddings.text.norm.*", "embeddings.text_embeddings.LayerNorm.*"),
        ("embeddings.cls_token", "embeddings.cls_token"),
        ("embeddings.positions", "embeddings.position_embeddings"),
        ("embeddings.patches.projection.*", "embeddings.patch_embeddings.projection.*"),
        ("embeddings.modalities.weight", "embeddings.token_type_embeddings.weight"),
        ("blocks.{}.attention_norm.*", "encoder.layer.{}.layernorm_before.*"),
        ("blocks.{}.attention.q_proj.*", "encoder.layer.{}.attention.attention.query.*"),
        ("blocks.{}.attention.k_proj.*", "encoder.layer.{}.attention.attention.key.*"),
        ("blocks.{}.attention.v_proj.*", "encoder.layer.{}.attention.attention.value.*"),
        ("blocks.{}.attention.o_proj.*", "encoder.layer.{}.attention.output.dense.*"),
        ("blocks.{}.mlp_norm.*", "encoder.layer.{}.layernorm_after.*"),
        ("blocks.{}.mlp.fc1.*", "encoder.layer.{}.intermediate.dense.*"),
        ("blocks.{}.mlp.fc2.*", "encoder.layer.{}.output.dense.*"),
        ("norm.*", "layernorm.*"),
        ("pooler.dense.*", "pooler.dense.*"),
        ("mlm_head.transform.dense.*", "mlm_score.transform.dense.*"),
        ("mlm_head.transform.norm.*", "mlm_score.transform.LayerNorm.*"),
        (WORD_TABLE, "mlm_score.decoder.weight"),
        ("mlm_head.decoder.bias", NEW_BIAS, OLD_BIAS),
        ("rank_output.*", "rank_output.*"),
        # One name for three of ours, told apart by shapes.
        ("answer_classifier.*", "classifier.*"),
        ("images_classifier.*", "classifier.*"),
        ("token_classifier.*", "classifier.*"),
    )
    unused = ("*text_embeddings.position_ids", "*text_embeddings.token_type_ids")
    may_lack = (r"(vilt\.)?pooler\.dense\..*",)  # of masked words: their model has one and does not use it

    def config_from(self, theirs: dict, weights: Collection[str], model_class: type) -> dict:
        """See `ForeignCheckpoint`. One eps is all theirs has."""
        fields = super().config_from(theirs, weights, model_class)
        fields |= {name: float(fields[name]) for name in VILT_SHARES if name in fields}  # `0` in older files
        fields |= {name: _side(name, fields[name]) for name in VILT_SIDES if name in fields}
        fields["text_layer_norm_eps"] = fields.get("layer_norm_eps", 1e-12)
        fields["tie_word_embeddings"] = not {TOKEN_TABLE, WORD_TABLE} <= set(weights)
        sampled, images = theirs.get("max_image_length", -1), theirs.get("num_images", -1)
        fields["max_patches"] = sampled if sampled and sampled > 0 else None
        return fields | ({"num_images": images} if images > 0 else {})

    def config_to(self, ours: PreTrainedConfig, model_class: type) -> dict:
        """See `ForeignCheckpoint`."""
        name = self.classes.get(model_class.__name__, "ViltModel")
        require_fields(ours, {"text_layer_norm_eps": ours.layer_norm_eps}, f"transformers' {name}")
        images = ours.num_images if name == "ViltForImagesAndTextClassification" else -1
        # Theirs leaves patches out in evaluation too, so this stays a matter of our training.
        return super().config_to(ours, model_class) | {"max_image_length": -1, "num_images": images}

    def weights_from(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `ForeignCheckpoint`. Some files of transformers 4 hold the bias of the words twice."""
        if NEW_BIAS in theirs:
            theirs = {name: weight for name, weight in theirs.items() if name != OLD_BIAS}
        kind = f"{_kind_of_classifier(theirs)}_classifier."
        weights = super().weights_from(theirs)
        return {name.replace("answer_classifier.", kind): weight for name, weight in weights.items()}

    def weights_to(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `ForeignCheckpoint`. A table that is shared is written as that of the tokens."""
        shared = WORD_TABLE in ours and ours[WORD_TABLE].data_ptr() == ours[TOKEN_TABLE].data_ptr()
        return super().weights_to({n: weight for n, weight in ours.items() if not shared or n != WORD_TABLE})


def _kind_of_classifier(theirs: Mapping[str, Tensor]) -> str:
    """Which of our heads the `classifier` of a file is; that of answers where there is none."""
    if "classifier.weight" in theirs:
        return "token"
    rows, columns = theirs["classifier.0.weight"].shape if "classifier.0.weight" in theirs else (2, 1)
    return "images" if rows == columns else "answer"  # twice as wide as what it gets, for answers


def _side(field: str, value: int | list[int]) -> int:
    """A side in pixels, also when it is given for height and width."""
    sides = [value] if isinstance(value, int) else list(value)
    if len(set(sides)) != 1:
        raise ValueError(f"`{field}`={value} cannot be loaded: mm_vilt has square tables and patches only.")
    return sides[0]


VILT_CHECKPOINT = ViltCheckpoint()
