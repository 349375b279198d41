"""What a vision-language model is taught and asked: rows to align on, to learn from, and held-out questions.

Canonical rows (see `chat.py`) of three data sets that need no download from a hub: easy-VQA's questions;
pointing at easy-VQA's shapes; and OpenMoji, where a model names emoji that it has never seen, tells their
group and keywords, and goes on answering easy-VQA's questions.
"""

import random
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from datasets import Dataset

from ..imaging.loading import load_rgb
from .chat import group_by_image, stored_images, turns_of
from .easy_vqa import easy_vqa, easy_vqa_captions, easy_vqa_pointing, easy_vqa_points, shape_mask
from .openmoji import openmoji
from .sources import load_rows

__all__ = ["Curriculum", "curriculum"]

EMOJI_QUESTIONS = {
    "caption": "describe the picture.",
    "name": "what is this emoji called?",
    "group": "which group does this emoji belong to?",
    "keywords": "name keywords of this emoji.",
}
KEYWORDS = 5  # asked of an emoji at most
SHAPE_IMAGES = 1500  # of easy-VQA, beside the emoji
SHAPE_QUESTIONS = 1000  # asked of easy-VQA's test split after training on emoji


@dataclass
class Curriculum:
    """Rows to train on, and questions to be asked afterwards.

    Args:
        align: Canonical rows of the first stage, captions.
        train: Canonical rows of the second stage.
        test: Questions: `images`, `question`, `answer`, and maybe `question_type` and `references`.
        places: Questions that are answered with points.
        pointing: Whether the questions of `test` are answered with points; their rows then have `masks`.
        views: Whether random views of a picture (moved, turned, mirrored) keep its answers.
    """

    align: list[dict]
    train: list[dict]
    test: list[dict]
    places: list[dict] = field(default_factory=list)
    pointing: bool = False
    views: bool = False

    def texts(self) -> list[str]:
        """All that is said in training."""
        chats = chain.from_iterable(row["conversations"] for row in (*self.align, *self.train))
        # As the chat template writes them, behind a space: every word is learnt as it will be read.
        return [" " + _text(turn["content"]) for chat in chats for turn in chat]

    def taught(self) -> list[dict[str, str]]:
        """Each `question` and `answer` of the second stage, without its image."""
        chats = chain.from_iterable(row["conversations"] for row in self.train)
        return [
            {"question": _text(chat[-2]["content"]), "answer": _text(chat[-1]["content"])} for chat in chats
        ]


def curriculum(
    dataset: str,
    columns: str = "image,question,answer",
    openmoji_folder: str | Path = "package",
    size_px: int = 64,
) -> Curriculum:
    """The curriculum of a data set; nothing of its questions is in its training rows.

    Args:
        dataset: "easy-vqa", "easy-vqa-points", "openmoji", or what `load_rows` reads, of which a twentieth
            is held out.
        columns: Of image, question and answer, where `load_rows` reads.
        openmoji_folder: The unpacked npm package, for "openmoji".
        size_px: Side of the drawings of emoji.

    Raises:
        ValueError: Not three columns, or too few rows.
    """
    if dataset == "easy-vqa":
        return _easy_vqa()
    if dataset == "easy-vqa-points":
        return _pointing()
    if dataset == "openmoji":
        return _emoji(openmoji_folder, size_px)
    names = columns.split(",")
    if len(names) != 3:
        raise ValueError(f"`columns`={columns!r} must name three columns: of image, question and answer.")
    rows = load_rows(dataset, "train", *names)
    held_out = max(1, len(rows) // 20)
    if len(rows) <= held_out:
        raise ValueError(f"{dataset} has {len(rows)} image to train on; at least 2 are needed.")
    return Curriculum(rows[held_out:], rows[held_out:], questions_of(rows[:held_out]))


def questions_of(rows: list[dict]) -> list[dict]:
    """The last question of each conversation of canonical rows."""
    return [
        {
            "images": row["images"],
            "messages": chat[:-1],
            "question": _text(chat[-2]["content"]),
            "answer": _text(chat[-1]["content"]),
        }
        for row in rows
        for chat in row["conversations"]
    ]


def _easy_vqa() -> Curriculum:
    train = group_by_image(easy_vqa("train"), key="image_id")
    places, align = group_by_image(easy_vqa_points("train"), key="image_id"), _shape_captions()
    _say_too(train, places)
    _say_too(train, align)
    return Curriculum(align, train, _asked(easy_vqa("test")), _asked(easy_vqa_points("test")))


def _pointing() -> Curriculum:
    align, train = _shape_captions(), group_by_image(easy_vqa_pointing("train"), key="image_id")
    _say_too(train, align)
    asked = _asked(easy_vqa_pointing("test"))
    for row in asked:
        present = row["question_type"] == "present"
        row["masks"] = [shape_mask(load_rgb(row["images"][0]))] if present else []
    return Curriculum(align, train, asked, pointing=True)


def _emoji(folder: str | Path, size_px: int) -> Curriculum:
    train, test = openmoji(folder, "train", size_px), openmoji(folder, "test", size_px)
    emoji = [_about(row) for row in stored_images(train)]
    shapes, captions = group_by_image(easy_vqa("train"), key="image_id"), _shape_captions()
    rng = random.Random(0)
    some = rng.sample(shapes, SHAPE_IMAGES)
    for row in some:
        asked = row["conversations"]
        row["conversations"] = rng.sample(asked, min(3, len(asked)))
    _say_too(some, [_described(row) for row in captions])
    said = [
        {"images": [row["image"]], "conversations": [turns_of("", caption)]}
        for row in stored_images(train)
        for caption in (row["caption"][0], row["caption"][-1])  # the short ones
    ]
    align = said + rng.sample(captions, SHAPE_IMAGES)
    questions = [question for row in stored_images(test) for question in _about_test(row)]
    about_shapes = random.Random(1).sample(_asked(easy_vqa("test")), SHAPE_QUESTIONS)
    return Curriculum(align, emoji + some, questions + about_shapes, views=True)


def _described(row: dict) -> dict:
    """A caption as the answer to the question that asks for one."""
    chats = [
        turns_of(EMOJI_QUESTIONS["caption"], _text(chat[-1]["content"])) for chat in row["conversations"]
    ]
    return {**row, "conversations": chats}


def _say_too(rows: list[dict], more: list[dict]) -> None:
    """Add what other rows say of the same images, so that what it taught is not forgotten."""
    said = {_path(row): row["conversations"] for row in more}
    for row in rows:
        row["conversations"] += said.get(_path(row), [])


def _about(row: dict) -> dict:
    """Everything that is asked about one emoji, as branches of one row."""
    answers = _answers(row, KEYWORDS).items()
    chats = [turns_of(EMOJI_QUESTIONS[kind], answer) for kind, answer in answers]
    return {"images": [row["image"]], "conversations": chats}


def _about_test(row: dict) -> list[dict]:
    return [
        {
            "images": [row["image"]],
            "question": EMOJI_QUESTIONS[kind],
            "answer": answer,
            "question_type": f"emoji {kind}",
            "references": row["caption"] if kind == "caption" else [answer],
        }
        for kind, answer in _answers(row).items()
    ]


def _answers(row: dict, keywords: int | None = None) -> dict[str, str]:
    """The right answers about one emoji by question, with at most so many keywords; no empty one."""
    answers = {
        "caption": row["caption"][-1],
        "name": row["annotation"],
        "group": row["group"].replace("-", " "),
        "keywords": ", ".join(row["tags"][:keywords]),
    }
    return {kind: answer for kind, answer in answers.items() if answer}


def _shape_captions() -> list[dict]:
    return group_by_image(easy_vqa_captions("train"), question=None, answer="caption", key="image_id")


def _asked(rows: Dataset) -> list[dict]:
    """Rows of easy-VQA as questions, images as files."""
    return [{"images": [row["image"]], **row} for row in stored_images(rows)]


def _text(content: str | list[dict]) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _path(row: dict) -> str:
    return row["images"][0]["path"]
