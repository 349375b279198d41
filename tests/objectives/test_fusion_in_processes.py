"""Two gloo processes, in accumulated steps, find the loss and the gradients of one with the whole batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from objectives.fusion_processes import OUTPUTS, SIZES, alone
from torch.testing import assert_close


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each process found."""
    folder = tmp_path_factory.mktemp("processes")
    program = Path(__file__).with_name("fusion_processes.py")
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, str(program), str(folder)], env=env, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("share", SIZES)
@pytest.mark.parametrize("objective", OUTPUTS)
def test_two_processes_are_one_with_the_whole_batch(results, objective, share):
    """The mean of their losses, the gradients as DistributedDataParallel averages them."""
    loss, gradients = alone(objective)
    losses = [found[objective, share][0] for found in results]
    assert_close(sum(losses) / 2, loss, rtol=1e-5, atol=1e-6)
    for found in results:
        for name, expected in gradients.items():
            assert expected.abs().max() > 1e-4
            assert_close(found[objective, share][1][name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_items_per_process_are_their_mean(results):
    for found in results:
        assert found["items"].tolist() == [1.5, 4.0]
