"""Memory of a training run: what a step frees stays with the process, and how much it was at its highest."""

import ctypes
import os
import platform
import sys
from collections.abc import Generator
from contextlib import contextmanager

import torch

__all__ = ["heap_kept", "peak_memory_mb", "reset_peak_memory"]

# Parameters of glibc's `mallopt`, see malloc.h, and the variables by which users set them.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
NEVER = 2**31 - 1
LARGEST_MMAP_THRESHOLD = 2**25  # what glibc itself goes up to; trimming then begins at twice as much
CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")


@contextmanager
def heap_kept() -> Generator[None]:
    """Keep what is freed for the next step while the block runs, and give it back afterwards.

    A step on the CPU frees its activations at its end, whereupon glibc gives the top of its heap back to the
    system, and the next step pays a page fault for every 4 kB that it takes again: 4 to 5 % of the time of a
    small model. Without glibc nothing happens, nor where the environment decides (`MALLOC_TRIM_THRESHOLD_`
    and its like, `GLIBC_TUNABLES`). It serves as a decorator, too.
    """
    chosen = any(name in os.environ for name in CHOSEN) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if chosen or platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
    libc.mallopt(TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        libc.mallopt(TRIM_THRESHOLD, 2 * LARGEST_MMAP_THRESHOLD)
        libc.malloc_trim(0)


def reset_peak_memory(device: torch.device) -> None:
    """Begin to measure anew; the peak of a process on the CPU cannot be taken back."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device) -> float:
    """The most memory held at a time, in MB of 10^6 bytes.

    Args:
        device: On CUDA what torch allocated there since `reset_peak_memory`; elsewhere what the process held
            in main memory since it began.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if sys.platform == "win32":
        import psutil  # a dependency of accelerate; Windows has no `resource`

        return psutil.Process().memory_info().peak_wset / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6  # kB but on macOS
