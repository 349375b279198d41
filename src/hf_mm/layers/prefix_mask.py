"""Who sees whom in a row of tokens: all of each other, or a prefix all and what follows the past.

The prefix mask is that of Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified
Text-to-Text Transformer", figure 4 (https://arxiv.org/abs/1910.10683).

Shapes: B rows, R places of a row, T tokens, S tokens that follow K - S others, D width.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.utils.generic import is_flash_attention_requested

from .packing import PackedRows

__all__ = ["following_mask", "row_mask"]


def row_mask(
    config: PreTrainedConfig,
    rows: PackedRows,
    tokens: Tensor,
    seen: Tensor | None,
    real: Tensor | None,
    bounded: bool = False,
) -> Any:
    """The attention mask of rows, in the form that the kernel takes.

    Args:
        config: Says which kernel.
        rows: Where tokens stand in them.
        tokens: (T, D); its dtype and device are those of the mask.
        seen: (T,) bool, true on the prefix: what everybody sees; `None` when all is prefix.
        real: (B, R) bool, false where a token is padding; `None` when no token is.
        bounded: A kernel that can is told where rows begin and end, see `PackedRows.flash_arguments`.

    Returns:
        What `Attention` takes as `attention_mask`; `None` when every place sees every place.

    Raises:
        ValueError: A prefix, and a kernel that takes no mask of one's own.
    """
    if bounded and seen is None and is_flash_attention_requested(config):
        return None
    full = real is None and len(tokens) == rows.rows * rows.length
    if real is None and not full:
        real = rows.unpack(torch.ones_like(tokens[:, 0], dtype=torch.bool))
    if seen is None:
        if full:
            return None
        embeds = tokens.new_empty(rows.rows, rows.length, 1)
        # Without the question whether it could be skipped, which would wait for an accelerator.
        return create_bidirectional_mask(config, embeds, real, allow_is_bidirectional_skip=False)
    prefix = rows.unpack(seen)  # (B, R)
    past = torch.ones(rows.length, rows.length, dtype=torch.bool, device=tokens.device).tril()
    visible = prefix.unsqueeze(1) | (~prefix.unsqueeze(2) & past)  # (B, R, R): row i looks at column j
    if real is not None:
        visible = visible & real.unsqueeze(1)
    return _for_kernel(config._attn_implementation, visible.unsqueeze(1), tokens.dtype)


def following_mask(config: PreTrainedConfig, states: Tensor, real: Tensor) -> Any:
    """The attention mask of tokens that follow others: they see what was before, and their own past.

    Args:
        config: Says which kernel.
        states: (B, S, D) of these tokens.
        real: (B, K) bool, false where there is padding; the last S are these tokens.

    Returns:
        What `Attention` takes as `attention_mask`.

    Raises:
        ValueError: Several tokens, and a kernel that takes no mask of one's own.
    """
    count, every = states.shape[1], real.shape[1]
    if count == 1:  # any kernel can hide padding
        keys = states.new_empty(len(real), every, 1)
        return create_bidirectional_mask(config, states, real, keys, allow_is_bidirectional_skip=False)
    past = torch.ones(count, every, dtype=torch.bool, device=real.device).tril(every - count)
    return _for_kernel(config._attn_implementation, (real.unsqueeze(1) & past).unsqueeze(1), states.dtype)


def _for_kernel(kernel: str, visible: Tensor, dtype: torch.dtype) -> Tensor:
    if kernel == "sdpa":
        return visible
    if kernel == "eager":
        blocked = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return blocked.masked_fill(~visible, torch.finfo(dtype).min)
    raise ValueError(
        f"A prefix mask needs an attention kernel that takes any mask, not {kernel!r}; load the model with "
        'attn_implementation="sdpa".'
    )
