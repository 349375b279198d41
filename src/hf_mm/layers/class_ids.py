"""Classes that a generator is asked for, by number or by name.

Shapes: B pictures.
"""

from collections.abc import Sequence
from numbers import Real
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["check_class_ids", "class_ids"]


def class_ids(class_labels: Any, num_classes: int, names: Sequence[str] = ()) -> Tensor:
    """The numbers (B,) of classes, int64, on the CPU.

    Args:
        class_labels: A number or a name, or several: a list of either, an array or a tensor of numbers.
        num_classes: How many classes there are.
        names: Theirs, if they have any.

    Raises:
        TypeError: A label is neither a whole number nor a name.
        ValueError: There is no such class, or no label at all. Labels are named by their place from 0.
    """
    if isinstance(class_labels, Tensor | np.ndarray):
        several = class_labels.flatten().tolist()
    else:
        several = [class_labels] if isinstance(class_labels, str | Real) else list(class_labels)
    if not several:
        raise ValueError("No picture is asked for: `class_labels` is empty; name a class, or leave it out.")
    numbers = [_class_number(place, label, names) for place, label in enumerate(several)]
    found = torch.tensor(numbers, dtype=torch.long)
    check_class_ids(found, num_classes)
    return found


def check_class_ids(class_labels: Tensor, num_classes: int) -> None:
    """Refuse numbers of classes that there are not.

    Args:
        class_labels: (B,) numbers.
        num_classes: How many classes there are.

    Raises:
        TypeError: They are no whole numbers.
        ValueError: Names the first one, by its row from 0.
    """
    if class_labels.is_floating_point() or class_labels.dtype == torch.bool:
        raise TypeError(
            f"`class_labels` are {class_labels.dtype}, but classes are whole numbers; pass them as int64."
        )
    wrong = ((class_labels < 0) | (class_labels >= num_classes)).nonzero().flatten().tolist()
    if wrong:
        known = f"the classes 0 to {num_classes - 1}" if num_classes else "no classes"
        raise ValueError(
            f"`class_labels`[{wrong[0]}] is {int(class_labels[wrong[0]])}, but the model knows {known}."
        )


def _class_number(place: int, label: Any, names: Sequence[str]) -> int:
    if isinstance(label, str):
        if label not in names:
            known = f"none of {list(names)}" if names else "no name of a class; there are none, only numbers"
            raise ValueError(f"`class_labels`[{place}]={label!r} is {known}.")
        return list(names).index(label)
    try:
        if not isinstance(label, bool):
            return index(label)
    except TypeError:
        pass
    raise TypeError(
        f"`class_labels`[{place}]={label!r} is neither the number nor the name of a class; pass whole "
        "numbers or names."
    )
