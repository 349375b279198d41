"""Where a patch is and when, and what its text is about: what a diffusion transformer is told beside patches.

Peebles and Xie 2023, "Scalable Diffusion Models with Transformers", section 3.2
(https://arxiv.org/abs/2212.09748).

Shapes: B pictures, G x F patches (rows x columns), L tokens of a text, T width of its states, D width.
"""

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn
from torch.nn.functional import silu

from ...layers.onednn_linear import OneDNNLinear

__all__ = ["DiTTimeEmbedding", "PooledTextEmbedding", "grid_positions"]

TIME_WAVES = 256  # sines and cosines of a time, in every published DiT
LONGEST_WAVE = 10000.0


class DiTTimeEmbedding(nn.Module):
    """Sines and cosines of a time, then two linear layers.

    Args:
        width: D.
        freq_shift: The wave lengths grow by a factor of 10000 over 128 - `freq_shift` of them.
    """

    def __init__(self, width: int, freq_shift: float) -> None:
        super().__init__()
        self.freq_shift = freq_shift
        self.linear_1 = OneDNNLinear(TIME_WAVES, width)
        self.linear_2 = OneDNNLinear(width, width)

    def forward(self, times: Tensor, dtype: torch.dtype) -> Tensor:
        """(B,) float32 times to (B, D) in `dtype`."""
        waves = get_timestep_embedding(
            times, TIME_WAVES, flip_sin_to_cos=True, downscale_freq_shift=self.freq_shift
        )
        return self.linear_2(silu(self.linear_1(waves.to(dtype))))


class PooledTextEmbedding(nn.Module):
    """The mean of a text's states, then two linear layers.

    Esser et al. 2024, "Scaling Rectified Flow Transformers", figure 2 (https://arxiv.org/abs/2403.03206),
    where the vector is the pooled one of CLIP; a mean asks nothing of the encoder and can be cached with the
    states.

    Args:
        text_width: T.
        width: D.
    """

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.linear_1 = OneDNNLinear(text_width, width)
        self.linear_2 = OneDNNLinear(width, width)

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """States (B, L, T) and mask (B, L), 0 on padding, to (B, D); a text of padding alone counts as 0."""
        if mask is None:
            pooled = states.mean(1)
        else:
            seen = mask.to(states).unsqueeze(-1)
            pooled = (states * seen).sum(1) / seen.sum(1).clamp(min=1)
        return self.linear_2(silu(self.linear_1(pooled)))


def grid_positions(grid: tuple[int, int], trained_grid: tuple[int, int], width: int) -> Tensor:
    """Sines and cosines of the column, then of the row, of every patch, row by row.

    A grid of another size is stretched over the one of the training: its patches lie between those places.

    Args:
        grid: (G, F) of the picture.
        trained_grid: Rows and columns that the model is trained for.
        width: D, a multiple of 4.

    Returns:
        (1, G * F, D) float32 in -1..1.
    """
    waves = LONGEST_WAVE ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))  # (D / 4,)
    rows, columns = (
        torch.arange(count, dtype=torch.float64) * (trained / count)
        for count, trained in zip(grid, trained_grid, strict=True)
    )
    down, right = (places.unsqueeze(1) * waves for places in (rows, columns))
    down = torch.cat((down.sin(), down.cos()), dim=1).unsqueeze(1).expand(-1, grid[1], -1)  # (G, F, D / 2)
    right = torch.cat((right.sin(), right.cos()), dim=1).unsqueeze(0).expand(grid[0], -1, -1)
    return torch.cat((right, down), dim=2).flatten(0, 1).unsqueeze(0).float()
