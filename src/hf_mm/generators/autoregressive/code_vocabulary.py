"""The tokens of a model that writes pictures: codes, classes, the empty condition, words.

Sun et al. 2024, "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation", section 2.2
(https://arxiv.org/abs/2406.06525): a condition stands before the codes of a picture. Here it is made of
tokens of the model's own vocabulary, so that nothing is trained and saved but a stock model's weights.

Shapes: B rows, T tokens of a condition, K codes, L codes of a picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...layers.class_ids import check_class_ids

__all__ = ["CodeVocabulary"]


@dataclass(frozen=True)
class CodeVocabulary:
    """Ids: codes 0..K-1, then classes, then the empty condition, then words; a mask, if any, after all.

    Args:
        num_codes: K, the size of the codebook.
        num_classes: Classes that a picture may be asked for by.
        num_words: Tokens of the tokenizer that prompts are read by.
        prompt_length: T, the tokens of each condition; what a shorter one leaves free is the empty token, on
            its left, so that a condition of such tokens alone is the empty one.
    """

    num_codes: int
    num_classes: int = 0
    num_words: int = 0
    prompt_length: int = 1

    @property
    def null_id(self) -> int:
        """The empty condition."""
        return self.num_codes + self.num_classes

    @property
    def size(self) -> int:
        """All tokens but the mask."""
        return self.null_id + 1 + self.num_words

    @property
    def mask_id(self) -> int:
        """What stands where a code is still to be found, in models that have such a token."""
        return self.size

    def null_prefixes(self, rows: int) -> Tensor:
        """(B, T) of the empty condition."""
        return torch.full((rows, self.prompt_length), self.null_id)

    def class_prefixes(self, classes: Sequence[int] | Tensor) -> Tensor:
        """The conditions (B, T) of classes (B,).

        Raises:
            TypeError: Classes are whole numbers.
            ValueError: A class is out of range; row and value are named.
        """
        classes = torch.as_tensor(classes)
        check_class_ids(classes, self.num_classes)
        prefixes = self.null_prefixes(len(classes)).to(classes.device)
        prefixes[:, -1] = self.num_codes + classes
        return prefixes

    def word_prefixes(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """The conditions (B, T) of prompts, each the ids that the tokenizer gives to its words.

        Raises:
            ValueError: A prompt is longer than T, or has an id that the tokenizer of the model has not.
        """
        prefixes = self.null_prefixes(len(prompts))
        for row, words in enumerate(prompts):
            if len(words) > self.prompt_length:
                raise ValueError(
                    f"`prompt`[{row}] has {len(words)} tokens, but the model reads {self.prompt_length} at "
                    "most; shorten it."
                )
            if words and not 0 <= min(words) <= max(words) < self.num_words:
                raise ValueError(
                    f"`prompt`[{row}] has the tokens {min(words)} to {max(words)}, but the model knows "
                    f"{self.num_words} words; use the tokenizer that it was trained with."
                )
            if words:
                prefixes[row, -len(words) :] = self.null_id + 1 + torch.tensor(list(words))
        return prefixes

    def drop(self, prefixes: Tensor, share: float) -> Tensor:
        """The same conditions (B, T), but some rows, drawn at random, empty: what guidance needs.

        Args:
            prefixes: (B, T).
            share: How likely a row is to become empty, in 0..1.
        """
        dropped = torch.rand(len(prefixes), 1, device=prefixes.device) < share
        return prefixes.masked_fill(dropped, self.null_id)
