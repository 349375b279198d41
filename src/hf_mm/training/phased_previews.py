"""Pictures drawn during a run, from the same noise each time."""

from math import ceil, sqrt
from pathlib import Path

import torch

from ..hub.saving import atomic_write
from ..objectives.phased import DivergedError, PhasedObjective
from ..visualization.sample_grids import sample_grid

__all__ = ["preview_file", "write_preview"]

FOLDER = "previews"


def preview_file(folder: str | Path, step: int) -> Path:
    """Where the pictures of a step are, in the `output_dir` of a run."""
    return Path(folder) / FOLDER / f"step-{step}.png"


def write_preview(path: Path, objective: PhasedObjective, seed: int, count: int) -> bool:
    """Draw a square grid of what an objective shows.

    Args:
        path: Of the picture; there is the old one or the new one, never a part.
        objective: In evaluation mode, with the averages in place.
        seed: Of the noise.
        count: How many pictures.

    Returns:
        Whether there was anything to show.

    Raises:
        DivergedError: They are not finite.
        ValueError: The objective shows another number of pictures.
    """
    pictures = objective.preview(torch.Generator().manual_seed(seed), count)
    if pictures is None:
        return False
    if pictures.ndim != 4 or len(pictures) != count:
        raise ValueError(
            f"`preview` of {type(objective).__name__} must give ({count}, channels, height, width), got "
            f"{tuple(pictures.shape)}."
        )
    if not pictures.isfinite().all():
        raise DivergedError(f"Step {objective.step}: the pictures that it draws are not finite")
    page = sample_grid(pictures.float().clamp(-1, 1), columns=ceil(sqrt(count)), least_px=1)
    with atomic_write(path) as temporary:
        page.save(temporary)
    return True
