"""Two processes of gloo pre-train on several tasks as one does that has all their rows in one batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pretraining_processes import CASES, LIMIT_S, case_run, drawn_collator, drawn_rows
from torch.testing import assert_close

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each process found, all cases in one start of the processes."""
    folder, here = tmp_path_factory.mktemp("processes"), Path(__file__).parent
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(here / "pretraining_processes.py"), str(folder)]
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=4 * LIMIT_S)
    assert run.returncode == 0, run.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_processes_together_are_one_with_all_rows(results, name, tmp_path):
    """Each task is divided by its own items of all processes, though one of them has none of some."""
    batches = 2 * CASES[name].get("gradient_accumulation_steps", 1)
    # A task is drawn for each batch: there one process takes the same batches one after the other.
    size, steps = (2, batches) if name.startswith("drawn") else (2 * batches, 1)
    expected = case_run(name, tmp_path, size, gradient_accumulation_steps=steps)
    for found in results:
        assert len(found[name]["gradients"]) == len(expected["gradients"]) == 2
        for step, gradients in zip(found[name]["gradients"], expected["gradients"], strict=True):
            assert step.keys() == gradients.keys()
            assert_close(step, gradients, rtol=1e-5, atol=1e-5)
    assert len(results[0][name]["losses"]) == 2
    for step, losses in zip(results[0][name]["losses"], expected["losses"], strict=True):
        assert len(losses) > 2
        assert step == pytest.approx(losses, rel=1e-4, abs=2e-4)  # as they are logged: four decimals


def test_the_processes_of_these_runs_draw_different_tasks_for_the_same_step():
    collate, rows = drawn_collator(), drawn_rows()
    tasks = [collate(rows[place : place + 2])["tasks"] for place in range(0, 8, 2)]
    assert tasks[0] != tasks[1]
    assert tasks[2] != tasks[3]
    assert ["itm", "wra"] in tasks
