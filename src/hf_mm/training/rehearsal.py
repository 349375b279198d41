"""A language model's own texts, learnt again beside something new, so that it goes on writing as before.

What a model was trained on is seldom at hand; what it says by itself stands in for it. On samples of a model
the cross-entropy is smallest where nothing has changed. Robins 1995, "Catastrophic Forgetting, Rehearsal
and Pseudorehearsal", Connection Science 7 (2).
"""

from collections.abc import Sequence
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..models.vlm.chat_vlm import filler_id

__all__ = ["OPENINGS", "rehearsal_rows"]

OPENINGS = ("The", "A", "In", "This", "If", "When", "To", "How", "It", "For", "We", "There")
"""First words of texts of any kind."""


def rehearsal_rows(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    chat_opening: str | None = None,
    openings: Sequence[str] = OPENINGS,
    length: int = 96,
    batch_size: int = 64,
) -> list[dict]:
    """Let a model write texts, by chance from torch's generator, as rows of `encode_rows` without images.

    Args:
        model: A language model, or a vision-language model, which is then given no image.
        tokenizer: Its tokenizer.
        count: How many texts.
        chat_opening: How a chat begins, up to the user's words; half of the texts are then chats.
        openings: How the other texts begin.
        length: Tokens of a text, its beginning included.
        batch_size: Texts that are written at a time.

    Returns:
        Packed rows, see `encode_rows`; every token is a label.

    Raises:
        ValueError: An opening leaves no room for a text.
    """
    opened = [*openings, *([chat_opening] * len(openings) if chat_opening else [])]
    starts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in opened]
    if max(map(len, starts)) >= length:
        raise ValueError(
            f"`length`={length} leaves no room behind an opening of {max(map(len, starts))} tokens; raise it."
        )
    wanted = [starts[number % len(starts)] for number in range(count)]
    rows = []
    for size in sorted({len(start) for start in wanted}):
        alike = [start for start in wanted if len(start) == size]
        for first in tqdm(range(0, len(alike), batch_size), desc="Writing texts", unit="batch"):
            rows += [
                _row(ids) for ids in _written(model, tokenizer, alike[first : first + batch_size], length)
            ]
    return rows


def _written(
    model: Any, tokenizer: PreTrainedTokenizerBase, starts: list[list[int]], length: int
) -> list[list[int]]:
    """Starts of one length with what the model writes behind them, over the ends of turns too."""
    ids = torch.tensor(starts, device=model.device)
    was_training = model.training
    model.eval()
    try:
        written = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            max_new_tokens=length - ids.shape[1],
            pad_token_id=filler_id(tokenizer) or 0,
            # No token: what follows the end of a turn is the model's own too.
            eos_token_id=model.config.get_text_config().vocab_size,
        )
    finally:
        model.train(was_training)
    return written.tolist()


def _row(ids: list[int]) -> dict:
    count = len(ids)
    return {
        "images": [],
        "input_ids": ids,
        "labels": ids,
        "position_ids": list(range(count)),
        "document_ids": [1] * count,
        "branch_ids": [0] * count,
    }
