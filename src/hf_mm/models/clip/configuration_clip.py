"""Configuration of the CLIP family."""

import math
from copy import deepcopy
from dataclasses import field
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ...hub.remote_code import RemoteCodeMixin

__all__ = ["MMCLIPConfig"]


@strict
class MMCLIPConfig(RemoteCodeMixin, PreTrainedConfig):
    """How an image tower and a text tower meet in one space.

    Args:
        vision_config: Config (or its dictionary) of the image tower: `mm_vit` or any vision `AutoModel` of
            transformers, ResNets and other CNNs included.
        text_config: Config of the text tower: `mm_clip_text`, `mm_bag_of_words` or any text encoder of
            transformers (BERT and the like).
        projection_dim: Width P of the common space.
        vision_pooling: How the image tower's vector is taken: its `pooler_output` ("pooler"), its first
            state ("cls"), or the mean of its states over all positions ("mean").
        text_pooling: The same of the text tower; "mean" leaves padding out.
        similarity: "cosine", or "euclidean" for minus the distance of vectors that are not normalised.
        objective: "softmax" (InfoNCE, as CLIP) or "sigmoid" (as SigLIP).
        label_smoothing: Share of the target spread over all pairs of the batch; softmax only.
        logit_scale_init_value: Logarithm of the initial scale; by default ln(1 / 0.07) as in the paper, ln 10
            for the sigmoid.
        max_logit_scale: The scale is kept between 1 and this after each training step.
        logit_bias_init_value: Initial bias of the logits, by default none, -10 for the sigmoid.
        initializer_range: Standard deviation of a classifier's initial weights.
        auto_map: Where the Auto classes find every head of the family on the Hub.
    """

    model_type = "mm_clip"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="mm_vit"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="mm_clip_text"),
    }

    vision_config: Any = None  # a config once made; dictionaries and `None` are what it is made from
    text_config: Any = None
    projection_dim: int = 512
    vision_pooling: Literal["pooler", "cls", "mean"] = "pooler"
    text_pooling: Literal["pooler", "cls", "mean"] = "pooler"
    similarity: Literal["cosine", "euclidean"] = "cosine"
    objective: Literal["softmax", "sigmoid"] = "softmax"
    label_smoothing: float = 0.0
    logit_scale_init_value: float | None = None
    max_logit_scale: float = 100.0
    logit_bias_init_value: float | None = None
    initializer_range: float = 0.02
    auto_map: dict[str, str] | None = field(default=None)

    def __post_init__(self, **kwargs: object) -> None:
        # Copies: a composite config resets the attention kernel of its parts, which may be in use elsewhere.
        self.vision_config, self.text_config = deepcopy(self.vision_config), deepcopy(self.text_config)
        super().__post_init__(**kwargs)
        # A CLIP or SigLIP checkpoint configures two towers; here each is one.
        for name in ("vision_config", "text_config"):
            if name in (getattr(self, name).sub_configs or ()):
                setattr(self, name, getattr(getattr(self, name), name))
        sigmoid = self.objective == "sigmoid"
        if self.logit_scale_init_value is None:
            self.logit_scale_init_value = math.log(10.0 if sigmoid else 1 / 0.07)
        if self.logit_bias_init_value is None and sigmoid:
            self.logit_bias_init_value = -10.0

    @property
    def vision_width(self) -> int:
        """Numbers in the image tower's vector."""
        return _width(self.vision_config, "vision_config")

    @property
    def text_width(self) -> int:
        """Numbers in the text tower's vector."""
        return _width(self.text_config, "text_config")

    def validate_widths(self) -> None:
        if self.projection_dim < 1:
            raise ValueError(f"`projection_dim`={self.projection_dim} must be at least 1.")
        _ = self.vision_width, self.text_width  # raises

    def validate_scale(self) -> None:
        log = self.logit_scale_init_value
        if self.max_logit_scale < 1.0:
            raise ValueError(f"`max_logit_scale`={self.max_logit_scale} must be at least 1.")
        if log is not None and not 0.0 <= log <= math.log(self.max_logit_scale):
            raise ValueError(
                f"`logit_scale_init_value`={log} is the logarithm of the initial scale and must be from 0 to "
                f"ln(`max_logit_scale`)={math.log(self.max_logit_scale):.4f}."
            )

    def validate_bias(self) -> None:
        if self.logit_bias_init_value is not None and self.objective == "softmax":
            raise ValueError(
                f"`logit_bias_init_value`={self.logit_bias_init_value} does nothing in a softmax; leave it "
                'out or use `objective`="sigmoid".'
            )

    def validate_smoothing(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"`label_smoothing`={self.label_smoothing} must be at least 0 and below 1.")
        if self.label_smoothing and self.objective == "sigmoid":
            raise ValueError(
                f'`label_smoothing`={self.label_smoothing} needs `objective`="softmax"; sigmoid has none.'
            )


def _width(config: PreTrainedConfig, name: str) -> int:
    """Width of a tower's states; CNNs name one per stage, of which the last counts."""
    fields = config.to_dict()
    if isinstance(fields.get("hidden_sizes"), list | tuple):
        return fields["hidden_sizes"][-1]
    for known in ("hidden_size", "hidden_dim", "d_model", "dim"):
        if isinstance(fields.get(known), int):
            return fields[known]
    raise ValueError(
        f"`{name}` of type {config.model_type!r} has neither `hidden_size` nor `hidden_sizes`, so the width "
        "of its vectors is unknown; use a tower that says it."
    )
