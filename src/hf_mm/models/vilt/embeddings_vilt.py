"""Texts and images as one sequence: words as BERT embeds them, patches as a Vision Transformer does.

Kim et al. 2021, "ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision", section
3.1 (https://arxiv.org/abs/2102.03334). Each image keeps its aspect ratio, so each has a grid of its own, to
which the position table is stretched: bilinear interpolation whose corners are the table's. Here that is one
matrix product over all patches of a batch.

Shapes: B rows, I images, L places of a text, W text tokens, G x F patches of the padded images, M patches of
all rows, g x g positions of the table, D width, T tokens.
"""

import torch
from torch import Tensor, nn

from ...layers.patches import PatchEmbed
from .configuration_vilt import MMViltConfig
from .layout_vilt import PatchGrids, ViltLayout

__all__ = ["ViltEmbeddings", "ViltTextEmbeddings", "stretched_positions"]


class ViltTextEmbeddings(nn.Module):
    """Token vectors plus learned positions and segments, normalised."""

    def __init__(self, config: MMViltConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_types = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.text_layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, words: Tensor, position_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """(W,) ids or (W, D) vectors of words, at (W,) places in (W,) segments, to (W, D)."""
        vectors = words if words.is_floating_point() else self.tokens(words)
        vectors = vectors + self.token_types(token_type_ids) + self.positions(position_ids)
        return self.dropout(self.norm(vectors))


class ViltEmbeddings(nn.Module):
    """Text tokens, the image's [CLS] and its patches, each with its position and its modality.

    Args:
        config: Sizes and switches.
        use_mask_token: Have a learned token that stands for hidden patches.
    """

    def __init__(self, config: MMViltConfig, use_mask_token: bool = False) -> None:
        super().__init__()
        self.config = config
        self.text = ViltTextEmbeddings(config)
        self.patches = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if use_mask_token else None
        self.positions = nn.Parameter(torch.zeros(1, 1 + config.grid_size**2, config.hidden_size))
        self.modalities = nn.Embedding(config.modality_type_vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        words: Tensor,
        token_type_ids: Tensor | None,
        patches: Tensor,
        image_index: Tensor | None,
        image_types: Tensor,
        layout: ViltLayout,
        grids: PatchGrids,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """All tokens of a batch, side by side.

        Args:
            words: (B, L) ids, or (B, L, D) vectors.
            token_type_ids: (B, L) segments; all 0 when `None`.
            patches: (I, G * F, D) projected patches of the padded images.
            image_index: (B,) the image of each row; that of the same number when `None`.
            image_types: (B,) modality of the image of each row.
            layout: Of the rows.
            grids: Of the image of each row.
            hidden: (B, N) bool, true where the mask token stands for a patch of the image's own grid.

        Returns:
            (T, D).
        """
        words = words.flatten(0, 1)[layout.text_places]  # (W,) or (W, D)
        segments = torch.zeros_like(layout.text_places)
        if token_type_ids is not None:
            segments = token_type_ids.flatten()[layout.text_places]
        text = self.text(words, layout.text_positions, segments)  # (W, D)
        text = text + self.modalities.weight[0]
        begin = self.cls_token[0] + self.positions[0, :1]  # (1, D)
        begin = self.dropout(begin.expand(len(image_types), -1)) + self.modalities(image_types)  # (B, D)
        seen = self._see(patches, image_index, layout, grids, hidden)  # (M, D)
        seen = seen + self.modalities(image_types[layout.patch_rows])
        return layout.side_by_side(torch.cat((text, begin.to(text.dtype), seen.to(text.dtype))))  # (T, D)

    def _see(
        self,
        patches: Tensor,
        image_index: Tensor | None,
        layout: ViltLayout,
        grids: PatchGrids,
        hidden: Tensor | None,
    ) -> Tensor:
        """(M, D) patches with their positions."""
        rows, numbers = layout.patch_rows, layout.patch_numbers
        heights, widths = grids.heights[rows], grids.widths[rows]  # (M,) each
        down, right = numbers // widths, numbers % widths
        images = rows if image_index is None else image_index[rows]
        _, all_rows, columns = grids.inside.shape
        chosen = patches.flatten(0, 1)[images * (all_rows * columns) + down * columns + right]  # (M, D)
        if hidden is not None:
            chosen = self._hide(chosen, hidden[rows, numbers])
        positions = stretched_positions(self.positions[0, 1:], (down, right), (heights, widths))
        return self.dropout(chosen + positions)

    def _hide(self, chosen: Tensor, hidden: Tensor) -> Tensor:
        if self.mask_token is None:
            raise ValueError(
                "`bool_masked_patches` needs a mask token, which this model has not learnt; use "
                "`MMViltForPreTraining` or `MMViltForMaskedImageModeling`."
            )
        return torch.where(hidden.bool().unsqueeze(1), self.mask_token[0].to(chosen.dtype), chosen)


def stretched_positions(table: Tensor, place: tuple[Tensor, Tensor], grid: tuple[Tensor, Tensor]) -> Tensor:
    """Positions of patches of grids of any size, bilinear between those of a square table.

    Args:
        table: (g * g, D), row by row.
        place: Row and column of each patch, (M,) each.
        grid: Rows and columns of its grid, (M,) each.

    Returns:
        (M, D), in the dtype of `table`.
    """
    side = round(len(table) ** 0.5)
    down, right = (_hat(number, count, side) for number, count in zip(place, grid, strict=True))
    weights = (down.unsqueeze(2) * right.unsqueeze(1)).flatten(1)  # (M, g * g)
    return weights.to(table.dtype) @ table


def _hat(number: Tensor, count: Tensor, side: int) -> Tensor:
    """(M,) numbers below (M,) counts to (M, g): how much of each of g values is in the one between them."""
    stretch = (side - 1) / (count - 1).clamp(min=1)
    distance = (number * stretch).unsqueeze(1) - torch.arange(side, device=number.device)
    return (1 - distance.abs()).clamp(min=0)
