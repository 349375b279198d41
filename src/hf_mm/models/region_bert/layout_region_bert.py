"""Which tokens a batch of texts and regions has, and where each of them stands.

A text has tokens, an image regions; some models put the whole image before the regions and [END] behind them.
What is padding is found out here, once for a batch and with one look at the numbers.

Shapes: B rows, L places of a text, W text tokens of all rows, I images, R places for the regions of an image,
V places with the whole image and [END], M regions of all images, N tokens of the region stream of all rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...layers.packing import PackedRows, ragged

__all__ = ["RegionBertLayout", "RegionPlaces", "lay_out_all_places", "lay_out_tokens"]


@dataclass(frozen=True)
class RegionPlaces:
    """What a batch is made of.

    Attributes:
        texts: (B, L) bool, false on padding, which may stand on either side of a text.
        regions: (I, R) bool, false on padding.
        index: (B,) the image that goes with each text, or `None`: that of the same number.
        before: Tokens before the regions: 1 with the whole image.
        behind: Tokens behind the regions: 1 with [END].
    """

    texts: Tensor
    regions: Tensor
    index: Tensor | None
    before: int
    behind: int

    @property
    def of_rows(self) -> Tensor:
        """(B, R) bool, the regions of each row."""
        return self.regions if self.index is None else self.regions[self.index]

    @property
    def images(self) -> Tensor:
        """(B,) the image of each row."""
        if self.index is not None:
            return self.index
        return torch.arange(len(self.texts), device=self.texts.device)


@dataclass(frozen=True)
class RegionBertLayout:
    """The tokens of a batch, those of a row side by side, rows one after the other.

    Attributes:
        text_places: (W,) of each text token among the B * L places.
        text_positions: (W,) its number in its text.
        text_tokens_rows: (W,) its row.
        text_ends: (B,) tokens of each text.
        texts: Where text tokens stand in rows without gaps.
        text_output: The same in rows of L places.
        image_places: (M,) of each region among the I * R places.
        image_rows: (M,) the image of each region.
        sources: (N,) what each token of the region stream is among the whole images, the regions and [END].
            `None` when it is the regions as they are.
        region_tokens_rows: (N,) its row.
        is_end: (N,) bool, true on [END]; `None` without.
        regions: Where the tokens of the region stream stand in rows without gaps.
        region_output: The same in rows of V places.
        joint: Where text and regions stand in common rows without gaps.
        joint_order: (W + N,) where text tokens, then those of the region stream, stand when those of a row
            stand side by side.
        first_text: (B,) first token of each text.
        first_region: (B,) first token of the regions of each row.
        real_texts: (B, L) bool where there are tokens for padding too, else `None`.
        real_regions: (B, V) bool, likewise.
    """

    text_places: Tensor
    text_positions: Tensor
    text_tokens_rows: Tensor
    text_ends: Tensor
    texts: PackedRows
    text_output: PackedRows
    image_places: Tensor
    image_rows: Tensor
    sources: Tensor | None
    region_tokens_rows: Tensor
    is_end: Tensor | None
    regions: PackedRows
    region_output: PackedRows
    joint: PackedRows
    joint_order: Tensor
    first_text: Tensor
    first_region: Tensor
    real_texts: Tensor | None = None
    real_regions: Tensor | None = None

    def join(self, text: Tensor, regions: Tensor) -> Tensor:
        """(W, D) and (N, D) tokens to (W + N, D), those of a row side by side."""
        tokens = torch.cat((text, regions))
        return torch.empty_like(tokens).index_copy(0, self.joint_order, tokens)

    def part(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """What `join` has joined."""
        count = len(self.text_places)
        tokens = tokens.index_select(0, self.joint_order)
        return tokens[:count], tokens[count:]


def lay_out_tokens(given: RegionPlaces) -> RegionBertLayout:
    """The layout of real tokens only.

    Raises:
        ValueError: A text without a token or with padding inside, an image without a region.
    """
    real, places = given.texts, given.of_rows
    (rows, length), most = real.shape, given.regions.shape[1]
    words, seen = real.sum(dim=1), places.sum(dim=1)
    tokens = seen + (given.before + given.behind)
    holes = (real[:, 1:] & ~real[:, :-1]).sum(dim=1) + real[:, 0] > 1  # more than one beginning
    wrong = torch.stack((words == 0, holes, seen == 0))  # (3, B)
    counts = (words, tokens, words + tokens)
    sums = [part.sum() for part in (*counts, given.regions, wrong)]
    facts = torch.stack([*sums, *(part.max() for part in counts)]).tolist()  # the one synchronisation
    all_words, all_tokens, all_joint, all_regions, problems, *longest = facts
    if problems:
        kind, row = wrong.nonzero()[0].tolist()
        raise ValueError(f"Row {row} of {PROBLEMS[kind]}")
    text_rows, text_numbers = ragged(words, all_words)
    region_rows, region_numbers = ragged(tokens, all_tokens)
    joint_rows, joint_numbers = ragged(words + tokens, all_joint)
    joint_starts = _starts(words + tokens)
    order = torch.cat(
        (joint_starts[text_rows] + text_numbers, (joint_starts + words)[region_rows] + region_numbers)
    )
    text_places = text_rows * length + real.int().argmax(dim=1)[text_rows] + text_numbers
    regions = _RegionTokens(given, region_rows, region_numbers, seen, all_regions)
    width = most + given.before + given.behind
    return RegionBertLayout(
        text_places,
        text_numbers,
        text_rows,
        words,
        _rows(text_rows, text_numbers, rows, longest[0]),
        PackedRows(text_places, rows, length, all_words == rows * length),
        regions.image_places,
        regions.image_rows,
        regions.sources,
        region_rows,
        regions.is_end if given.behind else None,
        _rows(region_rows, region_numbers, rows, longest[1]),
        PackedRows(region_rows * width + regions.columns, rows, width, all_tokens == rows * width),
        _rows(joint_rows, joint_numbers, rows, longest[2]),
        order,
        _starts(words),
        _starts(tokens),
    )


def lay_out_all_places(given: RegionPlaces) -> RegionBertLayout:
    """The layout in which every place is a token, for graphs that may not look at the numbers."""
    (rows, length), (images, most) = given.texts.shape, given.regions.shape
    device, width = given.texts.device, most + given.before + given.behind
    ends = torch.ones(rows, 1, dtype=torch.bool, device=device)
    real = torch.cat((ends[:, : given.before], given.of_rows, ends[:, : given.behind]), dim=1)  # (B, V)
    numbers = torch.arange(width, device=device).expand(rows, -1)  # (B, V)
    regions = given.images.unsqueeze(1) * most + numbers - given.before + images * given.before
    ending = numbers == width - 1
    sources = regions.where(numbers >= given.before, given.images.unsqueeze(1))
    if given.behind:
        sources = sources.masked_fill(ending, images * (given.before + most))
    places = torch.arange(rows * (length + width), device=device).unflatten(0, (rows, length + width))
    every = torch.arange(rows, device=device)
    texts = PackedRows(torch.arange(rows * length, device=device), rows, length, full=True)
    stream = PackedRows(torch.arange(rows * width, device=device), rows, width, full=True)
    return RegionBertLayout(
        texts.places,
        (given.texts.long().cumsum(dim=1) - 1).clamp(min=0).flatten(),
        every.repeat_interleave(length),
        given.texts.sum(dim=1),
        texts,
        texts,
        torch.arange(images * most, device=device),
        torch.arange(images, device=device).repeat_interleave(most),
        sources.flatten(),
        every.repeat_interleave(width),
        ending.flatten() if given.behind else None,
        stream,
        stream,
        PackedRows(places.flatten(), rows, length + width, full=True),
        torch.cat((places[:, :length].flatten(), places[:, length:].flatten())),
        every * length + given.texts.int().argmax(dim=1),
        every * width + (0 if given.before else given.of_rows.int().argmax(dim=1)),
        given.texts,
        real,
    )


class _RegionTokens:
    """What the tokens of the region stream are made of, of (N,) rows and numbers in them."""

    def __init__(
        self, given: RegionPlaces, rows: Tensor, numbers: Tensor, seen: Tensor, all_regions: int
    ) -> None:
        images, most = given.regions.shape
        ranks = (~given.regions).int().argsort(dim=1, stable=True)  # (I, R), real regions first
        self.image_rows, image_numbers = ragged(given.regions.sum(dim=1), all_regions)
        self.image_places = self.image_rows * most + ranks[self.image_rows, image_numbers]
        image = given.images[rows]  # (N,)
        number = numbers - given.before  # among the regions of the row
        column = ranks[image, number.clamp(0, most - 1)] + given.before
        self.is_end = number >= seen[rows]
        self.columns = column.masked_fill(self.is_end, given.before + most).masked_fill(number < 0, 0)
        self.sources = None
        if given.index is not None or given.before or given.behind:
            starts = _starts(given.regions.sum(dim=1)) + images * given.before
            region = starts[image] + number
            region = region.masked_fill(self.is_end, images * given.before + all_regions)
            self.sources = torch.where(number < 0, image, region)


def _starts(counts: Tensor) -> Tensor:
    """(B,) where each row begins when rows of these counts stand side by side."""
    return counts.cumsum(0) - counts


def _rows(rows: Tensor, numbers: Tensor, count: int, longest: int) -> PackedRows:
    return PackedRows(rows * longest + numbers, count, longest, len(rows) == count * longest)


PROBLEMS = (
    "`input_ids` has no token at all: its `attention_mask` is 0 throughout; leave empty texts out.",
    "`input_ids` has padding between its tokens; put it in front of them or behind.",
    "the batch has no region: its `region_mask` is 0 throughout; leave out images without regions.",
)
