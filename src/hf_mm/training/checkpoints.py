"""Which checkpoint of a run to go on from."""

import re
from pathlib import Path

__all__ = ["last_checkpoint"]

FOLDER = re.compile(r"checkpoint-(\d+)")
LAST_FILE = "trainer_state.json"  # what Trainer writes last


def last_checkpoint(folder: str | Path) -> str | None:
    """The latest complete checkpoint of a run; one that a killed process left half written does not count.

    Args:
        folder: `output_dir` of the run.

    Returns:
        Its path, for `Trainer.train(resume_from_checkpoint=...)`; `None` when there is none.
    """
    found = []
    for path in Path(folder).glob("checkpoint-*"):
        match = FOLDER.fullmatch(path.name)
        if match and (path / LAST_FILE).is_file():
            found.append((int(match[1]), path))
    return str(max(found)[1]) if found else None
