"""How a classifier fares when its pictures get worse: accuracy by corruption and severity.

Hendrycks and Dietterich 2019 (https://arxiv.org/abs/1903.12261); see `hf_mm.imaging.corruptions`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ..imaging.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from ..imaging.loading import load_rgb

__all__ = ["robustness_table"]


def robustness_table(
    classify: Callable[[list[Image.Image]], Iterable[int]],
    images: Sequence[Any],
    labels: Sequence[int],
    kinds: Sequence[str] = CORRUPTIONS,
    seed: int = 0,
    batch_size: int = 256,
    progress: bool = True,
) -> list[dict[str, str | float]]:
    """Accuracy on clean and on corrupted pictures, as rows for `markdown_table`.

    Args:
        classify: From pictures to as many classes, such as `ZeroShotClassifier.predict`.
        images: N pictures that `load_rgb` reads, best of the size that the model reads.
        labels: N classes.
        kinds: Which of `CORRUPTIONS`.
        seed: Of the noise; every picture has its own.
        batch_size: Pictures at a time.
        progress: Show a progress bar.

    Returns:
        A row per kind and the row "mean" over them: `corruption`, `clean`, `1` to `5` (severities), `mean` of
        these five; all but the name are shares of 1.

    Raises:
        ValueError: There are no pictures or kinds, not as many labels or classes as pictures, or a picture
            cannot be read; it is named by its number.
    """
    if not len(images) or len(labels) != len(images):
        raise ValueError(
            f"{len(labels)} labels for {len(images)} images; give one for each, and at least one."
        )
    unknown = [kind for kind in kinds if kind not in CORRUPTIONS]
    if unknown or not len(kinds):
        raise ValueError(f"`kinds` is {list(kinds)}; give some of: {', '.join(CORRUPTIONS)}.")
    wanted = np.asarray(labels)
    versions: list[tuple[str | None, int]] = [
        (None, 0),
        *((kind, severity) for kind in kinds for severity in SEVERITIES),
    ]
    hits = dict.fromkeys(versions, 0)
    bar = tqdm(total=len(versions) * len(images), desc="robustness", unit="image", disable=not progress)
    with bar:
        for first, pictures in _batches(images, batch_size):
            right = wanted[first : first + len(pictures)]
            for kind, severity in versions:
                shown = [
                    picture if kind is None else corrupt(picture, kind, severity, seed + first + number)
                    for number, picture in enumerate(pictures)
                ]
                said = np.asarray([int(one) for one in classify(shown)])
                if said.shape != right.shape:
                    raise ValueError(f"`classify` returned {len(said)} classes for {len(right)} images.")
                hits[kind, severity] += int((said == right).sum())
                bar.update(len(pictures))
    return _rows({version: count / len(images) for version, count in hits.items()}, kinds)


def _batches(images: Sequence[Any], batch_size: int) -> Iterator[tuple[int, list[Image.Image]]]:
    """The number of the first picture of each batch, and its pictures."""
    for first in range(0, len(images), batch_size):
        numbers = range(first, min(first + batch_size, len(images)))
        yield first, [Image.fromarray(load_rgb(images[number], f"image {number}")) for number in numbers]


def _rows(
    accuracy: dict[tuple[str | None, int], float], kinds: Sequence[str]
) -> list[dict[str, str | float]]:
    clean = accuracy[None, 0]
    steps = {kind: [accuracy[kind, severity] for severity in SEVERITIES] for kind in kinds}
    steps["mean"] = np.mean(list(steps.values()), axis=0).tolist()
    return [
        {
            "corruption": name,
            "clean": clean,
            **{str(severity): value for severity, value in zip(SEVERITIES, values, strict=True)},
            "mean": float(np.mean(values)),
        }
        for name, values in steps.items()
    ]
