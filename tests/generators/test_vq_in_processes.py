"""Two processes of gloo, with three pictures and with one, learn the codebook of all four."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from generators.vq_processes import CASES, learnt, vectors
from torch.testing import assert_close

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def books(tmp_path_factory):
    """What each process has learnt, all cases in one start of the processes."""
    folder, script = tmp_path_factory.mktemp("processes"), Path(__file__).with_name("vq_processes.py")
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, str(script), str(folder)], env=env, capture_output=True, text=True, timeout=240
    )
    assert run.returncode == 0, run.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_both_processes_have_the_same_codebook_bit_for_bit(books, name):
    assert_close(books[0][name], books[1][name], rtol=0, atol=0)
    assert all(part.isfinite().all() for part in books[0][name].values())


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("averages")])
def test_it_is_the_codebook_of_one_process_with_all_pictures(books, name):
    assert_close(books[0][name], learnt(name, slice(0, 4)), rtol=1e-5, atol=1e-5)


def test_the_start_counts_the_vectors_of_both_processes(books):
    assert_close(books[0]["start"]["cluster_size"].sum(), torch.tensor(4.0 * 25))


def test_vectors_are_drawn_from_both_processes_alike(books):
    """Half of the 100 from each: 50 of the 75 of the first, all 25 of the second twice."""
    drawn, everything = books[0]["drawn"], vectors(slice(0, 4)).tolist()
    assert_close(drawn, books[1]["drawn"], rtol=0, atol=0)
    places = [everything.index(row) for row in drawn.tolist()]
    assert len({place for place in places if place < 75}) == 50
    assert sorted(place for place in places if place >= 75) == sorted([*range(75, 100)] * 2)
