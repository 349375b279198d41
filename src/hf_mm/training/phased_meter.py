"""What a phased run counts as it goes: means for the log, seconds, and whether its numbers are still finite.

On an accelerator nothing is read back before it is logged: reading a number waits for all work before it.
"""

import math
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, distributed

from ..objectives.phased import DivergedError

__all__ = ["FiniteWatch", "RunningMeans", "TrainingClock"]

NEVER = 2**62


class RunningMeans:
    """Means of named numbers since the last log."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        """Take numbers in; names may be new."""
        for name, value in values.items():
            value = value.detach().float() if isinstance(value, Tensor) else torch.tensor(float(value))
            if name in self._sums:
                self._sums[name] = self._sums[name].to(value.device) + value
                self._counts[name] += 1
            else:
                self._sums[name], self._counts[name] = value, 1

    def read(self, device: torch.device) -> dict[str, float]:
        """The means by name, of all processes together. Every process calls it, with the same names."""
        if not self._sums:
            return {}
        means = torch.stack(
            [total.to(device).reshape(()) / self._counts[name] for name, total in self._sums.items()]
        )
        if distributed.is_initialized():
            distributed.all_reduce(means)
            means /= distributed.get_world_size()
        return dict(zip(self._sums, means.tolist(), strict=True))

    def clear(self) -> None:
        """Begin anew."""
        self._sums, self._counts = {}, {}

    def state_dict(self) -> dict[str, tuple[Tensor, int]]:
        """Sum and count by name, on the CPU; of this process alone."""
        return {name: (total.cpu(), self._counts[name]) for name, total in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, tuple[Tensor, int]]) -> None:
        """Go on with what `state_dict` gave."""
        self._sums = {name: total for name, (total, _) in state.items()}
        self._counts = {name: count for name, (_, count) in state.items()}


class TrainingClock:
    """Seconds of training alone: looking at a run, measuring it and saving it do not count.

    Args:
        device: Whose work is waited for before the clock stops; it is given more than it has done.
        seconds: What went before, in the run that is resumed.
    """

    def __init__(self, device: torch.device, seconds: float = 0.0) -> None:
        self._device = device
        self._before = seconds
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """So far."""
        return self._before + (0.0 if self._since is None else time.perf_counter() - self._since)

    def go(self) -> None:
        """Count from now on."""
        self._since = time.perf_counter()

    def stop(self) -> None:
        """Count no more."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._before, self._since = self.seconds, None

    @contextmanager
    def paused(self, ends: bool = False) -> Generator[None]:
        """Count nothing while the block runs; nor afterwards, if that was the last step."""
        self.stop()
        try:
            yield
        finally:
            if not ends:
                self.go()


class FiniteWatch:
    """Remembers the first step whose loss or gradient was not finite.

    Args:
        device: Where the numbers are. On the CPU they are looked at once, elsewhere at `check`.
    """

    def __init__(self, device: torch.device) -> None:
        self._at_once = device.type == "cpu"
        self._first: dict[str, Tensor] = {}

    def look(self, step: int, name: str, value: Tensor) -> None:
        """Look at a number.

        Args:
            step: Number of the step, from 1.
            name: Of the number, for the message.
            value: A scalar.

        Raises:
            DivergedError: On the CPU, see `check`.
        """
        if self._at_once:
            found = float(value)
            if not math.isfinite(found):
                raise DivergedError(f"Step {step}: the {name} is {found}")
            return
        now = torch.where(value.detach().isfinite(), NEVER, step)
        self._first[name] = torch.minimum(self._first[name], now) if name in self._first else now

    def check(self) -> None:
        """Read what was found.

        Raises:
            DivergedError: A number was not finite; the earliest is named, with its step.
        """
        if not self._first:
            return
        steps = torch.stack(list(self._first.values())).tolist()
        step, name = min(zip(steps, self._first, strict=True))
        self._first = {}
        if step < NEVER:
            raise DivergedError(f"Step {step}: the {name} is not finite")
