"""Which pictures of a set are near-twins, and a split that keeps them together.

Two emoji are near-twins when their names say the same but for words of gender, hair, direction, colour, size
or number (`stem_of`), or when their drawings, mirrored or not, hardly differ (`alike`). Twins of twins belong
together too: a group is a connected component, and a split gives each group to one side, whole.
"""

import hashlib
import re
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

__all__ = ["alike", "group_of_each", "held_out", "stem_of"]

CELLS = 16
"""Pictures are compared as means over a grid of so many cells a side."""

PEOPLE = "man men woman women person people male female boy girl adult child merman mermaid merperson"
VARIANTS = """
left right up down upper lower upwards downwards leftwards rightwards pointing facing oncoming horizontal
vertical clockwise anticlockwise counterclockwise front tilted leaning backhand
red orange yellow green blue purple brown black white pink grey gray light deep dark content
large medium small double single triple heavy first second third 1st 2nd 3rd
one two three four five six seven eight nine ten eleven twelve thirty
blond curly bald beard hair older old mrs mx santa and s face
"""
_PEOPLE = frozenset(PEOPLE.split())
_LEFT_OUT = frozenset(VARIANTS.split()) | _PEOPLE
SAME = {"princess": "prince", "oclock": "clock", "mice": "mouse"}


def stem_of(annotation: str) -> Hashable:
    """What a name says without gender, hair, direction, colour, size and number.

    Of "person walking: facing right" and "keycap: 7" the part before the colon counts, of "flag: Japan" all.
    """
    name = re.sub("['\u2019]", "", annotation.lower())
    if re.fullmatch(r"[a-z]+-thirty|[a-z]+ oclock", name):
        return ("clock",)
    words = re.findall(r"[^\W_]+", name)
    if name.startswith("flag:"):
        return tuple(sorted(map(_singular, words)))
    words = re.findall(r"[^\W_]+", name.partition(":")[0])
    kept = {SAME.get(word, _singular(word)) for word in words if word not in _LEFT_OUT}
    kept = {word for word in kept if len(word) > 1}
    if kept:
        return tuple(sorted(kept))
    return ("person",) if set(words) & _PEOPLE else tuple(words) or (name,)


def alike(pictures: np.ndarray, distance: float) -> list[tuple[int, int]]:
    """Pairs of pictures whose root mean square difference over cells is less than `distance`.

    Args:
        pictures: (N, side, side, 3) uint8, `side` a multiple of 16.
        distance: A share of white. A picture and its mirror image count as the same.

    Returns:
        Pairs (i, j), i < j.
    """
    plain, mirrored = _cells(pictures), _cells(pictures[:, :, ::-1])
    squared = np.minimum(_squared_distances(plain, plain), _squared_distances(plain, mirrored))  # (N, N)
    first, second = np.nonzero(np.triu(squared < distance**2, k=1))
    return list(zip(first.tolist(), second.tolist(), strict=True))


def group_of_each(stems: Sequence[Hashable], pairs: Iterable[tuple[int, int]]) -> list[int]:
    """The connected component of each item, as the number of its first member.

    Args:
        stems: One per item; items of equal stems belong together.
        pairs: Numbers of further items that belong together.
    """
    parent = list(range(len(stems)))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    first_with: dict[Hashable, int] = {}
    same_stem = [(item, first_with.setdefault(stem, item)) for item, stem in enumerate(stems)]
    for one, other in [*same_stem, *pairs]:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return [root(item) for item in range(len(stems))]


def held_out(groups: Sequence[int], names: Sequence[str], share: float, largest: int) -> list[bool]:
    """Which items are held out: whole groups, drawn by the hash of a name, never by chance.

    Args:
        groups: Group of each item, as from `group_of_each`.
        names: A name of each item that stays the same for ever; the group goes by its first member's.
        share: How much of all items to hold out; at most so much is.
        largest: Groups of more items are trained on, so that no one drawing fills the test.
    """
    members: dict[int, list[int]] = {}
    for item, group in enumerate(groups):
        members.setdefault(group, []).append(item)
    drawn = sorted(members, key=lambda group: hashlib.sha256(names[members[group][0]].encode()).digest())
    chosen = [False] * len(groups)
    room = int(share * len(groups))
    for group in drawn:
        if len(members[group]) <= min(largest, room):
            room -= len(members[group])
            for item in members[group]:
                chosen[item] = True
    return chosen


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _cells(pictures: np.ndarray) -> np.ndarray:
    """(N, side, side, 3) uint8 -> (N, 16 * 16 * 3) means in 0..1."""
    size = pictures.shape[1] // CELLS
    cells = pictures.reshape(len(pictures), CELLS, size, CELLS, size, 3).mean((2, 4), dtype=np.float64)
    return cells.reshape(len(pictures), -1) / 255


def _squared_distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    norms = (one**2).sum(1)[:, None] + (other**2).sum(1)[None]
    return np.maximum(norms - 2 * one @ other.T, 0) / one.shape[1]
