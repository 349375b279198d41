"""Does a picture show what its prompt said: colour, shape, place and size, by its pixels and by questions.

For pictures of one coloured shape, as easy-VQA has them and as `shape_prompts` asks for them. Pixels are
measured by `imaging/drawn_shapes.py`. A vision-language model that answers easy-VQA's questions judges
independently of that: it is asked for the colour, the shape and, where it has learnt to point, the place.
Both judges make errors; what they say of real pictures with the same words is the most that drawn ones can
reach, see `described_shapes`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from ..imaging.drawn_shapes import DrawnShape, measure_shapes
from ..imaging.pixel_levels import pixel_levels
from ..imaging.points import parse_points
from ..imaging.shape_captions import ShapePrompt
from .answers import generate_answers
from .report import markdown_table
from .vqa import normalise_answer

__all__ = [
    "asked_attributes",
    "attribute_accuracy",
    "attribute_table",
    "drawn_attribute_results",
    "measured_attributes",
    "place_of_answer",
]

ATTRIBUTES = ("colour", "shape", "place", "size")
COLOUR_QUESTION = "what color is the shape?"
SHAPE_QUESTION = "what shape is in the image?"
PLACE_QUESTION = "where is the {shape}?"
SHOWN_ERRORS = 5

Pictures = Tensor | Sequence[Image.Image]
"""(N, 3, H, W), floats in [-1, 1] or uint8; or PIL images of one size."""
Attributes = Mapping[str, str | None]


def drawn_attribute_results(
    pictures: Pictures,
    prompts: Sequence[ShapePrompt],
    model: Any = None,
    processor: Any = None,
    pointing: bool | None = False,
    batch_size: int = 64,
) -> dict[str, Any]:
    """How many pictures show what was asked for, by pixels, and by a model's answers where one is given.

    Args:
        pictures: N of them, see `Pictures`.
        prompts: What each was to show.
        model: An `MMVLMForConditionalGeneration` that answers easy-VQA's questions; `None` for pixels alone.
        processor: Its processor.
        pointing: Ask for the place too; see `asked_attributes`.
        batch_size: Questions at a time.

    Returns:
        `pictures`, how many; `pixels` and, with a model, `answers`, each as `attribute_accuracy` gives it.

    Raises:
        ValueError: Other numbers of pictures and prompts, a model without processor, or pictures that are
            not RGB.
    """
    if (model is None) != (processor is None):
        raise ValueError("`model` and `processor` go together; give both, or none to measure pixels alone.")
    results: dict[str, Any] = {"pictures": len(prompts)}
    results["pixels"] = attribute_accuracy(prompts, measured_attributes(pictures))
    if model is not None:
        said = asked_attributes(model, processor, pictures, prompts, pointing, batch_size)
        results["answers"] = attribute_accuracy(prompts, said)
    return results


def measured_attributes(pictures: Pictures) -> list[Attributes]:
    """What the pixels of each picture show.

    Args:
        pictures: See `Pictures`.

    Returns:
        Of each picture `colour`, `shape`, `place` and `size`; `None` for what cannot be told.
    """
    return [
        {"colour": one.colour, "shape": one.shape, "place": one.place(), "size": one.size()}
        for one in measure_shapes(pictures)
    ]


def asked_attributes(
    model: Any,
    processor: Any,
    pictures: Pictures,
    prompts: Sequence[ShapePrompt],
    pointing: bool | None = False,
    batch_size: int = 64,
) -> list[Attributes]:
    """What a vision-language model says of each picture.

    Args:
        model: An `MMVLMForConditionalGeneration`.
        processor: Its processor.
        pictures: See `Pictures`.
        prompts: What each was to show; the place is asked for by the shape in it.
        pointing: The model can point; ask it for the place too. `None`: find that out; where no answer at
            all points, there is no place.
        batch_size: Questions at a time.

    Returns:
        Of each picture `colour`, `shape` and, with `pointing`, `place`, which is `None` where the answer does
        not point.

    Raises:
        ValueError: Other numbers of pictures and prompts.
    """
    images = _as_images(pictures)
    _check_counts(len(images), len(prompts))
    placed = pointing is not False
    questions = [COLOUR_QUESTION, SHAPE_QUESTION] + [PLACE_QUESTION] * placed
    rows = [
        {"image": image, "question": question.format(shape=prompt.shape)}
        for image, prompt in zip(images, prompts, strict=True)
        for question in questions
    ]
    longest = 64 if placed else 16  # tokens
    said = iter(generate_answers(model, processor, rows, batch_size, longest, progress=False))
    found: list[dict[str, str | None]] = []
    for image in images:
        answers = {"colour": normalise_answer(next(said)), "shape": normalise_answer(next(said))}
        found.append(answers | ({"place": place_of_answer(next(said), image)} if placed else {}))
    if pointing is None and not any(answers["place"] for answers in found):
        found = [{"colour": answers["colour"], "shape": answers["shape"]} for answers in found]
    return [*found]


def attribute_accuracy(prompts: Sequence[ShapePrompt], found: Sequence[Attributes]) -> dict[str, Any]:
    """Shares of pictures that show what was said; words that a prompt lacks are not judged.

    Args:
        prompts: What each picture was to show.
        found: What it shows.

    Returns:
        `accuracy`: by attribute, of those that were found at all, and `all`: every word that is judged;
        `judged`: of how many pictures, by attribute; `errors`: by attribute the most frequent ones, such as
        "red: brown", with their counts.

    Raises:
        ValueError: Other numbers of prompts and pictures, or none.
    """
    _check_counts(len(found), len(prompts))
    accuracy, judged, errors = {}, {}, {}
    for name in [name for name in ATTRIBUTES if name in found[0]]:
        pairs = [
            (wanted, shown[name])
            for prompt, shown in zip(prompts, found, strict=True)
            if (wanted := getattr(prompt, name)) is not None
        ]
        if not pairs:
            continue
        accuracy[name] = sum(wanted == shown for wanted, shown in pairs) / len(pairs)
        judged[name] = len(pairs)
        wrong = Counter(f"{wanted}: {shown}" for wanted, shown in pairs if wanted != shown)
        errors[name] = dict(wrong.most_common(SHOWN_ERRORS))
    right = [
        all(getattr(prompt, name) in (None, shown[name]) for name in accuracy)
        for prompt, shown in zip(prompts, found, strict=True)
    ]
    accuracy["all"] = sum(right) / len(right)
    return {"accuracy": accuracy, "judged": judged | {"all": len(right)}, "errors": errors}


def attribute_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A table in Markdown, in percent, one row for each of several results.

    Args:
        results: By what they are of, such as "drawn" and "real pictures", what `drawn_attribute_results`
            gives.
    """
    rows = []
    for of, result in results.items():
        for judge in [name for name in ("pixels", "answers") if name in result]:
            shares = result[judge]["accuracy"]
            numbers = {
                name: f"{100 * shares[name]:.1f}" if name in shares else "" for name in (*ATTRIBUTES, "all")
            }
            rows.append({"pictures": of, "judged by": judge, **numbers})
    return markdown_table(rows)


def _as_images(pictures: Pictures) -> list[Image.Image]:
    if not isinstance(pictures, Tensor):
        return [picture.convert("RGB") for picture in pictures]
    levels = pixel_levels(pictures, "pictures").expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    return [Image.fromarray(part) for part in levels.cpu().contiguous().numpy()]


def place_of_answer(answer: str, image: Image.Image) -> str | None:
    """Where the first point of an answer is, one of `PLACES`; `None` where the answer does not point.

    Args:
        answer: What a model said of a picture.
        image: The picture.
    """
    points = [
        point
        for thing in parse_points(answer, width=image.width, height=image.height)
        for point in thing.points
    ]
    if not points:
        return None
    x, y = points[0]
    return DrawnShape(None, None, x / image.width, y / image.height, side=1.0).place()


def _check_counts(pictures: int, prompts: int) -> None:
    if pictures != prompts or not prompts:
        raise ValueError(f"There are {pictures} pictures for {prompts} `prompts`; give one prompt for each.")
