"""Points in text: read from what a model says, write for what it shall learn to say.

Deitke et al. 2024, "Molmo and PixMo" (https://arxiv.org/abs/2409.17146). In percent of width and height with
one decimal:

    <point x="10.5" y="20.0" alt="dog">dog</point>
    <points x1="8.2" y1="37.6" x2="10.9" y2="45.3" alt="musicians">musicians</points>

Molmo 2 writes thousandths, as the number of an image and then number, x and y of each point:

    <points coords="1 1 073 160 2 173 600">boats</points>
"""

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["PointedAt", "parse_count", "parse_points", "write_count", "write_points"]

NO_POINTS = "There are none."

OPENING = re.compile(r"<points?\b(?P<attributes>[^<>]*)>")
BODY = re.compile(r"(?P<label>[^<>]*)</points?>")
ATTRIBUTE = re.compile(r'\b([a-z]+\d*)\s*=\s*"([^"]*)"')
TORN = re.compile(r"<points?\b[^>]*(?:$|(?=<))")
PERCENT = re.compile(r"\s*\d{1,3}(\.\d+)?\s*")
THOUSANDTHS = re.compile(r"\d{3,4}")
IMAGES = re.compile(r"[\t:;,]")  # what stands between the images of a `coords`
TOTAL = re.compile(r"shows a total of (\d+)")


@dataclass(frozen=True)
class PointedAt:
    """One thing a text points at.

    Args:
        label: What it is called.
        points: (x, y) of each, in pixels of the original image, in the order of the text.
        span: Where in the text it stands: the index of its first character, and after its last.
    """

    label: str
    points: tuple[tuple[float, float], ...]
    span: tuple[int, int]


def parse_points(
    text: str, *, width: float, height: float, image: int = 1, strict: bool = False
) -> list[PointedAt]:
    """Everything a text points at.

    Args:
        text: What a model said.
        width: Of the original image, in pixels.
        height: Of the original image, in pixels.
        image: Number, from 1, of the image meant; only Molmo 2 tells several apart.
        strict: Raise on malformed points and points outside the image. Otherwise they are left out, and with
            them what has no point left.

    Returns:
        In the order of the text.

    Raises:
        ValueError: The image has no size; or, if `strict`, something is wrong with a point.
    """
    _check_size(width, height)
    found = []
    for opening in OPENING.finditer(text):
        body = BODY.match(text, opening.end())
        start, end = opening.start(), (body or opening).end()
        attributes = dict(ATTRIBUTE.findall(opening["attributes"]))
        closed = body or opening["attributes"].rstrip().endswith("/")
        faults = [] if closed else ["it is not closed"]
        shares = list(_shares(attributes, image, faults))
        if strict and faults:
            raise ValueError(f"{text[start:end]!r} at {start}: {faults[0]}.")
        if shares:
            label = html.unescape((body["label"] if body else "") or attributes.get("alt", ""))
            points = tuple((x * width, y * height) for x, y in shares)
            found.append(PointedAt(label, points, (start, end)))
    torn = TORN.search(text)
    if strict and torn:
        raise ValueError(f"{torn[0][:80]!r} at {torn.start()}: the tag does not end.")
    return found


def write_points(points: Sequence[tuple[float, float]], label: str, *, width: float, height: float) -> str:
    """The text that points at these places, in Molmo's form: percent, one decimal, from left to right.

    Args:
        points: (x, y) of each, in pixels.
        label: What they are.
        width: Of the image, in pixels.
        height: Of the image, in pixels.

    Returns:
        A `<point>`, a `<points>`, or "There are none.".

    Raises:
        ValueError: A point lies outside the image, or the image has no size.
    """
    _check_size(width, height)
    percent = []
    for x, y in points:
        if not (0 <= x <= width and 0 <= y <= height):
            raise ValueError(
                f"`points` has ({x}, {y}), outside an image {width} px wide and {height} px high."
            )
        percent.append((round(100 * x / width, 1), round(100 * y / height, 1)))
    if not percent:
        return NO_POINTS
    percent.sort(key=lambda point: point[0] * 10000 + point[1])
    tag = "point" if len(percent) == 1 else "points"
    numbers = [""] if len(percent) == 1 else range(1, len(percent) + 1)
    places = " ".join(f'x{n}="{x:.1f}" y{n}="{y:.1f}"' for n, (x, y) in zip(numbers, percent, strict=True))
    return f'<{tag} {places} alt="{html.escape(label)}">{html.escape(label, quote=False)}</{tag}>'


def write_count(points: Sequence[tuple[float, float]], label: str, *, width: float, height: float) -> str:
    """The text that counts by pointing: "Counting the <points ...> shows a total of 2."."""
    places = write_points(points, label, width=width, height=height)
    return f"Counting the {places} shows a total of {len(points)}." if points else places


def parse_count(text: str) -> int | None:
    """The total that a text of `write_count`'s form tells, `None` when it tells none."""
    total = TOTAL.search(text)
    return int(total[1]) if total else 0 if text.strip() == NO_POINTS else None


def _check_size(width: float, height: float) -> None:
    if not (width > 0 and height > 0):
        raise ValueError(f"`width`={width} and `height`={height} of the image must be above 0 px.")


def _shares(attributes: dict[str, str], image: int, faults: list[str]) -> Iterator[tuple[float, float]]:
    """(x, y) as shares of the image; what is wrong with the others goes to `faults`."""
    numbers = dict.fromkeys(name[1:] for name in attributes if re.fullmatch(r"[xy]\d*", name))
    if not numbers and "coords" not in attributes:
        faults.append("it has no coordinates")
    for number in numbers:
        x, y = attributes.get("x" + number), attributes.get("y" + number)
        if x is None or y is None:
            faults.append(f"`{'y' if y is None else 'x'}{number}` is missing")
        elif not PERCENT.fullmatch(x) or not PERCENT.fullmatch(y):
            faults.append(f'`x{number}`="{x}" and `y{number}`="{y}" are not percentages')
        elif float(x) > 100 or float(y) > 100:
            faults.append(f'`x{number}`="{x}", `y{number}`="{y}" lies outside the image')
        else:
            yield float(x) / 100, float(y) / 100
    if "coords" in attributes:
        yield from _thousandths(attributes["coords"], image, faults)


def _thousandths(coords: str, image: int, faults: list[str]) -> Iterator[tuple[float, float]]:
    for part in IMAGES.split(coords):
        number, *rest = part.split() or [""]
        if not number.isdecimal() or len(rest) % 3:
            faults.append(f'`coords`="{coords}" is not an image and then number, x and y of each point')
        elif int(number) == image:
            for x, y in zip(rest[1::3], rest[2::3], strict=True):
                if not THOUSANDTHS.fullmatch(x) or not THOUSANDTHS.fullmatch(y):
                    faults.append(f'"{x} {y}" in `coords` are not thousandths of three or four digits')
                elif int(x) > 1000 or int(y) > 1000:
                    faults.append(f'"{x} {y}" in `coords` lies outside the image')
                else:
                    yield int(x) / 1000, int(y) / 1000
