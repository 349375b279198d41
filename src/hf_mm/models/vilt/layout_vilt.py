"""Which tokens a batch of texts and images has, and where each of them stands.

A row is a text, a [CLS] token of the image and the image's patches. Texts differ in length, images in size;
what is padding is found out here, once for a batch and with one look at the numbers, so that an accelerator
is not kept waiting for each image.

Shapes: B rows, L places of the longest text, W tokens of all texts, G x F patches (rows x columns) of the
padded images, N most patches of an image, M patches of all images, S = L + 1 + N, T = W + B + M tokens of all
rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...layers.packing import PackedRows, ragged

__all__ = ["PatchGrids", "ViltLayout", "lay_out", "lay_out_padded"]


@dataclass(frozen=True)
class PatchGrids:
    """The patches of each image among those of the padded ones.

    Attributes:
        inside: (B, G, F) bool, true on the image.
        heights: (B,) rows of its own grid.
        widths: (B,) columns of its own grid.
    """

    inside: Tensor
    heights: Tensor
    widths: Tensor

    @classmethod
    def of_mask(cls, inside: Tensor) -> "PatchGrids":
        """The grids that (B, G, F) bool `inside` shows."""
        return cls(inside, inside[:, :, 0].sum(dim=1), inside[:, 0].sum(dim=1))

    def of_rows(self, index: Tensor) -> "PatchGrids":
        """The grids of the images that (B,) `index` names."""
        return PatchGrids(self.inside[index], self.heights[index], self.widths[index])


@dataclass(frozen=True)
class ViltLayout:
    """Tokens of a batch: the texts' first, then the [CLS] of the images, then their patches.

    Attributes:
        text_places: (W,) of each text token among the B * L places.
        text_positions: (W,) its number in its text.
        patch_rows: (M,) the row of each patch.
        patch_numbers: (M,) its number in the image's own grid, row by row.
        order: (T,) where these tokens stand when those of a row stand side by side, text before image.
        rows: Where tokens in that order stand in rows without gaps, at most the longest row long.
        output: The same in rows of S places: L of the text, [CLS], N of patches.
        first: (B,) first token of each text, in that order.
        real: (B, S) bool where `output` has padding for tokens of its own, else `None`.
    """

    text_places: Tensor
    text_positions: Tensor
    patch_rows: Tensor
    patch_numbers: Tensor
    order: Tensor
    rows: PackedRows
    output: PackedRows
    first: Tensor
    real: Tensor | None = None

    def side_by_side(self, tokens: Tensor) -> Tensor:
        """(T, ...) text tokens, [CLS], patches, put in order."""
        return torch.zeros_like(tokens).index_copy(0, self.order, tokens)

    def real_places(self, tokens: Tensor) -> Tensor:
        """(B, S) bool, true where `output` has one of the (T, D) tokens and it is no padding."""
        if self.real is not None:
            return self.real
        return self.output.unpack(torch.ones_like(tokens[:, 0], dtype=torch.bool))


def lay_out(attention_mask: Tensor, grids: PatchGrids, max_patches: int | None) -> ViltLayout:
    """The layout of real tokens only.

    Args:
        attention_mask: (B, L), 0 on padding, which may stand on either side of a text.
        grids: Of the images.
        max_patches: Draw so many of an image that has more, with torch's default generator.

    Raises:
        ValueError: A text without a token or with padding inside, an image without a patch or that is not a
            rectangle in the upper left corner.
    """
    batch, length = attention_mask.shape
    real = attention_mask.bool()
    words, patches = real.sum(dim=1), grids.inside.flatten(1).sum(dim=1)
    holes = (real[:, 1:] & ~real[:, :-1]).sum(dim=1) + real[:, 0] > 1  # more than one beginning
    wrong = torch.stack((words == 0, patches == 0, holes, ~_upper_left(grids)))  # (4, B)
    kept = patches if max_patches is None else patches.clamp(max=max_patches)
    counts = words + 1 + kept
    facts = torch.stack((words.sum(), kept.sum(), kept.max(), counts.max(), wrong.sum()))
    all_words, all_patches, most, longest, problems = facts.tolist()  # the one synchronisation
    if problems:
        kind, row = wrong.nonzero()[0].tolist()
        raise ValueError(f"Row {row} of {PROBLEMS[kind]}")
    starts, width = counts.cumsum(0) - counts, length + 1 + most  # (B,) first token of each row, S
    text_rows, text_numbers = ragged(words, all_words)
    text_places = text_rows * length + real.int().argmax(dim=1)[text_rows] + text_numbers
    patch_rows, patch_numbers = ragged(kept, all_patches)
    every = torch.arange(batch, device=real.device)
    order = torch.cat(
        (starts[text_rows] + text_numbers, starts + words, (starts + words + 1)[patch_rows] + patch_numbers)
    )
    output = torch.cat(
        (
            text_rows * width + text_places % length,
            every * width + length,
            patch_rows * width + length + 1 + patch_numbers,
        )
    )
    token_rows, token_numbers = ragged(counts, all_words + batch + all_patches)
    if max_patches is not None:
        patch_numbers = _drawn(patches, grids, max_patches)[patch_rows, patch_numbers]
    return ViltLayout(
        text_places,
        text_numbers,
        patch_rows,
        patch_numbers,
        order,
        PackedRows(token_rows * longest + token_numbers, batch, longest),
        PackedRows(torch.zeros_like(output).index_copy(0, order, output), batch, width),
        starts,
    )


def lay_out_padded(
    attention_mask: Tensor, grids: PatchGrids, most: int | None = None, max_patches: int | None = None
) -> ViltLayout:
    """The layout in which every place is a token, for graphs that may not look at the numbers.

    Args:
        attention_mask: (B, L), 0 on padding.
        grids: Of the images.
        most: N, if it is known; by default G * F, or `max_patches` if that is less.
        max_patches: Draw so many of an image that has more, as `lay_out` does.
    """
    batch, length = attention_mask.shape
    device, every = attention_mask.device, grids.inside[0].numel()
    most = most or min(every, max_patches or every)
    width, real = length + 1 + most, attention_mask.bool()
    patches = grids.heights * grids.widths
    numbers = torch.arange(most, device=device).expand(batch, -1)  # (B, N)
    places = torch.arange(batch * width, device=device).unflatten(0, (batch, width))  # (B, S)
    rows = PackedRows(places.flatten(), batch, width)
    image = torch.cat((torch.ones_like(real[:, :1]), numbers < patches.unsqueeze(1)), dim=1)
    if max_patches is not None:
        numbers = _drawn(patches, grids, max_patches)
    return ViltLayout(
        torch.arange(batch * length, device=device),
        (real.long().cumsum(dim=1) - 1).clamp(min=0).flatten(),
        torch.arange(batch, device=device).repeat_interleave(most),
        numbers.minimum((patches - 1).clamp(min=0).unsqueeze(1)).flatten(),
        torch.cat([part.flatten() for part in places.split((length, 1, most), dim=1)]),
        rows,
        rows,
        places[:, 0] + real.int().argmax(dim=1),
        torch.cat((real, image), dim=1),
    )


def _upper_left(grids: PatchGrids) -> Tensor:
    """(B,) whether the image covers the upper left corner, and all between there and its last patch."""
    _, rows, columns = grids.inside.shape
    down = torch.arange(rows, device=grids.inside.device) < grids.heights.unsqueeze(1)  # (B, G)
    right = torch.arange(columns, device=grids.inside.device) < grids.widths.unsqueeze(1)  # (B, F)
    return (grids.inside == (down.unsqueeze(2) & right.unsqueeze(1))).flatten(1).all(dim=1)


def _drawn(patches: Tensor, grids: PatchGrids, max_patches: int) -> Tensor:
    """(B, K) numbers of the patches that are kept, in order; K is at most `max_patches`."""
    most = grids.inside[0].numel()
    numbers = torch.arange(most, device=patches.device).expand(len(patches), -1)  # (B, G * F)
    ranks = torch.rand(numbers.shape, device=patches.device).masked_fill(numbers >= patches.unsqueeze(1), 2.0)
    drawn = ranks.argsort(dim=1)[:, :max_patches]  # own patches first
    return drawn.sort(dim=1).values


PROBLEMS = (
    "`input_ids` has no token at all: its `attention_mask` is 0 throughout; leave empty texts out.",
    "`pixel_mask` shows no patch of its image: it is 0 throughout; leave out what has no image.",
    "`input_ids` has padding between its tokens; put it in front of them or behind.",
    "`pixel_mask` is not 1 on a rectangle that begins at the upper left corner; pad images on the right and "
    "below.",
)
