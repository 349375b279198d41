"""Referring to one object of many: pictures composed of easy-VQA's shapes, and "the red triangle" in each.

Objects are cut from the images of easy-VQA (Zhou 2019, https://github.com/vzhou842/easy-VQA), as large as
they are, and placed at random without overlap on an empty ground. One has a colour and shape that no other
has together; some share its colour and some its shape, so that neither word alone finds it. Each split is
made of the images of its own split alone.
"""

import io
import random
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from .easy_vqa import COLOURS, SHAPES, Split, easy_vqa_captions, shape_mask

__all__ = ["easy_vqa_referring"]

LEAST_SIDE_PX = 144  # nine of the largest objects find room
GAP_PX = 2
TRIES = 200  # of a place for one object, before all are placed anew
SHARING = 0.35  # of further distractors share the colour; as many the shape


@dataclass(frozen=True)
class Cutout:
    """One object of an image of easy-VQA: its pixels, which of them are its own, and whence it is."""

    pixels: Image.Image
    mask: Image.Image
    image_id: int


def easy_vqa_referring(
    split: Split = "train",
    rows: int = 4000,
    seed: int = 0,
    objects: tuple[int, int] = (4, 9),
    side_px: int = 160,
) -> Dataset:
    """Pictures of several objects, and an expression that one of them alone fits.

    Chance is one over the number of objects. Of the distractors at least one has the colour of the right one
    and another shape, and at least one its shape and another colour; further ones are as likely to share the
    colour (35 %), the shape (35 %) or neither. Numbers of objects are equally frequent.

    Args:
        split: "train" or "test", of whose images the objects are.
        rows: Pictures to compose.
        seed: Same seed, same pictures, whatever `rows` is: the first are those of fewer.
        objects: Fewest and most objects in a picture.
        side_px: Width and height of a picture.

    Returns:
        Columns `image` (RGB), `image_id`, `expression` ("the red triangle"), `boxes` (x1, y1, x2, y2 of each
        object in pixels, in random order), `label` (number of the right box), `objects` (what each object
        is, such as "red triangle") and `sources` (the image of easy-VQA that each is from).

    Raises:
        ImportError: The package `easy-vqa` is not installed.
        ValueError: There is no such split, or a number is out of its range.
    """
    least, most = objects
    if not 3 <= least <= most <= 9:
        raise ValueError(
            f"`objects`={objects} must be the fewest and the most, 3 to 9: the right one and two others that "
            "share its colour or shape are there always."
        )
    if rows < 1 or side_px < LEAST_SIDE_PX:
        raise ValueError(
            f"`rows`={rows} must be at least 1, `side_px`={side_px} at least {LEAST_SIDE_PX}, so that the "
            "objects find room."
        )
    found = _cutouts(split)
    composed = [_compose(found, f"{seed} {split} {row}", (least, most), side_px) for row in range(rows)]
    features = Features(
        {
            "image": ImageFeature(),
            "image_id": Value("int32"),
            "expression": Value("string"),
            "boxes": List(List(Value("float32"), length=4)),
            "label": Value("int32"),
            "objects": List(Value("string")),
            "sources": List(Value("int32")),
        }
    )
    numbered = [{**row, "image_id": number} for number, row in enumerate(composed)]
    return Dataset.from_list(numbered, features).select_columns(list(features))


def _cutouts(split: Split) -> dict[tuple[str, str], list[Cutout]]:
    """The objects of a split by colour and shape, in the order of their images."""
    found = defaultdict(list)
    for row in easy_vqa_captions(split):
        pixels = np.asarray(row["image"].convert("RGB"))
        mask = shape_mask(pixels)
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        colour, shape = row["caption"].split()
        found[colour, shape].append(
            Cutout(Image.fromarray(pixels[box]), Image.fromarray(mask[box]), row["image_id"])
        )
    return found


def _compose(
    found: dict[tuple[str, str], list[Cutout]], seed: str, objects: tuple[int, int], side_px: int
) -> dict:
    """One row, but for its number."""
    chance = random.Random(seed)
    target = chance.choice(sorted(found))
    kinds = [target, *_distractors(found, target, chance.randint(*objects) - 1, chance)]
    chance.shuffle(kinds)
    chosen = [chance.choice(found[kind]) for kind in kinds]
    picture = Image.new("RGB", (side_px, side_px), tuple(chance.randint(230, 255) for _ in range(3)))
    boxes = _places([cutout.pixels.size for cutout in chosen], side_px, chance)
    for cutout, box in zip(chosen, boxes, strict=True):
        picture.paste(cutout.pixels, box[:2], cutout.mask)
    file = io.BytesIO()
    picture.save(file, "png")
    return {
        "image": {"bytes": file.getvalue(), "path": None},
        "expression": "the {} {}".format(*target),
        "boxes": boxes,
        "label": kinds.index(target),
        "objects": ["{} {}".format(*kind) for kind in kinds],
        "sources": [cutout.image_id for cutout in chosen],
    }


def _distractors(
    found: dict[tuple[str, str], list[Cutout]], target: tuple[str, str], count: int, chance: random.Random
) -> list[tuple[str, str]]:
    """Colours and shapes of the others; none is the target's."""
    same_colour = [(target[0], shape) for shape in SHAPES if shape != target[1]]
    same_shape = [(colour, target[1]) for colour in COLOURS if colour != target[0]]
    neither = [
        (colour, shape)
        for colour in COLOURS
        for shape in SHAPES
        if colour != target[0] and shape != target[1]
    ]
    weights = (SHARING, SHARING, 1 - 2 * SHARING)
    groups = [
        same_colour,
        same_shape,
        *chance.choices((same_colour, same_shape, neither), weights, k=count - 2),
    ]
    return [chance.choice([kind for kind in group if kind in found]) for group in groups]


def _places(
    sizes: list[tuple[int, int]], side_px: int, chance: random.Random
) -> list[tuple[int, int, int, int]]:
    """Boxes of these sizes at random places, no two nearer than `GAP_PX`."""
    while True:
        boxes: list[tuple[int, int, int, int]] = []
        for width, height in sizes:
            for _ in range(TRIES):
                x, y = chance.randint(0, side_px - width), chance.randint(0, side_px - height)
                box = (x, y, x + width, y + height)
                if all(_apart(box, other) for other in boxes):
                    boxes.append(box)
                    break
            else:
                break
        if len(boxes) == len(sizes):
            return boxes


def _apart(box: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    return (
        box[2] + GAP_PX <= other[0]
        or other[2] + GAP_PX <= box[0]
        or box[3] + GAP_PX <= other[1]
        or other[3] + GAP_PX <= box[1]
    )
