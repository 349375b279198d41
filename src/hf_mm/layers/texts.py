"""Texts to tokens, and what processors of all families ask of a tokenizer and of texts before.

Shapes: B texts, L tokens of the longest, D width of a token.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerBase

__all__ = [
    "check_kept_tokens",
    "check_text_rows",
    "check_tokenizer",
    "check_word_rows",
    "padded_prompts",
    "prompt_tokens",
    "tokens_around_text",
    "tokens_of_texts",
]


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, max_length: int | None = None, kind: str = "text"
) -> None:
    """Refuse a tokenizer that cannot pad, and a limit that leaves no room for a text.

    Args:
        tokenizer: Any.
        max_length: Most tokens of a text, special ones included; `None` for no limit.
        kind: What texts are called in errors.

    Raises:
        ValueError: As said.
    """
    if tokenizer.pad_token_id is None:
        raise ValueError("The tokenizer has no `pad_token`; set one, such as '[PAD]' or its `eos_token`.")
    around = tokenizer.num_special_tokens_to_add()
    if max_length is not None and max_length <= around:
        raise ValueError(
            f"`max_length`={max_length} leaves no room for a {kind} beside the {around} tokens around it; "
            "give as many as the model has positions for text."
        )


def check_text_rows(texts: Sequence[str], kind: str = "text") -> None:
    """Refuse what is no text, or empty.

    Args:
        texts: B texts.
        kind: What they are called in errors.

    Raises:
        ValueError: There is none, or one is refused; it is named by its number, from 0.
    """
    if not texts:
        raise ValueError(f"`text` holds no {kind}; leave the argument out where there are images alone.")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(
                f"`text` {index} is a {type(text).__name__}, {text!r:.80}; give texts in one flat list."
            )
        if not text.strip():
            raise ValueError(f"`text` {index} is empty, {text!r}; leave the row out or write a {kind}.")


def check_kept_tokens(masks: Iterable[Sequence[int]], texts: Sequence[str], around: int) -> None:
    """Refuse texts of which no token is left, such as control characters.

    Args:
        masks: B rows, 1 on tokens.
        texts: Of which they are.
        around: Special tokens in each row.

    Raises:
        ValueError: One is refused; it is named by its number, from 0.
    """
    for index, mask in enumerate(masks):
        if sum(mask) <= around:
            raise ValueError(f"`text` {index} is {texts[index]!r}, of which the tokenizer keeps nothing.")


def check_word_rows(
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    masks: Mapping[str, Tensor | None],
    width: int,
    most: int,
) -> Tensor:
    """The words that an encoder is given, (B, L) ids or (B, L, D) vectors.

    Args:
        input_ids: (B, L).
        inputs_embeds: (B, L, D).
        masks: What must be (B, L), by name.
        width: D.
        most: Tokens of a text, special ones included, that the model has positions for.

    Raises:
        ValueError: None or both are given, they have another shape, masks do not go with them, or a text is
            longer than the position table.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("Give either `input_ids` or `inputs_embeds`, one of them.")
    if inputs_embeds is not None:
        words, name, vector = inputs_embeds, "inputs_embeds", (width,)
    else:
        assert input_ids is not None
        words, name, vector = input_ids, "input_ids", ()
    if words.ndim < 2 or 0 in words.shape or words.shape[2:] != vector:
        wanted = ", ".join(("batch", "length", *map(str, vector)))
        raise ValueError(f"`{name}` must be ({wanted}), got {tuple(words.shape)}.")
    for other, values in masks.items():
        if values is not None and values.shape != words.shape[:2]:
            raise ValueError(
                f"`{other}` must be {tuple(words.shape[:2])} as `{name}`, got {tuple(values.shape)}."
            )
    if words.shape[1] > most:
        raise ValueError(
            f"`{name}` has rows of {words.shape[1]} tokens but the position table has room for {most}; "
            f"truncate with `max_length={most}`."
        )
    return words


def tokens_of_texts(
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    most: int,
    *,
    pairs: list[str] | None = None,
    return_tensors: str | None = "pt",
    **options: Any,
) -> BatchEncoding:
    """The tokenizer's own answer to texts that have been checked, padded to the longest.

    Args:
        tokenizer: Any with a `pad_token`.
        texts: B texts.
        most: Tokens of a text, special ones included, unless `max_length` in `options` says otherwise.
        pairs: A second segment behind each text.
        return_tensors: "pt", "np", or `None` for lists.
        **options: Of the tokenizer.

    Returns:
        `input_ids`, `attention_mask` and `token_type_ids` (B, L), with `word_ids` of each row where the
        tokenizer is fast.

    Raises:
        ValueError: A text is empty, no text, or too long.
    """
    check_text_rows(texts)
    options = {"padding": True, "truncation": False, **options}
    limit = options.pop("max_length", None) or most
    if options["truncation"] or options["padding"] == "max_length":
        options["max_length"] = limit
    always = {"return_attention_mask": True, "return_token_type_ids": True, "verbose": False}
    encoded = tokenizer(texts, pairs, **{**options, **always})
    plain = options.get("add_special_tokens") is False
    around = 0 if plain else tokenizer.num_special_tokens_to_add(pair=pairs is not None)
    check_kept_tokens(encoded["attention_mask"], texts, around)
    for index, mask in enumerate(encoded["attention_mask"]):
        if sum(mask) > limit:
            raise ValueError(
                f"`text` {index} has {sum(mask)} tokens, the {around} around it included, and `max_length` "
                f"is {limit}: {texts[index][:60]!r}. Shorten it, or pass `truncation=True` to cut it."
            )
    return encoded.convert_to_tensors(return_tensors)


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int) -> list[list[int]]:
    """Tokens of beginnings of texts: the special ones before a text, then its own, and none that ends it.

    Args:
        tokenizer: Any.
        texts: B beginnings, which may be empty.
        max_length: Most tokens of a text.

    Raises:
        ValueError: One leaves no room for another token.
    """
    before, _ = tokens_around_text(tokenizer)
    options = {"add_special_tokens": False, "verbose": False}
    rows = [before + row for row in tokenizer(texts, **options)["input_ids"]]
    for index, row in enumerate(rows):
        if len(row) >= max_length:
            raise ValueError(
                f"`text` {index} begins with {len(row)} tokens, and `max_length`={max_length} leaves no room "
                f"to go on: {texts[index][:60]!r}. Shorten it."
            )
    return rows


def padded_prompts(
    tokenizer: PreTrainedTokenizerBase, texts: str | Sequence[str] | None, count: int, max_length: int
) -> dict[str, Tensor]:
    """What generation about pictures starts from: beginnings of texts, padded on the left.

    Args:
        tokenizer: Any with a `pad_token`.
        texts: One beginning for each picture, or one for all; by default none.
        count: B pictures.
        max_length: Most tokens of a text.

    Returns:
        `input_ids`, `attention_mask` and `token_type_ids` (B, L), without the tokens that end a text.

    Raises:
        ValueError: Not as many texts as pictures, or one that leaves no room for a continuation.
    """
    beginnings = [texts or ""] * count if texts is None or isinstance(texts, str) else list(texts)
    if len(beginnings) != count:
        raise ValueError(f"{len(beginnings)} texts for {count} pictures; give one for each, or one for all.")
    rows = prompt_tokens(tokenizer, beginnings, max_length)
    width, pad = max(map(len, rows)), tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


def tokens_around_text(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and after a text."""
    alone = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    start = next(i for i in range(len(whole)) if whole[i : i + len(alone)] == alone)
    return whole[:start], whole[start + len(alone) :]
