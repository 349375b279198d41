"""The towers of CLIP: any image encoder, any text encoder, one vector from each.

Shapes: B images or texts, L tokens, D width of a tower, P width of the common space.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs

from ...hub.interop import ForeignLoadingMixin
from ...hub.saving import AtomicSaveMixin
from .configuration_clip import MMCLIPConfig
from .convert_clip import CLIP_CHECKPOINTS

__all__ = ["MMCLIPPreTrainedModel", "pool"]


def pool(output: ModelOutput, pooling: str, attention_mask: Tensor | None = None) -> Tensor:
    """One vector for each image or text.

    Args:
        output: Of a tower: states (B, L, D), or (B, D, rows, columns) of a CNN, and what it pooled itself.
        pooling: "pooler", "cls" or "mean".
        attention_mask: (B, L), 0 on positions that "mean" leaves out.

    Returns:
        (B, D).

    Raises:
        ValueError: The tower has no `pooler_output`.
    """
    if pooling == "pooler":
        pooled = output.get("pooler_output")
        if pooled is None:
            raise ValueError(
                f'{type(output).__name__} has no `pooler_output`; use the pooling "cls" or "mean" for it.'
            )
        return pooled.flatten(1)  # (B, D, 1, 1) of a CNN
    states = output["last_hidden_state"]
    if states.ndim == 4:
        states = states.flatten(2).transpose(1, 2)  # (B, rows * columns, D)
    if pooling == "cls":
        return states[:, 0]
    if attention_mask is None:
        return states.mean(dim=1)
    real = attention_mask.to(states.dtype).unsqueeze(-1)  # (B, L, 1)
    return (states * real).sum(dim=1) / real.sum(dim=1)


class MMCLIPPreTrainedModel(AtomicSaveMixin, ForeignLoadingMixin, PreTrainedModel):
    """What Hugging Face needs to know of every model of this family."""

    config_class = MMCLIPConfig
    base_model_prefix = ""
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    foreign_checkpoints = CLIP_CHECKPOINTS
    accepts_loss_kwargs = False  # a contrastive loss is no sum over its parts
    _supports_sdpa = True
    _supports_attention_backend = True
    vision_model: PreTrainedModel
    text_model: PreTrainedModel

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MMCLIPPreTrainedModel):
            for name, child in module.named_children():
                if name in ("visual_projection", "text_projection") and isinstance(child, nn.Linear):
                    init.normal_(child.weight, std=child.in_features**-0.5)

    def _build_tower(self, name: str, tower: PreTrainedModel | None) -> PreTrainedModel:
        """A tower made from its config, or the one at hand; what pools in vain is frozen."""
        if tower is None:
            tower = AutoModel.from_config(getattr(self.config, f"{name}_config"))
        for weight in self._idle(name, tower):
            weight.requires_grad_(False)
        return tower

    def _idle(self, name: str, tower: PreTrainedModel) -> list[nn.Parameter]:
        if getattr(self.config, f"{name}_pooling") == "pooler":
            return []
        idle = [module for child, module in tower.named_children() if child in ("pooler", "head")]
        return [weight for module in idle for weight in module.parameters()]

    def idle_parameters(self) -> list[nn.Parameter]:
        """Weights that run but feed nothing, so that no gradient reaches them: poolers passed over.

        Left trainable they would stop distributed training.
        """
        towers = dict(self.named_children())
        return [
            weight
            for name in ("vision", "text")
            if isinstance(tower := towers.get(f"{name}_model"), PreTrainedModel)
            for weight in self._idle(name, tower)
        ]

    def _see(
        self, pixel_values: Tensor, interpolate_pos_encoding: bool, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """The image tower's output, its vector (B, D) as `pooler_output`."""
        options: dict[str, Any] = dict(kwargs)
        if interpolate_pos_encoding:
            options["interpolate_pos_encoding"] = True  # CNNs do not know it
        output = self.vision_model(pixel_values=pixel_values, return_dict=True, **options)
        output["pooler_output"] = pool(output, self.config.vision_pooling)
        return output

    def _read(
        self, input_ids: Tensor, attention_mask: Tensor | None, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """The text tower's output, its vector (N, D) as `pooler_output`."""
        output = self.text_model(
            input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs
        )
        output["pooler_output"] = pool(output, self.config.text_pooling, attention_mask)
        return output

    def _ready(self, features: Tensor) -> Tensor:
        """Features as they are compared: of length one for the cosine."""
        return nn.functional.normalize(features, dim=-1) if self.config.similarity == "cosine" else features
