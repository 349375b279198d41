"""The regions of the rows of a batch: in the row itself, or in a store by the id of the picture.

Shapes: B rows, r regions of a picture, R of the one with most, F width of a region's feature.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

__all__ = ["RegionRows", "region_values"]


@dataclass(frozen=True)
class RegionRows:
    """Where rows have their regions.

    Args:
        column: Regions as `MMRegionProcessor` takes them; or the id of a picture, by which they are in
            `store`.
        store: Regions by the id of the picture, such as a `RegionStore`.
    """

    column: str = "regions"
    store: Mapping[Any, Mapping[str, Any]] | None = None

    def __call__(self, rows: Sequence[dict]) -> list[Mapping[str, Any]]:
        """The regions of each row.

        Raises:
            ValueError: A row has neither regions nor an id that the store knows.
        """
        return [self.of(row[self.column], number) for number, row in enumerate(rows)]

    def of(self, value: Any, number: int) -> Mapping[str, Any]:
        """The regions that the value of a column stands for."""
        if isinstance(value, Mapping):
            return value
        if self.store is None:
            raise ValueError(
                f"Row {number} of the batch has {value!r:.80} in {self.column!r}, no regions; give a "
                "dictionary with `boxes` and `features`, or pass the `store` in which this is an id."
            )
        if value not in self.store:
            raise ValueError(
                f"Row {number} of the batch has {value!r:.80} in {self.column!r}, an id of which the `store` "
                f"of {len(self.store)} pictures has no regions; extract them, or leave the row out."
            )
        return self.store[value]

    def identity(self, row: dict) -> object:
        """What tells the picture of a row from others: its id, or a digest of its regions."""
        value = row[self.column]
        if not isinstance(value, Mapping):
            return value
        parts = [torch.as_tensor(value[name]).float().cpu().contiguous() for name in ("boxes", "features")]
        return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).digest()


def region_values(regions: Sequence[Mapping[str, Any]], name: str, reason: str) -> Tensor:
    """What a detector said of each region, padded.

    Args:
        regions: Of B pictures.
        name: Of the numbers, (r,) classes or (r, C) scores.
        reason: What needs them, for errors.

    Returns:
        (B, R) int64, -100 at padding, or (B, R, C) float32, 0 at padding.

    Raises:
        ValueError: A picture lacks them, or has not one for each of its regions.
    """
    found = []
    for number, of_picture in enumerate(regions):
        if of_picture.get(name) is None:
            raise ValueError(
                f"Row {number} of the batch has regions without `{name}`, only {sorted(of_picture)}; "
                f"{reason} needs them: extract regions with a detector that gives them, or leave it out."
            )
        values = torch.as_tensor(of_picture[name]).cpu()
        values = values.float() if values.is_floating_point() else values.long()
        if len(values) != len(of_picture["boxes"]) or values.ndim != (2 if values.is_floating_point() else 1):
            raise ValueError(
                f"Row {number} of the batch has `{name}` {tuple(values.shape)} of {values.dtype} for "
                f"{len(of_picture['boxes'])} regions; give a class or the scores of all classes for each."
            )
        found.append(values)
    padding = 0.0 if found[0].is_floating_point() else -100
    return pad_sequence(found, batch_first=True, padding_value=padding)
