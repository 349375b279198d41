"""Similarity of learned positions: does the model know that the image has two dimensions?

Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", figure 7 centre
(https://arxiv.org/abs/2010.11929): closer patches have more similar position vectors, and patches of one
row or column do, too.

Shapes: G x F patches, D width.
"""

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from .figures import blank_figure
from .vision_parts import vision_parts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["position_figure", "position_similarity"]

TICKS = 8  # at most about so many labels per side


def position_similarity(model: nn.Module) -> Tensor:
    """Cosine similarity of the position vector of each patch with those of all patches.

    Args:
        model: Any with a vision tower, see `vision_parts`.

    Returns:
        (G, F, G, F): [i, j] is the grid of similarities of the patch in row i, column j. A vector of zeros is
        similar to nothing, 0.

    Raises:
        ValueError: The tower has no table of positions.
    """
    parts = vision_parts(model)
    if parts.positions is None:
        raise ValueError(
            f"{parts.encoder.config.model_type} has no table of positions (they are computed); "
            "its similarities are known without a picture."
        )
    positions = nn.functional.normalize(parts.positions.float().cpu(), dim=-1)  # (G, F, D)
    return (
        (positions.flatten(0, 1) @ positions.flatten(0, 1).T)
        .unflatten(1, positions.shape[:2])
        .unflatten(0, positions.shape[:2])
    )


def position_figure(similarity: Tensor) -> "Figure":
    """A grid of grids: the tile in row i, column j shows how similar each patch is to the one at (i, j).

    Args:
        similarity: (G, F, G, F) in -1..1.

    Returns:
        A figure of two axes: the tiles, and the scale of their colours.
    """
    rows, columns = similarity.shape[:2]
    # One picture of all tiles: hundreds of axes take half a minute.
    tiles = np.full((rows * (rows + 1) - 1, columns * (columns + 1) - 1), np.nan, np.float32)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (rows + 1), column * (columns + 1)
            tiles[top : top + rows, left : left + columns] = similarity[row, column].numpy()
    figure = blank_figure(6.4, 6.4 * rows / columns * 0.85 + 0.6)
    axes = figure.add_subplot()
    drawn = axes.imshow(tiles, vmin=-1, vmax=1, cmap="viridis", interpolation="nearest")
    for axis, count in ((axes.xaxis, columns), (axes.yaxis, rows)):
        shown = range(0, count, -(-count // TICKS))
        axis.set_ticks(
            [place * (count + 1) + (count - 1) / 2 for place in shown], [str(i + 1) for i in shown]
        )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="patch column", ylabel="patch row", title="Similarity of position vectors")
    figure.colorbar(drawn, ax=axes, label="cosine similarity", shrink=0.8)
    return figure
