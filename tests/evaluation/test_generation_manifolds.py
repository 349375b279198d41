"""Precision, recall, density and coverage equal loops over pairs; neighbours are the nearest."""

import pytest
import torch
from torch.testing import assert_close

import hf_mm.evaluation.generation_manifolds as manifolds
from hf_mm import nearest_neighbours, precision_recall_density_coverage


def normal(rows, width=6, seed=0, shift=0.0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) + shift


def naive(real, generated, k):
    """As the papers write it, picture by picture."""
    real, generated = real.double(), generated.double()

    def radius(points, i):
        return sorted((points[j] - points[i]).norm().item() for j in range(len(points)) if j != i)[k - 1]

    n = len(real)
    real_radius = [radius(real, i) for i in range(n)]
    generated_radius = [radius(generated, j) for j in range(n)]
    apart = [[(real[i] - generated[j]).norm().item() for j in range(n)] for i in range(n)]
    return (
        sum(any(apart[i][j] < real_radius[i] for i in range(n)) for j in range(n)) / n,
        sum(any(apart[i][j] < generated_radius[j] for j in range(n)) for i in range(n)) / n,
        sum(apart[i][j] < real_radius[i] for i in range(n) for j in range(n)) / (k * n),
        sum(min(apart[i]) < real_radius[i] for i in range(n)) / n,
    )


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_all_four_are_the_papers_sums(monkeypatch, k, shift):
    monkeypatch.setattr(manifolds, "CHUNK_ROWS", 7)  # 30 rows in five parts
    real, generated = normal(30), normal(30, seed=1, shift=shift)
    found = precision_recall_density_coverage(real, generated, k)
    assert_close(tuple(found), naive(real, generated, k))
    assert 0 < found.precision < 1  # so that the case can tell something


def test_the_size_of_chunks_changes_nothing(monkeypatch):
    real, generated = normal(50), normal(50, seed=1)
    whole = precision_recall_density_coverage(real, generated)
    monkeypatch.setattr(manifolds, "CHUNK_ROWS", 1)
    assert precision_recall_density_coverage(real, generated) == whole


def test_a_set_compared_with_itself_is_perfect():
    real = normal(200) + 1000  # far from the origin: differences of large numbers
    assert precision_recall_density_coverage(real, real.clone()) == (1, 1, 1, 1)


def test_one_picture_repeated_is_precise_and_covers_nothing():
    real = normal(200)
    found = precision_recall_density_coverage(real, real[:1].expand(200, -1) * 0.99)
    assert found.precision == 1
    assert found.recall == 0
    assert found.coverage < 0.1


def test_pictures_of_another_place_are_neither_precise_nor_recalled():
    assert precision_recall_density_coverage(normal(50), normal(50, seed=1, shift=100)) == (0, 0, 0, 0)


def test_neighbours_are_the_nearest_by_features():
    queries, among = normal(9), normal(40, seed=1)
    found = nearest_neighbours(queries, among, 3)
    distances, indices = torch.cdist(queries.double(), among.double()).topk(3, largest=False)
    assert_close(found.indices, indices)
    assert_close(found.distances.double(), distances, rtol=1e-5, atol=1e-5)


def test_neighbours_of_pictures_are_the_nearest_by_pixels():
    among = torch.randint(0, 256, (20, 3, 4, 4), dtype=torch.uint8)
    found = nearest_neighbours(among[[7, 3]].float() / 127.5 - 1, among)
    assert found.indices.tolist() == [[7], [3]]
    assert found.distances.tolist() == [[0], [0]]
    black, white = torch.zeros(1, 1, 5, 5, dtype=torch.uint8), torch.full((1, 1, 5, 5), 255).byte()
    assert nearest_neighbours(black, white).distances.item() == pytest.approx(5)


def test_faults_are_named():
    real = normal(20)
    with pytest.raises(ValueError, match="`real` has 20 rows, `generated` 19"):
        precision_recall_density_coverage(real, real[:19])
    with pytest.raises(ValueError, match="`k`=20 must be at least 1 and below the count of pictures, 20"):
        precision_recall_density_coverage(real, real, k=20)
    with pytest.raises(ValueError, match="`k`=0 must be at least 1"):
        precision_recall_density_coverage(real, real, k=0)
    broken = real.clone()
    broken[4, 0] = torch.inf
    with pytest.raises(ValueError, match="`generated` hold NaN or infinity in row 4"):
        precision_recall_density_coverage(real, broken)
    with pytest.raises(ValueError, match="`k`=21 must be 1 to 20, the count of pictures in `among`"):
        nearest_neighbours(real, real, 21)
    with pytest.raises(ValueError, match="`queries` hold NaN or infinity in row 4"):
        nearest_neighbours(broken, real)
