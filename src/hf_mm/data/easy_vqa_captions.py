"""easy-VQA with captions that say colour, shape, place and size, all read off the pixels.

The pictures are those of `easy_vqa.py`. What a caption says is measured (`imaging/drawn_shapes.py`), never
taken from questions and answers, so that every picture has captions. A word that a picture does not settle,
as its shape is near the border of two places or between small and big, is left out of its captions.
"""

import logging

from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from ..imaging.drawn_shapes import SHAPE_COLOURS, SHAPE_KINDS, measure_shapes
from ..imaging.shape_captions import ShapePrompt, describe_shape
from .easy_vqa import Split, image_paths

__all__ = ["described_shapes", "easy_vqa_descriptions"]

PICTURE_PX = 64
PLACE_MARGIN = 2 / PICTURE_PX
SIZE_MARGIN = 2 / PICTURE_PX
FEATURES = Features(
    {
        "image": Image(),
        "image_id": Value("int32"),
        "label": ClassLabel(names=[f"{colour} {shape}" for colour in SHAPE_COLOURS for shape in SHAPE_KINDS]),
        "caption": List(Value("string")),
        **{name: Value("string") for name in ("colour", "shape", "place", "size")},
    }
)

logger = logging.getLogger(__name__)


def easy_vqa_descriptions(split: Split = "train") -> Dataset:
    """The pictures of one split with captions such as "a small red triangle at the top left".

    How many say no place or no size, as that would be vague, is logged (of the 4,000 training pictures 32 %
    and 18 %).

    Args:
        split: "train" (4,000 pictures) or "test" (1,000).

    Returns:
        Columns `image`, `image_id`, `label` (one of 24 classes, each a colour and a shape), `caption`, a list
        of up to eight different texts, and the words `colour`, `shape`, `place` and `size`; the last two are
        empty where they would be vague.

    Raises:
        ImportError: The package `easy-vqa` is not installed.
        ValueError: There is no such split, or a picture shows no shape, which is named.
    """
    paths = image_paths(split)
    pictures = [PILImage.open(path).convert("RGB") for path in paths.values()]
    rows = []
    for (image_id, path), shape in zip(paths.items(), measure_shapes(pictures), strict=True):
        if shape.colour is None or shape.shape is None:
            raise ValueError(
                f"Picture {image_id} of easy-VQA's split {split!r} shows no shape of a known colour; install "
                "the package easy-vqa again."
            )
        place, size = shape.place(PLACE_MARGIN), shape.size(SIZE_MARGIN)
        rows.append(
            {
                "image": path,
                "image_id": image_id,
                "label": f"{shape.colour} {shape.shape}",
                "caption": describe_shape(shape.colour, shape.shape, place, size),
                "colour": shape.colour,
                "shape": shape.shape,
                "place": place or "",
                "size": size or "",
            }
        )
    logger.info(
        "easy-VQA %s: of %d pictures %d have no certain place and %d no certain size",
        split,
        len(rows),
        sum(not row["place"] for row in rows),
        sum(not row["size"] for row in rows),
    )
    return Dataset.from_list(rows, features=FEATURES)


def described_shapes(rows: Dataset) -> list[ShapePrompt]:
    """What the captions of `easy_vqa_descriptions` say, to judge the judges of drawn pictures by real ones.

    Args:
        rows: Of `easy_vqa_descriptions`.

    Returns:
        The first caption of each row and its words.
    """
    return [
        ShapePrompt(row["caption"][0], row["colour"], row["shape"], row["place"] or None, row["size"] or None)
        for row in rows.remove_columns("image")
    ]
