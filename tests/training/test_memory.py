"""The memory a run took, told with the end of it, and that its steps do not fetch it anew."""

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from vlm_runs import run_of

PAGES = 200 * 2**20 / resource.getpagesize()  # that the process looks for


def test_the_end_of_a_run_tells_its_peak_memory(tmp_path):
    run = run_of(tmp_path)
    metrics = run.train().metrics
    told = metrics["train_peak_memory_mb"]
    assert told == run.state.log_history[-1]["train_peak_memory_mb"]
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    assert 0.5 * held < told <= held + 0.1


def faults_of(folder, **environment):
    """Page faults by trainer, in a step and after a run, for memory freed just before; in a new process."""
    script = Path(__file__).with_name("heap_process.py")
    kept = {
        name: value for name, value in os.environ.items() if "MALLOC" not in name and "TUNABLES" not in name
    }
    run = subprocess.run(
        [sys.executable, str(script), str(folder)],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    told = [line.split()[1:] for line in run.stdout.splitlines() if line.startswith("faults")]
    return {kind: (int(during), int(afterwards)) for kind, during, afterwards in told}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_a_step_finds_the_memory_of_the_one_before(tmp_path):
    found = faults_of(tmp_path)
    assert found.keys() == {"phased", "measuring"}
    for during, afterwards in found.values():
        assert during < 0.1 * PAGES
        assert afterwards > 0.5 * PAGES  # given back as ever


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_a_chosen_allocation_is_left_alone(tmp_path):
    found = faults_of(tmp_path, MALLOC_TRIM_THRESHOLD_=str(2**20))
    assert all(during > 0.5 * PAGES for during, _ in found.values())
