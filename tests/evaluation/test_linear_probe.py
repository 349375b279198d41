"""The probe is scikit-learn's logistic regression, chosen fairly; few shots are few."""

import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from hf_mm import few_shot_curve, linear_probe, markdown_table, write_results
from hf_mm.evaluation.linear_probe import STRENGTHS


def clouds(rows, classes=3, width=6, spread=1.0, seed=0, shift=100.0):
    """Gaussian clouds around fixed middles, on axes of very unlike scales."""
    random = np.random.default_rng(seed)
    middles = 2 * np.random.default_rng(99).standard_normal((classes, width))
    labels = random.permutation(np.arange(rows) % classes)
    points = middles[labels] + spread * random.standard_normal((rows, width))
    return points * 10.0 ** np.arange(-3, width - 3) + shift, labels


def test_the_final_fit_is_that_of_scikit_learn_on_standardised_features():
    (x, y), (test_x, test_y) = clouds(90, spread=2.5), clouds(200, spread=2.5, seed=1)
    results = linear_probe(x, y, test_x, test_y)
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    peer = LogisticRegression(C=results["C"], max_iter=1000).fit((x - mean) / deviation, y)
    said = peer.predict((test_x - mean) / deviation)
    assert 0.5 < results["accuracy"] < 0.99
    assert results["accuracy"] == pytest.approx((said == test_y).mean())
    assert results["accuracy_per_class"] == pytest.approx(balanced_accuracy_score(test_y, said))


def test_the_strength_is_chosen_on_held_out_rows():
    """Random labels, more axes than rows: the freest fit learns noise by heart, and must not be chosen."""
    random = np.random.default_rng(0)
    x, y = random.standard_normal((60, 100)), random.permutation(np.arange(60) % 2)
    y[:40] = 0  # two thirds of one class: strict is right in as many
    results = linear_probe(x, y, x, y)
    assert results["C"] == min(STRENGTHS)
    assert results["accuracy"] == results["majority"]
    assert results["held_out_accuracy"] == pytest.approx(results["majority"], abs=0.05)
    clean_x, clean_y = clouds(60, spread=0.3)
    assert linear_probe(clean_x, clean_y, clean_x, clean_y)["held_out_accuracy"] == 1.0


def test_tensors_names_and_constant_features_are_taken(tmp_path):
    x, y = clouds(60, spread=0.3, shift=0.0)
    x[:, 0] = 1.0
    names = [["cat", "dog", "emu"][label] for label in y]
    results = linear_probe(torch.from_numpy(x).bfloat16(), names, torch.from_numpy(x).float(), names)
    assert results["accuracy"] > 0.95
    assert (results["train"], results["test"], results["classes"], results["width"]) == (60, 60, 3, 6)
    assert results["converged"]
    write_results(tmp_path / "probe.json", results)


def test_the_majority_is_that_of_training():
    x, _ = clouds(10)
    train_y, test_y = [0] * 6 + [1] * 4, [0] * 3 + [1] * 7
    assert linear_probe(x, train_y, x, test_y)["majority"] == pytest.approx(0.3)


def test_a_fit_that_does_not_converge_says_so_without_a_warning(monkeypatch, recwarn):
    monkeypatch.setattr("hf_mm.evaluation.linear_probe.MAX_ITERATIONS", 1)
    x, y = clouds(60)
    assert not linear_probe(x, y, x, y)["converged"]
    assert not [warning for warning in recwarn if "converge" in str(warning.message)]


def test_few_shots_take_k_of_each_class_and_say_mean_and_deviation():
    (x, y), (test_x, test_y) = clouds(120, spread=2.0), clouds(200, spread=2.0, seed=1)
    rows = few_shot_curve(x, y, test_x, test_y, shots=(1, 4), seeds=(3, 5))
    expected = {1: [], 4: []}
    for seed in (3, 5):
        random = np.random.default_rng(seed)
        drawn = [random.permutation(np.flatnonzero(y == label)) for label in range(3)]
        for k in expected:
            chosen = np.concatenate([of_class[:k] for of_class in drawn])
            few, labels = x[chosen], y[chosen]
            mean, deviation = few.mean(axis=0), few.std(axis=0)
            peer = LogisticRegression(max_iter=1000).fit((few - mean) / deviation, labels)
            expected[k].append(peer.score((test_x - mean) / deviation, test_y))
    for row in rows:
        accuracies = expected[row["shots"]]
        assert row["accuracy"] == pytest.approx(np.mean(accuracies))
        assert row["std"] == pytest.approx(abs(accuracies[0] - accuracies[1]) / 2**0.5)
    assert "shots" in markdown_table(rows, shares=["accuracy", "std"])


def test_more_shots_are_better_and_the_curve_repeats():
    (x, y), (test_x, test_y) = clouds(120, spread=1.5), clouds(300, spread=1.5, seed=1)
    curve = few_shot_curve(x, y, test_x, test_y)
    assert [row["shots"] for row in curve] == [1, 2, 4, 8, 16]
    assert curve[0]["accuracy"] + 0.05 < curve[-1]["accuracy"]
    assert curve == few_shot_curve(x, y, test_x, test_y)
    assert few_shot_curve(x, y, test_x, test_y, shots=[1], seeds=[0])[0]["std"] == 0.0


def test_shots_that_cannot_be_drawn_are_refused():
    x, y = clouds(30)
    with pytest.raises(ValueError, match="Class 0 has 10 training rows, fewer than 16 shots"):
        few_shot_curve(x, y, x, y)
    with pytest.raises(
        ValueError, match=r"`shots`=\(0,\), `seeds`=\(1,\); give some, and shots of 1 or more"
    ):
        few_shot_curve(x, y, x, y, shots=[0], seeds=[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_y": [0, 1]}, r"`train_y` must be \(9,\), one class per row, got \(2,\)"),
        ({"test_x": np.ones((0, 6))}, r"`test_x` must be \(rows, width\) with a row at least, got \(0, 6\)"),
        ({"test_x": np.ones((9, 5))}, "`train_x` is 6 wide, `test_x` 5; take one tower"),
        ({"test_x": np.full((9, 6), np.nan)}, "`test_x` holds NaN or infinity in row 0"),
        (
            {"train_y": [1] * 9, "test_y": [1] * 9},
            "`train_y` has the one class .*1.*; a classifier needs two",
        ),
        ({"test_y": [7] * 9}, r"`test_y` has classes that `train_y` does not have: \[7\]"),
        ({"held_out": 1.0}, "`held_out` is 1.0; it is a share, above 0 and below 1"),
        ({"strengths": []}, "`strengths` is empty; give at least one value of C"),
        ({"held_out": 0.1}, "9 training rows leave none to choose the strength by with `held_out`=0.1"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    x, y = clouds(9)
    with pytest.raises(ValueError, match=message):
        linear_probe(**({"train_x": x, "train_y": y, "test_x": x, "test_y": y} | changes))


def test_without_scikit_learn_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    x, y = clouds(9)
    with pytest.raises(
        ImportError, match=r"The linear probe needs scikit-learn: pip install 'hf-mm\[eval\]'"
    ):
        linear_probe(x, y, x, y, held_out=0.4)
