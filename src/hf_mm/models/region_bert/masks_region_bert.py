"""Who sees whom: masks of attention within text, within regions, among both and between them.

Shapes: B rows, L places of a row of text, V places of a row of regions, W text tokens, N regions.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_bidirectional_mask

from ...layers.packing import PackedRows
from ..vilt.masks_vilt import row_mask
from .blocks_region_bert import RegionSeats
from .configuration_region_bert import MMRegionBertConfig
from .layout_region_bert import RegionBertLayout

__all__ = ["seats_in_rows", "seats_side_by_side"]


def seats_side_by_side(
    config: MMRegionBertConfig, layout: RegionBertLayout, tokens: Tensor, prefix: Tensor | None
) -> RegionSeats:
    """The seats of tokens side by side, rows without gaps.

    Args:
        config: Says which kernel, and which blocks there are.
        layout: Of the batch.
        tokens: Its dtype and device are those of the masks.
        prefix: (W,) bool, true on text that everybody sees; `None` when all is.
    """
    every = torch.ones_like(layout.region_tokens_rows, dtype=torch.bool)
    all_prefix = None if prefix is None else layout.join(prefix, every)
    rows = (layout.texts, layout.regions, layout.joint)
    real = [
        None if part.full else part.unpack(torch.ones_like(part.places, dtype=torch.bool)) for part in rows
    ]
    return _seats(config, rows, real, (prefix, all_prefix), tokens, packed=True)


def seats_in_rows(
    config: MMRegionBertConfig, layout: RegionBertLayout, tokens: Tensor, prefix: Tensor | None
) -> RegionSeats:
    """The same of tokens in the rows of the output, padding between them: text, then regions."""
    rows = (layout.text_output, layout.region_output)
    real = [layout.real_texts, layout.real_regions]
    for number, part in enumerate(rows):
        if real[number] is None:
            real[number] = part.unpack(torch.ones_like(part.places, dtype=torch.bool))
    (count, length), width = real[0].shape, real[1].shape[1]
    places = torch.arange(count * (length + width), device=tokens.device)
    joint = PackedRows(places, count, length + width, full=True)
    texts, regions = (
        PackedRows(torch.arange(part.numel(), device=tokens.device), *part.shape, full=True) for part in real
    )
    all_prefix = None
    if prefix is not None:
        prefix = layout.text_output.unpack(prefix)  # (B, L)
        all_prefix = torch.cat((prefix, torch.ones_like(real[1])), dim=1).flatten()
        prefix = prefix.flatten()
    real.append(torch.cat(real, dim=1))
    return _seats(config, (texts, regions, joint), real, (prefix, all_prefix), tokens, packed=False)


def _seats(
    config: MMRegionBertConfig,
    rows: tuple[PackedRows, PackedRows, PackedRows],
    real: list[Tensor | None],
    prefix: tuple[Tensor | None, Tensor | None],
    tokens: Tensor,
    packed: bool,
) -> RegionSeats:
    kinds, (texts, regions, joint) = set(config.layers), rows
    alone, between = kinds & {"text", "cross"}, kinds & {"cross", "co"}
    region_alone = kinds & {"region", "cross"}
    readable = real[0]
    if prefix[0] is not None:
        readable = texts.unpack(prefix[0]) if readable is None else texts.unpack(prefix[0]) & readable
    return RegionSeats(
        *(rows if packed else (None, None, None)),
        text_mask=_own(config, texts, tokens, prefix[0], real[0]) if alone else None,
        region_mask=_own(config, regions, tokens, None, real[1]) if region_alone else None,
        joint_mask=_own(config, joint, tokens, prefix[1], real[2]) if "joint" in kinds else None,
        text_to_regions=_between(config, texts, regions, tokens, real[1]) if between else None,
        regions_to_text=_between(config, regions, texts, tokens, readable) if between else None,
    )


def _own(
    config: MMRegionBertConfig, rows: PackedRows, tokens: Tensor, prefix: Tensor | None, real: Tensor | None
) -> Any:
    return row_mask(config, rows, tokens.new_empty(len(rows.places), 1), prefix, real)


def _between(
    config: MMRegionBertConfig, rows: PackedRows, context: PackedRows, tokens: Tensor, real: Tensor | None
) -> Any:
    if real is None:
        return None
    query = tokens.new_empty(rows.rows, rows.length, 1)
    key = tokens.new_empty(context.rows, context.length, 1)
    return create_bidirectional_mask(
        config, query, real, encoder_hidden_states=key, allow_is_bidirectional_skip=False
    )
