"""Two processes of gloo train as one that has all their pairs."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pair_processes import CASES, case_run
from torch.testing import assert_close

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each process found, all cases in one start of the processes."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = Path(__file__).parent
    shared = {
        "PYTHONPATH": os.pathsep.join([str(here), *sys.path]), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    running = []
    for rank in ("0", "1"):
        env = os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank}
        with (folder / f"{rank}.log").open("w") as log:  # a full pipe would stop the process
            command = [sys.executable, str(here / "pair_processes.py"), str(folder)]
            running.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
    try:
        for rank, process in enumerate(running):
            assert process.wait(timeout=300) == 0, (folder / f"{rank}.log").read_text()
    finally:
        for process in running:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_processes_together_are_one_with_all_pairs(results, name, tmp_path):
    """Eight pairs of a cached step, or four of a plain one, in one process and one batch."""
    size = 4 * CASES[name][2].get("gradient_accumulation_steps", 1)
    whole = {"gradient_accumulation_steps": 1, "activation_checkpointing": False, "hooks": {}}
    expected = case_run(name, tmp_path, size, **whole)
    assert len(expected["losses"]) == CASES[name][2].get("max_steps", 1)
    for found in results:
        assert len(found[name]["gradients"]) == len(expected["gradients"])
        for step, gradients in zip(found[name]["gradients"], expected["gradients"], strict=True):
            assert_close(step, gradients, rtol=1e-5, atol=2e-5)
    assert results[0][name]["losses"] == pytest.approx(expected["losses"], rel=1e-5)


def test_both_processes_hold_the_same_weights_after_going_on_from_a_checkpoint(results):
    for found in results:
        (whole, average), (again, average_again) = found["resumed"]
        assert_close(again, whole, rtol=0, atol=0)
        assert_close(average_again, average, rtol=0, atol=0)
    assert_close(results[0]["resumed"], results[1]["resumed"], rtol=0, atol=0)


def test_running_statistics_count_each_batch_once_in_each_process(results):
    for found in results:
        assert found["tracked"]
        assert {count.item() for count in found["tracked"].values()} == {2}


def test_every_process_knows_what_the_main_one_measured(results):
    assert [found["best metric"] for found in results] == [(0.5, 1), (0.5, 0)]


def test_a_process_with_fewer_batches_is_refused_before_it_is_waited_for(results):
    for found in results:
        assert found["unequal lengths"].startswith(
            "The processes have [2, 1] batches per epoch, and each step"
        )


def test_a_spoilt_pair_stops_both_processes(results):
    """Only its own process can name it."""
    assert "the loss is nan. Training stops" in results[0]["spoilt"]
    assert "the loss is nan. The pixels of 1 of 4 pairs are not finite: 1. Train" in results[1]["spoilt"]
