"""Mean attention distance: how far each head looks, the receptive field of attention.

Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", figure 7 right and figure 11
(https://arxiv.org/abs/2010.11929): some heads look at all of the image already in the first block; with
depth, all do.

Shapes: B images, H heads, L tokens, G x F patches, N = G * F.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .figures import blank_figure
from .vision_parts import record_attention

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["attention_distance", "distance_figure", "mean_attention_distance", "uniform_distance"]


def mean_attention_distance(
    attentions: Sequence[Tensor], grid: tuple[int, int], patch_size: tuple[int, int]
) -> Tensor:
    """How far each head of each block looks, in pixels.

    For a patch that attends, the distances from its centre to the centres of all patches, its own (0)
    included, weighted by attention; then the mean over patches that attend and over images. [CLS] and other
    tokens without a place are left out, as rows and as columns, and the rest of each row is made to sum to 1.

    Args:
        attentions: (B, H, L, L) for each block, first to last; the last N of L tokens are the patches.
        grid: Rows and columns of patches, (G, F).
        patch_size: Height and width of a patch in pixels.

    Returns:
        (blocks, H) float32 pixels of the image that the model sees.

    Raises:
        ValueError: There are fewer tokens than patches.
    """
    patches = grid[0] * grid[1]
    distances = _distances(grid, patch_size)  # (N, N)
    means = []
    for weights in attentions:
        others = weights.shape[-1] - patches
        if others < 0:
            raise ValueError(
                f"`grid`={grid} is {patches} patches, but `attentions` are of {weights.shape[-1]} tokens; "
                "give the grid of these images."
            )
        weights = weights[:, :, others:, others:].float()  # (B, H, N, N)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        means.append((weights * distances.to(weights.device)).sum(dim=-1).mean(dim=(0, 2)))  # (H,)
    return torch.stack(means).cpu()


def uniform_distance(grid: tuple[int, int], patch_size: tuple[int, int]) -> float:
    """The mean attention distance of a head that looks at all patches alike, in pixels."""
    return float(_distances(grid, patch_size).mean())


def attention_distance(
    model: nn.Module, pixel_values: Tensor, batch_size: int = 16, interpolate_pos_encoding: bool = False
) -> Tensor:
    """How far each head of each block of a model looks, the mean over images; the paper takes 128.

    Args:
        model: Any with a vision tower, see `vision_parts`.
        pixel_values: (B, C, Y, X), as the model's image processor makes them.
        batch_size: Images at a time; the weights of all blocks are kept for so many.
        interpolate_pos_encoding: Accept images of another size than the position table's.

    Returns:
        (blocks, H) float32 pixels, see `mean_attention_distance`.
    """
    total: Tensor | float = 0.0
    for batch in pixel_values.split(batch_size):
        attention = record_attention(model, batch, interpolate_pos_encoding=interpolate_pos_encoding)
        mean = mean_attention_distance(attention.weights, attention.grid, attention.patch_size)
        total = total + mean * (len(batch) / len(pixel_values))
    return torch.as_tensor(total)


def distance_figure(distances: Tensor, uniform_px: float | None = None) -> "Figure":
    """A dot for each head, over the depth of its block.

    Args:
        distances: (blocks, H) pixels.
        uniform_px: Draw a line here, where heads are that look at all patches alike; see `uniform_distance`.

    Returns:
        A figure of one axes.
    """
    blocks, heads = distances.shape
    figure = blank_figure(6.4, 4.0)
    axes = figure.add_subplot()
    depth = torch.arange(1, blocks + 1).unsqueeze(1).expand(-1, heads)
    axes.scatter(depth.flatten().numpy(), distances.flatten().numpy(), s=24, alpha=0.75)
    axes.locator_params(axis="x", integer=True)
    axes.set(
        xlim=(0.5, blocks + 0.5),
        xlabel="block",
        ylabel="mean attention distance (px)",
        title=f"How far each of {heads} heads looks",
    )
    axes.grid(alpha=0.3)
    if uniform_px is not None:
        axes.axhline(uniform_px, color="black", linewidth=0.8, linestyle="--", label="all patches alike")
        axes.legend(loc="lower right")
    axes.set_ylim(0, 1.08 * max(float(distances.max()), uniform_px or 0.0))
    return figure


def _distances(grid: tuple[int, int], patch_size: tuple[int, int]) -> Tensor:
    """(N, N) pixels between the centres of patches."""
    rows, columns = (torch.arange(count) * side for count, side in zip(grid, patch_size, strict=True))
    centres = torch.cartesian_prod(rows, columns).float()  # (N, 2), row by row
    return torch.cdist(centres, centres, compute_mode="donot_use_mm_for_euclid_dist")
