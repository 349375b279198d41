"""Which words of a text are written, one after the other, and what they are written behind.

Shapes: B rows, L places of a text.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["next_words", "prefix_of_labels"]


def next_words(labels: Tensor) -> Tensor:
    """(B, L) labels of words, each moved to the place before it, where it is guessed."""
    return pad(labels[:, 1:], (0, 1), value=-100)


def prefix_of_labels(labels: Tensor, input_ids: Tensor) -> Tensor:
    """(B, L), 1 on what all tokens may see: the places without a label, prompt and tags.

    Raises:
        ValueError: `labels` are not one integer for each place, or the first token of a row has one: there is
            nothing before it from which it could be guessed.
    """
    if labels.shape != input_ids.shape or labels.is_floating_point():
        raise ValueError(
            f"Labels of words to write must be {tuple(input_ids.shape)} integers as `input_ids`, got "
            f"{tuple(labels.shape)} of {labels.dtype}."
        )
    learnt = labels != -100
    if not torch.compiler.is_compiling() and learnt[:, 0].any():
        row = int(learnt[:, 0].nonzero()[0])
        raise ValueError(
            f"Row {row} has a label at its first token, which nothing stands before; begin texts with [CLS] "
            "and put -100 there."
        )
    return (~learnt).long()
