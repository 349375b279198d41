"""What a pipeline is worth while it learns, beside the seconds that it learnt for."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..hub.saving import atomic_write
from ..objectives.phased import DivergedError

__all__ = ["MEASURES_FILE", "RunMeasures", "write_measures"]

MEASURES_FILE = "measures.jsonl"
SECONDS = "train_seconds"
RESERVED = ("step", "epoch", SECONDS)

Measure = Callable[[Any], Mapping[str, float]]
"""From the pipeline of an objective to numbers by name."""


class RunMeasures:
    """Which measure is taken in a run, and when.

    Args:
        measure: See `Measure`; `None` for nothing.
        steps: Every so many steps, and at the end; 0 for the end only.

    Raises:
        ValueError: `steps` is negative, or there is nothing to measure.
    """

    def __init__(self, measure: Measure | None, steps: int) -> None:
        if steps < 0:
            raise ValueError(f"`measure_steps`={steps} must be 0 or more.")
        if steps and measure is None:
            raise ValueError(f"`measure_steps`={steps} without a `measure`; give both, or neither.")
        self.measure, self.steps = measure, steps

    def due(self, step: int, last: bool) -> bool:
        """Whether it is time, after so many steps."""
        return self.measure is not None and (last or (self.steps > 0 and step % self.steps == 0))

    def take(self, pipeline: Any, step: int) -> dict[str, float]:
        """Measure.

        Args:
            pipeline: Of the objective, with the averages in place.
            step: After how many.

        Raises:
            TypeError: The measure gives something else than numbers by name.
            ValueError: It gives a name that the run gives itself.
            DivergedError: A number is not finite.
        """
        assert self.measure is not None
        found = self.measure(pipeline)
        numbers = isinstance(found, Mapping) and all(isinstance(x, int | float) for x in found.values())
        if not numbers:
            raise TypeError(f"`measure` must give numbers by name, got {found!r:.80}.")
        for name, value in found.items():
            if name in RESERVED:
                raise ValueError(f"`measure` gives {name!r}, which the run itself counts; call it otherwise.")
            if not math.isfinite(value):
                raise DivergedError(f"Step {step}: the measure {name!r} is {value}")
        return {name: float(value) for name, value in found.items()}


def write_measures(folder: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Write `measures.jsonl`: a line for each measurement, with its step and seconds.

    Args:
        folder: `output_dir` of the run.
        history: All that was logged; what has no `train_seconds` is no measurement.
    """
    entries = [
        {
            "step": entry["step"],
            **{name: value for name, value in entry.items() if name not in ("step", "epoch")},
        }
        for entry in history
        if SECONDS in entry
    ]
    with atomic_write(folder / MEASURES_FILE) as temporary:
        temporary.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries), encoding="utf-8")
