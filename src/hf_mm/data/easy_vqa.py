"""easy-VQA: small pictures of one coloured shape, questions of three kinds, 13 answers.

Zhou 2019, "Easy Visual Question Answering" (https://github.com/vzhou842/easy-VQA), MIT licence: 4,000
training and 1,000 test images of 64 px with 38,575 and 9,673 questions, in the package `easy-vqa`.

Captions and "where is" questions are made here: captions from what questions and answers say of an image,
places from its pixels. Each split is made of its own images and questions alone.
"""

import logging
import re
from collections import defaultdict
from typing import Literal

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from ..imaging.points import write_points

__all__ = [
    "ANSWERS",
    "COLOURS",
    "QUESTION_TYPES",
    "SHAPES",
    "Split",
    "easy_vqa",
    "easy_vqa_captions",
    "easy_vqa_classes",
    "easy_vqa_pointing",
    "easy_vqa_points",
    "image_paths",
    "question_type",
    "shape_centre",
    "shape_mask",
]

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
ANSWERS = (*SHAPES, *COLOURS, "no", "yes")
QUESTION_TYPES = ("shape", "colour", "presence")

Split = Literal["train", "test"]
logger = logging.getLogger(__name__)


def easy_vqa(split: Split = "train") -> Dataset:
    """The official questions of one split, one row each, in the official order.

    Args:
        split: "train" (38,575 rows) or "test" (9,673 rows).

    Returns:
        Columns `image`, `image_id`, `question`, `answer` and `question_type`, one of `QUESTION_TYPES`.

    Raises:
        ImportError: The package `easy-vqa` is not installed.
        ValueError: There is no such split.
    """
    questions, answers, image_ids, paths = _read(split)
    return Dataset.from_dict(
        {
            "image": [paths[image_id] for image_id in image_ids],
            "image_id": image_ids,
            "question": questions,
            "answer": answers,
            "question_type": [question_type(answer) for answer in answers],
        },
        features=_features(question=Value("string"), answer=Value("string"), question_type=Value("string")),
    )


def easy_vqa_captions(split: Split = "train") -> Dataset:
    """Captions such as "blue triangle", for images whose questions and answers settle shape and colour.

    The number of images left out because they do not is logged (422 of the 4,000 training images).

    Args:
        split: "train" or "test".

    Returns:
        Columns `image`, `image_id` and `caption`, one row per image.
    """
    questions, answers, image_ids, paths = _read(split)
    facts = _facts(questions, answers, image_ids)
    names = {
        image_id: (_only(facts[image_id], COLOURS), _only(facts[image_id], SHAPES)) for image_id in paths
    }
    known = [image_id for image_id in sorted(paths) if all(names[image_id])]
    logger.info(
        "easy-VQA %s: %d of %d images have no certain caption", split, len(paths) - len(known), len(paths)
    )
    return Dataset.from_dict(
        {
            "image": [paths[image_id] for image_id in known],
            "image_id": known,
            "caption": ["{} {}".format(*names[image_id]) for image_id in known],
        },
        features=_features(caption=Value("string")),
    )


def easy_vqa_classes(split: Split = "train") -> Dataset:
    """The images of `easy_vqa_captions` with one of 24 classes, each a colour and a shape.

    Args:
        split: "train" (3,578 images) or "test" (888 images).

    Returns:
        Columns `image`, `image_id`, `label` (a `ClassLabel`; chance is 1 in 24) and `caption`, the name of
        the class, such as "blue triangle".
    """
    captions = easy_vqa_captions(split)
    label = ClassLabel(names=[f"{colour} {shape}" for colour in COLOURS for shape in SHAPES])
    labelled = captions.add_column("label", label.str2int(captions["caption"]))
    return labelled.cast_column("label", label).select_columns(["image", "image_id", "label", "caption"])


def easy_vqa_points(split: Split = "train") -> Dataset:
    """Questions such as "where is the triangle?", answered with a point as Molmo writes it.

    The point is the middle of the shape, see `shape_centre`. Images whose questions and answers do not settle
    which shape they show are left out.

    Args:
        split: "train" or "test".

    Returns:
        Columns `image`, `image_id`, `question`, `answer` (the text of the point, in percent of the image) and
        `point` (x and y in pixels).
    """
    questions, answers, image_ids, paths = _read(split)
    facts = _facts(questions, answers, image_ids)
    shapes = {image_id: _only(facts[image_id], SHAPES) for image_id in sorted(paths)}
    shapes = {image_id: shape for image_id, shape in shapes.items() if shape}
    pictures = [np.asarray(PILImage.open(paths[image_id]).convert("RGB")) for image_id in shapes]
    points = [shape_centre(picture) for picture in pictures]
    return Dataset.from_dict(
        {
            "image": [paths[image_id] for image_id in shapes],
            "image_id": list(shapes),
            "question": [f"where is the {shape}?" for shape in shapes.values()],
            "answer": [
                write_points([point], shape, width=picture.shape[1], height=picture.shape[0])
                for point, shape, picture in zip(points, shapes.values(), pictures, strict=True)
            ],
            "point": points,
        },
        features=_features(
            question=Value("string"), answer=Value("string"), point=List(Value("float32"), length=2)
        ),
    )


def easy_vqa_pointing(split: Split = "train") -> Dataset:
    """Two requests for each image: to point to its shape, and to point to one that it lacks.

    "point to the triangle." is answered with the point of `shape_centre`, the other by "There are none.".
    Which shape is asked for in vain goes by the number of the image, so that all occur as often.

    Args:
        split: "train" or "test".

    Returns:
        Columns `image`, `image_id`, `question`, `answer`, `question_type` ("present" or "absent") and
        `point` (x and y in pixels; empty when there is none), two rows per image.
    """
    found = easy_vqa_points(split).cast_column("image", Image(decode=False))
    rows = []
    for row in found:
        shape = row["question"].removeprefix("where is the ").removesuffix("?")
        others = [name for name in SHAPES if name != shape]
        absent = others[row["image_id"] % len(others)]
        common = {"image": row["image"], "image_id": row["image_id"]}
        rows += [
            {
                **common,
                "question": f"point to the {shape}.",
                "answer": row["answer"],
                "question_type": "present",
                "point": row["point"],
            },
            {
                **common,
                "question": f"point to the {absent}.",
                "answer": write_points([], absent, width=1, height=1),
                "question_type": "absent",
                "point": [],
            },
        ]
    texts = {name: Value("string") for name in ("question", "answer", "question_type")}
    return Dataset.from_list(rows, features=_features(**texts, point=List(Value("float32"))))


def shape_mask(picture: np.ndarray) -> np.ndarray:
    """The pixels that differ from the background, the most frequent colour of a picture.

    Args:
        picture: (height, width, 3) uint8.

    Returns:
        (height, width) booleans.

    Raises:
        ValueError: The picture has one colour only.
    """
    colours = picture.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)  # (height, width)
    values, counts = np.unique(colours, return_counts=True)
    mask = colours != values[counts.argmax()]
    if not mask.any():
        raise ValueError(f"The picture has one colour only, #{values[0]:06x}, and so no shape to point at.")
    return mask


def shape_centre(picture: np.ndarray) -> tuple[float, float]:
    """Mean place of the pixels of `shape_mask`.

    Args:
        picture: (height, width, 3) uint8.

    Returns:
        x and y in pixels; the middle of the first pixel is (0.5, 0.5).

    Raises:
        ValueError: The picture has one colour only.
    """
    rows, cols = np.nonzero(shape_mask(picture))
    return float(cols.mean() + 0.5), float(rows.mean() + 0.5)


def image_paths(split: Split) -> dict[int, str]:
    """The files of one split by `image_id`, in their order.

    Raises:
        ImportError: The package `easy-vqa` is not installed.
        ValueError: There is no such split.
    """
    return dict(sorted(_read(split)[3].items()))


def question_type(answer: str) -> str:
    """Which of `QUESTION_TYPES` a question of easy-VQA is, by its answer."""
    if answer in ("yes", "no"):
        return "presence"
    return "colour" if answer in COLOURS else "shape"


def _read(split: Split) -> tuple[list[str], list[str], list[int], dict[int, str]]:
    """Questions, answers and image ids in step; and the path of each image by its id."""
    try:
        import easy_vqa as package
    except ImportError as error:
        raise ImportError("easy-VQA needs the package easy-vqa: pip install 'hf-mm[demo]'.") from error
    if split not in ("train", "test"):
        raise ValueError(f"easy-VQA has the splits 'train' and 'test', not {split!r}.")
    if split == "train":
        return *package.get_train_questions(), package.get_train_image_paths()
    return *package.get_test_questions(), package.get_test_image_paths()


def _facts(questions: list[str], answers: list[str], image_ids: list[int]) -> dict[int, dict[str, bool]]:
    """By image: which shapes and colours its questions and answers say that it has, or has not.

    "what color is the circle?" says that there is a circle; "is no circle present?", "no" says it too.
    """
    facts: dict[int, dict[str, bool]] = defaultdict(dict)
    for question, answer, image_id in zip(questions, answers, image_ids, strict=True):
        words = set(re.findall("[a-z]+", question))
        named = [name for name in (*SHAPES, *COLOURS) if name in words]
        if answer in ("yes", "no"):
            true = (answer == "yes") != bool(words & {"no", "not"})
        else:
            true, named = True, [*named, answer]
        for name in named:
            facts[image_id][name] = true
    return facts


def _only(facts: dict[str, bool], names: tuple[str, ...]) -> str | None:
    """The one of `names` that holds: said to hold, or left when all others are said not to."""
    held = [name for name in names if facts.get(name)] or [name for name in names if name not in facts]
    return held[0] if len(held) == 1 else None


def _features(**texts: object) -> Features:
    return Features({"image": Image(), "image_id": Value("int32"), **texts})
