"""Pictures to show: points on an image, and a page of images with what was asked and answered."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from .loading import load_rgb
from .points import parse_points

__all__ = ["AnsweredImage", "answer_grid", "draw_points"]

INK, FAINT, CARD, FRAME, PAGE = "#1f2328", "#656d76", "#f6f8fa", "#d8dee4", "#ffffff"
RIGHT, WRONG, NEUTRAL = "#1a7f37", "#cf222e", "#0969da"
POINT = "#ff2d78"
SMOOTHING = 4  # marks are drawn this many times as large and then reduced


@dataclass(frozen=True)
class AnsweredImage:
    """One card of `answer_grid`.

    Args:
        image: Any picture, see `load_rgb`.
        question: What was asked.
        answer: What was answered; points in it are drawn, see `parse_points`.
        reference: What should have been answered; `None` if nobody knows. Its points are drawn as rings.
        correct: Whether the answer is right; by default whether it equals `reference`, case and outer blanks
            aside.
    """

    image: object
    question: str
    answer: str
    reference: str | None = None
    correct: bool | None = None

    def verdict(self) -> bool | None:
        """Whether the answer is right, `None` if nobody knows."""
        if self.correct is not None or self.reference is None:
            return self.correct
        return self.answer.strip().lower() == self.reference.strip().lower()


def draw_points(
    image: object,
    points: Sequence[tuple[float, float]],
    *,
    least_px: int = 256,
    color: str = POINT,
    filled: bool = True,
) -> Image.Image:
    """A copy of an image with points on it, large enough to be seen.

    Args:
        image: Any picture, see `load_rgb`.
        points: (x, y) of each, in its pixels.
        least_px: A picture whose longer side is below is enlarged, by a whole factor, up to at least this.
        color: Of the points.
        filled: Discs; else rings.

    Returns:
        An RGB image.
    """
    picture = Image.fromarray(load_rgb(image))
    factor = max(1, -(-least_px // max(picture.size)))
    if factor > 1:
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)
    mark = _point_mark(max(11, round(max(picture.size) / 14)), color, filled)
    for x, y in points:
        corner = (round(x * factor - mark.width / 2), round(y * factor - mark.height / 2))
        picture.paste(mark, corner, mark)
    return picture


def answer_grid(items: Sequence[AnsweredImage], columns: int = 4, cell_px: int = 240) -> Image.Image:
    """A page of cards: image, question, and the answer, green if it is right and red if it is not.

    Args:
        items: Row by row.
        columns: Cards side by side.
        cell_px: Width of a card.

    Returns:
        An RGB image.

    Raises:
        ValueError: No items, or no room.
    """
    if not items:
        raise ValueError("`items` is empty; there is nothing to draw.")
    if columns < 1 or cell_px < 64:
        raise ValueError(f"`columns`={columns} must be at least 1 and `cell_px`={cell_px} at least 64.")
    gap = max(6, cell_px // 16)
    rows = [items[start : start + columns] for start in range(0, len(items), columns)]
    texts = [[_card_lines(item, cell_px) for item in row] for row in rows]
    heights = [cell_px + max(sum(line.height for line in lines) for lines in row) + gap for row in texts]
    width = min(columns, len(items))
    page = Image.new("RGB", (gap + width * (cell_px + gap), gap + sum(heights) + gap * len(rows)), PAGE)
    top = gap
    for row, lines, height in zip(rows, texts, heights, strict=True):
        for column, (item, text) in enumerate(zip(row, lines, strict=True)):
            page.paste(_card(item, text, (cell_px, height)), (gap + column * (cell_px + gap), top))
        top += height + gap
    return page


@dataclass(frozen=True)
class _Line:
    text: str
    size: int
    color: str
    left: int = 0
    mark: bool | None = None  # a tick or a cross before it
    above: int = 0  # empty pixels

    @property
    def height(self) -> int:
        return self.above + round(self.size * 1.35)


def _card_lines(item: AnsweredImage, cell_px: int) -> list[_Line]:
    """The text of a card, wrapped."""
    small, large = max(11, cell_px // 17), max(12, cell_px // 13)
    room, verdict = cell_px - 2 * _inset(cell_px), item.verdict()
    color = {True: RIGHT, False: WRONG, None: NEUTRAL}[verdict]
    left = 0 if verdict is None else round(large * 1.35)
    answer = _wrap(_readable(item.answer, item.image) or "(no answer)", large, room - left)
    lines = [_Line(text, small, FAINT) for text in _wrap(item.question, small, room)]
    lines.append(_Line(answer[0], large, color, left, verdict, above=small // 3))
    lines += [_Line(text, large, color, left) for text in answer[1:]]
    if verdict is False and item.reference is not None:
        right = f"should be {_readable(item.reference, item.image)}"
        lines += [_Line(text, small, INK, left) for text in _wrap(right, small, room - left)]
    return lines


def _card(item: AnsweredImage, lines: list[_Line], size: tuple[int, int]) -> Image.Image:
    width, height = size
    card, radius, inset = Image.new("RGB", size, PAGE), max(4, width // 24), _inset(width)
    card.paste(Image.new("RGB", size, FRAME), mask=_rounded(size, radius))
    inner = (width - 2, height - 2)
    card.paste(Image.new("RGB", inner, CARD), (1, 1), _rounded(inner, radius - 1))
    side = width - 2 * inset
    picture = _with_points(item, side)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    left, top = (width - picture.width) // 2, inset + (side - picture.height) // 2
    framed = (picture.width + 2, picture.height + 2)
    card.paste(Image.new("RGB", framed, FRAME), (left - 1, top - 1), _rounded(framed, radius // 2 + 1))
    card.paste(picture, (left, top), _rounded(picture.size, radius // 2))
    draw, top = ImageDraw.Draw(card), inset + side + inset // 2
    for line in lines:
        middle = top + (line.above + line.height) / 2
        if line.mark is not None:
            mark = _verdict_mark(line.size, line.mark)
            card.paste(mark, (inset, round(middle - mark.height / 2)), mark)
        draw.text((inset + line.left, middle), line.text, line.color, _font(line.size), anchor="lm")
        top += line.height
    return card


def _with_points(item: AnsweredImage, side: int) -> Image.Image:
    pixels = load_rgb(item.image)
    size = {"height": pixels.shape[0], "width": pixels.shape[1]}
    answered, expected = (
        [point for found in parse_points(text or "", **size) for point in found.points]
        for text in (item.answer, item.reference)
    )
    factor = max(1, -(-side // max(pixels.shape[:2])))
    picture = draw_points(pixels, expected, least_px=side, color=RIGHT, filled=False)
    return draw_points(picture, [(x * factor, y * factor) for x, y in answered], least_px=0)


def _readable(text: str, image: object) -> str:
    """A text with each tag that points replaced by its label and the places in pixels."""
    pixels = load_rgb(image)
    for found in reversed(parse_points(text, height=pixels.shape[0], width=pixels.shape[1])):
        places = ", ".join(f"({x:.0f}, {y:.0f})" for x, y in found.points)
        text = f"{text[: found.span[0]]}{found.label} at {places}{text[found.span[1] :]}"
    return text.strip()


def _wrap(text: str, size: int, room: float) -> list[str]:
    """Lines no longer than `room` pixels; words that are longer are cut."""
    font, lines, line = _font(size), [], ""
    for word in text.split():
        while font.getlength(word) > room:
            fits = next((n for n in range(len(word), 1, -1) if font.getlength(word[:n]) <= room), 1)
            lines += [line, word[:fits]] if line else [word[:fits]]
            line, word = "", word[fits:]
        longer = f"{line} {word}".strip()
        if font.getlength(longer) > room:
            lines.append(line)
            longer = word
        line = longer
    return [*lines, line] if line else lines


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _inset(cell_px: int) -> int:
    return max(4, cell_px // 20)


def _rounded(size: tuple[int, int], radius: int) -> Image.Image:
    """A mask with rounded corners."""
    mask = Image.new("L", (size[0] * SMOOTHING, size[1] * SMOOTHING))
    box = (0, 0, mask.width - 1, mask.height - 1)
    ImageDraw.Draw(mask).rounded_rectangle(box, radius * SMOOTHING, 255)
    return mask.resize(size, Image.Resampling.LANCZOS)


def _point_mark(side: int, color: str, filled: bool) -> Image.Image:
    """A disc or a ring, between rims of white and black that show on any ground."""
    large = side * SMOOTHING
    mark = Image.new("RGBA", (large, large))
    draw, rim = ImageDraw.Draw(mark), large // 16

    def ring(inset: int, color: str, width: int) -> None:
        draw.ellipse((inset, inset, large - 1 - inset, large - 1 - inset), outline=color, width=width)

    ring(0, INK, rim)
    ring(rim, "white", rim * 2 if filled else rim * 5)
    if filled:
        draw.ellipse((rim * 3, rim * 3, large - 1 - rim * 3, large - 1 - rim * 3), color)
    else:
        ring(rim * 2, color, rim * 3)
    return mark.resize((side, side), Image.Resampling.LANCZOS)


@lru_cache
def _verdict_mark(side: int, right: bool) -> Image.Image:
    """A tick or a cross, white on a coloured disc."""
    large = side * SMOOTHING
    mark = Image.new("RGBA", (large, large))
    draw, stroke = ImageDraw.Draw(mark), large // 9
    draw.ellipse((0, 0, large - 1, large - 1), RIGHT if right else WRONG)
    tick = [[(0.26, 0.53), (0.44, 0.71), (0.75, 0.33)]]
    cross = [[(0.32, 0.32), (0.68, 0.68)], [(0.68, 0.32), (0.32, 0.68)]]
    for line in tick if right else cross:
        draw.line([(x * large, y * large) for x, y in line], "white", stroke, joint="curve")
    return mark.resize((side, side), Image.Resampling.LANCZOS)
