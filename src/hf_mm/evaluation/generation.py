"""What a generator's pictures are worth, beside what real pictures would score in their place.

Every number stands beside its floor: the same measure with as many training pictures in the place of the
generated ones. No generator that learnt the distribution gets far below it; one that does has copied. Counts
are equal, since measures depend on them. How far a number may be trusted is its standard deviation over
random halves of the pictures, the delete-half jackknife of Shao and Wu 1989
(https://doi.org/10.1214/aos/1176347263): it estimates the error of the number of all pictures.

Shapes: N pictures, C channels, H x W pixels, D features.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..imaging.pixel_levels import pixel_levels
from .feature_nets import FeatureNet, PictureFeatures
from .generation_distances import frechet_distance, kernel_distance
from .generation_manifolds import nearest_neighbours, precision_recall_density_coverage
from .generation_scores import class_accuracy, codebook_usage, psnr
from .report import markdown_table

__all__ = ["generation_report", "generation_table", "reconstruction_report"]

Pictures = Tensor | PictureFeatures
"""(N, C, H, W), floats in [-1, 1] or uint8; or what the net said of them, to save its time."""
Measure = Callable[[Tensor, Tensor], dict[str, float]]
HALVES = 5
LOWER = ("FID", "KID", "distance", "rFID", "rFD", "squared error")


class Halves(NamedTuple):
    """Random halves of N rows: of real and of generated pictures, independent of each other."""

    real: list[Tensor]
    generated: list[Tensor]


def generation_report(
    samples: Pictures,
    *,
    test: Pictures,
    train: Pictures,
    net: FeatureNet,
    labels: Tensor | None = None,
    test_labels: Tensor | None = None,
    k: int = 5,
    kernel_subsets: int = 100,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Compare generated pictures with as many test pictures.

    Args:
        samples: N generated pictures, see `Pictures`.
        test: N pictures that the generator was not trained with.
        train: N or more that it was: N of them give the floor, all are searched for copies.
        net: In whose features, see `feature_net`.
        labels: (N,) the classes that were asked for; then the net must be a classifier.
        test_labels: (N,) of the test pictures, whose accuracy is the floor of the samples'.
        k: Which neighbour balls reach to, see `precision_recall_density_coverage`.
        kernel_subsets: See `kernel_distance`.
        batch_size: Pictures that the net sees at a time.
        seed: Of the draws.
        progress: Show a progress bar.

    Returns:
        `net`, `pictures` (N), `training_pictures`, `k`; `measures`, by name a dictionary of `value`, `std`
        (over halves; of the kernel distance over its subsets), `floor` and `better` ("lower" or "higher");
        `left_out`, the reason by the name of a measure that cannot be taken. Plain numbers and texts, see
        `generation_table` and `write_results`.

    Raises:
        ValueError: Unequal counts, fewer than 2k + 2 pictures, pictures of another size or with channels
            that the net does not take, labels without classes or of another count.
    """
    count = _checked_counts(samples, test, train, k)
    _check_labels(labels, test_labels, count)
    made, real, known = (_features(part, net, batch_size, progress) for part in (samples, test, train))
    stand_ins, halves = _draw(known, count, seed)
    accuracy = {}
    if labels is not None and test_labels is not None:
        accuracy["class accuracy"] = _accuracy(net, made, labels, real, test_labels, halves)
    measures = _distances_and_manifolds(net, real.features, made.features, stand_ins, halves, k)
    kernels = [kernel_distance(real.features, x, kernel_subsets) for x in (made.features, stand_ins)]
    measures[net.kernel] = _entry(net.kernel, kernels[0].mean, kernels[0].std, kernels[1].mean)
    measures["nearest training distance"] = _copies(made, real, known, halves)
    return _report(net, real, known, measures | accuracy, net.frechet) | {"k": k}


def reconstruction_report(
    reconstructions: Tensor,
    *,
    originals: Tensor,
    train: Pictures,
    net: FeatureNet,
    indices: Tensor | None = None,
    num_codes: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Compare what an autoencoder makes of test pictures with the pictures themselves.

    Args:
        reconstructions: (N, C, H, W), floats in [-1, 1] or uint8.
        originals: (N, C, H, W), in the same order.
        train: N or more training pictures, for the floor of the distance: what other real pictures score.
        net: See `generation_report`.
        indices: The codes of all test pictures, of any shape, where there is a codebook.
        num_codes: Its size.
        batch_size: See `generation_report`.
        seed: Of the draws.
        progress: Show a progress bar.

    Returns:
        As `generation_report`, with the measures rFD (of Inception: rFID), PSNR (the mean over pictures, in
        decibels), the squared error of levels from -1 to 1, and of codes perplexity and used codes. `floor`
        is `None` where there is none.

    Raises:
        ValueError: As `generation_report`; or codes without the size of the codebook.
    """
    if (indices is None) != (num_codes is None):
        raise ValueError("`indices` and `num_codes` belong together; give both or neither.")
    levels = pixel_levels(reconstructions, "reconstructions"), pixel_levels(originals, "originals")
    decibels = psnr(*levels)  # (N,)
    count = _checked_counts(*levels, train, k=1)
    made, real, known = (_features(part, net, batch_size, progress) for part in (*levels, train))
    stand_ins, halves = _draw(known, count, seed)
    name = "rFID" if net.frechet == "FID" else "rFD"
    measures: dict[str, dict[str, Any]] = {}
    if count > real.features.shape[1]:
        paired = Halves(halves.real, halves.real)
        measures = _beside_floor(
            lambda x, y: {name: _frechet(x, y)}, real.features, made.features, stand_ins, paired
        )
    for title, values in (("PSNR", decibels), ("squared error", 4 / 10 ** (decibels / 10))):  # range 2
        spread = _spread([values[rows].mean().item() for rows in halves.real])
        measures[title] = _entry(title, values.mean().item(), spread, None)
    if indices is not None and num_codes is not None:
        usage = codebook_usage(indices, num_codes)
        measures["perplexity"] = _entry("perplexity", usage.perplexity, None, None)
        measures["used codes"] = _entry("used codes", usage.used_codes, None, None)
    return _report(net, real, known, measures, name)


def generation_table(report: dict[str, Any]) -> str:
    """A report as a table in Markdown: each number, its deviation, its floor.

    Args:
        report: What `generation_report` or `reconstruction_report` returns.
    """
    rows = [
        {
            "measure": name,
            "value": _written(entry["value"]),
            "±": _written(entry["std"]),
            "real pictures": _written(entry["floor"]),
            "better": entry["better"],
        }
        for name, entry in report["measures"].items()
    ]
    text = (
        f"{report['pictures']:,} pictures, features of {report['net']}; 'real pictures' is what as many "
        f"real ones score in their place.\n\n{markdown_table(rows)}"
    )
    return "\n\n".join([text, *(f"{name}: {why}" for name, why in report["left_out"].items())])


def _checked_counts(samples: Pictures, test: Pictures, train: Pictures, k: int) -> int:
    counts = [len(x.features) if isinstance(x, PictureFeatures) else len(x) for x in (samples, test, train)]
    shapes = [tuple(x.shape[1:]) for x in (samples, test, train) if isinstance(x, Tensor)]
    if counts[0] != counts[1]:
        raise ValueError(
            f"{counts[0]} pictures against {counts[1]} test pictures; measures depend on the count, so give "
            f"{min(counts[:2])} of each."
        )
    if counts[2] < counts[0]:
        raise ValueError(
            f"`train` has {counts[2]} pictures for the floor of {counts[0]}; give as many, or compare fewer."
        )
    if len(set(shapes)) > 1:
        raise ValueError(
            f"Pictures are (channels, height, width) {shapes}; bring all to one size before comparing."
        )
    if counts[0] < 2 * (k + 1):
        raise ValueError(
            f"{counts[0]} pictures are too few for `k`={k}: halves of them are compared too; give "
            f"{2 * (k + 1)} at least."
        )
    return counts[0]


def _check_labels(labels: Tensor | None, test_labels: Tensor | None, count: int) -> None:
    if (labels is None) != (test_labels is None):
        raise ValueError(
            "`labels` and `test_labels` belong together: the accuracy of real pictures is the floor; give "
            "both or neither."
        )
    for name, given in (("labels", labels), ("test_labels", test_labels)):
        if given is not None and given.shape != (count,):
            raise ValueError(f"`{name}` must be ({count},), one for each picture, got {tuple(given.shape)}.")


def _features(pictures: Pictures, net: FeatureNet, batch_size: int, progress: bool) -> PictureFeatures:
    return pictures if isinstance(pictures, PictureFeatures) else net(pictures, batch_size, progress)


def _draw(known: PictureFeatures, count: int, seed: int) -> tuple[Tensor, Halves]:
    """Training pictures (N, D) in the place of generated ones, and halves."""
    draw = torch.Generator().manual_seed(seed)
    stand_ins = known.features[torch.randperm(len(known.features), generator=draw)[:count]]
    parts = [[torch.randperm(count, generator=draw)[: count // 2] for _ in range(HALVES)] for _ in range(2)]
    return stand_ins, Halves(*parts)


def _frechet(real: Tensor, generated: Tensor) -> float:
    return frechet_distance(real, generated, allow_singular=True)  # halves may have fewer rows than columns


def _distances_and_manifolds(
    net: FeatureNet, real: Tensor, generated: Tensor, stand_ins: Tensor, halves: Halves, k: int
) -> dict[str, dict[str, Any]]:
    def both(real: Tensor, generated: Tensor) -> dict[str, float]:
        distance = {net.frechet: _frechet(real, generated)} if enough else {}
        return distance | precision_recall_density_coverage(real, generated, k)._asdict()

    enough = len(real) > real.shape[1]
    return _beside_floor(both, real, generated, stand_ins, halves)


def _report(
    net: FeatureNet, real: PictureFeatures, known: PictureFeatures, measures: dict, distance: str
) -> dict[str, Any]:
    count, width = real.features.shape
    why = f"the covariance of {width:,} features needs more than {count:,} pictures."
    return {
        "net": net.name,
        "pictures": count,
        "training_pictures": len(known.features),
        "measures": measures,
        "left_out": {} if distance in measures else {distance: f"left out, {why}"},
    }


def _beside_floor(
    measure: Measure, real: Tensor, generated: Tensor, stand_ins: Tensor, halves: Halves
) -> dict[str, dict[str, Any]]:
    whole, floor = measure(real, generated), measure(real, stand_ins)
    parts = [measure(real[x], generated[y]) for x, y in zip(halves.real, halves.generated, strict=True)]
    return {
        name: _entry(name, value, _spread([part[name] for part in parts]), floor[name])
        for name, value in whole.items()
    }


def _copies(
    made: PictureFeatures, real: PictureFeatures, known: PictureFeatures, halves: Halves
) -> dict[str, Any]:
    """The median over pictures; far below what test pictures have, the generator copies."""
    away, floor = (nearest_neighbours(x.features, known.features).distances[:, 0] for x in (made, real))
    spread = _spread([away[rows].median().item() for rows in halves.generated])
    entry = _entry("", away.median().item(), spread, floor.median().item())
    return entry | {"better": "as real"}


def _accuracy(
    net: FeatureNet,
    made: PictureFeatures,
    labels: Tensor,
    real: PictureFeatures,
    test_labels: Tensor,
    halves: Halves,
) -> dict[str, Any]:
    if made.logits is None or real.logits is None:
        raise ValueError(f"{net.name} has no classes; leave out `labels`, or take a classifier of them.")
    spread = _spread([class_accuracy(made.logits[rows], labels[rows]).accuracy for rows in halves.generated])
    floor = class_accuracy(real.logits, test_labels).accuracy
    return _entry("class accuracy", class_accuracy(made.logits, labels).accuracy, spread, floor)


def _spread(values: list[float]) -> float:
    return torch.tensor(values, dtype=torch.float64).std().item()


def _entry(name: str, value: float, std: float | None, floor: float | None) -> dict[str, Any]:
    better = "lower" if name.endswith(LOWER) else "higher"
    return {"value": value, "std": std, "floor": floor, "better": better}


def _written(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
