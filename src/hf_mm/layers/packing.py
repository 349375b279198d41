"""Rows of unequal length without their padding: the tokens of a batch side by side.

All that treats tokens alone (projections, norms, MLP) runs on the packed tokens; only attention sees rows.

Shapes: B rows, L places of the longest row, T tokens of all rows together, D width.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

__all__ = ["PackedRows", "ragged"]


@dataclass(frozen=True)
class PackedRows:
    """Where each packed token stands in its row; rows begin at place 0.

    Attributes:
        places: (T,) index of each token among the B * L places.
        rows: B.
        length: L.
        full: The tokens are all places in order: then nothing is moved.
    """

    places: Tensor
    rows: int
    length: int
    full: bool = False

    @classmethod
    def of_lengths(cls, lengths: Tensor) -> Self:
        """The layout of rows with these (B,) lengths, each at least 1."""
        length = int(lengths.max())
        inside = torch.arange(length, device=lengths.device) < lengths.unsqueeze(1)  # (B, L)
        return cls(inside.flatten().nonzero().squeeze(1), len(lengths), length)

    @cached_property
    def bounds(self) -> Tensor:
        """(B + 1,) int32: how many tokens stand before each row, and all; tokens stand row by row."""
        rows = torch.arange(self.rows + 1, device=self.places.device)
        return torch.searchsorted(self.places, rows * self.length, out_int32=True)

    def flash_arguments(self, context: "PackedRows") -> dict[str, Any]:
        """What kernels that take rows side by side are told of them, and of the rows that they attend to."""
        return {
            "cu_seq_lens_q": self.bounds,
            "cu_seq_lens_k": context.bounds,
            "max_length_q": self.length,
            "max_length_k": context.length,
        }

    def pack(self, rows: Tensor) -> Tensor:
        """(B, L, ...) to (T, ...); the padding is left behind."""
        tokens = rows.flatten(0, 1)
        return tokens if self.full else tokens.index_select(0, self.places)

    def unpack(self, tokens: Tensor) -> Tensor:
        """(T, ...) to (B, L, ...), zero at the padding."""
        if self.full:
            return tokens.unflatten(0, (self.rows, self.length))
        rows = tokens.new_zeros(self.rows * self.length, *tokens.shape[1:])
        return rows.index_copy(0, self.places, tokens).unflatten(0, (self.rows, self.length))


def ragged(counts: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Rows of (B,) `counts` things: for each of `total` things its row, and its number there."""
    every = torch.arange(len(counts), device=counts.device)
    rows = every.repeat_interleave(counts, output_size=total)
    starts = counts.cumsum(0) - counts
    return rows, torch.arange(total, device=counts.device) - starts[rows]
