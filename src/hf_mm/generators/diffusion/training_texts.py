"""The texts of training batches as states that denoisers read, some of them replaced by the empty text.

Ho and Salimans 2022, "Classifier-Free Diffusion Guidance", algorithm 1 (https://arxiv.org/abs/2207.12598).

Shapes: B rows, L tokens, D width of a text encoder.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .denoising_call import encode_text, reads_padding
from .text_states import prompt_states, prompt_tokens, text_context

__all__ = ["TrainingTexts"]


class TrainingTexts:
    """Encodes the texts of a batch, or takes states from a cache.

    Holds no weights: those are submodules of the objective.

    Args:
        denoiser: Reads the texts.
        text_encoder: Any of transformers' with a `last_hidden_state`.
        tokenizer: Of the texts.
        trained: Whether the encoder learns; else it is called without gradients.

    Raises:
        ValueError: A part is missing, or the tokenizer has no token for the empty text.
    """

    def __init__(self, denoiser: Any, text_encoder: Any, tokenizer: Any, trained: bool) -> None:
        missing = {"text_encoder": text_encoder, "tokenizer": tokenizer}
        absent = [f"`{name}`" for name, part in missing.items() if part is None]
        if absent:
            raise ValueError(
                f"{type(denoiser).__name__} reads texts, but {' and '.join(absent)} are missing; pass them "
                "also where states come from a cache, for the empty text and for drawing."
            )
        self.text_encoder, self.tokenizer, self.trained = text_encoder, tokenizer, trained
        self.full_length = reads_padding(denoiser)
        context = text_context(tokenizer, text_encoder)
        self.empty_ids, self.empty_mask = prompt_tokens(tokenizer, [""], context, self.full_length)  # (1, L)
        if not self.full_length and not self.empty_mask.any():
            raise ValueError(
                "The tokenizer makes no token of '', the text of rows whose condition is dropped; take one "
                "that adds a token at the beginning or the end, as those of CLIP and BERT do."
            )
        self._empty_states: Tensor | None = None

    def states(self, batch: Mapping[str, Tensor], dropped: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the denoiser reads.

        Args:
            batch: `input_ids` and `attention_mask` (B, L), or `text_states` (B, L, D) and `text_mask` (B, L).
            dropped: (B,) true for rows that get the empty text.

        Returns:
            (B, L, D), and the mask (B, L); `None` where padding is read.

        Raises:
            ValueError: There are no texts, or of another length than drawing has.
        """
        if "text_states" in batch:
            return self._cached(batch, dropped)
        if "input_ids" not in batch:
            raise ValueError(
                f"The denoiser is asked by texts, but the batch has only {sorted(batch)}; give the collator "
                "the tokenizer, or rows with texts."
            )
        ids, mask = self._tokens(batch, dropped)
        with nullcontext() if self.trained else torch.no_grad():
            states = encode_text(self.text_encoder, ids, None if self.full_length else mask)
        return states, None if self.full_length else mask

    def _tokens(self, batch: Mapping[str, Tensor], dropped: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and mask, as long as the longest of them and the empty text."""
        ids = batch["input_ids"]
        mask = batch["attention_mask"] if "attention_mask" in batch else torch.ones_like(ids)
        empty_ids, empty_mask = self.empty_ids.to(ids.device), self.empty_mask.to(ids.device)
        length = max(ids.shape[1], empty_ids.shape[1])
        if self.full_length and length > empty_ids.shape[1]:
            raise self._wrong_length(ids.shape[1])
        padding = self.tokenizer.pad_token_id
        ids, empty_ids = (pad(part, (0, length - part.shape[1]), value=padding) for part in (ids, empty_ids))
        mask, empty_mask = (pad(part, (0, length - part.shape[1])) for part in (mask, empty_mask))
        dropped = dropped[:, None]
        return torch.where(dropped, empty_ids, ids), torch.where(dropped, empty_mask, mask)  # (B, L)

    def _cached(self, batch: Mapping[str, Tensor], dropped: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.trained:
            raise ValueError(
                "`train_text_encoder` changes the states of texts, but the batch has them as `text_states`; "
                "give `input_ids` and `attention_mask`, or leave the encoder frozen."
            )
        states = batch["text_states"]
        empty = self._states_of_nothing(states)  # (1, L, D)
        if self.full_length:
            if states.shape[1] != empty.shape[1]:
                raise self._wrong_length(states.shape[1])
            return torch.where(dropped[:, None, None], empty, states), None
        mask = batch["text_mask"] if "text_mask" in batch else states.new_ones(states.shape[:2]).long()
        length = max(states.shape[1], empty.shape[1])
        empty_mask = self.empty_mask.to(mask)
        states, empty = (pad(part, (0, 0, 0, length - part.shape[1])) for part in (states, empty))
        mask, empty_mask = (pad(part, (0, length - part.shape[1])) for part in (mask, empty_mask))
        return torch.where(dropped[:, None, None], empty, states), torch.where(
            dropped[:, None], empty_mask, mask
        )

    def _states_of_nothing(self, like: Tensor) -> Tensor:
        """(1, L, D) of the empty text; they are computed once."""
        if self._empty_states is None or self._empty_states.device != like.device:
            with torch.no_grad():
                device = next(self.text_encoder.parameters()).device
                found, _ = prompt_states(self.tokenizer, self.text_encoder, [""], self.full_length, device)
            self._empty_states = found.to(like.device)
        return self._empty_states.to(like.dtype)

    def _wrong_length(self, found: int) -> ValueError:
        return ValueError(
            f"Texts of {found} tokens were given to a denoiser that reads padding, and draws texts of "
            f"{self.empty_ids.shape[1]}; pad and truncate them to `tokenizer.model_max_length`, also in a "
            "cache."
        )
