"""Two processes of gloo train in phases as one does that has all their rows in one batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from phased_processes import LIMIT_S, equal_run
from torch.testing import assert_close

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each process found, all cases in one start of the processes."""
    folder, here = tmp_path_factory.mktemp("processes"), Path(__file__).parent
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(here / "phased_processes.py"), str(folder)]
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=4 * LIMIT_S)
    assert run.returncode == 0, run.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize(("name", "size"), [("equal", 4), ("accumulated", 8)])
def test_processes_together_are_one_with_all_rows(results, tmp_path, name, size):
    """With a gradient penalty, averages, clipping, and a model that some rows of one process need."""
    expected = equal_run(tmp_path, size)
    for found in results:
        assert_close(found[name], expected, rtol=1e-5, atol=1e-5)
    assert len(expected["logs"]) == 3
    assert_close(results[0][name], results[1][name], rtol=0, atol=0)


def test_processes_draw_differently_and_agree(results):
    first, second = (found["chance"] for found in results)
    assert first["seen"] != second["seen"]
    weights = ("discriminator.0.weight", "generator.0.weight")
    for kind in ("own", "averages"):
        for name in weights:
            assert torch.equal(first[kind][name], second[kind][name])
    one, other = (found["chance"]["own"]["generator.1.running_mean"] for found in results)
    assert not torch.equal(one, other)  # statistics of batches that were drawn apart


def test_processes_go_on_bit_for_bit(results):
    """Dropout, noise and views of both go on; statistics of batches are those of the first process."""
    assert_close(results[0]["resumed"]["own"], results[0]["chance"]["own"], rtol=0, atol=0)
    assert_close(results[0]["resumed"]["averages"], results[0]["chance"]["averages"], rtol=0, atol=0)
    for found in results:
        assert found["resumed"]["seen"] == found["chance"]["seen"][4:]


def test_a_loss_that_is_spoilt_in_one_process_stops_both(results):
    for found in results:
        assert found["stopped"].startswith("Step 4: the loss of phase 'discriminator' is nan. The last good")
        assert "checkpoint-3" in found["stopped"]
        assert found["files"] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
