"""transformers' CLIP as this family's own: the tables of its towers put together, read in both directions.

Covers what `transformers.CLIPModel` and its parts save and have saved: the names in the files are the same in
transformers 4 and 5, but for saved position ids. What our towers can do beyond CLIP is refused on export.
"""

import math
from collections.abc import Collection, Mapping
from copy import deepcopy
from typing import Any

from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPProcessor, PreTrainedConfig

from ...hub.interop import ForeignCheckpoint
from ..clip_text.convert_clip_text import CLIP_TEXT_CHECKPOINT, CLIP_TEXT_NAMES
from ..vit.convert_clip_vision import (
    CLIP_VISION_CHECKPOINT,
    CLIP_VISION_NAMES,
    CLIPVisionCheckpoint,
    add_leading_axes,
    drop_leading_axes,
)

__all__ = [
    "CLIP_CHECKPOINTS",
    "CLIPCheckpoint",
    "CLIPPairCheckpoint",
    "CLIPPartCheckpoint",
    "require_tower",
]

# Our towers that transformers' CLIP has.
TOWER_TYPES = {"text_config": "mm_clip_text", "vision_config": "mm_vit"}


class MeanVisionCheckpoint(CLIPVisionCheckpoint):
    """The vision tower as `transformers.CLIPForImageClassification` reads it: a mean and no final norm."""

    classes = {"MMCLIPForImageClassification": "CLIPForImageClassification"}
    fixed = {**CLIPVisionCheckpoint.fixed, "pooling": "mean", "final_norm": False}


class CLIPPairCheckpoint(ForeignCheckpoint):
    """What all checkpoints of the family share: names, shapes and what prepares the inputs."""

    names = (
        *((f"text_model.{ours}", f"text_model.{theirs}") for ours, theirs in CLIP_TEXT_NAMES),
        *((f"vision_model.{ours}", f"vision_model.{theirs}") for ours, theirs in CLIP_VISION_NAMES),
        ("text_projection.weight", "text_projection.weight"),
        ("visual_projection.weight", "visual_projection.weight"),
        ("logit_scale", "logit_scale"),
        ("classifier.*", "classifier.*"),
    )
    unused = ("*position_ids",)

    def weights_from(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `ForeignCheckpoint`. A classifier's file has a final norm that is not used."""
        if "classifier.weight" in theirs:
            idle = "vision_model.post_layernorm."
            theirs = {name: weight for name, weight in theirs.items() if not name.startswith(idle)}
        return add_leading_axes(super().weights_from(theirs))

    def weights_to(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `ForeignCheckpoint`."""
        return super().weights_to(drop_leading_axes(ours))

    def processor_to(self, processor: Any) -> Any:
        """See `ForeignCheckpoint`."""
        name = type(processor).__name__
        if name == "MMCLIPImageProcessor":
            return _clip_image_processor(processor)
        if name == "MMCLIPProcessor":
            tokenizer = deepcopy(processor.tokenizer)
            if processor.max_length is not None:
                tokenizer.model_max_length = processor.max_length  # where theirs keeps it
            return CLIPProcessor(self.processor_to(processor.image_processor), tokenizer)
        return super().processor_to(processor)


class CLIPCheckpoint(CLIPPairCheckpoint):
    """A checkpoint of `transformers.CLIPModel` or `transformers.CLIPForImageClassification`."""

    model_type = "clip"
    classes = {
        "MMCLIPModel": "CLIPModel",
        "MMCLIPForImageClassification": "CLIPForImageClassification",
    }
    fields = {
        "projection_dim": "projection_dim",
        "logit_scale_init_value": "logit_scale_init_value",
        # of every config of transformers
        "id2label": "id2label",
        "label2id": "label2id",
        "problem_type": "problem_type",
        "dtype": "dtype",
    }
    defaults = {"logit_scale_init_value": 2.6592}
    fixed = {
        "similarity": "cosine",
        "objective": "softmax",
        "label_smoothing": 0.0,
        "vision_pooling": "pooler",
        "text_pooling": "pooler",
    }
    may_lack = (r"vision_model\.post_layernorm\..*",)  # of a classifier

    def config_from(self, theirs: dict, weights: Collection[str], model_class: type) -> dict:
        """See `ForeignCheckpoint`. A file that holds a classifier says how the vision tower is read."""
        whole = CLIPConfig(**theirs).to_dict()  # older files hold each tower twice: knows which one counts
        towers = _towers("classifier.weight" in weights)
        fields = super().config_from(theirs, weights, model_class)
        fields["max_logit_scale"] = max(100.0, math.exp(fields["logit_scale_init_value"]))
        for name, tower in towers.items():
            fields[name] = _tower_from(tower, whole[name], name, weights, model_class)
        return fields

    def config_to(self, ours: PreTrainedConfig, model_class: type) -> dict:
        """See `ForeignCheckpoint`."""
        fields = super().config_to(ours, model_class)
        for name, tower in _towers(model_class.__name__ == "MMCLIPForImageClassification").items():
            fields[name] = _tower_to(tower, ours, name, model_class)
        return fields


class CLIPPartCheckpoint(CLIPPairCheckpoint):
    """A tower with its projection, of a class that has no whole CLIP around it.

    Args:
        side: "text" or "vision".
        tower: The table of the tower.
    """

    fields = {"projection_dim": "projection_dim", "dtype": "dtype"}

    def __init__(self, side: str, tower: ForeignCheckpoint) -> None:
        self.tower, self.field = tower, f"{side}_config"
        self.model_type = tower.model_type
        self.fixed = {f"{side}_pooling": "pooler"}
        name = f"CLIP{side.capitalize()}ModelWithProjection"
        self.classes = {f"MM{name}": name}

    def config_from(self, theirs: dict, weights: Collection[str], model_class: type) -> dict:
        """See `ForeignCheckpoint`. The other tower of the result is one that nobody reads."""
        if model_class.__name__ not in self.classes:
            raise ValueError(
                f"A `{self.model_type}` checkpoint holds one tower of CLIP, too little for a "
                f"{model_class.__name__}; load it with {next(iter(self.classes))}, or join two towers with "
                "`MMCLIPModel.from_towers`."
            )
        fields = super().config_from(theirs, weights, model_class)
        return fields | {self.field: _tower_from(self.tower, theirs, self.field, weights, model_class)}

    def config_to(self, ours: PreTrainedConfig, model_class: type) -> dict:
        """See `ForeignCheckpoint`."""
        return super().config_to(ours, model_class) | _tower_to(self.tower, ours, self.field, model_class)


def _towers(classifier: bool) -> dict[str, ForeignCheckpoint]:
    """The tables of the towers, by the field that holds their config."""
    vision = MeanVisionCheckpoint() if classifier else CLIP_VISION_CHECKPOINT
    return {"text_config": CLIP_TEXT_CHECKPOINT, "vision_config": vision}


def _tower_from(
    tower: ForeignCheckpoint, theirs: dict, name: str, weights: Collection[str], model_class: type
) -> dict:
    return tower.config_from(theirs, weights, model_class) | {"model_type": TOWER_TYPES[name]}


def _tower_to(tower: ForeignCheckpoint, ours: PreTrainedConfig, name: str, model_class: type) -> dict:
    config = require_tower(ours, name, "transformers' CLIP")
    fields = tower.config_to(config, model_class)
    fields.pop("dtype", None)
    return fields | {"projection_dim": ours.projection_dim}


def require_tower(config: PreTrainedConfig, name: str, what: str) -> PreTrainedConfig:
    """The config of a tower, `name` of `TOWER_TYPES`, to be exported.

    Raises:
        ValueError: It is a tower of another type, which `what` does not have.
    """
    tower, wanted = getattr(config, name), TOWER_TYPES[name]
    if tower.model_type != wanted:
        raise ValueError(
            f"`{name}` of type {tower.model_type!r} cannot be exported, {what} has what is {wanted!r} here "
            "only; share the folder itself, it loads with `trust_remote_code=True`."
        )
    return tower


def _clip_image_processor(ours: Any) -> CLIPImageProcessorPil:
    """The image processor of transformers that prepares pictures in the same way."""
    edge = ours.size.get("shortest_edge")
    crop = bool(edge) if ours.do_center_crop is None else ours.do_center_crop
    sides = {"height": edge, "width": edge} if edge else ours.size
    return CLIPImageProcessorPil(
        do_resize=ours.do_resize,
        size=ours.size,
        resample=ours.resample,
        do_center_crop=crop,
        crop_size=sides if ours.crop_size is None else ours.crop_size,
        do_rescale=ours.do_rescale,
        rescale_factor=ours.rescale_factor,
        do_normalize=ours.do_normalize,
        image_mean=ours.image_mean,
        image_std=ours.image_std,
    )


CLIP_CHECKPOINTS = (
    CLIPCheckpoint(),
    CLIPPartCheckpoint("text", CLIP_TEXT_CHECKPOINT),
    CLIPPartCheckpoint("vision", CLIP_VISION_CHECKPOINT),
)
