"""Generated pictures on one page: grids, film strips, samples beside their nearest neighbours.

Drawn by Pillow, pixel by pixel: small pictures are enlarged by whole factors, nothing is smoothed.

Shapes: N pictures, R rows, T frames, k neighbours, C channels (1 or 3), H x W pixels.
"""

from collections.abc import Sequence
from math import ceil

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..imaging.pixel_levels import pixel_levels

__all__ = ["Pictures", "film_strip", "neighbour_grid", "sample_grid"]

Pictures = Tensor | Sequence[Image.Image]
"""(N, C, H, W), floats in [-1, 1] or uint8; or PIL images of one size."""

PAGE, INK = "#ffffff", "#1f2328"
COLUMNS = 8
LEAST_PX = 56  # smaller pictures are enlarged


def sample_grid(
    pictures: Pictures,
    columns: int | None = None,
    *,
    row_labels: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    gap_px: int = 2,
    least_px: int = LEAST_PX,
) -> Image.Image:
    """Pictures side by side, row by row.

    Args:
        pictures: See `Pictures`.
        columns: Pictures in a row, by default 8, or all where there are fewer.
        row_labels: A text for each row, on its left.
        titles: A text for each column, above.
        gap_px: Between pictures.
        least_px: Pictures whose longer side is below are enlarged, by a whole factor, up to at least this.

    Returns:
        "L" where all pictures are grey, else "RGB".

    Raises:
        ValueError: No pictures, pictures of several sizes, another count of labels, or sizes below their
            least.
    """
    found = _as_images(pictures, "pictures")
    columns = min(COLUMNS, len(found)) if columns is None else columns
    if columns < 1:
        raise ValueError(f"`columns`={columns} must be at least 1.")
    rows = [found[first : first + columns] for first in range(0, len(found), columns)]
    return _page(rows, row_labels, titles, gap_px, least_px)


def film_strip(
    frames: Pictures | Sequence[Pictures],
    *,
    labels: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    gap_px: int = 2,
    least_px: int = LEAST_PX,
) -> Image.Image:
    """Frames of one film in a row; several films below each other: interpolations, steps of sampling.

    Args:
        frames: The frames of one film, see `Pictures`; or (R, T, C, H, W), or a list of films.
        labels: A text for each film.
        titles: A text for each frame.
        gap_px: See `sample_grid`.
        least_px: See `sample_grid`.

    Returns:
        "L" where all pictures are grey, else "RGB".

    Raises:
        ValueError: As `sample_grid`; or films of several lengths.
    """
    one = frames.ndim == 4 if isinstance(frames, Tensor) else not len(frames) or _is_image(frames[0])
    films = [frames] if one else list(frames)
    rows = [_as_images(film, "frames" if one else f"frames[{n}]") for n, film in enumerate(films)]  # ty: ignore[invalid-argument-type]
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise ValueError(f"`frames` are films of {lengths} frames; give films of one length.")
    return _page(rows, labels, titles, gap_px, least_px)


def neighbour_grid(
    samples: Pictures,
    neighbours: Tensor | Sequence[Pictures],
    distances: Tensor | Sequence[Sequence[float]] | None = None,
    *,
    labels: Sequence[str] | None = None,
    texts: Sequence[Sequence[str]] | None = None,
    gap_px: int = 2,
    least_px: int = LEAST_PX,
) -> Image.Image:
    """Each sample, and on its right the real pictures next to it: does the generator copy?

    Args:
        samples: See `Pictures`.
        neighbours: Of each sample, the nearest first: (N, k, C, H, W), or N times k pictures.
        distances: (N, k), written below the neighbours.
        labels: A text for each sample.
        texts: N times k, what each neighbour is, written below it and behind its distance; cut where there is
            no room.
        gap_px: See `sample_grid`.
        least_px: See `sample_grid`.

    Returns:
        "L" where all pictures are grey, else "RGB".

    Raises:
        ValueError: As `sample_grid`; or another count of neighbours or distances than of samples.
    """
    found = _as_images(samples, "samples")
    beside = [_as_images(part, f"neighbours[{number}]") for number, part in enumerate(neighbours)]
    counts = sorted({len(part) for part in beside})
    if len(beside) != len(found) or len(counts) > 1:
        raise ValueError(
            f"There are {len(found)} `samples` but neighbours of {len(beside)}, {counts} each; give each "
            "sample as many."
        )
    captions = None
    if distances is not None:
        written = [[float(distance) for distance in row] for row in distances]
        lengths = [len(row) for row in written]
        if lengths != [counts[0]] * len(found):
            raise ValueError(f"`distances` must be {len(found)} x {counts[0]}, got rows of {lengths}.")
        captions = [["", *(f"{distance:.3g}" for distance in row)] for row in written]
    if texts is not None:
        lengths = [len(row) for row in texts]
        if lengths != [counts[0]] * len(found):
            raise ValueError(f"`texts` must be {len(found)} x {counts[0]}, got rows of {lengths}.")
        before = captions or [[""] * (1 + counts[0])] * len(found)
        captions = [
            ["", *(f"{number} {text}".strip() for number, text in zip(row[1:], words, strict=True))]
            for row, words in zip(before, texts, strict=True)
        ]
    rows = [[sample, *part] for sample, part in zip(found, beside, strict=True)]
    titles = ["sample", "nearest", *(f"{rank}." for rank in range(2, counts[0] + 1))]
    return _page(rows, labels, titles, gap_px, least_px, captions, apart=True)


def _page(
    rows: Sequence[Sequence[Image.Image]],
    row_labels: Sequence[str] | None,
    titles: Sequence[str] | None,
    gap_px: int,
    least_px: int,
    captions: Sequence[Sequence[str]] | None = None,
    apart: bool = False,
) -> Image.Image:
    """Lay out tiles; with `apart` the first column stands off the others."""
    if gap_px < 0 or least_px < 1:
        raise ValueError(f"`gap_px`={gap_px} must be at least 0 and `least_px`={least_px} at least 1.")
    columns = max(map(len, rows))
    for name, texts, count, what in (
        ("labels", row_labels, len(rows), "rows"),
        ("titles", titles, columns, "columns"),
    ):
        if texts is not None and len(texts) != count:
            raise ValueError(f"{len(texts)} {name} for {count} {what}; give one for each.")
    tiles = [tile for row in rows for tile in row]
    if len({tile.size for tile in tiles}) > 1:
        sizes = sorted({tile.size for tile in tiles})
        raise ValueError(f"The pictures are {sizes} px wide and high; bring them to one size.")
    factor = ceil(least_px / max(tiles[0].size))
    width, height = (side * factor for side in tiles[0].size)
    font = ImageFont.load_default(size=min(14, max(9, height // 4)))
    line = ceil(font.getbbox("Ágj")[3]) + 2
    left = ceil(max((font.getlength(text) for text in row_labels or ()), default=-8)) + 8
    lefts = [left + gap_px + (width + gap_px) * n + (apart and n > 0) * width // 4 for n in range(columns)]
    if titles is not None and not apart:  # long titles are cut rather than laid over each other
        titles = [_cut(text, font, width) for text in titles]
    step = height + gap_px + (line if captions else 0)
    top = gap_px + (line if titles else 0)
    page = Image.new("RGB", (lefts[-1] + width + gap_px, top + step * len(rows)), PAGE)
    draw = ImageDraw.Draw(page)
    for place, text in zip(lefts, titles or (), strict=False):
        draw.text((place + width / 2, top - gap_px), text, INK, font, anchor="md")
    for number, row in enumerate(rows):
        above = top + step * number
        if row_labels is not None:
            draw.text((left - 4, above + height / 2), row_labels[number], INK, font, anchor="rm")
        for place, (column, tile) in zip(lefts, enumerate(row), strict=False):
            page.paste(tile.resize((width, height), Image.Resampling.NEAREST), (place, above))
            if captions:
                middle = (place + width / 2, above + height + 1)
                draw.text(middle, _cut(captions[number][column], font, width), INK, font, anchor="ma")
    return page.convert("L") if all(tile.mode == "L" for tile in tiles) else page


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: int) -> str:
    while len(text) > 1 and font.getlength(text) > room:
        text = text[:-2] + "…" if text.endswith("…") else text[:-1] + "…"
    return text


def _as_images(pictures: Pictures, name: str) -> list[Image.Image]:
    """PIL images, grey or RGB."""
    if isinstance(pictures, Tensor):
        levels = pixel_levels(pictures, name).cpu().permute(0, 2, 3, 1).numpy()  # (N, H, W, C)
        return [Image.fromarray(part[..., 0] if part.shape[-1] == 1 else part) for part in levels]
    found = [picture if picture.mode == "L" else picture.convert("RGB") for picture in pictures]
    if not found:
        raise ValueError(f"`{name}` is empty; there is nothing to draw.")
    return found


def _is_image(value: object) -> bool:
    return isinstance(value, Image.Image)
