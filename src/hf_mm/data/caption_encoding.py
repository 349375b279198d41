"""Texts to be written behind prompts, as tokens: what is read, and what is learnt.

Shapes: B rows, L tokens.
"""

from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

__all__ = ["WritingProcessor", "encode_captions"]


class WritingProcessor(Protocol):
    """A processor that knows how texts begin and end, such as `MMViltProcessor`."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int

    def prompt_ids(self, texts: list[str]) -> list[list[int]]:
        """Tokens of beginnings of texts."""
        ...

    def tokens_around(self) -> tuple[list[int], list[int]]:
        """Special tokens before and after a text."""
        ...


def encode_captions(processor: WritingProcessor, prompts: list[str], texts: list[str]) -> dict[str, Tensor]:
    """Prompts, each with the text that is to be written behind it.

    Args:
        processor: Of the model.
        prompts: B beginnings, which may be empty.
        texts: B texts.

    Returns:
        `input_ids`, `attention_mask` and `token_type_ids` (B, L), padded on the right; `prefix_mask` (B, L),
        1 on the prompt and what begins a text; `labels` (B, L), the token at each place of the text and of
        what ends it, -100 elsewhere.

    Raises:
        ValueError: A text is too long with its prompt.
    """
    tokenizer, most = processor.tokenizer, processor.max_length
    starts = processor.prompt_ids(prompts)
    _, end = processor.tokens_around()
    ends = [row + end for row in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]
    lengths = [len(start) + len(rest) for start, rest in zip(starts, ends, strict=True)]
    width = max(lengths)
    if width > most:
        number = lengths.index(width)
        raise ValueError(
            f"Row {number} of the batch has {width} tokens with its prompt, and `max_length` is {most}: "
            f"{texts[number][:60]!r}. Shorten it, or leave it out."
        )
    ids = torch.full((len(texts), width), tokenizer.pad_token_id)
    places, labels = torch.arange(width), torch.full_like(ids, -100)
    for row, (start, rest) in enumerate(zip(starts, ends, strict=True)):
        ids[row, : lengths[row]] = torch.tensor(start + rest)
        labels[row, len(start) : lengths[row]] = torch.tensor(rest)
    return {
        "input_ids": ids,
        "attention_mask": (places < torch.tensor(lengths)[:, None]).long(),
        "token_type_ids": torch.zeros_like(ids),
        "prefix_mask": (places < torch.tensor([len(start) for start in starts])[:, None]).long(),
        "labels": labels,
    }
