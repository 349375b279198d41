"""How far a generator's pictures lie from real ones while it learns, and when it came how near.

Generators are compared by what they reach in equal seconds of training, or by the seconds they need for equal
distances: the curve tells both, its end only one.

Shapes: N pictures that are compared, C channels, H x W pixels.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .feature_nets import FeatureNet, PictureFeatures
from .generation_distances import frechet_distance, kernel_distance

__all__ = ["distance_measure", "running_measure", "time_to"]

Draw = Callable[[Any, Tensor], Tensor]
BESIDE = ("step", "train_seconds", "floor")
"""What a measurement holds that is no measure."""


def distance_measure(
    test: Tensor,
    train: Tensor,
    net: FeatureNet,
    count: int,
    draw: Draw,
    *,
    batch_size: int = 64,
    seed: int = 0,
) -> Callable[[Any], dict[str, float]]:
    """A measure for `PhasedTrainer`: the distance from `count` test pictures, always the same.

    It is the Frechet distance, or the kernel distance where there are no more pictures than features: the
    covariance would lack directions. Both grow or scatter with fewer pictures, so that it compares with
    measurements of as many only.

        measure = distance_measure(
            test.pixels, train.pixels, net, 2000,
            lambda pipe, rows: pipe(class_labels=test.labels[rows], seed=0, output_type="pt").images * 2 - 1,
        )

    Args:
        test: (T, C, H, W) pictures that the generator is not trained with, floats in [-1, 1] or uint8.
        train: As many or more that it is trained with, for the floor.
        net: In whose features.
        count: Pictures that are compared, N; all where there are fewer.
        draw: Given the pipeline and the rows (N,) of the test pictures, whose classes or texts are to be
            asked for; gives pictures (N, C, H, W) in [-1, 1] or uint8, from the same noise each time.
        batch_size: Pictures that the net sees at a time.
        seed: Of the choice of pictures.

    Returns:
        A function from a pipeline to the distance by its name ("FID" or "KID" with Inception), and `floor`,
        what as many training pictures score in the place of drawn ones.

    Raises:
        ValueError: Too few pictures, or `draw` gives another number of them.
    """
    count = _checked_count(count, test, train)
    order = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(test), generator=order)[:count]
    real = net(test[rows], batch_size).features  # (N, D)
    stand_ins = net(train[torch.randperm(len(train), generator=order)[:count]], batch_size).features
    enough = count > real.shape[1]

    def distance(features: Tensor) -> float:
        return frechet_distance(real, features) if enough else kernel_distance(real, features, seed=seed).mean

    floor = distance(stand_ins)

    def measure(pipeline: Any) -> dict[str, float]:
        pictures = draw(pipeline, rows)
        if len(pictures) != count:
            raise ValueError(f"`draw` gives {len(pictures)} pictures for {count} rows; give one for each.")
        found: PictureFeatures = net(pictures, batch_size)
        return {net.frechet if enough else net.kernel: distance(found.features), "floor": floor}

    return measure


def running_measure(
    measure_steps: int, net: FeatureNet | None, test: Tensor, train: Tensor, count: int, draw: Draw, seed: int
) -> Callable[[Any], dict[str, float]] | None:
    """The `distance_measure` of a run that is asked to measure every `measure_steps`; `None` for 0.

    Args:
        measure_steps: 0 measures nothing.
        net: In whose features; `None` where there is none.
        test: As for `distance_measure`, like all that follow.
        train: Likewise.
        count: Likewise.
        draw: Likewise.
        seed: Likewise.

    Raises:
        ValueError: There is no net to measure in.
    """
    if not measure_steps:
        return None
    if net is None:
        raise ValueError(f"`measure_steps`={measure_steps} needs `net`, in whose features to measure.")
    return distance_measure(test, train, net, count, draw, seed=seed)


def _checked_count(count: int, test: Tensor, train: Tensor) -> int:
    count = min(count, len(test))
    if count < 2 or len(train) < count:
        raise ValueError(
            f"`count`={count} pictures out of {len(test)} test pictures and {len(train)} training pictures: "
            "give 2 or more, and as many training pictures for the floor."
        )
    return count


def time_to(
    measures: Sequence[Mapping[str, float]] | str | Path, distance: float, name: str | None = None
) -> float | None:
    """Seconds of training until a distance was reached, at the first measurement that shows it.

    Args:
        measures: Of a run, in their order; or its file `measures.jsonl`.
        distance: Reached where a measurement is no larger.
        name: Of the measure; by default the only one there is.

    Returns:
        `train_seconds`; `None` where the run never came so near.

    Raises:
        ValueError: Nothing was measured, there is no such measure, or several and none is named.
    """
    if isinstance(measures, str | Path):
        lines = Path(measures).read_text(encoding="utf-8").splitlines()
        measures = [json.loads(line) for line in lines]
    if not measures:
        raise ValueError("`measures` is empty; measure while the generator learns, see `PhasedTrainer`.")
    names = [key for key in measures[0] if key not in BESIDE]
    if name not in names and (name is not None or len(names) != 1):
        raise ValueError(f"`name`={name!r} is none of the measures; name one of {', '.join(names)}.")
    key = names[0] if name is None else name
    return next((entry["train_seconds"] for entry in measures if entry[key] <= distance), None)
