"""The vision tower of a vision-language model: any patch encoder, cut above the last state in use.

Shapes: V views (global views and crops), N patches of a view, C width of a patch (of all chosen hidden
states together), S side of a view in pixels.
"""

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from .configuration_vlm import MMVLMConfig

__all__ = ["VisionTower"]


class VisionTower(nn.Module):
    """Patch states of a pretrained encoder, from one or several of its hidden states.

    Args:
        config: Says which hidden states are used; `vision_config` describes the encoder.
        encoder: The encoder itself when it is at hand; built from the config otherwise. Its blocks
            above the last one in use are dropped.

    Raises:
        ValueError: The blocks of the encoder cannot be told apart from the rest of it.
    """

    def __init__(self, config: MMVLMConfig, encoder: PreTrainedModel | None = None) -> None:
        super().__init__()
        self.layers = config.vision_layers
        self.keep_all = config.vision_feature_select_strategy == "full"
        self.patch_size = config.vision_config.patch_size
        self.encoder = AutoModel.from_config(config.vision_config) if encoder is None else encoder
        if self.layers is not None:
            self.blocks_path, blocks = _find_blocks(self.encoder, config.vision_config.num_hidden_layers)
            del blocks[max(self.layers) :]
        # Left trainable, weights that feed nothing never get a gradient, which stops distributed training.
        for weight in self.idle_parameters():
            weight.requires_grad_(False)

    @property
    def width(self) -> int:
        """C, numbers per patch."""
        return self.encoder.config.hidden_size * (1 if self.layers is None else len(self.layers))

    def idle_parameters(self) -> list[nn.Parameter]:
        """Weights that run but feed nothing: the pooler, and behind a hidden state the final norm."""
        names = {"pooler", "head"}
        if self.encoder.config.model_type == "clip_vision_model":
            names.add("post_layernorm")  # CLIP's final norm is for the pooled state only
        idle = [module for name, module in self.encoder.named_children() if name in names]
        if self.layers is not None:
            idle += self._behind_blocks()
        return [weight for module in idle for weight in module.parameters()]

    def _behind_blocks(self) -> list[nn.Module]:
        path = self.blocks_path.split(".")
        behind = []
        for depth in range(len(path)):
            children = list(self.encoder.get_submodule(".".join(path[:depth])).named_children())
            position = [name for name, _ in children].index(path[depth])
            behind += [module for _, module in children[position + 1 :]]
        return behind

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(V, 3, S, S) views to (V, N, C) patch states, the leading [CLS] and registers dropped."""
        pixel_values = pixel_values.to(self.encoder.dtype)
        if self.layers is None:
            states = self.encoder(pixel_values).last_hidden_state
        else:
            hidden = self.encoder(pixel_values, output_hidden_states=True).hidden_states
            states = torch.cat([hidden[layer] for layer in self.layers], dim=-1)
        if self.keep_all:
            return states
        height, width = pixel_values.shape[-2:]
        patches = (height // self.patch_size) * (width // self.patch_size)
        return states[:, states.shape[1] - patches :]


def _find_blocks(encoder: PreTrainedModel, depth: int) -> tuple[str, nn.ModuleList]:
    """Name and list of the blocks of an encoder, told by their number."""
    stacks = [
        (name, module)
        for name, module in encoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    if len(stacks) != 1:
        raise ValueError(
            f"{type(encoder).__name__} has {len(stacks)} lists of {depth} blocks where one was expected; "
            "use `vision_feature_layer=None` to take its last state."
        )
    return stacks[0]
