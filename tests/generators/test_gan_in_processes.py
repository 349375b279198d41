"""Two processes of gloo train a GAN as one does that has all their rows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from generators.gan_processes import LIMIT_S, gan_run
from generators.gan_tiny import generator
from torch.testing import assert_close

pytestmark = pytest.mark.slow


def test_two_processes_are_one(tmp_path):
    """Penalties, both nets' gradients, the clipping, the averages, the logs."""
    script = Path(__file__).with_name("gan_processes.py")
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env=env,
        capture_output=True,
        text=True,
        timeout=4 * LIMIT_S,
    )
    assert run.returncode == 0, run.stderr
    expected = gan_run(tmp_path / "alone", 4)
    for name, weight in generator(num_classes=3).state_dict().items():
        assert not torch.equal(weight, expected["weights"][f"generator.{name}"]), "nothing was learnt"
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert_close(found["weights"], expected["weights"], rtol=1e-5, atol=1e-5)
        assert_close(found["averages"], expected["averages"], rtol=1e-5, atol=1e-5)
    logs = torch.load(tmp_path / "0.pt")["logs"]
    assert len(logs) == 3
    for entry, wanted in zip(logs, expected["logs"], strict=True):
        assert entry == pytest.approx(wanted, rel=1e-5, abs=1e-5)
