"""transformers' `lxmert` as this family's own: one table of names, read in both directions.

Covers what `transformers.LxmertModel` and its heads save and have saved (`unc-nlp/lxmert-*`); the names are
the same in transformers 4 and 5.

What differs in training: theirs never moves the first position, the first segment and the first word, which
it takes for padding, and its losses on regions run over all regions, hidden or not.
"""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from .convert_region_bert_stock import (
    BERT_FIELDS,
    BERT_TEXT_NAMES,
    BERT_WORD_NAMES,
    StockBertCheckpoint,
    bert_block_names,
    copied,
)

__all__ = ["LXMERT_CHECKPOINT", "LxmertCheckpoint"]

LXMERT_REGION_WEIGHT = 6.67  # of the losses on regions there, 1 / 0.15: they are divided by all regions
LXMERT_TASKS = {"mlm": "task_mask_lm", "itm": "task_matched", "answer": "task_qa"}
LXMERT_REGION_TASKS = {
    "object": "visual_obj_loss",
    "attribute": "visual_attr_loss",
    "smooth": "visual_feat_loss",
}
LXMERT_LAYERS = {"text": "l_layers", "region": "r_layers", "cross": "x_layers"}
LXMERT_LAYER_COUNTS = {"l_layers": 9, "r_layers": 5, "x_layers": 5}  # where it says nothing


def cross_names(ours: str, theirs: str) -> tuple[tuple[str, str], ...]:
    """Of a stream in the blocks where text and regions meet; `theirs` is "lang" or "visn"."""
    before, after = f"cross_blocks.{{}}.{ours}.", f"encoder.x_layers.{{}}.{theirs}_"
    return (
        *bert_block_names(before, after, "self_att.")[:5],
        (f"{before}mlp.fc1.*", f"{after}inter.dense.*"),
        (f"{before}mlp.fc2.*", f"{after}output.dense.*"),
        (f"{before}mlp_norm.*", f"{after}output.LayerNorm.*"),
    )


class LxmertCheckpoint(StockBertCheckpoint):
    """A checkpoint of `transformers.LxmertModel` or one of its heads, `classes` below."""

    model_type = "lxmert"
    foreign_prefix = "lxmert."
    classes = {
        "MMRegionBertModel": "LxmertModel",
        "MMRegionBertForPreTraining": "LxmertForPreTraining",
        "MMRegionBertForQuestionAnswering": "LxmertForQuestionAnswering",
    }
    fields = BERT_FIELDS | {
        "region_feature_size": "visual_feat_dim",
        "num_object_classes": "num_object_labels",
        "num_attribute_classes": "num_attr_labels",
    }
    fixed = {
        "region_location": "box4",
        "region_fusion": "mean",
        "region_norm": "none",
        "region_type": None,
        "region_mask_token": False,
    }
    head_fields = {"classifier": "mlp", "answer_state": "pooled", "answers_as_distribution": False}
    task_fields = {"task_rates": {}, "task_schedule": "sum", "mask_together": True}
    names = (
        *BERT_TEXT_NAMES,
        ("region_embeddings.feature_projection.*", "encoder.visn_fc.visn_fc.*"),
        ("region_embeddings.feature_norm.*", "encoder.visn_fc.visn_layer_norm.*"),
        ("region_embeddings.location_projection.*", "encoder.visn_fc.box_fc.*"),
        ("region_embeddings.location_norm.*", "encoder.visn_fc.box_layer_norm.*"),
        *bert_block_names("text_blocks.{}.", "encoder.layer.{}."),
        *bert_block_names("region_blocks.{}.", "encoder.r_layers.{}."),
        ("cross_blocks.{}.cross_attention.q_proj.*", "encoder.x_layers.{}.visual_attention.att.query.*"),
        ("cross_blocks.{}.cross_attention.k_proj.*", "encoder.x_layers.{}.visual_attention.att.key.*"),
        ("cross_blocks.{}.cross_attention.v_proj.*", "encoder.x_layers.{}.visual_attention.att.value.*"),
        ("cross_blocks.{}.cross_attention.o_proj.*", "encoder.x_layers.{}.visual_attention.output.dense.*"),
        ("cross_blocks.{}.cross_norm.*", "encoder.x_layers.{}.visual_attention.output.LayerNorm.*"),
        *cross_names("text", "lang"),
        *cross_names("regions", "visn"),
        *BERT_WORD_NAMES,
        ("itm_head.*", "cls.seq_relationship.*"),
        ("detector_head.transform.dense.*", "obj_predict_head.transform.dense.*"),
        ("detector_head.transform.norm.*", "obj_predict_head.transform.LayerNorm.*"),
        ("detector_head.decoders.object.*", "obj_predict_head.decoder_dict.obj.*"),
        ("detector_head.decoders.attribute.*", "obj_predict_head.decoder_dict.attr.*"),
        ("detector_head.decoders.smooth.*", "obj_predict_head.decoder_dict.feat.*"),
        # One name for two of ours.
        ("answer_head.*", "answer_head.logit_fc.*"),
        ("answer_classifier.*", "answer_head.logit_fc.*"),
    )

    def config_from(self, theirs: dict, weights: Collection[str], model_class: type) -> dict:
        """See `ForeignCheckpoint`.

        Raises:
            ValueError: Boxes of more than four numbers.
        """
        if theirs.get("visual_pos_dim", 4) != 4:
            raise ValueError(
                f"`visual_pos_dim`={theirs['visual_pos_dim']} cannot be loaded, only 4: a box is x1, y1, x2, "
                "y2 here, and what else a model is told of it follows from these."
            )
        fields = super().config_from(theirs, weights, model_class)
        answers = theirs.get("num_qa_labels", 9500)
        if len(fields.get("id2label", ())) != answers:  # the table of every config, which theirs does not use
            fields = {name: value for name, value in fields.items() if name not in ("id2label", "label2id")}
            fields["num_labels"] = answers
        counts = LXMERT_LAYER_COUNTS | theirs
        fields["layers"] = [kind for kind, field in LXMERT_LAYERS.items() for _ in range(counts[field])]
        return fields | {"task_weights": _task_weights(theirs)}

    def config_to(self, ours: PreTrainedConfig, model_class: type) -> dict:
        """See `ForeignCheckpoint`."""
        theirs = super().config_to(ours, model_class)
        weights: dict[str, float] = ours.to_dict()["task_weights"]
        if model_class.__name__ == "MMRegionBertForPreTraining":
            _check_weights(weights)
        found = {weight for task, weight in weights.items() if task in LXMERT_REGION_TASKS and weight}
        flags = {
            field: bool(weights.get(task)) for task, field in (LXMERT_TASKS | LXMERT_REGION_TASKS).items()
        }
        normalizer = LXMERT_REGION_WEIGHT * (max(found) if found else 1.0)
        return theirs | flags | {"task_obj_predict": bool(found), "visual_loss_normalizer": normalizer}

    def sizes_to(self, ours: Any) -> dict:
        """See `StockBertCheckpoint`."""
        counts = {field: ours.layers.count(kind) for kind, field in LXMERT_LAYERS.items()}
        return counts | {"num_qa_labels": ours.num_labels, "visual_pos_dim": 4}

    def weights_from(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `ForeignCheckpoint`. Answers of pre-training and of fine-tuning are one head there."""
        weights = super().weights_from(theirs)
        return weights | copied(weights, "answer_head.", "answer_classifier.")


def _task_weights(theirs: Mapping[str, Any]) -> dict[str, float]:
    """Of our tasks: the heads of words and matching are always there, others when they are asked for."""
    weights = {task: float(theirs.get(field, True)) for task, field in LXMERT_TASKS.items()}
    if theirs.get("task_obj_predict", True):
        weight = theirs.get("visual_loss_normalizer", LXMERT_REGION_WEIGHT) / LXMERT_REGION_WEIGHT
        weights |= {t: weight for t, field in LXMERT_REGION_TASKS.items() if theirs.get(field, True)}
    return {task: weight for task, weight in weights.items() if weight or task != "answer"}


def _check_weights(weights: Mapping[str, float]) -> None:
    known = {"mlm", "itm"} <= set(weights) <= {*LXMERT_TASKS, *LXMERT_REGION_TASKS}
    once = all(weights.get(task, 0) in (0, 1) for task in LXMERT_TASKS)
    alike = len({weight for task, weight in weights.items() if task in LXMERT_REGION_TASKS}) < 2
    if not (known and once and alike):
        raise ValueError(
            f"`task_weights`={dict(weights)} cannot be exported: LxmertForPreTraining has words "
            f'("mlm") and matching ("itm"), answers if wanted, each counted once or not at all, and of '
            f"{list(LXMERT_REGION_TASKS)} those that are wanted, all with one weight; set it so."
        )


LXMERT_CHECKPOINT = LxmertCheckpoint()
