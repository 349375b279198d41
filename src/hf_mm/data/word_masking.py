"""Hide whole words of texts, for masked language modelling.

Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
section 3.1: which tokens, and what stands in their place (https://arxiv.org/abs/1810.04805). All tokens of a
word at once: Kim et al. 2021, "ViLT", section 3.4 (https://arxiv.org/abs/2102.03334). A part of a word is
guessed from its other parts; a whole word must be read from the sentence and the picture.

Shapes: B texts, L tokens.
"""

import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerBase

from .whole_groups import draw_groups

__all__ = ["mask_whole_words", "ordinary_ids", "word_numbers"]


def word_numbers(encoding: BatchEncoding) -> Tensor:
    """Which word of its text each token belongs to, as the tokenizer splits words.

    Args:
        encoding: Of a fast tokenizer: B texts, or pairs of texts, padded to one length.

    Returns:
        (B, L) int64, counted from 0, those of a second text behind those of the first; -1 for what belongs to
        none: special tokens and padding.

    Raises:
        ValueError: The tokenizer is not fast, and keeps no account of words.
    """
    if not encoding.is_fast:
        raise ValueError(
            "Whole words need a fast tokenizer, this one does not say which word a token belongs to; load it "
            "by `AutoTokenizer.from_pretrained`."
        )
    return torch.tensor([_words_of_row(encoding, row) for row in range(len(encoding["input_ids"]))])


def _words_of_row(encoding: BatchEncoding, row: int) -> list[int]:
    words, texts = encoding.word_ids(row), encoding.sequence_ids(row)
    in_first = [word for word, text in zip(words, texts, strict=True) if text == 0 and word is not None]
    offsets = (0, max(in_first, default=-1) + 1)
    return [
        -1 if word is None else word + offsets[text or 0] for word, text in zip(words, texts, strict=True)
    ]


def ordinary_ids(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """(K,) int64 ids of all tokens that are not special."""
    ids = torch.ones(len(tokenizer), dtype=torch.bool)
    ids[[index for index in tokenizer.all_special_ids if index < len(ids)]] = False
    return ids.nonzero().squeeze(1)


def mask_whole_words(
    input_ids: Tensor,
    words: Tensor,
    mask_token_id: int,
    replacements: Tensor,
    share: float = 0.15,
    masked_share: float = 0.8,
    random_share: float = 0.1,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose words at random and hide all their tokens.

    Words are drawn until they have `share` of the tokens of their text (rounded, at least one) or more, so
    that long words are hidden as well as short ones, and each text with a word has something to learn. Of the
    hidden tokens, `masked_share` become the mask, `random_share` another token and the rest stay: so the
    model cannot rely on a visible word being the right one.

    Args:
        input_ids: (B, L) int64.
        words: (B, L) int64, which word each token belongs to, see `word_numbers`; -1 for tokens never hidden.
        mask_token_id: The id of the mask.
        replacements: (K,) int64, ids of which random tokens are drawn, see `ordinary_ids`.
        share: Hidden share of the tokens of a text, between 0 and 1.
        masked_share: Of the hidden tokens.
        random_share: Of the hidden tokens.
        generator: Source of chance; by default torch's own.

    Returns:
        The texts to read, (B, L) int64, and labels, (B, L) int64: the id of a hidden token, -100 elsewhere.

    Raises:
        ValueError: Shapes that do not fit each other, or shares out of their range.
    """
    if input_ids.ndim != 2 or input_ids.shape != words.shape:
        raise ValueError(
            f"`input_ids` and `words` must both be (texts, tokens), got {tuple(input_ids.shape)} and "
            f"{tuple(words.shape)}."
        )
    if not 0 < share < 1:
        raise ValueError(f"`share`={share} of the tokens must hide some and leave some; BERT hides 0.15.")
    if min(masked_share, random_share) < 0 or masked_share + random_share > 1:
        raise ValueError(
            f"`masked_share`={masked_share} and `random_share`={random_share} are parts of the hidden tokens "
            "and must not be negative or sum to more than 1."
        )
    hidden = draw_groups(words, share, generator)
    fate = torch.rand(input_ids.shape, generator=generator)  # (B, L)
    drawn = torch.randint(len(replacements), input_ids.shape, generator=generator)
    masked = input_ids.masked_fill(hidden & (fate < masked_share), mask_token_id)
    random = hidden & (fate >= masked_share) & (fate < masked_share + random_share)
    return torch.where(random, replacements[drawn], masked), torch.where(hidden, input_ids, -100)
