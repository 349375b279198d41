"""What of the last blocks goes into the pooled vector: [CLS], in some models the first region, nothing else.

Who asks for that vector alone need not have the rest computed: the last block that changes text has the
queries of [CLS] only, and none that changes what nobody reads is run.

Shapes: B rows, W text tokens, N region tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...layers.packing import PackedRows
from .configuration_region_bert import MMRegionBertConfig
from .layout_region_bert import RegionBertLayout
from .masks_region_bert import mask_of_ends
from .seats_region_bert import RegionEnds, RegionSeats

__all__ = ["ends_of", "reads_of_blocks", "run_ends"]


def ends_of(config: MMRegionBertConfig, layout: RegionBertLayout, tokens: Tensor) -> RegionEnds:
    """The ends of a batch whose tokens stand side by side; `tokens` has the dtype and device of the masks."""
    both, count = config.pooling != "text", len(layout.first_text)
    places = torch.arange((1 + both) * count, device=tokens.device)
    rows = PackedRows(places[:count], count, 1, full=True)
    joint_rows = PackedRows(places, count, 1 + both, full=True)
    first = [layout.joint_order[layout.first_text]]
    if both:
        first.append(layout.joint_order[len(layout.text_places) + layout.first_region])
    steps, kinds = reads_of_blocks(config.layers, both), set(config.layers)
    return RegionEnds(
        *([place for place, step in enumerate(steps) if step == kind] for kind in ("whole", "end")),
        rows,
        joint_rows,
        layout.first_text,
        layout.first_region,
        torch.stack(first, dim=1).flatten(),
        mask_of_ends(config, tokens, rows, layout.texts) if kinds & {"text", "cross"} else None,
        mask_of_ends(config, tokens, rows, layout.regions) if kinds & {"region", "co"} else None,
        mask_of_ends(config, tokens, joint_rows, layout.joint) if "joint" in kinds else None,
    )


def reads_of_blocks(layers: Sequence[str], both: bool) -> list[str]:
    """How much of each block is read when only the pooled vector is.

    Args:
        layers: Kinds of the blocks, first to last.
        both: A region is pooled beside [CLS].

    Returns:
        "whole", "end" (the tokens that are pooled) or "skip" for each. Who is read whole reads nothing of the
        others, so that these may come last.
    """
    text, regions = "end", "end" if both else "skip"  # how much of each stream is read after the block
    steps = []
    for kind in reversed(layers):
        if kind == "text":
            steps.append(text)
        elif kind == "region":
            steps.append(regions)
        elif "whole" in (text, regions) or (kind != "joint" and regions == "end"):
            steps.append("whole")
        else:
            steps.append("end")
        if kind != "region":
            text = "whole"
        if kind != "text" and (kind, regions) != ("region", "skip"):
            regions = "whole"
    return steps[::-1]


def run_ends(
    blocks: Sequence[tuple[str, Any]],
    text: Tensor,
    regions: Tensor,
    seats: RegionSeats,
    ends: RegionEnds,
    layout: RegionBertLayout,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """The last blocks, (kind, block), for the tokens that are pooled alone.

    Returns:
        (B, D) of text and (B, E) of regions.
    """
    first_text = first_region = None
    for kind, block in blocks:
        if kind == "joint":
            tokens, rows = layout.join(text, regions), ends.joint_rows
            mask, places = ends.to_joint, (rows, seats.joint)
            first = run_on(block, tokens[ends.first_joint], tokens, mask, places, **kwargs)
            first = first.unflatten(0, (rows.rows, rows.length))  # (B, 1 or 2, D)
            return first[:, 0], first[:, -1]
        if kind == "text":
            places = (ends.rows, seats.texts)
            first_text = run_on(block, text[ends.first_text], text, ends.to_texts, places, **kwargs)
        elif kind == "region":
            places = (ends.rows, seats.regions)
            mask, first = ends.to_regions, regions[ends.first_region]
            first_region = run_on(block, first, regions, mask, places, **kwargs)
        else:
            first_text, _ = block(text, regions, seats, ends, **kwargs)
    return (
        text[ends.first_text] if first_text is None else first_text,
        regions[ends.first_region] if first_region is None else first_region,
    )


def run_on(
    block: Any, first: Tensor, tokens: Tensor, mask: Any, places: tuple[Any, Any], **kwargs: Any
) -> Tensor:
    """A block of BERT on some tokens that read all of their rows, in these two layouts."""
    rows, context = places
    return block(first, tokens, attention_mask=mask, packed_rows=rows, packed_context=context, **kwargs)
