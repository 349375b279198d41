"""True and false statements about pairs of easy-VQA's pictures, in the form of NLVR2.

Suhr et al. 2019, "A Corpus for Reasoning About Natural Language Grounded in Photographs"
(https://arxiv.org/abs/1811.00491): one statement, two pictures, and whether it holds.
"""

import random
from collections.abc import Callable

from datasets import ClassLabel, Dataset, Features, Image, List, Value

from .easy_vqa import COLOURS, SHAPES, Split, easy_vqa_captions

__all__ = ["KINDS", "easy_vqa_statements"]

Name = tuple[str, str]  # colour and shape


def _both(left: Name, right: Name, colour: str, shape: str) -> bool:
    return left[1] == right[1] == shape


def _left(left: Name, right: Name, colour: str, shape: str) -> bool:
    return left == (colour, shape)


def _one(left: Name, right: Name, colour: str, shape: str) -> bool:
    return (left[0] == colour) != (right[0] == colour)


def _none(left: Name, right: Name, colour: str, shape: str) -> bool:
    return colour not in (left[0], right[0])


def _same(left: Name, right: Name, colour: str, shape: str) -> bool:
    return left[1] == right[1]


# What is said, and when it holds. None can be told from one picture alone but "left".
KINDS: dict[str, tuple[str, Callable[[Name, Name, str, str], bool]]] = {
    "both": ("both images show a {shape}.", _both),
    "left": ("the left image shows a {colour} {shape}.", _left),
    "one": ("exactly one image shows something {colour}.", _one),
    "none": ("no image shows something {colour}.", _none),
    "same": ("the two images show the same shape.", _same),
}
ROWS = {"train": 8000, "test": 1000}


def easy_vqa_statements(split: Split = "train", rows: int | None = None, seed: int = 0) -> Dataset:
    """Statements about pairs of pictures of a split; half of each kind is true.

    Args:
        split: "train" or "test": their pictures are different ones.
        rows: How many; by default 8,000 to train on and 1,000 to test.
        seed: Of the choice of pictures and statements.

    Returns:
        Columns `images`, a list of two; `statement`; `label`, "false" or "true"; `kind`, one of `KINDS`.
    """
    names = easy_vqa_captions(split).cast_column("image", Image(decode=False))
    known = [(row["image"]["path"], _name(row["caption"])) for row in names]
    count = ROWS[split] if rows is None else rows
    rng = random.Random(seed)
    kinds = list(KINDS)
    made = [
        _row(rng, known, kinds[number % len(kinds)], bool(number // len(kinds) % 2))
        for number in range(count)
    ]
    features = {"images": List(Image()), "statement": Value("string"), "kind": Value("string")}
    label = {"label": ClassLabel(names=["false", "true"])}
    return Dataset.from_list(made, features=Features(features | label))


def _row(rng: random.Random, known: list[tuple[str, Name]], kind: str, label: bool) -> dict:
    """Pictures and words are drawn until what is said of them is as true as it should be."""
    says, holds = KINDS[kind]
    while True:
        (left_path, left), (right_path, right) = rng.sample(known, 2)
        # Half of the words are those of a picture: drawn from all, hardly any "left" were true.
        colour = rng.choice((left[0], right[0], rng.choice(COLOURS), rng.choice(COLOURS)))
        shape = rng.choice((left[1], right[1], rng.choice(SHAPES), rng.choice(SHAPES)))
        if holds(left, right, colour, shape) == label:
            return {
                "images": [left_path, right_path],
                "statement": says.format(colour=colour, shape=shape),
                "label": int(label),
                "kind": kind,
            }


def _name(caption: str) -> Name:
    colour, shape = caption.split()
    return colour, shape
