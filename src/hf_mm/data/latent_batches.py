"""Batches of latents and conditions for models that generate latents.

Shapes: B rows, V views of a picture, M moments; c channels and y x x places of latents, L tokens, D width of
a text encoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .latent_store import LatentStore
from .pixel_rows import PixelRows
from .row_columns import batch_generator, draw_below
from .text_state_store import TextStateStore

__all__ = ["LatentCollator", "LatentRows"]


class LatentRows(Dataset):
    """The latents of pictures with their classes and texts.

    A row is a dictionary of `moments` (V, M, c, y, x), `number` and, where there are any, `label` and
    `texts`.

    Args:
        latents: Of all pictures.
        rows: The same pictures, in the same order.

    Raises:
        ValueError: They are not as many.
    """

    def __init__(self, latents: LatentStore, rows: PixelRows) -> None:
        if len(latents) != len(rows):
            raise ValueError(f"`latents` are of {len(latents)} pictures, `rows` has {len(rows)}.")
        self.latents, self.labels, self.texts = latents, rows.labels, rows.texts

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = {"moments": self.latents[index], "number": int(index)}
        if self.labels is not None:
            row["label"] = int(self.labels[index])
        if self.texts is not None:
            row["texts"] = self.texts[index]
        return row


@dataclass(frozen=True)
class LatentCollator:
    """Rows of `LatentRows` to a batch: `latents` (B, c, y, x) of one view of each, and conditions.

    `class_labels` (B,) with classes; `text_states` (B, L, D) and `text_mask` (B, L) of one text of each with
    a store of them. The draws follow from `seed` and from which rows the batch holds, so that a run that is
    resumed sees what it would have seen.

    Args:
        text_states: Of all texts of the rows; without it texts are left out.
        draw: Draw a view, a text and the latents themselves from their posteriors; else take the first view
            and text and the means, for evaluation.
        seed: Another seed, other draws; `None` draws from torch's own generator.

    Raises:
        ValueError: Text states but rows without texts.
    """

    text_states: TextStateStore | None = None
    draw: bool = True
    seed: int | None = 0

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """The batch."""
        draws = batch_generator(self.seed, [row["number"] for row in rows])
        moments = torch.stack([row["moments"][self._one_of(len(row["moments"]), draws)] for row in rows])
        batch = {"latents": moments[:, 0]}  # (B, c, y, x)
        if self.draw and moments.shape[1] > 1:
            batch["latents"] = moments[:, 0] + moments[:, 1] * torch.randn(
                moments[:, 0].shape, generator=draws
            )
        if "label" in rows[0]:
            batch["class_labels"] = torch.tensor([row["label"] for row in rows])
        if self.text_states is not None:
            texts = [row["texts"][self._one_of(len(row["texts"]), draws)] for row in self._with_texts(rows)]
            batch["text_states"], batch["text_mask"] = self.text_states(texts)
        return batch

    def _one_of(self, count: int, draws: torch.Generator | None) -> int:
        return draw_below(count, draws) if self.draw else 0

    def _with_texts(self, rows: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        for row in rows:
            if "texts" not in row:
                raise ValueError(
                    f"`text_states` are given but row {row['number']} has no texts; make the rows with "
                    "texts, or leave the states out."
                )
        return rows
