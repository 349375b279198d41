"""Similarities of all pairs, against torch's own distances."""

import pytest
import torch
from torch.testing import assert_close

from hf_mm.objectives.similarity import pairwise_similarity, similarity_gradients


def points(number, width, seed=0):
    return torch.randn(number, width, generator=torch.Generator().manual_seed(seed))


def test_euclidean_similarity_is_minus_the_distance_with_its_gradient():
    rows, columns = points(30, 64).requires_grad_(), points(20, 64, seed=1).requires_grad_()
    exact = -torch.cdist(rows, columns, compute_mode="donot_use_mm_for_euclid_dist")
    weights = points(30, 20, seed=2)
    ours = pairwise_similarity(rows, columns, "euclidean")
    assert_close(ours, exact, rtol=1e-5, atol=1e-5)
    expected = torch.autograd.grad((exact * weights).sum(), (rows, columns))
    assert_close(torch.autograd.grad((ours * weights).sum(), (rows, columns)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [2, 64, 2048])
@pytest.mark.parametrize("length", [1e-3, 1.0, 1e3])
def test_one_place_is_at_distance_zero_whatever_the_rounding(width, length):
    rows = (length * points(300, width)).requires_grad_()
    own = pairwise_similarity(rows, rows.detach().clone(), "euclidean").diagonal()
    assert (own == 0).all()
    (gradient,) = torch.autograd.grad(own.sum(), rows)
    assert (gradient == 0).all()


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_gradients_by_hand_are_those_of_autograd(similarity):
    rows, columns = points(7, 8).requires_grad_(), points(5, 8, seed=1).requires_grad_()
    with torch.no_grad():
        rows[2] = columns[3]  # where the distance has no slope
    similarities = pairwise_similarity(rows, columns, similarity)
    slopes = points(7, 5, seed=2)
    expected = torch.autograd.grad((similarities * slopes).sum(), (rows, columns))
    with torch.no_grad():
        measured = similarity_gradients(slopes, similarities, rows, columns, similarity)
    assert_close(measured, expected, rtol=1e-5, atol=1e-6)


def test_towers_of_two_precisions_can_be_compared():
    rows, columns = points(3, 8).bfloat16(), points(4, 8, seed=1)
    assert_close(pairwise_similarity(rows, columns), rows.float() @ columns.T, rtol=0, atol=0)
    assert pairwise_similarity(rows, columns.double()).dtype == torch.float64
