"""What frozen features hold: a logistic regression on them, with all labels or with a few per class.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", section 3.2 and
appendix A.3 (https://arxiv.org/abs/2103.00020): L-BFGS, the strength of L2 chosen on held-out rows, then
fitted once more on all. Here features are standardised first, by mean and deviation of the rows fitted on.

Shapes: N rows, D width of the features.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["few_shot_curve", "linear_probe"]

STRENGTHS = tuple(float(10.0**power) for power in np.arange(-4, 3))
"""Inverse strengths of L2, scikit-learn's `C`, from strict to free."""

MAX_ITERATIONS = 1000
Labels = Sequence[int] | Sequence[str] | np.ndarray | Tensor


def linear_probe(
    train_x: Tensor | np.ndarray,
    train_y: Labels,
    test_x: Tensor | np.ndarray,
    test_y: Labels,
    strengths: Sequence[float] = STRENGTHS,
    held_out: float = 0.2,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy of a linear classifier on frozen features.

    Args:
        train_x: (N, D), such as `vision_features` returns.
        train_y: (N,) classes, numbers or names.
        test_x: (M, D).
        test_y: (M,).
        strengths: Values of `C` to choose from; of equally good ones the first.
        held_out: Share of the training rows that choose.
        seed: Which rows these are.

    Returns:
        `accuracy` and `accuracy_per_class` (the mean over the classes) on the test rows, `majority` (the
        share of test rows in the most frequent training class), `held_out_accuracy`, `C`, `converged`, and
        the numbers `train`, `test`, `classes` and `width`; what `write_results` can write.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: Counts or widths do not fit, there is one class only, the test has a class that training
            does not have, or features hold NaN or infinity.
    """
    train_x, train_y, test_x, test_y = _checked(train_x, train_y, test_x, test_y)
    if not 0 < held_out < 1:
        raise ValueError(f"`held_out` is {held_out}; it is a share, above 0 and below 1.")
    if not len(strengths):
        raise ValueError("`strengths` is empty; give at least one value of C.")
    fit, choose = _split(train_y, held_out, seed)
    scores = [_fit(train_x[fit], train_y[fit], c).score(train_x[choose], train_y[choose]) for c in strengths]
    best = int(np.argmax(scores))
    probe = _fit(train_x, train_y, strengths[best])
    hits = probe.predict(test_x) == test_y
    classes, counts = np.unique(train_y, return_counts=True)
    return {
        "accuracy": float(hits.mean()),
        "accuracy_per_class": float(np.mean([hits[test_y == one].mean() for one in np.unique(test_y)])),
        "majority": float((test_y == classes[counts.argmax()]).mean()),
        "held_out_accuracy": float(scores[best]),
        "C": float(strengths[best]),
        "converged": bool(probe[-1].n_iter_.max() < MAX_ITERATIONS),
        "train": len(train_x),
        "test": len(test_x),
        "classes": len(classes),
        "width": train_x.shape[1],
    }


def few_shot_curve(
    train_x: Tensor | np.ndarray,
    train_y: Labels,
    test_x: Tensor | np.ndarray,
    test_y: Labels,
    shots: Sequence[int] = (1, 2, 4, 8, 16),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    strength: float = 1.0,
) -> list[dict[str, float]]:
    """Accuracy of the probe with k labels per class: a row per k, for `markdown_table` or a plot.

    The strength of L2 is given, not chosen: choosing would take labels beyond the k. The draws of one seed
    grow: its 4 rows of a class are among its 8.

    Args:
        train_x: (N, D).
        train_y: (N,).
        test_x: (M, D).
        test_y: (M,).
        shots: Values of k.
        seeds: One draw for each.
        strength: scikit-learn's `C`.

    Returns:
        `shots`, `accuracy` (the mean over seeds), `std` (their standard deviation, n - 1; 0 for one seed) and
        `seeds`, how many.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: As `linear_probe`; or a class has fewer than k rows.
    """
    train_x, train_y, test_x, test_y = _checked(train_x, train_y, test_x, test_y)
    if not len(shots) or not len(seeds) or min(shots) < 1:
        raise ValueError(
            f"`shots`={tuple(shots)}, `seeds`={tuple(seeds)}; give some, and shots of 1 or more."
        )
    rows_of = {one: np.flatnonzero(train_y == one) for one in np.unique(train_y).tolist()}
    fewest = min(rows_of, key=lambda one: len(rows_of[one]))
    if len(rows_of[fewest]) < max(shots):
        raise ValueError(
            f"Class {fewest!r} has {len(rows_of[fewest])} training rows, fewer than {max(shots)} shots."
        )
    accuracies = np.zeros((len(shots), len(seeds)))
    for column, seed in enumerate(seeds):
        random = np.random.default_rng(seed)
        drawn = [random.permutation(rows) for rows in rows_of.values()]
        for row, k in enumerate(shots):
            chosen = np.concatenate([rows[:k] for rows in drawn])
            probe = _fit(train_x[chosen], train_y[chosen], strength)
            accuracies[row, column] = probe.score(test_x, test_y)
    spread = accuracies.std(axis=1, ddof=1) if len(seeds) > 1 else np.zeros(len(shots))
    return [
        {"shots": k, "accuracy": float(mean), "std": float(std), "seeds": len(seeds)}
        for k, mean, std in zip(shots, accuracies.mean(axis=1), spread, strict=True)
    ]


def _fit(x: np.ndarray, y: np.ndarray, strength: float) -> Any:
    """Standardise and regress."""
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise ImportError("The linear probe needs scikit-learn: pip install 'hf-mm[eval]'.") from error
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=MAX_ITERATIONS))
    with warnings.catch_warnings():  # said in the result instead
        warnings.simplefilter("ignore", ConvergenceWarning)
        return probe.fit(x, y)


def _split(y: np.ndarray, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit on and rows to choose by: of every class the same share, and at least one to fit on."""
    random = np.random.default_rng(seed)
    fit, choose = [], []
    for one in np.unique(y):
        rows = random.permutation(np.flatnonzero(y == one))
        aside = min(round(held_out * len(rows)), len(rows) - 1)
        choose.append(rows[:aside])
        fit.append(rows[aside:])
    if not sum(map(len, choose)):
        raise ValueError(
            f"{len(y)} training rows leave none to choose the strength by with `held_out`={held_out}; give "
            "more rows per class, or take `few_shot_curve`."
        )
    return np.concatenate(fit), np.concatenate(choose)


def _checked(
    train_x: Tensor | np.ndarray, train_y: Labels, test_x: Tensor | np.ndarray, test_y: Labels
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    sides = []
    for side, x, y in (("train", train_x, train_y), ("test", test_x, test_y)):
        features = (x.detach().cpu().float() if isinstance(x, Tensor) else x).__array__()
        labels = np.asarray(y.cpu() if isinstance(y, Tensor) else y)
        if features.ndim != 2 or not len(features):
            raise ValueError(f"`{side}_x` must be (rows, width) with a row at least, got {features.shape}.")
        if labels.shape != (len(features),):
            raise ValueError(f"`{side}_y` must be ({len(features)},), one class per row, got {labels.shape}.")
        broken = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if len(broken):
            raise ValueError(f"`{side}_x` holds NaN or infinity in row {broken[0]}.")
        sides += [features.astype(np.float64), labels]
    if sides[0].shape[1] != sides[2].shape[1]:
        raise ValueError(
            f"`train_x` is {sides[0].shape[1]} wide, `test_x` {sides[2].shape[1]}; take one tower."
        )
    known = np.unique(sides[1])
    if len(known) < 2:
        raise ValueError(f"`train_y` has the one class {known[0]!r}; a classifier needs two.")
    new = np.setdiff1d(sides[3], known)
    if len(new):
        raise ValueError(f"`test_y` has classes that `train_y` does not have: {new.tolist()[:5]}.")
    return sides[0], sides[1], sides[2], sides[3]
