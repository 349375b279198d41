"""Filters of the patch projection: what a vision transformer looks for before it attends to anything.

Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", figure 7 left (https://arxiv.org/abs/2010.11929):
the first 28 principal components of the patch filters resemble basis functions for the fine structure
within a patch.

Shapes: D filters, C channels, P_y x P_x patch, K components, S filters of a stem.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .figures import blank_figure, show_picture
from .vision_parts import vision_parts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["filter_components", "filter_figure", "stem_filters"]

COUNT = 28  # of the paper's figure
COLUMNS = 7


def filter_components(model: nn.Module, count: int | None = None) -> Tensor:
    """Principal components of the patch filters, the rows of W_e as pictures of P_y x P_x pixels.

    The rows are centred, as samples of C * P_y * P_x numbers; the components are the orthogonal directions
    of greatest variance, in falling order. A direction has no sign of its own: the largest entry is made
    positive.

    Args:
        model: Any with a vision tower, see `vision_parts`.
        count: How many; by default 28, or all where there are fewer.

    Returns:
        (K, P_y, P_x, 3) in 0..1, 0.5 being zero and the largest entry of each component 1.

    Raises:
        ValueError: Behind a convolutional stem the projection sees no colours; there are fewer components.
    """
    parts = vision_parts(model)
    filters = parts.patch_filters
    if parts.stem_filters is not None:
        raise ValueError(
            f"The patch filters of {type(model).__name__} see {filters.shape[1]} features of a convolutional "
            "stem (`stem_channels`), not colours; show `stem_filters(model)`, or train without a stem."
        )
    most = min(len(filters) - 1, filters[0].numel())  # the centre takes one
    if count is not None and not 1 <= count <= most:
        raise ValueError(
            f"`count`={count} must be in 1..{most}: there are {len(filters)} filters of "
            f"{filters[0].numel()} numbers."
        )
    rows = filters.flatten(1).cpu().double()  # (D, C * P_y * P_x)
    components = torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False).Vh
    components = components[: count or min(COUNT, most)]
    largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    return _as_colours((components * largest.sign()).unflatten(1, filters.shape[1:]).float())


def stem_filters(model: nn.Module) -> Tensor:
    """The filters of the first convolution of a stem, as they are.

    Args:
        model: Any with a vision tower that has a convolutional stem.

    Returns:
        (S, 3, 3, 3): height, width and colour last, in 0..1, 0.5 being zero and the entry of greatest
        magnitude in each filter 0 or 1.

    Raises:
        ValueError: There is no stem.
    """
    filters = vision_parts(model).stem_filters
    if filters is None:
        raise ValueError(
            f"{type(model).__name__} has no convolutional stem; show `filter_components(model)`."
        )
    return _as_colours(filters.float().cpu())


def filter_figure(filters: Tensor, title: str = "Principal components of the patch filters") -> "Figure":
    """A page of small pictures, seven in a row.

    Args:
        filters: (K, Y, X, 3) in 0..1.
        title: Above all of them.

    Returns:
        A figure of K axes.
    """
    rows = -(-len(filters) // COLUMNS)
    figure = blank_figure(COLUMNS * 0.8, rows * 0.8 + 0.5)
    figure.suptitle(title)
    for number, picture in enumerate(filters, start=1):
        show_picture(figure.add_subplot(rows, COLUMNS, number), picture.numpy())
    return figure


def _as_colours(filters: Tensor) -> Tensor:
    """(K, C, Y, X) numbers of any size to (K, Y, X, 3) in 0..1, each filter by its own largest."""
    channels = filters.shape[1]
    if channels not in (1, 3):
        raise ValueError(f"Filters of {channels} channels cannot be shown as colours; 1 or 3 can.")
    largest = filters.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(filters.dtype).tiny)
    return (filters / largest / 2 + 0.5).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous()
