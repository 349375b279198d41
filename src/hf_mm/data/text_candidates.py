"""A true text of a picture among false ones, drawn from all texts of a training set.

Kim et al. 2021, "ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision", section
4.3 (https://arxiv.org/abs/2102.03334).
"""

from collections.abc import Iterable, Sequence

import torch

from .row_columns import draw_below

__all__ = ["TextCandidates"]


class TextCandidates:
    """Draws a true text and different false ones.

    Args:
        texts: All texts of the training set; those that occur more than once count once.
        count: Texts to draw, the true one included.

    Raises:
        ValueError: Less than two of them.
    """

    def __init__(self, texts: Iterable[str], count: int) -> None:
        if count < 2:
            raise ValueError(f"`candidates`={count} must be at least 2: a true text and a false one.")
        self.texts = list(dict.fromkeys(texts))
        self.known = set(self.texts)
        self.count = count

    def draw(self, true: Sequence[str], number: int, generator: torch.Generator | None = None) -> list[str]:
        """One of the true texts, and behind it false ones.

        Args:
            true: All texts that are true of the picture.
            number: Of the row in its batch, for errors.
            generator: Source of chance; by default torch's own.

        Raises:
            ValueError: There are not so many false texts.
        """
        false = len(self.texts) - len(self.known & set(true))
        if false < self.count - 1:
            raise ValueError(
                f"Row {number} of the batch needs {self.count - 1} false texts, `texts` has {false} that are "
                "no captions of its own; give more texts, or fewer `candidates`."
            )
        drawn = {true[draw_below(len(true), generator)]: None}
        barred = set(true)
        while len(drawn) < self.count:
            text = self.texts[draw_below(len(self.texts), generator)]
            if text not in barred:
                drawn[text] = None
        return list(drawn)
