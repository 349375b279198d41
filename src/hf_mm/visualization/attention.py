"""Input attention: from which patches the image vector is made.

Attention rollout: Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers", section 3
(https://arxiv.org/abs/2005.00928); over images as in Dosovitskiy et al. 2021, "An Image is Worth 16x16
Words", figure 6 and appendix D.8 (https://arxiv.org/abs/2010.11929).

Shapes: B images, H heads, L tokens, G x F patches, Y x X pixels.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from .figures import blank_figure, show_heat, show_picture
from .vision_parts import Query, record_attention

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["attention_figure", "attention_rollout", "input_attention"]


def attention_rollout(attentions: Sequence[Tensor]) -> Tensor:
    """How much of each input token is in each output token, if attention and the skip weigh the same.

    Per block, the heads are averaged and half of the identity added to half of the weights, for the skip
    connection; rows are made to sum to 1; the matrices of all blocks are multiplied, the last one first.

    Args:
        attentions: (B, H, L, L) for each block, first to last; rows are the tokens that attend.

    Returns:
        (B, L, L) float32; row i says from which input tokens output token i is made, and sums to 1.

    Raises:
        ValueError: There are none.
    """
    if not attentions:
        raise ValueError("`attentions` is empty; give the weights of at least one block.")
    rollout = torch.eye(attentions[0].shape[-1], device=attentions[0].device)
    for weights in attentions:
        mixed = weights.float().mean(dim=1)  # (B, L, L)
        mixed = 0.5 * mixed + 0.5 * torch.eye(mixed.shape[-1], device=mixed.device)
        rollout = mixed / mixed.sum(dim=-1, keepdim=True) @ rollout
    return rollout


def input_attention(
    model: nn.Module,
    pixel_values: Tensor,
    method: Literal["rollout", "last"] = "rollout",
    query: Query | None = None,
    interpolate_pos_encoding: bool = False,
) -> Tensor:
    """From which patches the image vector of each image is made.

    The row of [CLS] is taken, its entries for patches, and they are made to sum to 1. A model that pools the
    patches instead of reading [CLS] has no such row: then it is the mean of the rows of all patches.

    Args:
        model: Any with a vision tower, see `vision_parts`.
        pixel_values: (B, C, Y, X), as the model's image processor makes them.
        method: "rollout" through all blocks, see `attention_rollout`, or the weights of the "last" block,
            averaged over its heads.
        query: Whose row: of "cls", or the "mean" over patches; by default what the model reads.
        interpolate_pos_encoding: Accept images of another size than the position table's.

    Returns:
        (B, G, F) float32 shares on the CPU.

    Raises:
        ValueError: An unknown `method`; else see `record_attention`.
    """
    if method not in ("rollout", "last"):
        raise ValueError(f"`method`={method!r} must be 'rollout' or 'last'.")
    attention = record_attention(model, pixel_values, query, interpolate_pos_encoding)
    if method == "rollout":
        shares = attention.read(attention_rollout(attention.weights))
    else:
        shares = attention.read(attention.weights[-1].float().mean(dim=1))
    return (shares / shares.sum(dim=(1, 2), keepdim=True)).cpu()


def attention_figure(pictures: Sequence[np.ndarray], maps: Mapping[str, Tensor]) -> "Figure":
    """Each picture, and beside it under each of its heat maps.

    Args:
        pictures: (Y, X, 3) uint8 each, what the model saw, see `seen_images`.
        maps: Title to (B, G, F), as `input_attention` returns; each map's largest value is the brightest.

    Returns:
        A figure of B rows of 1 + len(maps) axes.
    """
    columns = 1 + len(maps)
    figure = blank_figure(columns * 2.4, len(pictures) * 2.4 + 0.3)
    grid = figure.subplots(len(pictures), columns, squeeze=False)
    for row, picture in enumerate(pictures):
        show_picture(grid[row, 0], picture, "" if row else "Input")
        for axes, (title, heat) in zip(grid[row, 1:], maps.items(), strict=True):
            show_heat(axes, picture, heat[row].numpy(), "" if row else title)
    return figure
