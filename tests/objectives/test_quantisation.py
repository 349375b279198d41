"""Codebook arithmetic against closed forms, counted by hand and against scipy."""

import itertools
import math

import pytest
import torch
from scipy.stats import entropy
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from hf_mm.objectives import quantisation
from hf_mm.objectives.quantisation import (
    code_perplexity,
    code_statistics,
    codebook_loss,
    commitment_loss,
    finite_scalar_bound,
    finite_scalar_codes,
    finite_scalar_indices,
    kmeans_codes,
    moving_code_averages,
    nearest_codes,
    random_vectors,
    restarted_codes,
    straight_through,
)


@pytest.fixture
def vectors():
    return torch.randn(50, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def codes():
    return torch.randn(12, 3, generator=torch.Generator().manual_seed(1))


def test_the_nearest_code_is_that_of_the_smallest_distance(vectors, codes):
    assert_close(nearest_codes(vectors, codes), torch.cdist(vectors, codes).argmin(dim=1))


def test_at_the_same_distance_the_first_code_counts():
    codes = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    assert nearest_codes(torch.tensor([[0.0, 2.0], [3.0, 0.0]]), codes).tolist() == [0, 0]


def test_searching_in_parts_finds_the_same_codes(vectors, codes, monkeypatch):
    whole = nearest_codes(vectors, codes)
    monkeypatch.setattr(quantisation, "CACHED_DISTANCES", 7 * len(codes))
    assert_close(nearest_codes(vectors, codes), whole)


def test_autocast_does_not_touch_the_distances():
    """In bfloat16 these codes are one: 1.001 and 1.002 round to the same number."""
    codes = torch.tensor([[1.001], [1.002]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nearest_codes(codes, codes).tolist() == [0, 1]


def test_for_unit_lengths_it_is_the_code_of_the_largest_cosine(vectors, codes):
    vectors, codes = (x / x.norm(dim=1, keepdim=True) for x in (vectors, codes))
    assert_close(nearest_codes(vectors, codes), (vectors @ codes.T).argmax(dim=1))


def test_straight_through_has_the_value_of_the_code_and_the_gradient_of_the_feature():
    features = torch.tensor([0.1, 3e5], requires_grad=True)
    codes = torch.tensor([0.7, 1e-9], requires_grad=True)
    passed = straight_through(features, codes)
    assert_close(passed, codes, rtol=0, atol=0)
    passed.backward(torch.tensor([2.0, -3.0]))
    assert features.grad is not None
    assert features.grad.tolist() == [2.0, -3.0]
    assert codes.grad is None


@pytest.mark.parametrize(("loss", "moves"), [(codebook_loss, "codes"), (commitment_loss, "features")])
def test_each_loss_moves_one_side_by_twice_the_mean_difference(vectors, loss, moves):
    parts = {"features": vectors[:6].clone(), "codes": vectors[6:12].clone()}
    for part in parts.values():
        part.requires_grad_()
    value = loss(parts["features"], parts["codes"])
    assert_close(value, mse_loss(parts["features"], parts["codes"]))
    value.backward()
    still = ({"features", "codes"} - {moves}).pop()
    assert parts[still].grad is None
    difference = (parts[moves] - parts[still]).detach()
    assert_close(parts[moves].grad, 2 * difference / difference.numel())


def test_perplexity_is_the_exponential_of_the_entropy():
    counts = torch.tensor([5.0, 0.0, 1.0, 2.0])
    assert code_perplexity(counts).item() == pytest.approx(math.exp(entropy(counts.numpy())))
    assert code_perplexity(torch.full((8,), 3.0)).item() == pytest.approx(8)
    assert code_perplexity(torch.tensor([0.0, 9.0])).item() == 1
    assert code_perplexity(torch.zeros(4)).item() == 1


def test_statistics_are_counts_and_sums():
    vectors = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    counts, sums = code_statistics(vectors, torch.tensor([2, 0, 2]), 4)
    assert counts.tolist() == [1, 0, 2, 0]
    assert sums.tolist() == [[3, 4], [0, 0], [6, 8], [0, 0]]


def test_moving_averages_equal_hand_computation():
    size, total = torch.tensor([10.0, 4.0]), torch.tensor([[20.0], [4.0]])
    size, total = moving_code_averages(
        size, total, torch.tensor([0.0, 8.0]), torch.tensor([[0.0], [16.0]]), 0.75
    )
    assert size.tolist() == [7.5, 5.0]
    assert total.tolist() == [[15.0], [7.0]]


def test_only_codes_below_the_share_of_an_average_code_start_again():
    size, total = torch.tensor([9.9, 0.09, 0.11, 1.9]), torch.ones(4, 1)
    offered = torch.tensor([[5.0], [6.0], [7.0], [8.0]])
    size, total = restarted_codes(size, total, offered, 0.03)  # an average code has 3, 3 % are 0.09
    assert_close(size, torch.tensor([9.9, 0.09, 0.11, 1.9]), rtol=0, atol=0)
    size, total = restarted_codes(size, total, offered, 0.035)
    assert_close(size, torch.tensor([9.9, 3.0, 0.11, 1.9]))
    assert_close(total / size[:, None], torch.tensor([[1 / 9.9], [6.0], [1 / 0.11], [1 / 1.9]]))


def test_random_vectors_repeat_none_before_all_are_drawn(vectors):
    drawn = random_vectors(vectors[:4], 6)
    assert sorted(drawn[:4].tolist()) == sorted(vectors[:4].tolist())
    assert_close(drawn[4:], drawn[:2])


def test_kmeans_is_the_same_for_the_same_seed_and_another_for_another(vectors):
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(kmeans_codes(vectors, 5, 3)[0])
    assert_close(runs[0], runs[1], rtol=0, atol=0)
    assert not torch.equal(runs[0], runs[2])


def test_kmeans_is_a_fixed_point_of_its_means(vectors):
    torch.manual_seed(0)
    codes, counts, sums = kmeans_codes(vectors, 4, 50)
    nearest = torch.cdist(vectors, codes).argmin(dim=1)
    for code in range(4):
        assert counts[code] == (nearest == code).sum()
        assert_close(codes[code], vectors[nearest == code].mean(dim=0))
        assert_close(sums[code], vectors[nearest == code].sum(dim=0))


def test_kmeans_of_unit_vectors_keeps_unit_length(vectors):
    torch.manual_seed(0)
    units = vectors / vectors.norm(dim=1, keepdim=True)
    assert_close(kmeans_codes(units, 4, 5, unit_length=True)[0].norm(dim=1), torch.ones(4))


def test_kmeans_with_fewer_vectors_than_codes_is_each_vector():
    vectors = torch.tensor([[0.0], [5.0], [9.0]])
    codes, counts, _ = kmeans_codes(vectors, 7, 3)
    assert set(codes.flatten().tolist()) == {0.0, 5.0, 9.0}
    assert counts.sum() == 3


@pytest.mark.parametrize("levels", [[8, 5, 5, 5], [2], [2, 3, 4], [7, 2, 2]])
def test_finite_scalars_are_a_bijection_of_indices_and_codes(levels):
    sizes = torch.tensor(levels)
    indices = torch.arange(math.prod(levels))
    codes = finite_scalar_codes(indices, sizes)
    assert_close(finite_scalar_indices(codes, sizes), indices)
    assert len(torch.unique(codes, dim=0)) == len(indices)
    assert codes.abs().max() <= 1


def test_the_first_dimension_counts_fastest():
    codes = finite_scalar_codes(torch.arange(4), torch.tensor([3, 5]))
    assert codes.tolist() == [[-1, -1], [0, -1], [1, -1], [-1, -0.5]]


@pytest.mark.parametrize("level", range(2, 12))
def test_rounding_reaches_exactly_the_levels(level):
    """From far below to far above, so with both borders."""
    features = torch.cat([torch.linspace(-9, 9, 2001), torch.tensor([-1e4, 1e4])])[:, None]
    rounded = finite_scalar_bound(features, torch.tensor([level])).round()
    assert set(rounded.flatten().tolist()) == set(range(-(level // 2), (level - 1) // 2 + 1))


def test_levels_are_reached_in_every_combination():
    levels = torch.tensor([2, 3, 4])
    grid = torch.tensor(list(itertools.product(torch.linspace(-6, 6, 25).tolist(), repeat=3)))
    rounded = finite_scalar_bound(grid, levels).round() / (levels // 2)
    assert set(finite_scalar_indices(rounded, levels).tolist()) == set(range(24))


@pytest.mark.parametrize("level", [4, 5])
def test_a_feature_of_zero_is_the_middle_level(level):
    assert finite_scalar_bound(torch.zeros(1), torch.tensor([level])).abs().item() < 1e-6


def test_the_gradient_of_the_bound_is_that_of_the_formula():
    features = torch.tensor([[0.3, -0.8]], requires_grad=True)
    levels = torch.tensor([5, 4])
    finite_scalar_bound(features, levels).sum().backward()
    odd, even = 4 * 1.001 / 2, 3 * 1.001 / 2
    expected = [
        odd * (1 - math.tanh(0.3) ** 2),
        even * (1 - math.tanh(-0.8 + math.atanh(0.5 / even)) ** 2),
    ]
    assert features.grad is not None
    assert features.grad[0].tolist() == pytest.approx(expected, rel=1e-5)
