"""Keys and values of regions and of a text about them, kept while the text goes on.

Shapes: B rows, L places of the text so far, V places of the region stream, K = L + V.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from ...layers.prefix_cache import PrefixCache
from .configuration_region_bert import MMRegionBertConfig

__all__ = ["NOTHING_KEPT", "KeptOfBlock", "RegionBertCache"]


class KeptOfBlock(NamedTuple):
    """Keys and values of a block.

    Attributes:
        own: Of the sequence that the text is in, which grows with it; `None` where it attends to none.
        regions: Of the regions that text looks at from outside; `None` where there are none.
    """

    own: DynamicLayer | None = None
    regions: DynamicLayer | None = None


NOTHING_KEPT = KeptOfBlock()


class RegionBertCache(PrefixCache):
    """Keys and values of the blocks, which of them are padding, and where each text goes on.

    Args:
        config: Of the model.
        prompts: Rows that are read first, each of which may be continued several times.

    Attributes:
        blocks: What is kept of each block, in their order.
    """

    def __init__(self, config: MMRegionBertConfig, prompts: int) -> None:
        super().__init__(config.max_text_tokens, prompts)
        self.blocks = [
            KeptOfBlock(
                DynamicLayer() if kind in ("joint", "text", "cross") else None,
                DynamicLayer() if kind in ("cross", "co") else None,
            )
            for kind in config.layers
        ]
        self.layers = [kept.own for kept in self.blocks if kept.own is not None]
        self._still = [kept.regions for kept in self.blocks if kept.regions is not None]
        self._first, self._others = 0, 0  # places of the prompt, and V

    def begin(self, real: Tensor, length: int) -> None:
        super().begin(real, length)
        self._first, self._others = length, real.shape[1] - length

    @property
    def real_texts(self) -> Tensor:
        """(B, L) bool, true on tokens of the text."""
        assert self.real is not None
        first, behind = self.real[:, : self._first], self.real[:, self._first + self._others :]
        return torch.cat((first, behind), dim=1)

    @property
    def real_regions(self) -> Tensor:
        """(B, V) bool, true on regions."""
        assert self.real is not None
        return self.real[:, self._first :][:, : self._others]

    def reorder_cache(self, beam_idx: Any) -> None:
        super().reorder_cache(beam_idx)
        for layer in self._still:
            layer.reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        for layer in self._still:
            layer.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        for layer in self._still:
            layer.batch_select_indices(indices)
