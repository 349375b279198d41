"""Batches of codes and conditions for models that write pictures.

Shapes: B rows, V views of a picture, L codes, T tokens of a condition.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from ..generators.autoregressive.code_vocabulary import CodeVocabulary
from .image_codes import ImageCodes
from .pixel_rows import PixelRows
from .row_columns import batch_generator, draw_below

__all__ = ["CodeCollator", "CodeRows"]


class CodeRows(Dataset):
    """The codes of pictures with their classes and texts.

    A row is a dictionary of `codes` (V, L), `number` and, where there are any, `label` and `texts`.

    Args:
        codes: Of all pictures.
        rows: The same pictures, in the same order.

    Raises:
        ValueError: They are not as many.
    """

    def __init__(self, codes: ImageCodes, rows: PixelRows) -> None:
        if len(codes) != len(rows):
            raise ValueError(f"`codes` are of {len(codes)} pictures, `rows` has {len(rows)}.")
        self.codes, self.labels, self.texts = codes, rows.labels, rows.texts

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = {"codes": self.codes[index], "number": int(index)}
        if self.labels is not None:
            row["label"] = int(self.labels[index])
        if self.texts is not None:
            row["texts"] = self.texts[index]
        return row


@dataclass(frozen=True)
class CodeCollator:
    """Rows of `CodeRows` to batches: `codes` (B, L) of one view of each, and `prefixes` (B, T).

    The draws follow from `seed` and from which rows the batch holds, so that a run that is resumed sees what
    it would have seen.

    Args:
        vocabulary: Of the model.
        condition: "class", "text", or "none" for the empty condition.
        tokenizer: Reads texts.
        draw: Draw a view and one of several texts; else take the first of each, for evaluation.
        seed: Another seed, other draws; `None` draws from torch's own generator.

    Raises:
        ValueError: An unknown condition, texts without a tokenizer, or a row without what is asked for.
    """

    vocabulary: CodeVocabulary
    condition: str = "class"
    tokenizer: PreTrainedTokenizerBase | None = None
    draw: bool = True
    seed: int | None = 0

    def __post_init__(self) -> None:
        if self.condition not in ("class", "text", "none"):
            raise ValueError(f"`condition`={self.condition!r} is none of class, text, none.")
        if self.condition == "text" and self.tokenizer is None:
            raise ValueError("`condition`='text' needs a `tokenizer`.")

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """The batch."""
        draws = batch_generator(self.seed, [row["number"] for row in rows])
        codes = torch.stack([row["codes"][self._one_of(len(row["codes"]), draws)] for row in rows])
        return {"codes": codes, "prefixes": self._prefixes(rows, draws)}

    def _one_of(self, count: int, draws: torch.Generator | None) -> int:
        return draw_below(count, draws) if self.draw else 0

    def _prefixes(self, rows: Sequence[dict[str, Any]], draws: torch.Generator | None) -> Tensor:
        column = {"class": "label", "text": "texts", "none": "number"}[self.condition]
        for row in rows:
            if column not in row:
                raise ValueError(
                    f"Row {row['number']} has no {column!r}, which `condition`={self.condition!r} asks for; "
                    f"it has {sorted(row)}."
                )
        if self.condition == "none":
            return self.vocabulary.null_prefixes(len(rows))
        if self.condition == "class":
            return self.vocabulary.class_prefixes([row["label"] for row in rows])
        assert self.tokenizer is not None
        texts = [row["texts"][self._one_of(len(row["texts"]), draws)] for row in rows]
        ids = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        length = self.vocabulary.prompt_length
        for row, text, words in zip(rows, texts, ids, strict=True):
            if len(words) > length:
                raise ValueError(
                    f"Row {row['number']}: the text {text!r:.80} has {len(words)} tokens, the condition has "
                    f"{length}; shorten it or raise `prompt_length`."
                )
        return self.vocabulary.word_prefixes(ids)
