"""Words for one coloured shape: captions that say the same in several ways, and prompts of all combinations.

The words are those of `drawn_shapes.py`, which measures whether a picture bears them out.
"""

from dataclasses import dataclass
from itertools import product

from .drawn_shapes import PLACES, SHAPE_COLOURS, SHAPE_KINDS, SHAPE_SIZES

__all__ = ["ShapePrompt", "describe_shape", "shape_prompts"]

WHERE = {"left": "on the left", "right": "on the right", "middle": "in the middle"}
SYNONYMS = {"small": "little", "big": "large"}


@dataclass(frozen=True)
class ShapePrompt:
    """What shall be drawn, or what a picture shows.

    Args:
        text: Such as "a small red triangle at the top left".
        colour: One of `SHAPE_COLOURS`.
        shape: One of `SHAPE_KINDS`.
        place: One of `PLACES`; `None` where that is not said.
        size: One of `SHAPE_SIZES`; `None` where that is not said.
    """

    text: str
    colour: str
    shape: str
    place: str | None = None
    size: str | None = None


def describe_shape(colour: str, shape: str, place: str | None = None, size: str | None = None) -> list[str]:
    """Captions of a shape: first those with all words that are given, then shorter ones.

    Args:
        colour: Its colour.
        shape: Its name.
        place: One of `PLACES`; `None` where that is not said.
        size: One of `SHAPE_SIZES`; `None` where that is not said.

    Returns:
        One to eight different texts. The last is such as "a red triangle".
    """
    plain = f"{colour} {shape}"
    sized = f"{size} {plain}" if size else plain
    texts = [_at(f"a {sized}", place)]
    texts.append(_at(f"there is a {SYNONYMS.get(size or '', size or '')} {plain}".replace("  ", " "), place))
    texts.append(_at(f"a picture of a {sized}", place))
    texts.append(f"{sized}, {place}" if place else sized)
    if place:
        texts.append(f"{_at('', place).strip()}, a {sized}")
    texts += [_at(f"a {plain}", place), f"a {sized}", f"a {plain}"]
    return list(dict.fromkeys(texts))


def shape_prompts() -> list[ShapePrompt]:
    """All 432 combinations of colour, shape, place and size, with the first caption of each."""
    words = product(SHAPE_COLOURS, SHAPE_KINDS, PLACES, SHAPE_SIZES)
    return [ShapePrompt(describe_shape(*each)[0], *each) for each in words]


def _at(text: str, place: str | None) -> str:
    return text if place is None else f"{text} {WHERE.get(place, f'at the {place}')}"
