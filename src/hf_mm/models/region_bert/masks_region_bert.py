"""Who sees whom: masks of attention within text, within regions, among both and between them.

Shapes: B rows, L places of a row of text, V places of a row of regions, W text tokens, N regions.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_bidirectional_mask
from transformers.utils.generic import is_flash_attention_requested

from ...layers.packing import PackedRows
from ...layers.prefix_mask import following_mask, row_mask
from .cache_region_bert import RegionBertCache
from .configuration_region_bert import MMRegionBertConfig
from .layout_region_bert import RegionBertLayout
from .seats_region_bert import RegionSeats

__all__ = ["mask_of_ends", "real_places", "seats_behind", "seats_in_rows", "seats_side_by_side"]


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
    real = tuple(None if part.full else _real(part) for part in rows)
    return _seats(config, rows, real, (prefix, all_prefix), tokens, packed=True)


def seats_in_rows(
    config: MMRegionBertConfig, layout: RegionBertLayout, tokens: Tensor, prefix: Tensor | None
) -> RegionSeats:
    """The same of tokens in the rows of the output, padding between them: text, then regions."""
    texts, regions = real_places(layout)
    real = (texts, regions, torch.cat((texts, regions), dim=1))
    rows = tuple(_every_place(part) for part in real)
    all_prefix = None
    if prefix is not None:
        prefix = layout.text_output.unpack(prefix)  # (B, L)
        all_prefix = torch.cat((prefix, torch.ones_like(regions)), dim=1).flatten()
        prefix = prefix.flatten()
    return _seats(config, rows, real, (prefix, all_prefix), tokens, packed=False)


def real_places(layout: RegionBertLayout) -> tuple[Tensor, Tensor]:
    """(B, L) and (B, V) bool, true where the rows of the output have tokens of text and of regions."""
    texts = _real(layout.text_output) if layout.real_texts is None else layout.real_texts
    regions = _real(layout.region_output) if layout.real_regions is None else layout.real_regions
    return texts, regions


def seats_behind(config: MMRegionBertConfig, states: Tensor, kept: RegionBertCache) -> RegionSeats:
    """What (B, S, D) text sees that follows what is kept: all of that, and its own past."""
    kinds, (regions, seen) = set(config.layers), (kept.real_regions, None)
    if kinds & {"cross", "co"}:
        key = states.new_empty(*regions.shape, 1)
        options: Any = {"encoder_hidden_states": key, "allow_is_bidirectional_skip": False}
        seen = create_bidirectional_mask(config, states, regions, **options)
    assert kept.real is not None
    return RegionSeats(
        *(None, None, None),
        text_mask=following_mask(config, states, kept.real_texts) if kinds & {"text", "cross"} else None,
        joint_mask=following_mask(config, states, kept.real) if "joint" in kinds else None,
        text_to_regions=seen,
    )


def mask_of_ends(config: MMRegionBertConfig, tokens: Tensor, rows: PackedRows, context: PackedRows) -> Any:
    """The mask of attention from a few packed tokens of each row to all of a packed context."""
    return _other_mask(config, tokens, True, rows, context, None if context.full else _real(context))


def _real(rows: PackedRows) -> Tensor:
    """(B, L) bool, true where a token stands."""
    return rows.unpack(torch.ones_like(rows.places, dtype=torch.bool))


def _every_place(real: Tensor) -> PackedRows:
    return PackedRows(torch.arange(real.numel(), device=real.device), *real.shape, full=True)


def _seats(
    config: MMRegionBertConfig,
    rows: tuple[PackedRows, ...],
    real: tuple[Tensor | None, ...],
    prefix: tuple[Tensor | None, Tensor | None],
    tokens: Tensor,
    packed: bool,
) -> RegionSeats:
    """What the kinds of blocks need, of texts, regions and both together."""
    kinds, (texts, regions, joint) = set(config.layers), rows
    between = kinds & {"cross", "co"}
    readable = real[0]  # of text, from regions
    if prefix[0] is not None:
        readable = texts.unpack(prefix[0]) if readable is None else texts.unpack(prefix[0]) & readable
    own = partial(_own_mask, config, tokens, packed)
    other = partial(_other_mask, config, tokens, packed)
    return RegionSeats(
        *(rows if packed else (None, None, None)),
        text_mask=own(texts, prefix[0], real[0]) if kinds & {"text", "cross"} else None,
        region_mask=own(regions, None, real[1]) if kinds & {"region", "cross"} else None,
        joint_mask=own(joint, prefix[1], real[2]) if "joint" in kinds else None,
        text_to_regions=other(texts, regions, real[1]) if between else None,
        regions_to_text=other(regions, texts, readable, prefix[0] is None) if between else None,
    )


def _own_mask(
    config: MMRegionBertConfig,
    tokens: Tensor,
    packed: bool,
    rows: PackedRows,
    prefix: Tensor | None,
    real: Tensor | None,
) -> Any:
    """Who sees whom within rows."""
    return row_mask(config, rows, tokens.new_empty(len(rows.places), 1), prefix, real, bounded=packed)


def _other_mask(
    config: MMRegionBertConfig,
    tokens: Tensor,
    packed: bool,
    rows: PackedRows,
    context: PackedRows,
    real: Tensor | None,
    all_readable: bool = True,
) -> Any:
    """Who sees whom in other rows: all that `real`, (B, K) bool, names.

    Raises:
        ValueError: There is padding in rows, and the kernel is one of flash attention: transformers takes the
            mask of the keys for one of the queries then.
    """
    flash = is_flash_attention_requested(config)
    if real is None or (packed and all_readable and flash):
        return None
    if flash and not packed and (torch.compiler.is_compiling() or not real.all()):
        raise ValueError(
            "Text and regions that attend to each other in padded rows, as where states are recorded, keys "
            f"are kept or `torch.compile` works, need another kernel than {config._attn_implementation!r}; "
            'load the model with attn_implementation="sdpa".'
        )
    query = tokens.new_empty(rows.rows, rows.length, 1)
    key = tokens.new_empty(context.rows, context.length, 1)
    return create_bidirectional_mask(
        config, query, real, encoder_hidden_states=key, allow_is_bidirectional_skip=False
    )
