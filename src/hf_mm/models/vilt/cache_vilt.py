"""Keys and values of a row of text and image, kept while its text goes on.

What was read before does not see what follows, so its keys and values stay as they are; see `prefix_mask` of
`MMViltModel.forward`.

Shapes: B rows, K places that are kept, L places of a text, S new tokens.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from .configuration_vilt import MMViltConfig

__all__ = ["ViltCache"]


class ViltCache(DynamicCache):
    """Keys and values of each block, which of them are padding, and where each text goes on.

    Args:
        config: Of the model.
        prompts: Rows that are read first, each of which may be continued several times.

    Attributes:
        real: (B, K) bool, true where a place has a token; `None` before anything is read.
        ends: (B,) tokens of each text so far.
        length: L, of the text so far with its padding.
    """

    def __init__(self, config: MMViltConfig, prompts: int) -> None:
        super().__init__(config=config)
        self.prompts = prompts
        self.most, self.length = config.max_position_embeddings, 0
        self.real: Tensor | None = None
        self.ends: Tensor | None = None

    @property
    def filled(self) -> bool:
        """Whether a text and its image were read."""
        return self.real is not None

    def begin(self, real: Tensor, length: int) -> None:
        """Note which places of the first pass, (B, K) bool, have a token; the text has the first `length`."""
        self.real, self.ends, self.length = real, real[:, :length].sum(dim=1), length

    def go_on(self, count: int) -> tuple[Tensor, Tensor]:
        """Note so many more tokens of every text: their (B, count) positions, and what is real then.

        Raises:
            ValueError: The text becomes longer than the position table.
        """
        assert self.real is not None
        assert self.ends is not None
        positions = self.ends.unsqueeze(1) + torch.arange(count, device=self.ends.device)
        self.length += count
        if self.length > self.most:
            raise ValueError(
                f"The text goes on to {self.length} tokens but the position table ends at {self.most}; ask "
                "for fewer."
            )
        self.real = torch.cat((self.real, self.real.new_ones(len(self.real), count)), dim=1)
        self.ends = self.ends + count
        return positions, self.real

    def reorder_cache(self, beam_idx: Any) -> None:
        super().reorder_cache(beam_idx)
        self._choose(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        if self.real is not None:
            self._choose(torch.arange(len(self.real), device=self.real.device).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._choose(indices)

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        if tokens_to_remove and self.real is not None and self.ends is not None:
            self.real, self.ends = self.real[:, :tokens_to_remove], self.ends + tokens_to_remove
            self.length += tokens_to_remove

    def _choose(self, rows: Any) -> None:
        if self.real is not None and self.ends is not None:
            self.real, self.ends = self.real[rows], self.ends[rows]
