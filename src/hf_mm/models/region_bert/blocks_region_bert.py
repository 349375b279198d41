"""The blocks in which text and regions meet without becoming one sequence.

Tan and Bansal 2019, "LXMERT", section 2.2 (https://arxiv.org/abs/1908.07490): `CrossBlock`. Lu et al. 2019,
"ViLBERT", section 2.2 (https://arxiv.org/abs/1908.02265): `CoBlock`. Where they do become one sequence, and
where one of them is alone, the block is BERT's (`PostNormBlock`).

Shapes: (..., W, D) text and (..., N, E) regions: rows with padding, or the tokens of all rows side by side.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin
from transformers.modeling_layers import GradientCheckpointingLayer

from ...layers.attention import Attention
from ...layers.blocks import MLP
from ...layers.post_norm import PostNormBlock
from .cache_region_bert import NOTHING_KEPT, KeptOfBlock
from .configuration_region_bert import MMRegionBertConfig
from .seats_region_bert import RegionEnds, RegionSeats

__all__ = ["BothWaysAttention", "CoBlock", "CrossBlock", "region_block", "text_block"]


def text_block(config: MMRegionBertConfig) -> PostNormBlock:
    """BERT's block on text, or on text and regions as one sequence."""
    return PostNormBlock(config)


def region_block(config: MMRegionBertConfig) -> PostNormBlock:
    """BERT's block on regions, in their sizes."""
    sizes = (config.region_hidden_size, config.region_num_attention_heads, config.region_intermediate_size)
    return PostNormBlock(config, *sizes)


class BothWaysAttention(Attention):
    """Attention from text to regions and from regions to text with the same weights (LXMERT)."""

    def __init__(self, config: MMRegionBertConfig) -> None:
        super().__init__(config, num_heads=config.cross_num_attention_heads)

    def forward(  # ty: ignore[incompatible-method-override]
        self,
        states: Tensor,
        words: int,
        seats: RegionSeats,
        kept: CacheLayerMixin | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Mix regions into text and text into regions.

        Args:
            states: (..., W + N, D), text before regions: each projection reads its weights once for both.
            words: W.
            seats: Where they stand.
            kept: Where keys and values of the regions are kept.
            **kwargs: For the kernel.

        Returns:
            The mixed states (..., W + N, D), and with an eager kernel the weights from text to regions
            (B, H, L, R) and from regions to text (B, H, R, L).
        """
        parts = (project(states) for project in (self.q_proj, self.k_proj, self.v_proj))
        (text_q, region_q), (text_k, region_k), (text_v, region_v) = (
            part.split((words, states.shape[-2] - words), dim=-2) for part in parts
        )
        text, seen = self.attend(
            text_q, region_k, region_v, seats.text_to_regions, seats.texts, seats.regions, kept, **kwargs
        )
        regions, read = self.attend(
            region_q, text_k, text_v, seats.regions_to_text, seats.regions, seats.texts, **kwargs
        )
        return self.o_proj(torch.cat((text, regions), dim=-2)), seen, read

    def one_way(
        self, text: Tensor, regions: Tensor, seats: RegionSeats, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Mix regions into text alone."""
        return super().forward(text, regions, seats.text_to_regions, seats.texts, seats.regions, **kwargs)


class CrossBlock(GradientCheckpointingLayer):
    """Attention both ways with one set of weights, then self-attention and MLP of each (LXMERT).

    Both directions read the states before the block.
    """

    def __init__(self, config: MMRegionBertConfig) -> None:
        super().__init__()
        self.cross_attention = BothWaysAttention(config)
        self.cross_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.text = text_block(config)
        self.regions = region_block(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        text: Tensor,
        regions: Tensor,
        seats: RegionSeats,
        ends: RegionEnds | None = None,
        kept: KeptOfBlock = NOTHING_KEPT,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Text and regions to the same; with `ends` of text only the tokens that are pooled, (B, D)."""
        if ends is not None:
            return self._end(text, regions, seats, ends, **kwargs), regions
        states = torch.cat((text, regions), dim=-2)
        words = text.shape[-2]
        mixed, _, _ = self.cross_attention(states, words, seats, kept.regions, **kwargs)
        states = self.cross_norm(states + self.dropout(mixed))
        text, regions = states.split((words, regions.shape[-2]), dim=-2)
        places: dict[str, Any] = {"packed_rows": seats.texts, "kept": kept.own}
        text = self.text(text, attention_mask=seats.text_mask, **places, **kwargs)
        regions = self.regions(regions, attention_mask=seats.region_mask, packed_rows=seats.regions, **kwargs)
        return text, regions

    def read_on(self, text: Tensor, seats: RegionSeats, kept: KeptOfBlock, **kwargs: Any) -> Tensor:
        """(B, S, D) text that follows what is kept; regions do not change any more."""
        regions = text.new_empty(len(text), 0, text.shape[2])
        mixed, _ = self.cross_attention.one_way(text, regions, seats, kept=kept.regions, **kwargs)
        text = self.cross_norm(text + self.dropout(mixed))
        return self.text(text, attention_mask=seats.text_mask, kept=kept.own, **kwargs)

    def _end(
        self, text: Tensor, regions: Tensor, seats: RegionSeats, ends: RegionEnds, **kwargs: Any
    ) -> Tensor:
        mixed, _ = self.cross_attention.one_way(text, regions, seats, **kwargs)
        text = self.cross_norm(text + self.dropout(mixed))
        layouts = {"packed_rows": ends.rows, "packed_context": seats.texts}
        return self.text(text[ends.first_text], text, attention_mask=ends.to_texts, **layouts, **kwargs)


class CoBlock(GradientCheckpointingLayer):
    """Attention from text to regions and back, each with its own weights, then the MLP of each (ViLBERT).

    Both directions read the states before the block.
    """

    def __init__(self, config: MMRegionBertConfig) -> None:
        super().__init__()
        text, regions, eps = config.hidden_size, config.region_hidden_size, config.layer_norm_eps
        heads, inner = config.cross_num_attention_heads, config.cross_hidden_size
        self.text_attention = Attention(config, regions, hidden_size=text, num_heads=heads, inner_size=inner)
        self.text_attention_norm = nn.LayerNorm(text, eps=eps)
        self.text_mlp = MLP(config)
        self.text_mlp_norm = nn.LayerNorm(text, eps=eps)
        self.region_attention = Attention(
            config, text, hidden_size=regions, num_heads=heads, inner_size=inner
        )
        self.region_attention_norm = nn.LayerNorm(regions, eps=eps)
        self.region_mlp = MLP(config, regions, config.region_intermediate_size)
        self.region_mlp_norm = nn.LayerNorm(regions, eps=eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        text: Tensor,
        regions: Tensor,
        seats: RegionSeats,
        ends: RegionEnds | None = None,
        kept: KeptOfBlock = NOTHING_KEPT,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Text and regions to the same; with `ends` of text only the tokens that are pooled, (B, D)."""
        if ends is not None:
            first = text[ends.first_text]
            seen, _ = self.text_attention(first, regions, ends.to_regions, ends.rows, seats.regions, **kwargs)
            first = self.text_attention_norm(first + self.dropout(seen))
            return self.text_mlp_norm(first + self.dropout(self.text_mlp(first))), regions
        seen, _ = self.text_attention(
            text, regions, seats.text_to_regions, seats.texts, seats.regions, kept.regions, **kwargs
        )
        read, _ = self.region_attention(
            regions, text, seats.regions_to_text, seats.regions, seats.texts, **kwargs
        )
        text = self.text_attention_norm(text + self.dropout(seen))
        text = self.text_mlp_norm(text + self.dropout(self.text_mlp(text)))
        regions = self.region_attention_norm(regions + self.dropout(read))
        regions = self.region_mlp_norm(regions + self.dropout(self.region_mlp(regions)))
        return text, regions

    def read_on(self, text: Tensor, seats: RegionSeats, kept: KeptOfBlock, **kwargs: Any) -> Tensor:
        """(B, S, D) text that follows what is kept; regions do not change any more."""
        regions = text.new_empty(len(text), 0, self.region_attention_norm.normalized_shape[0])
        seen, _ = self.text_attention(text, regions, seats.text_to_regions, kept=kept.regions, **kwargs)
        text = self.text_attention_norm(text + self.dropout(seen))
        return self.text_mlp_norm(text + self.dropout(self.text_mlp(text)))
