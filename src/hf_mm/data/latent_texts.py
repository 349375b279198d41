"""Batches of latents that were made before, with texts that are read anew: for a text encoder that learns.

Shapes: B rows, c channels and y x x places of latents, L tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .latent_batches import LatentCollator

__all__ = ["LatentTextCollator"]


@dataclass(frozen=True)
class LatentTextCollator:
    """Rows of `LatentRows` to a batch: `latents` (B, c, y, x), and `input_ids` and `attention_mask` (B, L).

    One text of each row is drawn, from torch's own generator; what is beyond the context is cut off.

    Args:
        latents: Makes the batch without texts.
        tokenizer: Of the texts.

    Raises:
        ValueError: Rows without texts.
    """

    latents: LatentCollator
    tokenizer: PreTrainedTokenizerBase

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """The batch."""
        if "texts" not in rows[0]:
            raise ValueError(f"Row {rows[0]['number']} has no texts; make the rows with texts.")
        texts = [row["texts"][int(torch.randint(len(row["texts"]), ()))] for row in rows]
        words = self.tokenizer(
            texts, padding=True, padding_side="right", truncation=True, return_tensors="pt"
        )
        batch = self.latents(rows)
        return batch | {name: words[name] for name in ("input_ids", "attention_mask")}
