"""Files of weights that `torch.save` wrote, such as those of authors' own code."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["read_pickled_weights"]


def read_pickled_weights(
    path: Path, weights_only: bool = True, holders: Sequence[str] = ("state_dict",)
) -> dict[str, Tensor]:
    """The weights of a file by name.

    Args:
        path: What `torch.save` wrote: weights by name, or a dictionary with them as `state_dict`.
        weights_only: Refuse files that hold more than numbers and plain data: such a file can run any
            program.
        holders: Keys of that dictionary under which weights are looked for; the first that is there counts.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; wanted a file of weights.")
    try:
        stored: Any = torch.load(path, map_location="cpu", weights_only=weights_only)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than weights, or is damaged; if you trust where it is from, pass "
            "`weights_only=False`."
        ) from error
    keys = [key for key in holders if key in stored] if isinstance(stored, dict) else []
    weights = stored[keys[0]] if keys else stored
    if not isinstance(weights, dict) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise ValueError(f"{path} holds no weights by name; save `model.state_dict()`.")
    return weights
