"""Prompts to the states of a text encoder, which denoisers read.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", section 3.3
(https://arxiv.org/abs/2112.10752).

Shapes: N texts, L tokens, D width of a text encoder.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .denoising_call import encode_text

__all__ = ["prompt_states", "prompt_tokens", "text_context"]

ENCODED_TOGETHER = 64  # texts that go through the encoder at a time


def text_context(tokenizer: Any, text_encoder: Any) -> int | None:
    """The most tokens of a text, by the tokenizer and by the encoder's positions; `None` without a limit."""
    limits = (tokenizer.model_max_length, text_encoder.config.to_dict().get("max_position_embeddings"))
    context = min(limit for limit in limits if limit is not None)
    return context if context < 1e6 else None  # tokenizers say 1e30 for none


def prompt_tokens(
    tokenizer: Any,
    prompts: Sequence[str],
    context: int | None,
    full_length: bool,
    reported: set[str] | None = None,
) -> tuple[Tensor, Tensor]:
    """Texts to tokens, padded on the right; what is beyond the context is cut off and reported.

    Args:
        tokenizer: Of the encoder.
        prompts: N texts.
        context: Most tokens of one; `None`: any number.
        full_length: Pad to the context, for denoisers that read padding; else to the longest text.
        reported: Texts whose cut was reported before, not to be reported again; those found are added.

    Returns:
        `input_ids` and `attention_mask` (N, L).

    Raises:
        ValueError: There is no context to pad to.
    """
    if full_length and context is None:
        raise ValueError(
            "The denoiser reads texts of one length, padding included, but neither "
            "`tokenizer.model_max_length` nor the text encoder says which; set "
            "`tokenizer.model_max_length` as in training."
        )
    reported = set() if reported is None else reported
    options = {} if context is None else {"truncation": True, "max_length": context}
    padding = "max_length" if full_length else "longest"
    encoded = tokenizer(
        list(prompts), padding=padding, padding_side="right", return_tensors="pt", verbose=False, **options
    )
    mask = encoded["attention_mask"]
    full = mask.sum(1) == mask.shape[1] if mask.shape[1] == context else torch.zeros(len(mask))
    long = [text for text, is_full in zip(prompts, full.tolist(), strict=True) if is_full]
    if new := [text for text in dict.fromkeys(long) if text not in reported]:
        _report_cuts(tokenizer, new, int(context or 0), reported)
    return encoded["input_ids"], mask


def prompt_states(
    tokenizer: Any,
    text_encoder: Any,
    prompts: Sequence[str],
    full_length: bool,
    device: torch.device,
    reported: set[str] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """States of texts, each different text encoded once.

    Args:
        tokenizer: Of the encoder.
        text_encoder: Any of transformers' with a `last_hidden_state`.
        prompts: N texts.
        full_length: Whether the denoiser reads padding; see `denoising_call.reads_padding`.
        device: Where the encoder runs.
        reported: See `prompt_tokens`.

    Returns:
        (N, L, D) states, and the mask (N, L), 0 on padding; `None` where padding is read.

    Raises:
        ValueError: A text has no token at all, and padding is not read.
    """
    different = list(dict.fromkeys(prompts))
    context = text_context(tokenizer, text_encoder)
    ids, mask = prompt_tokens(tokenizer, different, context, full_length, reported)
    if not full_length and not mask.any(1).all():
        empty = different[int(mask.any(1).long().argmin())]
        raise ValueError(
            f"The tokenizer makes no token of {empty!r}, so the denoiser has nothing to read; take one that "
            "adds a token at the beginning or the end, as those of CLIP and BERT do."
        )
    ids, mask = ids.to(device), mask.to(device)
    parts = [
        encode_text(text_encoder, ids[n : n + ENCODED_TOGETHER], seen)
        for n in range(0, len(ids), ENCODED_TOGETHER)
        for seen in [None if full_length else mask[n : n + ENCODED_TOGETHER]]
    ]
    places = torch.tensor([different.index(text) for text in prompts], device=device)
    return torch.cat(parts)[places], None if full_length else mask[places]


def _report_cuts(tokenizer: Any, texts: Sequence[str], context: int, reported: set[str]) -> None:
    """One warning for those of the texts that have more tokens than the context."""
    whole = tokenizer(list(texts), verbose=False)["input_ids"]
    cut = [(text, ids) for text, ids in zip(texts, whole, strict=True) if len(ids) > context]
    if not cut:
        return
    reported.update(text for text, _ in cut)
    text, ids = cut[0]
    lost = tokenizer.decode(ids[context - 1 :], skip_special_tokens=True).strip()
    logging.getLogger(__name__).warning(
        "%d of the prompts are longer than the context of %d tokens and were cut off; of %r, which has %d, "
        "%r is not read. Shorten it to have all of it read.",
        len(cut),
        context,
        text if len(text) <= 80 else f"{text[:77]}...",
        len(ids),
        lost if len(lost) <= 80 else f"{lost[:77]}...",
    )
