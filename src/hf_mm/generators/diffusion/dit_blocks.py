"""Layers of a diffusion transformer, told by scales and shifts what time it is and what is wanted.

Peebles and Xie 2023, "Scalable Diffusion Models with Transformers", figure 3 (adaLN-Zero)
(https://arxiv.org/abs/2212.09748): each branch begins as nothing, its gate being zero. A text comes in by
cross-attention (Chen et al. 2024, "PixArt-alpha", section 2.3, https://arxiv.org/abs/2310.00426), or as a
second sequence with weights of its own (Esser et al. 2024, "Scaling Rectified Flow Transformers", figure 2,
https://arxiv.org/abs/2403.03206).

Shapes: B pictures, N patches, L tokens of a text, D width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from ...layers.onednn_linear import OneDNNLinear
from .dit_attention import DiTAttention, DiTJointAttention

__all__ = ["DiTBlock", "DiTCrossBlock", "DiTJointBlock", "DiTSizes", "modulate"]


@dataclass
class DiTSizes:
    """What all layers share.

    Args:
        width: D.
        num_heads: Of each attention.
        inner_width: Of each MLP.
        qk_norm: Whether queries and keys are normalised.
        norm_eps: Of all norms but that before an MLP.
        mlp_norm_eps: Of that one.
    """

    width: int
    num_heads: int
    inner_width: int
    qk_norm: bool
    norm_eps: float
    mlp_norm_eps: float


class DiTMLP(nn.Module):
    """Two linear layers with a GELU, by tanh, between them."""

    def __init__(self, sizes: DiTSizes) -> None:
        super().__init__()
        self.fc1 = OneDNNLinear(sizes.width, sizes.inner_width)
        self.fc2 = OneDNNLinear(sizes.inner_width, sizes.width)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(hidden_states), approximate="tanh"))


class DiTBlock(nn.Module):
    """Attention among the patches, then an MLP, each behind a modulated norm and before a gate.

    Args:
        sizes: See `DiTSizes`.
    """

    def __init__(self, sizes: DiTSizes) -> None:
        super().__init__()
        self.modulation = OneDNNLinear(sizes.width, 6 * sizes.width)
        self.attn_norm = nn.LayerNorm(sizes.width, eps=sizes.norm_eps, elementwise_affine=False)
        self.attn = self.build_attention(sizes)
        self.mlp_norm = nn.LayerNorm(sizes.width, eps=sizes.mlp_norm_eps, elementwise_affine=False)
        self.mlp = DiTMLP(sizes)

    @property
    def text_attention(self) -> DiTAttention | None:
        """Where patches look at the text, if anywhere."""
        return None

    def build_attention(self, sizes: DiTSizes) -> DiTAttention:
        """The attention that patches take part in."""
        return DiTAttention(sizes.width, sizes.num_heads, sizes.qk_norm, sizes.norm_eps)

    def zero(self) -> None:
        """Make each branch give nothing: the layer is the identity then."""
        _zero(self.modulation)

    def forward(
        self, hidden_states: Tensor, condition: Tensor, text: Any, text_mask: Tensor | None
    ) -> tuple[Tensor, Any]:
        """One layer.

        Args:
            hidden_states: (B, N, D).
            condition: (B, 1, D), activated.
            text: (B, L, D), or `None` for layers that read none.
            text_mask: (B, 1, 1, L), or for joint attention (B, 1, 1, L + N), false on padding.

        Returns:
            Both sequences, each of the shape it had.
        """
        shift, scale, gate, *of_mlp = self.modulation(condition).chunk(6, dim=-1)
        mixed = self.attn(modulate(self.attn_norm(hidden_states), shift, scale))
        hidden_states = torch.addcmul(hidden_states, gate, mixed)
        return _mlp_branch(self.mlp_norm, self.mlp, hidden_states, *of_mlp), text


class DiTCrossBlock(DiTBlock):
    """A `DiTBlock` whose patches look at a text between attention and MLP.

    Args:
        sizes: See `DiTSizes`.
    """

    def __init__(self, sizes: DiTSizes) -> None:
        super().__init__(sizes)
        self.cross_norm = nn.LayerNorm(sizes.width, eps=sizes.norm_eps, elementwise_affine=False)
        self.cross_attn = self.build_attention(sizes)

    @property
    def text_attention(self) -> DiTAttention:
        """See `DiTBlock`."""
        return self.cross_attn

    def zero(self) -> None:
        """See `DiTBlock`."""
        super().zero()
        _zero(self.cross_attn.to_out[0])

    def forward(
        self, hidden_states: Tensor, condition: Tensor, text: Any, text_mask: Tensor | None
    ) -> tuple[Tensor, Any]:
        """See `DiTBlock`."""
        shift, scale, gate, *of_mlp = self.modulation(condition).chunk(6, dim=-1)
        mixed = self.attn(modulate(self.attn_norm(hidden_states), shift, scale))
        hidden_states = torch.addcmul(hidden_states, gate, mixed)
        hidden_states = hidden_states + self.cross_attn(self.cross_norm(hidden_states), text, text_mask)
        return _mlp_branch(self.mlp_norm, self.mlp, hidden_states, *of_mlp), text


class DiTJointBlock(DiTBlock):
    """Two sequences, patches and a text, that meet in one attention; all else each has for itself.

    Args:
        sizes: See `DiTSizes`.
        is_last: Nobody reads the text after it: the text gives keys and values, and has no more of its own.
    """

    def __init__(self, sizes: DiTSizes, is_last: bool) -> None:
        self.is_last = is_last
        super().__init__(sizes)
        self.text_modulation = OneDNNLinear(sizes.width, (2 if is_last else 6) * sizes.width)
        self.text_norm = nn.LayerNorm(sizes.width, eps=sizes.norm_eps, elementwise_affine=False)
        if not is_last:
            self.text_mlp_norm = nn.LayerNorm(sizes.width, eps=sizes.mlp_norm_eps, elementwise_affine=False)
            self.text_mlp = DiTMLP(sizes)

    @property
    def text_attention(self) -> DiTAttention:
        """See `DiTBlock`."""
        return self.attn

    def build_attention(self, sizes: DiTSizes) -> DiTAttention:
        """See `DiTBlock`."""
        settings = sizes.width, sizes.num_heads, sizes.qk_norm, sizes.norm_eps
        return DiTJointAttention(*settings, text_looks=not self.is_last)

    def zero(self) -> None:
        """See `DiTBlock`."""
        super().zero()
        _zero(self.text_modulation)

    def forward(
        self, hidden_states: Tensor, condition: Tensor, text: Any, text_mask: Tensor | None
    ) -> tuple[Tensor, Any]:
        """See `DiTBlock`."""
        shift, scale, gate, *of_mlp = self.modulation(condition).chunk(6, dim=-1)
        text_shift, text_scale, *of_text = self.text_modulation(condition).chunk(
            2 if self.is_last else 6, dim=-1
        )
        mixed, text_mixed = self.attn(
            modulate(self.attn_norm(hidden_states), shift, scale),
            modulate(self.text_norm(text), text_shift, text_scale),
            text_mask,
        )
        hidden_states = torch.addcmul(hidden_states, gate, mixed)
        hidden_states = _mlp_branch(self.mlp_norm, self.mlp, hidden_states, *of_mlp)
        if self.is_last:
            return hidden_states, None
        text_gate, *of_text_mlp = of_text
        text = torch.addcmul(text, text_gate, text_mixed)
        return hidden_states, _mlp_branch(self.text_mlp_norm, self.text_mlp, text, *of_text_mlp)


def modulate(normed: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale by 1 + `scale`, then shift, in one pass over memory."""
    return torch.addcmul(shift, normed, 1 + scale)


def _mlp_branch(
    norm: nn.Module, mlp: nn.Module, hidden_states: Tensor, shift: Tensor, scale: Tensor, gate: Tensor
) -> Tensor:
    return torch.addcmul(hidden_states, gate, mlp(modulate(norm(hidden_states), shift, scale)))


def _zero(layer: Any) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
