"""The pre-norm transformer block, of images and of text alike.

Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture", figure 1 (b)
(https://arxiv.org/abs/2002.04745); in a Vision Transformer as in Dosovitskiy et al. 2021, figure 1.
"""

from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .attention import Attention
from .onednn_linear import OneDNNLinear

__all__ = ["MLP", "PreNormBlock"]


class MLP(nn.Module):
    """Two linear layers with an activation between, applied to every token alike.

    Args:
        config: Supplies `hidden_size`, `intermediate_size` and `hidden_act`.
        hidden_size: Where it is not that of `config`.
        intermediate_size: Where it is not that of `config`.
    """

    def __init__(
        self, config: PreTrainedConfig, hidden_size: int | None = None, intermediate_size: int | None = None
    ) -> None:
        super().__init__()
        width = config.hidden_size if hidden_size is None else hidden_size
        inner = config.intermediate_size if intermediate_size is None else intermediate_size
        self.fc1 = OneDNNLinear(width, inner)
        self.act = ACT2FN[config.hidden_act]
        self.fc2 = OneDNNLinear(inner, width)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(hidden_states)))


class PreNormBlock(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
        config: Supplies what `Attention` and `MLP` read, `layer_norm_eps` and `hidden_dropout`.
        is_causal: Every position attends to itself and what precedes it only.
    """

    def __init__(self, config: PreTrainedConfig, is_causal: bool = False) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Attention(config, is_causal=is_causal)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states: Tensor, **kwargs: Unpack[TransformersKwargs]) -> Tensor:
        mixed, _ = self.attention(self.attention_norm(hidden_states), **kwargs)
        hidden_states = hidden_states + self.dropout(mixed)
        return hidden_states + self.dropout(self.mlp(self.mlp_norm(hidden_states)))
