"""Attention of a diffusion transformer: among patches, from patches to a text, or among both together.

Joint attention is that of Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image
Synthesis", section 4 (https://arxiv.org/abs/2403.03206). Parts have the names that diffusers gives them, so
that adapters find them.

Shapes: B pictures, N patches, L tokens of a text, H heads, E head width, D = H * E width, Q queries, K keys.
"""

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn
from torch.autograd import forward_ad

from ...layers.attention import eager_attention
from ...layers.onednn_linear import OneDNNLinear

__all__ = ["DiTAttention", "DiTJointAttention"]


class DiTAttention(nn.Module):
    """Multi-head attention, of a sequence to itself or to a text.

    Args:
        width: D.
        num_heads: H.
        qk_norm: Normalise each query and key by its root mean square, with a learnt scale.
        norm_eps: Of that norm.
    """

    def __init__(self, width: int, num_heads: int, qk_norm: bool, norm_eps: float) -> None:
        super().__init__()
        self.head_dim = width // num_heads
        self.record: list[Tensor] | None = None  # gets what patches look at in the text, while it is a list
        self.to_q, self.to_k, self.to_v = (OneDNNLinear(width, width) for _ in range(3))
        self.to_out = nn.Sequential(OneDNNLinear(width, width))
        self.norm_q, self.norm_k = (self._norm(qk_norm, norm_eps) for _ in range(2))

    def forward(
        self, hidden_states: Tensor, text: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """Mix `text`, or `hidden_states` itself, into every position.

        Args:
            hidden_states: (B, N, D).
            text: (B, L, D); `None` means self-attention.
            text_mask: (B, 1, 1, L), false on padding.

        Returns:
            (B, N, D).
        """
        context = hidden_states if text is None else text
        query = self.norm_q(self.split(self.to_q(hidden_states)))
        key = self.norm_k(self.split(self.to_k(context)))
        mixed = self.mix(query, key, self.split(self.to_v(context)), text_mask, key.shape[1])
        return self.to_out(mixed)

    def mix(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, tokens: int, asking: int = 0
    ) -> Tensor:
        """The values by the likeness of keys and queries, by the kernel that diffusers is set to.

        Args:
            query: (B, Q, H, E), those of the text first.
            key: (B, K, H, E), those of the text first.
            value: (B, K, H, E).
            mask: (B, 1, 1, K), false on what is not to be seen.
            tokens: How many keys are of the text, for `record`.
            asking: How many queries are.

        Returns:
            (B, Q, D).
        """
        # Forward-mode derivatives pass through the formula only, kernels have none.
        if self.record is None and forward_ad._current_level < 0:
            return dispatch_attention_fn(query, key, value, attn_mask=mask).flatten(2)
        hidden = None if mask is None else _hidden_scores(mask, query.dtype)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))  # (B, H, L, E)
        mixed, weights = eager_attention(self, query, key, value, hidden, self.head_dim**-0.5)
        if self.record is not None:
            self.record.append(weights[:, :, asking:, :tokens].detach())
        return mixed.flatten(2)

    def split(self, states: Tensor) -> Tensor:
        """(B, L, D) to (B, L, H, E)."""
        return states.unflatten(-1, (-1, self.head_dim))

    def _norm(self, wanted: bool, eps: float) -> nn.Module:
        return nn.RMSNorm(self.head_dim, eps=eps) if wanted else nn.Identity()


class DiTJointAttention(DiTAttention):
    """Patches and tokens of a text look at each other, each with projections of their own.

    Args:
        width: D.
        num_heads: H.
        qk_norm: See `DiTAttention`.
        norm_eps: See `DiTAttention`.
        text_looks: Tokens of the text look too; not in the last layer, after which nobody reads them.
    """

    def __init__(
        self, width: int, num_heads: int, qk_norm: bool, norm_eps: float, text_looks: bool = True
    ) -> None:
        super().__init__(width, num_heads, qk_norm, norm_eps)
        self.text_looks = text_looks
        self.add_k_proj, self.add_v_proj = (OneDNNLinear(width, width) for _ in range(2))
        self.norm_added_k = self._norm(qk_norm, norm_eps)
        if text_looks:
            self.add_q_proj, self.to_add_out = (OneDNNLinear(width, width) for _ in range(2))
            self.norm_added_q = self._norm(qk_norm, norm_eps)

    def forward(  # ty: ignore[incompatible-method-override]
        self, hidden_states: Tensor, text: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Mix both sequences into both.

        Args:
            hidden_states: (B, N, D).
            text: (B, L, D).
            mask: (B, 1, 1, L + N), false on padding.

        Returns:
            (B, N, D) for the patches and (B, L, D) for the text, `None` where that does not look.
        """
        tokens = text.shape[1]
        query = self.norm_q(self.split(self.to_q(hidden_states)))
        key = self.norm_k(self.split(self.to_k(hidden_states)))
        value = self.split(self.to_v(hidden_states))
        key = torch.cat(
            (self.norm_added_k(self.split(self.add_k_proj(text))), key), dim=1
        )  # (B, L + N, H, E)
        value = torch.cat((self.split(self.add_v_proj(text)), value), dim=1)
        if not self.text_looks:
            return self.to_out(self.mix(query, key, value, mask, tokens)), None
        query = torch.cat((self.norm_added_q(self.split(self.add_q_proj(text))), query), dim=1)
        mixed = self.mix(query, key, value, mask, tokens, asking=tokens)  # (B, L + N, D)
        return self.to_out(mixed[:, tokens:]), self.to_add_out(mixed[:, :tokens])


def _hidden_scores(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What to add to scores: 0 where `mask` is true, else so little that nothing is left."""
    scores = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return scores.masked_fill(~mask, torch.finfo(dtype).min)
