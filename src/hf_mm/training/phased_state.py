"""Checkpoints of phased runs: all that decides what comes next, under a good name only when complete.

A checkpoint is written under a temporary name, flushed to the disk and renamed; an old one is renamed before
it is deleted. So a run can be killed at any moment, and whatever is called `checkpoint-N` is whole.
"""

import json
import random
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from accelerate.utils import gather_object
from transformers import TrainerState
from transformers.trainer_utils import sort_checkpoints

from ..hub.saving import UNFINISHED, atomic_folder
from .checkpoints import LAST_FILE

__all__ = [
    "read_checkpoint",
    "remove_unfinished",
    "restore_process",
    "rotate",
    "states_of_processes",
    "undisturbed",
    "write_checkpoint",
]

PARTS = ("objective", "averages", "phases", "processes", "place", "progress")


def write_checkpoint(final: Path, parts: Mapping[str, Any], state: TrainerState) -> None:
    """Write a checkpoint.

    Args:
        final: Its folder; one of this name that was there is replaced.
        parts: What belongs to each of `PARTS`, as `torch.save` takes it.
        state: Of the run.
    """
    folder = final.parent
    unfinished = folder / f"{UNFINISHED}{uuid4().hex}"
    with atomic_folder(unfinished) as temporary:
        for part in PARTS:
            torch.save(parts[part], temporary / f"{part}.pt")
        state.save_to_json(str(temporary / LAST_FILE))
    if final.exists():
        replaced = folder / f"{UNFINISHED}{uuid4().hex}"
        final.rename(replaced)
        unfinished.rename(final)
        shutil.rmtree(replaced)
    else:
        unfinished.rename(final)


def read_checkpoint(folder: str | Path) -> tuple[dict[str, Any], TrainerState]:
    """What `write_checkpoint` wrote, on the CPU.

    Raises:
        FileNotFoundError: `folder` is no checkpoint of a phased run; says which file it lacks.
    """
    folder = Path(folder)
    files = {part: folder / f"{part}.pt" for part in PARTS}
    for file in (folder / LAST_FILE, *files.values()):
        if not file.is_file():
            raise FileNotFoundError(
                f"{folder} is no checkpoint of a phased run: it has no {file.name}. Give a folder "
                "checkpoint-N that PhasedTrainer wrote."
            )
    parts = {part: torch.load(file, map_location="cpu", weights_only=True) for part, file in files.items()}
    state = TrainerState(**json.loads((folder / LAST_FILE).read_text(encoding="utf-8")))
    return parts, state


def rotate(folder: Path, limit: int | None) -> None:
    """Delete the oldest checkpoints until `limit` are left; `None` or 0 keeps all."""
    if not limit or limit < 0:
        return
    for checkpoint in map(Path, sort_checkpoints(str(folder))[:-limit]):
        doomed = folder / f"{UNFINISHED}{uuid4().hex}"
        checkpoint.rename(doomed)
        shutil.rmtree(doomed)


def remove_unfinished(folder: Path) -> None:
    """Delete what a killed run left half written."""
    for path in folder.glob(f"{UNFINISHED}*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def states_of_processes(means: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each process has of its own: its sources of chance, and means. Every process calls it.

    Args:
        means: Of this process, as `RunningMeans.state_dict` gives them.
    """
    return gather_object([{"chance": _own_chance(), "means": dict(means)}])


def restore_process(states: list[dict[str, Any]], process: int, processes: int) -> dict[str, Any]:
    """Let a process draw on from where `states_of_processes` found it.

    Returns:
        Its means.

    Raises:
        ValueError: The checkpoint was written by another number of processes.
    """
    if len(states) != processes:
        raise ValueError(
            f"The checkpoint was written by {len(states)} processes, this run has {processes}; start as "
            "many, or draws would not go on as they were."
        )
    _restore_own(states[process]["chance"])
    return states[process]["means"]


@contextmanager
def undisturbed() -> Generator[None]:
    """Whatever is drawn in the block, the sources of chance of this process go on as if it had not been."""
    own = _own_chance()
    try:
        yield
    finally:
        _restore_own(own)


def _own_chance() -> dict[str, Any]:
    kind, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    own: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), place, has_gauss, cached),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        own["cuda"] = torch.cuda.get_rng_state()
    return own


def _restore_own(own: Mapping[str, Any]) -> None:
    kind, keys, place, has_gauss, cached = own["numpy"]
    version, numbers, gauss = own["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state((kind, keys.numpy().astype(np.uint32), place, has_gauss, cached))
    torch.set_rng_state(own["torch"])
    if "cuda" in own and torch.cuda.is_available():
        torch.cuda.set_rng_state(own["cuda"])
