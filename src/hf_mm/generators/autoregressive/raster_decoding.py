"""One code after the other, from the top left corner to the bottom right, by a stock causal language model.

Sun et al. 2024, "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation"
(https://arxiv.org/abs/2406.06525). The softmax is over the codes alone: no picture has a class or a word in
it, so their tokens are neither learnt nor drawn.

Shapes: B pictures, T tokens of a condition, L codes of a picture, K codes, D width of the model.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from ...layers.decode_cache import RoomyLayer
from .choosing_codes import draw_codes, guided_logits
from .code_vocabulary import CodeVocabulary

__all__ = ["code_nats", "raster_codes", "raster_logits"]


def raster_logits(transformer: Any, prefixes: Tensor, codes: Tensor, num_codes: int) -> Tensor:
    """The logits (B, L, K) of every code, given the condition and the codes before it.

    Args:
        transformer: A causal language model, as `LlamaForCausalLM`.
        prefixes: (B, T) tokens of the conditions.
        codes: (B, L).
        num_codes: K.
    """
    tokens = torch.cat([prefixes, codes[:, :-1]], dim=1)  # (B, T + L - 1)
    states = transformer.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    return _code_head(transformer, states[:, prefixes.shape[1] - 1 :], num_codes)


def code_nats(transformer: Any, prefixes: Tensor, codes: Tensor, num_codes: int) -> Tensor:
    """-log p of every code (B, L) in nats, in float32, given the condition and the codes before it."""
    logits = raster_logits(transformer, prefixes, codes, num_codes).float()
    return nn.functional.cross_entropy(logits.transpose(1, 2), codes, reduction="none")


def raster_codes(
    transformer: Any,
    vocabulary: CodeVocabulary,
    prefixes: Tensor,
    length: int,
    guidance_scale: float,
    warp: Callable[[Tensor], Tensor],
    noise: Callable[[int], Tensor],
) -> Iterator[Tensor]:
    """Write pictures, code by code; the keys and values of what is written are kept.

    Args:
        transformer: A causal language model.
        vocabulary: Its own.
        prefixes: (B, T) tokens of the conditions.
        length: L.
        guidance_scale: s of `guided_logits`; 1 does without the empty condition.
        warp: See `code_warpers`.
        noise: Gives exponential noise (B, n) for n, see `row_noise`. It is asked for one of all tokens, as
            transformers' `generate` draws it, so that the same seed gives the same codes.

    Yields:
        (B, L), always the same tensor, after each code; what is still to come is -1. What the caller changes
        in it, the model reads.
    """
    num_codes = vocabulary.num_codes
    guided = guidance_scale != 1
    nothing = vocabulary.null_prefixes(len(prefixes)).to(prefixes.device)
    rows = torch.cat([prefixes, nothing]) if guided else prefixes
    reader = _Reader(transformer, rows, num_codes)
    codes = torch.full((len(prefixes), length), -1, device=prefixes.device)
    given: Tensor | None = None
    for place in range(length):
        logits = reader.read(given)  # (B or 2B, K)
        if guided:
            logits = guided_logits(*logits.chunk(2), guidance_scale)
        codes[:, place] = draw_codes(warp(logits), noise(vocabulary.size)[:, :num_codes])
        yield codes
        given = codes[:, place : place + 1].repeat(1 + guided, 1)  # (B or 2B, 1)


class _Reader:
    """Rows that the model reads together, each the continuation of a condition."""

    def __init__(self, transformer: Any, prefixes: Tensor, num_codes: int) -> None:
        self.transformer, self.prefixes, self.num_codes = transformer, prefixes, num_codes
        self.cache = DynamicCache(config=transformer.config)
        self.cache.layers = [RoomyLayer() for _ in self.cache.layers]

    def read(self, codes: Tensor | None) -> Tensor:
        """The logits (rows, K) in float32 of what follows the conditions, or the next codes (rows, 1)."""
        tokens = self.prefixes if codes is None else codes
        states = self.transformer.base_model(
            input_ids=tokens, past_key_values=self.cache, use_cache=True
        ).last_hidden_state
        return _code_head(self.transformer, states[:, -1], self.num_codes).float()


def _code_head(transformer: Any, states: Tensor, num_codes: int) -> Tensor:
    """(..., D) to (..., K)."""
    head = transformer.get_output_embeddings()
    if type(head) is not nn.Linear:
        return head(states)[..., :num_codes]
    bias = None if head.bias is None else head.bias[:num_codes]
    return nn.functional.linear(states, head.weight[:num_codes], bias)
