"""All codes at once in a few rounds: guess every masked code, keep the surest, mask the others again.

Chang et al. 2022, "MaskGIT: Masked Generative Image Transformer" (https://arxiv.org/abs/2202.04200): masked
modelling with a random share in training (section 3.1), iterative decoding with a cosine schedule (3.2, 3.3).

Shapes: B pictures, T tokens of a condition, L codes of a picture, K codes.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .choosing_codes import draw_codes, guided_logits
from .code_vocabulary import CodeVocabulary

__all__ = ["MEAN_SHARE", "draw_masks", "masked_codes", "masked_logits", "masks_left"]

MEAN_SHARE = 2 / math.pi  # of masked codes in training: the mean of the cosine over a quarter turn


def draw_masks(rows: int, length: int, device: torch.device) -> Tensor:
    """Which codes training hides, (B, L): the share cos(pi u / 2) of each row, u uniform, one or more."""
    shares = torch.cos(torch.rand(rows, 1, device=device) * (math.pi / 2))  # (B, 1)
    counts = (shares * length).round().clamp(min=1)
    ranks = torch.rand(rows, length, device=device).argsort(-1).argsort(-1)
    return ranks < counts


def masks_left(step: int, steps: int, length: int) -> int:
    """How many of L codes are still masked after round `step` (from 0) of `steps`; 0 after the last.

    At least one code is fixed in each round, and one at least is left for the next.
    """
    done = step + 1
    if done == steps:
        return 0
    share = math.cos(math.pi / 2 * done / steps)
    return max(steps - done, min(length - done, int(share * length)))


def masked_logits(transformer: Any, prefixes: Tensor, codes: Tensor, num_codes: int) -> Tensor:
    """The logits (B, L, K) of every code, given all that are not masked.

    Args:
        transformer: A bidirectional masked language model, as `BertForMaskedLM`.
        prefixes: (B, T) tokens of the conditions.
        codes: (B, L) codes, or the token of the mask.
        num_codes: K.
    """
    tokens = torch.cat([prefixes, codes], dim=1)  # (B, T + L)
    return transformer(input_ids=tokens).logits[:, prefixes.shape[1] :, :num_codes]


def masked_codes(
    transformer: Any,
    vocabulary: CodeVocabulary,
    prefixes: Tensor,
    length: int,
    steps: int,
    guidance_scale: float,
    warp: Callable[[Tensor], Tensor],
    choice_temperature: float,
    noise: Callable[[int], Tensor],
) -> Iterator[Tensor]:
    """Write pictures in rounds.

    Args:
        transformer: A bidirectional masked language model.
        vocabulary: Its own.
        prefixes: (B, T) tokens of the conditions.
        length: L.
        steps: Rounds, L at most.
        guidance_scale: s of `guided_logits`; 1 does without the empty condition.
        warp: See `code_warpers`.
        choice_temperature: Noise in the choice of the surest codes, in nats of Gumbel noise in the first
            round, falling to 0 in the last.
        noise: Gives exponential noise (B, n) for n, see `row_noise`.

    Yields:
        (B, L) after each round, a new tensor; what is still masked is -1. What the caller changes in it, the
        next rounds read, and keep.
    """
    num_codes, mask_id = vocabulary.num_codes, vocabulary.mask_id
    nothing = vocabulary.null_prefixes(len(prefixes)).to(prefixes.device)
    codes = torch.full((len(prefixes), length), mask_id, device=prefixes.device)
    for step in range(steps):
        masked = codes == mask_id
        logits = _logits(transformer, prefixes, nothing, codes, num_codes, guidance_scale)
        logits = warp(logits.flatten(0, 1))  # (B * L, K)
        drawn = draw_codes(logits, noise(length * num_codes).view(-1, num_codes))  # (B * L,)
        sureness = logits.log_softmax(-1).gather(-1, drawn.unsqueeze(-1)).view_as(codes)
        gumbel = -noise(length).log()  # (B, L)
        sureness = sureness + choice_temperature * (1 - (step + 1) / steps) * gumbel
        filled = torch.where(masked, drawn.view_as(codes), codes)
        sureness = sureness.masked_fill(~masked, torch.inf)  # what is fixed stays
        ranks = sureness.argsort(-1).argsort(-1)
        again = masked & (ranks < masks_left(step, steps, length))
        shown = filled.masked_fill(again, -1)
        yield shown
        codes = shown.masked_fill(shown < 0, mask_id)


def _logits(
    transformer: Any, prefixes: Tensor, nothing: Tensor, codes: Tensor, num_codes: int, scale: float
) -> Tensor:
    """(B, L, K) in float32, guided."""
    if scale == 1:
        return masked_logits(transformer, prefixes, codes, num_codes).float()
    both = torch.cat([prefixes, nothing])
    logits = masked_logits(transformer, both, codes.repeat(2, 1), num_codes).float()
    return guided_logits(*logits.chunk(2), scale)
