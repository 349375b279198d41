"""Overlaps and suppression of boxes, worked out by hand."""

import pytest
import torch

from hf_mm import box_iou, non_maximum_suppression

BOXES = torch.tensor(
    [
        [0.0, 0.0, 2.0, 2.0],
        [1.0, 0.0, 3.0, 2.0],  # shares 2 of 6 with the first
        [0.0, 0.0, 2.0, 1.0],  # shares 2 of 4 with the first, 1 of 5 with the second
        [5.0, 5.0, 6.0, 6.0],
    ]
)


def test_overlap_is_what_is_shared_over_what_is_covered():
    expected = torch.tensor([[1, 1 / 3, 1 / 2, 0], [1 / 3, 1, 1 / 5, 0], [1 / 2, 1 / 5, 1, 0], [0, 0, 0, 1]])
    torch.testing.assert_close(box_iou(BOXES, BOXES), expected)


def test_boxes_without_area_overlap_nothing():
    point = torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    assert box_iou(point, point).item() == 0.0


@pytest.mark.parametrize(
    ("max_overlap", "kept"),
    [
        (0.6, [1, 0, 3, 2]),  # nothing overlaps by more
        (0.4, [1, 0, 3]),  # the third falls to the first
        (0.3, [1, 3, 2]),  # the first falls to the second, and so the third stays
        (0.1, [1, 3]),
    ],
)
def test_the_best_of_boxes_that_overlap_stays(max_overlap, kept):
    scores = torch.tensor([0.8, 0.9, 0.5, 0.7])
    assert non_maximum_suppression(BOXES, scores, max_overlap).tolist() == kept


def test_of_equal_scores_the_first_stays():
    twice = torch.cat([BOXES[:1], BOXES[:1]])
    assert non_maximum_suppression(twice, torch.tensor([0.5, 0.5]), 0.5).tolist() == [0]


def test_no_boxes_stay_none():
    assert non_maximum_suppression(torch.zeros(0, 4), torch.zeros(0), 0.5).tolist() == []


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"got \(4, 4\) and \(3,\)"):
        non_maximum_suppression(BOXES, torch.ones(3), 0.5)
    with pytest.raises(ValueError, match=r"`max_overlap`=1.5 must be in 0..1"):
        non_maximum_suppression(BOXES, torch.ones(4), 1.5)
