"""Points are matched one to one, as many as can be, and of equals the nearest."""

from itertools import permutations

import numpy as np
import pytest

from hf_mm import mean_point_scores, point_scores
from hf_mm.evaluation.pointing import assign


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (2, 5), (5, 3)])
def test_the_matching_is_the_cheapest_of_all(shape):
    rng = np.random.default_rng(0)
    for _ in range(30):
        cost = rng.integers(0, 20, shape).astype(float)
        pairs = assign(cost)
        wide = cost if shape[0] <= shape[1] else cost.T
        best = min(
            sum(wide[row, column] for row, column in enumerate(columns))
            for columns in permutations(range(wide.shape[1]), wide.shape[0])
        )
        assert sum(cost[pair] for pair in pairs) == best
        assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == min(shape)


def test_a_target_is_hit_once_and_the_matching_hits_most():
    targets = [(0, 0), (10, 0)]
    assert point_scores([(1, 0), (2, 0)], targets, radius_px=3) == {
        "precision": 0.5,
        "recall": 0.5,
        "f1": 0.5,
        "hits": 1,
    }
    # The nearest target of the first point is the only one of the second.
    assert point_scores([(4, 0), (-5, 0)], targets, radius_px=6)["hits"] == 2
    scores = point_scores([(0, 0), (10, 0), (50, 50)], targets, radius_px=3)
    assert scores == {"precision": pytest.approx(2 / 3), "recall": 1.0, "f1": pytest.approx(0.8), "hits": 2}


def test_masks_count_points_inside():
    masks = np.zeros((2, 10, 20), bool)
    masks[0, :5, :10] = masks[1, 5:, 10:] = True
    assert point_scores([(2, 2), (3, 3)], masks=masks)["hits"] == 1
    assert point_scores([(2, 2), (20, 10)], masks=masks)["f1"] == 1.0
    assert point_scores([(-1, 2), (2, 11), (15, 2)], masks=masks)["f1"] == 0.0


@pytest.mark.parametrize(
    ("points", "targets", "share"), [([], [], 1.0), ([], [(1, 1)], 0.0), ([(1, 1)], [], 0.0)]
)
def test_nothing_said_about_nothing_is_right(points, targets, share):
    assert point_scores(points, targets, radius_px=1)["f1"] == share


def test_means_are_over_images():
    scores = [point_scores([], [], radius_px=1), point_scores([], [(1, 1)], radius_px=1)]
    assert mean_point_scores(scores) == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "n": 2}
    with pytest.raises(ValueError, match="`scores` is empty"):
        mean_point_scores([])


def test_what_to_hit_must_be_clear():
    for wrong in ({}, {"targets": [(0, 0)]}, {"targets": [(0, 0)], "radius_px": 1, "masks": []}):
        with pytest.raises(ValueError, match="either `targets` with `radius_px` or `masks`"):
            point_scores([(0, 0)], **wrong)
