"""The post-norm transformer block of BERT.

Vaswani et al. 2017, "Attention Is All You Need", figure 1 (https://arxiv.org/abs/1706.03762); Devlin et al.
2019, "BERT" (https://arxiv.org/abs/1810.04805).
"""

from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .attention import Attention
from .blocks import MLP

__all__ = ["PostNormBlock"]


class PostNormBlock(GradientCheckpointingLayer):
    """norm(x + attention(x)), then norm(x + mlp(x)).

    Args:
        config: Supplies what `Attention` and `MLP` read, `layer_norm_eps` and `hidden_dropout`.
        hidden_size: Where it is not that of `config`.
        num_heads: Where they are not those of `config`.
        intermediate_size: Where it is not that of `config`.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        hidden_size: int | None = None,
        num_heads: int | None = None,
        intermediate_size: int | None = None,
    ) -> None:
        super().__init__()
        width = config.hidden_size if hidden_size is None else hidden_size
        self.attention = Attention(config, hidden_size=width, num_heads=num_heads)
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = MLP(config, width, intermediate_size)
        self.mlp_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self, hidden_states: Tensor, context: Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> Tensor:
        """Of tokens, given what attention reads: themselves, or the `context` of which they are a part."""
        mixed, _ = self.attention(hidden_states, context, **kwargs)
        hidden_states = self.attention_norm(hidden_states + self.dropout(mixed))
        return self.mlp_norm(hidden_states + self.dropout(self.mlp(hidden_states)))
