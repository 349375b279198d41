"""Where the tokens of a batch stand, and what they may see, as the blocks are told.

Shapes: B rows, W text tokens, N region tokens.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...layers.packing import PackedRows

__all__ = ["RegionEnds", "RegionSeats"]


@dataclass(frozen=True)
class RegionSeats:
    """Where the tokens of a batch stand, and what each kind of attention may see.

    Attributes:
        texts: Layout of packed text tokens; `None` when they come in rows.
        regions: Layout of packed regions, likewise.
        joint: Layout of packed text and regions, likewise.
        text_mask: For attention from text to text, as the kernel takes it.
        region_mask: From regions to regions.
        joint_mask: From all to all.
        text_to_regions: From text to regions.
        regions_to_text: From regions to text.
    """

    texts: PackedRows | None
    regions: PackedRows | None
    joint: PackedRows | None
    text_mask: Any = None
    region_mask: Any = None
    joint_mask: Any = None
    text_to_regions: Any = None
    regions_to_text: Any = None


@dataclass(frozen=True)
class RegionEnds:
    """The tokens that are pooled: where they stand, and what they may see.

    Attributes:
        whole: Places among the blocks of those that are run as ever.
        last: Of those that are run for these tokens alone, after the others.
        rows: Layout of one such token for each row.
        joint_rows: Layout of those of text and regions, row by row, where both are pooled.
        first_text: (B,) among text tokens.
        first_region: (B,) among region tokens.
        first_joint: (B,) or (2 * B,) among those of text and regions side by side.
        to_texts: Mask of attention from one token to text.
        to_regions: From one token to regions.
        to_joint: From one or both tokens to all.
    """

    whole: list[int]
    last: list[int]
    rows: PackedRows
    joint_rows: PackedRows
    first_text: Tensor
    first_region: Tensor
    first_joint: Tensor
    to_texts: Any
    to_regions: Any
    to_joint: Any
