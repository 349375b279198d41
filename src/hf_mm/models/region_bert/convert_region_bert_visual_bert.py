"""transformers' `visual_bert` as this family's own: one table of names, read in both directions.

Covers what `transformers.VisualBertModel` and its heads save and have saved (`uclanlp/visualbert-*`); the
names are the same in transformers 4 and 5, but for saved position ids and a bias that is there twice. Regions
have no boxes there: give `region_features` alone. They are all of its second segment, at its first position:
`visual_token_type_ids` and `image_text_alignment` have no counterpart here.
"""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from ...hub.interop import require_fields
from ...hub.stored_weights import deferred
from .convert_region_bert_stock import (
    BERT_FIELDS,
    BERT_TEXT_NAMES,
    BERT_WORD_NAMES,
    StockBertCheckpoint,
    bert_block_names,
    copied,
)

__all__ = ["VISUAL_BERT_CHECKPOINT", "VisualBertCheckpoint"]

VISUAL_BERT_TASKS = {"mlm": 1.0, "itm": 1.0}


class VisualBertCheckpoint(StockBertCheckpoint):
    """A checkpoint of `transformers.VisualBertModel` or one of its heads, `classes` below."""

    model_type = "visual_bert"
    foreign_prefix = "visual_bert."
    classes = {
        "MMRegionBertModel": "VisualBertModel",
        "MMRegionBertForPreTraining": "VisualBertForPreTraining",
        "MMRegionBertForQuestionAnswering": "VisualBertForQuestionAnswering",
        "MMRegionBertForImagesAndTextClassification": "VisualBertForVisualReasoning",
        "MMRegionBertForImageAndTextRetrieval": "VisualBertForMultipleChoice",
    }
    fields = BERT_FIELDS | {
        "region_feature_size": "visual_embedding_dim",
        "layer_norm_eps": "layer_norm_eps",
    }
    defaults = {"visual_embedding_dim": 512, "vocab_size": 30522}
    fixed = {
        "region_location": "none",
        "region_norm_parts": False,
        "region_norm": "text",
        "region_type": 1,
        "region_type_table": "own",
        "region_position": "own",
        "region_mask_token": False,
    }
    head_fields = {
        "classifier": "linear",
        "answer_state": "before_end",
        "answers_as_distribution": True,
        "images_together": True,
    }
    task_fields = {
        "task_weights": VISUAL_BERT_TASKS,
        "task_rates": {},
        "task_schedule": "sum",
        "mask_together": True,
    }
    names = (
        *BERT_TEXT_NAMES,
        ("region_embeddings.feature_projection.*", "embeddings.visual_projection.*"),
        ("region_embeddings.token_types.weight", "embeddings.visual_token_type_embeddings.weight"),
        ("region_embeddings.positions.weight", "embeddings.visual_position_embeddings.weight"),
        *bert_block_names("joint_blocks.{}.", "encoder.layer.{}."),
        *BERT_WORD_NAMES,
        ("itm_head.*", "cls.seq_relationship.*"),
        # One name for three of ours.
        ("answer_classifier.1.*", "cls.*"),
        ("images_classifier.1.*", "cls.*"),
        ("rank_output.*", "cls.*"),
    )
    unused = ("*embeddings.position_ids", "attention.*")  # the latter: regions of a phrase
    may_lack = (r"(visual_bert\.)?pooler\.dense\..*",)  # of answers: their model has one and does not use it

    def config_from(self, theirs: dict, weights: Collection[str], model_class: type) -> dict:
        """See `ForeignCheckpoint`.

        Raises:
            ValueError: Regions pass one block only.
        """
        if theirs.get("bypass_transformer"):
            raise ValueError(
                "`bypass_transformer`=True cannot be loaded: regions pass all blocks here, not one alone; "
                "use a checkpoint that was trained without it."
            )
        fields = super().config_from(theirs, weights, model_class)
        return fields | {"layers": ["joint"] * theirs.get("num_hidden_layers", 12)}

    def config_to(self, ours: PreTrainedConfig, model_class: type) -> dict:
        """See `ForeignCheckpoint`."""
        if model_class.__name__ == "MMRegionBertForPreTraining":
            require_fields(
                ours, {"task_weights": VISUAL_BERT_TASKS}, "transformers' VisualBertForPreTraining"
            )
        return super().config_to(ours, model_class)

    def sizes_to(self, ours: Any) -> dict:
        """See `StockBertCheckpoint`."""
        return {"num_hidden_layers": len(ours.layers), "bypass_transformer": False}

    def weights_from(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `ForeignCheckpoint`. The first row of matching is that of a match there, of a mismatch here."""
        weights = matches_turned(super().weights_from(theirs))
        if "answer_classifier.1.bias" not in weights:
            return weights
        if weights["answer_classifier.1.bias"].shape[0] > 1:
            return weights | copied(weights, "answer_classifier.1.", "images_classifier.1.")
        return {name.replace("answer_classifier.1.", "rank_output."): w for name, w in weights.items()}

    def weights_to(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `ForeignCheckpoint`."""
        return super().weights_to(matches_turned(ours))


def matches_turned(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The two rows of the head of matching the other way round."""
    return {
        name: deferred(weight, lambda rows: rows.flip(0)) if name.startswith("itm_head.") else weight
        for name, weight in weights.items()
    }


VISUAL_BERT_CHECKPOINT = VisualBertCheckpoint()
