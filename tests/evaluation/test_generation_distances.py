"""Frechet and kernel distances equal their formulas, and say 0 for what is one distribution."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch.testing import assert_close

from hf_mm import frechet_distance, kernel_distance


def normal(rows, width, seed=0, shift=0.0, scale=1.0):
    """Correlated features."""
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(99)).double() / width**0.5
    return torch.randn(rows, width, generator=draw).double() @ mixing * scale + shift


def by_scipy(x, y):
    x, y = np.asarray(x), np.asarray(y)
    c, d = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    return np.square(x.mean(0) - y.mean(0)).sum() + np.trace(c + d - 2 * sqrtm(c @ d).real)


@pytest.mark.parametrize(("width", "scale"), [(3, 1.0), (48, 1.3), (48, 100.0)])
def test_frechet_distance_is_the_formula_with_scipys_root(width, scale):
    x, y = normal(200, width, 0), normal(200, width, 1, shift=0.3, scale=scale)
    assert frechet_distance(x, y) == pytest.approx(by_scipy(x, y), rel=1e-6)
    assert frechet_distance(x.float().numpy(), y.float()) == pytest.approx(by_scipy(x, y), rel=1e-4)


def test_frechet_distance_of_known_normals_is_the_closed_form():
    """Features with exact means and with exact diagonal covariances."""
    x = torch.cat([torch.eye(4), -torch.eye(4)]).double() * (7 / 2) ** 0.5  # covariance 1
    spread, shift = torch.tensor([1.0, 2.0, 3.0, 0.5]).double(), torch.tensor([0.0, 1.0, 0.0, -2.0])
    expected = (shift.square().sum() + (spread - 1).square().sum()).item()
    assert frechet_distance(x, x * spread + shift) == pytest.approx(expected, abs=1e-12)


def test_equal_sets_have_no_distance_in_any_order():
    x = normal(300, 32)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x.flip(0)) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_fewer_pictures_than_features_is_right_when_asked_for():
    x, y = normal(10, 30, 0), normal(10, 30, 1)
    assert frechet_distance(x, y, allow_singular=True) == pytest.approx(by_scipy(x, y), rel=1e-4)  # scipy's
    assert frechet_distance(x, x, allow_singular=True) == pytest.approx(0, abs=1e-9)
    with pytest.raises(
        ValueError, match=r"30 features needs more than 30 pictures, got 10; .*allow_singular"
    ):
        frechet_distance(x, y)
    with pytest.raises(ValueError, match="needs more than 1 pictures, got 1"):
        frechet_distance(x[:1, :1], y[:1, :1], allow_singular=True)


def naive_discrepancy(x, y):
    def kernel(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    m = len(x)
    own = sum(kernel(p[i], p[j]) for p in (x, y) for i in range(m) for j in range(m) if i != j)
    across = sum(kernel(a, b) for a in x for b in y)
    return own / (m * (m - 1)) - 2 * across / m**2


def test_kernel_distance_of_one_whole_subset_is_the_sum_over_pairs():
    x, y = normal(12, 5, 0), normal(12, 5, 1, shift=0.2)
    found = kernel_distance(x, y, subsets=3, subset_size=12)
    assert found.mean == pytest.approx(naive_discrepancy(x, y), rel=1e-9)
    assert found.std == pytest.approx(0, abs=1e-9)


def test_kernel_distance_is_the_mean_and_deviation_over_subsets():
    x, y = normal(40, 5, 0), normal(40, 5, 1, shift=0.2)
    draw = torch.Generator().manual_seed(7)
    values = []
    for _ in range(6):
        rows = [torch.randperm(40, generator=draw)[:10] for _ in range(2)]
        values.append(naive_discrepancy(x[rows[0]], y[rows[1]]))
    found = kernel_distance(x, y, subsets=6, subset_size=10, seed=7)
    assert_close(found.mean, float(np.mean(values)))
    assert_close(found.std, float(np.std(values)))
    assert found == kernel_distance(x, y, subsets=6, subset_size=10, seed=7)


def test_kernel_distance_is_unbiased_whatever_the_subset():
    x, y = normal(2000, 8, 0), normal(2000, 8, 1)
    small, large = (kernel_distance(x, y, 400, size) for size in (20, 200))
    assert abs(small.mean) < 3 * small.std / 20
    assert abs(large.mean) < 0.2 * small.std
    biased = [frechet_distance(x[:size], y[:size]) for size in (20, 200, 2000)]
    assert biased[0] > 3 * biased[1] > 9 * biased[2]  # why counts must be equal


def test_faults_are_named():
    x = normal(20, 4)
    for measure in (frechet_distance, kernel_distance):
        with pytest.raises(ValueError, match=r"`real` has 20 rows, `generated` 10; .* so compare 10 of each"):
            measure(x, x[:10])
        with pytest.raises(ValueError, match="`real` are 4 wide, `generated` 3; take both from one net"):
            measure(x, x[:, :3])
        broken = x.clone()
        broken[13, 2] = torch.nan
        with pytest.raises(ValueError, match="`generated` hold NaN or infinity in row 13"):
            measure(x, broken)
        with pytest.raises(ValueError, match=r"`real` must be \(pictures, features\), got \(20,\)"):
            measure(x[:, 0], x)
    with pytest.raises(ValueError, match="`subsets`=100 of `subset_size`=21 out of 20 pictures"):
        kernel_distance(x, x, subset_size=21)
    with pytest.raises(ValueError, match="`subsets`=0 of `subset_size`=10"):
        kernel_distance(x, x, subsets=0)
    with pytest.raises(ValueError, match="`subset_size`=1 out of 3 pictures"):
        kernel_distance(x[:3], x[:3])
