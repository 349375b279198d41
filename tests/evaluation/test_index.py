"""An index finds what comparing with everything finds, keeps it on the disk, and says what it misses."""

import os
import sys

import faiss
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize

from hf_mm import EmbeddingIndex
from hf_mm.evaluation import index as module


def vectors(rows, width=8, seed=0):
    return normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def filled(embeds, **options):
    index = EmbeddingIndex(**options)
    index.add(embeds)
    return index


def brute_force(embeds, queries, k, similarity):
    """By sorting numpy's similarities."""
    embeds, queries = embeds.double().numpy(), queries.double().numpy()
    apart = np.linalg.norm(queries[:, None] - embeds[None], axis=-1)
    scores = queries @ embeds.T if similarity == "dot" else -apart
    rows = np.argsort(-scores, axis=1)[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
@pytest.mark.parametrize("method", ["exact", "flat"])
@pytest.mark.parametrize(("chunk", "asked"), [(1, 3), (2**24, 9)])
def test_exact_and_flat_find_what_sorting_finds(monkeypatch, method, similarity, chunk, asked):
    monkeypatch.setattr(module, "CHUNK", chunk)
    embeds, queries = 2 * vectors(300), vectors(asked, seed=1)
    scores, rows = filled(embeds, method=method, similarity=similarity).nearest(queries, 7)
    expected_scores, expected_rows = brute_force(embeds, queries, 7, similarity)
    assert rows.tolist() == expected_rows.tolist()
    torch.testing.assert_close(scores, torch.from_numpy(expected_scores).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
@pytest.mark.parametrize("method", ["ivf", "hnsw"])
def test_approximate_indexes_report_what_they_find(method, similarity):
    embeds, queries = vectors(2000), vectors(50, seed=1)
    some = filled(embeds, method=method, similarity=similarity, effort=1)
    most = filled(embeds, method=method, similarity=similarity, effort=500)
    true = brute_force(embeds, queries, 10, similarity)[1]
    found = some.nearest(queries, 10)[1].tolist()
    shared = np.mean([len(set(ours) & set(right)) / 10 for ours, right in zip(found, true, strict=True)])
    assert some.recall(queries, 10) == pytest.approx(shared)
    assert shared < 0.9
    assert most.recall(queries, 10) > 0.99
    scores, rows = most.nearest(queries[:1], 1)
    apart = (embeds[rows[0, 0]] - queries[0]).norm()
    expected = -apart if similarity == "euclidean" else embeds[rows[0, 0]] @ queries[0]
    assert float(scores[0, 0]) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("method", ["exact", "flat", "hnsw"])
def test_a_vector_is_no_distance_from_itself_however_far_out(method):
    embeds = vectors(20) + 300
    scores, rows = filled(embeds, method=method, similarity="euclidean").nearest(embeds[:9], 2)
    assert rows[:, 0].tolist() == list(range(9))
    assert not scores[:, 0].any()


def test_options_of_faiss_are_as_before():
    usual = faiss.cvar.distance_compute_blas_threshold
    filled(vectors(20), method="flat").nearest(vectors(9))
    assert faiss.cvar.distance_compute_blas_threshold == usual > 0


def test_exact_search_misses_nothing():
    for method in ("exact", "flat"):
        assert filled(vectors(100), method=method).recall(vectors(5, seed=1), 3) == 1.0


def test_what_an_approximate_index_does_not_find_is_left_out():
    index = filled(vectors(2000), method="ivf", effort=1)
    hits = index.search(vectors(1, seed=1), 1000)[0]
    scores, rows = index.nearest(vectors(1, seed=1), 1000)
    assert 0 < len(hits) < 1000
    assert rows.shape == (1, 1000)
    assert (scores[rows < 0] == -torch.inf).all()


def test_many_vectors_are_given_to_faiss_by_themselves(monkeypatch):
    monkeypatch.setattr(module, "EXACT_UP_TO", 99)
    index, queries = filled(vectors(99)), vectors(4, seed=1)
    index.nearest(queries)
    assert "faiss" not in type(index._built).__module__
    index.add(vectors(1, seed=2))
    found = index.nearest(queries)[1]
    assert type(index._built).__name__ == "IndexFlat"
    assert found.tolist() == filled(index.embeds, method="exact").nearest(queries)[1].tolist()


def test_without_faiss_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(
        ImportError, match=r"`method`='hnsw' needs FAISS: pip install 'hf-mm\[search\]', or take"
    ):
        filled(vectors(3), method="hnsw").nearest(vectors(1))
    monkeypatch.setattr(module, "EXACT_UP_TO", 2)
    with pytest.raises(ImportError, match="More than 2 vectors needs FAISS"):
        filled(vectors(3)).nearest(vectors(1))
    assert filled(vectors(3), method="exact").nearest(vectors(1))[1].shape == (1, 3)


def test_hits_carry_ids_and_metadata_best_first():
    index = EmbeddingIndex()
    index.add(torch.eye(3), ids=["x", "y", "z"], metadata=[{"file": "x.png"}, None, {"n": 1}])
    index.add(torch.eye(3).numpy()[:1] * 2, ids=[7])
    hits = index.search(torch.tensor([[1.0, 0.0, 0.5]]), k=3)[0]
    assert hits == [(7, 2.0, None), ("x", 1.0, {"file": "x.png"}), ("z", 0.5, {"n": 1})]
    assert (hits[1].id, hits[1].score, hits[1].metadata["file"]) == ("x", 1.0, "x.png")


def test_numbers_are_the_ids_by_default_and_fewer_than_k_are_all():
    index = filled(torch.eye(2))
    index.add(torch.ones(1, 2))
    assert sorted(hit.id for hit in index.search(torch.ones(1, 2), k=50)[0]) == [0, 1, 2]
    assert len(index) == 3


@pytest.mark.parametrize("method", ["auto", "flat", "ivf", "hnsw"])
def test_an_index_comes_back_from_its_file(tmp_path, method):
    index = EmbeddingIndex("euclidean", method, effort=3 if method in ("ivf", "hnsw") else None)
    names = [f"é{number}" for number in range(400)]
    index.add(vectors(400), names, [{"number": number} for number in range(400)])
    path, queries = tmp_path / "new" / "pictures.index", vectors(5, seed=1)
    index.save(path)
    again = EmbeddingIndex.load(path)
    assert again.search(queries, 4) == index.search(queries, 4)
    assert (again.similarity, again.method, again.effort) == (index.similarity, index.method, index.effort)
    again.add(queries[:1], ["new"])
    assert again.search(queries[:1], 1)[0][0].id == "new"


def test_what_faiss_built_is_not_built_again(tmp_path, monkeypatch):
    filled(vectors(50), method="hnsw").save(tmp_path / "index")
    index = EmbeddingIndex.load(tmp_path / "index")
    built = index._built
    index.nearest(vectors(1))
    assert built is index._built is not None


def test_a_save_that_fails_leaves_the_old_index(tmp_path, monkeypatch):
    path = tmp_path / "index"
    filled(vectors(5)).save(path)
    full = OSError(28, "No space left on device")

    def disk_full(handle):
        raise full

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        filled(vectors(9)).save(path)
    assert len(EmbeddingIndex.load(path)) == 5
    assert [file.name for file in tmp_path.iterdir()] == ["index"]


def test_files_that_are_no_index_are_refused(tmp_path):
    path = tmp_path / "index"
    with pytest.raises(FileNotFoundError, match=r"There is no index .*index; check the path"):
        EmbeddingIndex.load(path)
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"index is no index but holds \['weight'\]"):
        EmbeddingIndex.load(path)
    filled(vectors(50)).save(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"index cannot be read as an index: .* Is it complete"):
        EmbeddingIndex.load(path)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ((vectors(2), ["a"]), ValueError, "1 `ids` for 2 embeddings; give one for each"),
        ((vectors(2), None, [None]), ValueError, "1 `metadata` for 2 embeddings"),
        ((vectors(2), ["a", "a"]), ValueError, "The id 'a' is taken; an id stands for one embedding"),
        ((vectors(2), [9, 0]), ValueError, "The id 0 is taken"),
        ((vectors(2), ["a", 0.5]), TypeError, "The id 0.5 is a float; ids are whole numbers or texts"),
        ((vectors(1), ["a"], [{"x": {1}}]), TypeError, "The metadata of 'a' cannot be stored: .*set"),
        ((vectors(2, 5),), ValueError, "`embeds` are 5 wide, the index 8; take both from one model"),
        ((vectors(2)[0],), ValueError, r"`embeds` must be \(rows, width\) with a row at least, got \(8,\)"),
        ((vectors(2) / 0,), ValueError, "`embeds` holds NaN or infinity in row 0"),
    ],
)
def test_what_does_not_fit_is_named_and_adds_nothing(given, error, message):
    index = filled(vectors(3))
    with pytest.raises(error, match=message):
        index.add(*given)
    assert len(index) == len(index.embeds) == 3


def test_searches_that_cannot_be_answered_are_refused():
    with pytest.raises(ValueError, match="The index is empty; `add` embeddings first"):
        EmbeddingIndex().search(vectors(1))
    with pytest.raises(ValueError, match="`k` is 0; it must be at least 1"):
        filled(vectors(3)).search(vectors(1), 0)
    with pytest.raises(ValueError, match="`queries` are 5 wide, the index 8"):
        filled(vectors(3)).search(vectors(1, 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"similarity": "cosine"}, "`similarity` is 'cosine'; it is 'dot' or 'euclidean'"),
        ({"method": "annoy"}, "`method` is 'annoy'; there are: auto, exact, flat, ivf, hnsw"),
        ({"effort": 9}, "`effort`=9 with `method`='auto'; it is 1 or more, of 'ivf' and 'hnsw'"),
        ({"method": "ivf", "effort": 0}, "`effort`=0 with `method`='ivf'"),
    ],
)
def test_unknown_kinds_of_index_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingIndex(**options)
