"""Points are matched one to one, as many as can be, and of equals the nearest."""

import numpy as np
import pytest

from hf_mm import mean_point_scores, point_scores


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
