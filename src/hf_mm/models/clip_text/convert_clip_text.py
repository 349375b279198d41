"""The text tower of transformers' CLIP as this family's own: one table of names, read in both directions.

Covers what `transformers.CLIPTextModel` saves and has saved (transformers 4 put `text_model.` before every
name, and version 5 reads that too), and the text tower of a whole `transformers.CLIPModel`.
"""

from collections.abc import Collection

from transformers import CLIPConfig, PreTrainedConfig

from ...hub.interop import ForeignCheckpoint

__all__ = ["CLIP_TEXT_CHECKPOINT", "CLIP_TEXT_NAMES", "TEXT_OF_CLIP_CHECKPOINT", "CLIPTextCheckpoint"]

# our name, the name in the tower
CLIP_TEXT_NAMES = (
    ("embeddings.tokens.*", "embeddings.token_embedding.*"),
    ("embeddings.positions.*", "embeddings.position_embedding.*"),
    ("blocks.{}.attention_norm.*", "encoder.layers.{}.layer_norm1.*"),
    ("blocks.{}.attention.o_proj.*", "encoder.layers.{}.self_attn.out_proj.*"),
    ("blocks.{}.attention.*", "encoder.layers.{}.self_attn.*"),
    ("blocks.{}.mlp_norm.*", "encoder.layers.{}.layer_norm2.*"),
    ("blocks.{}.mlp.*", "encoder.layers.{}.mlp.*"),
    ("norm.*", "final_layer_norm.*"),
)
CLIP_TEXT_SHARES = ("attention_dropout", "layer_norm_eps", "initializer_range")
# What `eos_token_id` was by mistake before transformers 4.31: there it still means "at the highest id".
HIGHEST_ID = 2


class CLIPTextCheckpoint(ForeignCheckpoint):
    """A checkpoint of `transformers.CLIPTextModel`."""

    model_type = "clip_text_model"
    classes = {"MMCLIPTextModel": "CLIPTextModel"}
    fields = {
        "vocab_size": "vocab_size",
        "max_position_embeddings": "max_position_embeddings",
        "hidden_size": "hidden_size",
        "num_hidden_layers": "num_hidden_layers",
        "num_attention_heads": "num_attention_heads",
        "intermediate_size": "intermediate_size",
        "hidden_act": "hidden_act",
        "attention_dropout": "attention_dropout",
        "layer_norm_eps": "layer_norm_eps",
        "initializer_range": "initializer_range",
        "bos_token_id": "bos_token_id",
        "eos_token_id": "eos_token_id",
        "pad_token_id": "pad_token_id",
        "dtype": "dtype",
    }
    defaults = {"pad_token_id": 1, "eos_token_id": 49407}
    fixed = {"hidden_dropout": 0.0, "qkv_bias": True}
    names = tuple((ours, f"text_model.{theirs}", theirs) for ours, theirs in CLIP_TEXT_NAMES)
    unused = ("*position_ids", "text_projection.*")

    def config_from(self, theirs: dict, weights: Collection[str], model_class: type) -> dict:
        """See `ForeignCheckpoint`. Where the text's vector is read follows from `eos_token_id`."""
        fields = super().config_from(theirs, weights, model_class)
        fields |= {name: float(fields[name]) for name in CLIP_TEXT_SHARES if name in fields}
        highest = fields["eos_token_id"] == HIGHEST_ID
        return fields | {"end_of_text": "highest_id" if highest else "first_eos"}

    def config_to(self, ours: PreTrainedConfig, model_class: type) -> dict:
        """See `ForeignCheckpoint`."""
        fields = super().config_to(ours, model_class)
        if ours.end_of_text == "highest_id":
            return fields | {"eos_token_id": HIGHEST_ID}
        if ours.eos_token_id == HIGHEST_ID:
            raise ValueError(
                f"`eos_token_id`={HIGHEST_ID} cannot be exported: transformers' CLIP then reads the text at "
                "its highest token id; share the folder itself, it loads with `trust_remote_code=True`."
            )
        return fields


class TextOfCLIPCheckpoint(CLIPTextCheckpoint):
    """The text tower of a checkpoint of `transformers.CLIPModel`; for reading only."""

    model_type = "clip"
    classes = {}
    unused = (*CLIPTextCheckpoint.unused, "vision_model.*", "visual_projection.*", "logit_scale")

    def config_from(self, theirs: dict, weights: Collection[str], model_class: type) -> dict:
        """See `ForeignCheckpoint`."""
        whole = CLIPConfig(**theirs).to_dict()  # older files hold each tower twice: knows which one counts
        dtype = theirs.get("dtype", theirs.get("torch_dtype"))
        return super().config_from(whole["text_config"] | {"dtype": dtype}, weights, model_class)


CLIP_TEXT_CHECKPOINT = CLIPTextCheckpoint()
TEXT_OF_CLIP_CHECKPOINT = TextOfCLIPCheckpoint()
