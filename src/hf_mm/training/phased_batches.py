"""Which rows each step of a phased run is given: shuffled epochs, joined end to end.

Every small batch is full, so that each step is of one size; the last rows of an epoch stand beside the first
of the next. Which rows a step has follows from its number and the seed alone: a run that is resumed finds its
place without reading what came before it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from ..data.row_columns import batch_generator

__all__ = ["StepBatches"]


class StepBatches(Sampler[list[int]]):
    """The small batches of this process, for the `batch_sampler` of a `DataLoader`.

    Args:
        rows: In the data set.
        batch_size: Rows of a small batch.
        parts: Small batches that a step takes in each process.
        steps: The first step, and the one to end before.
        seed: Another seed, another order.
        process: Number of this process.
        processes: Of all that share a step.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        parts: int,
        steps: tuple[int, int],
        seed: int,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.parts = parts
        self.steps = steps
        self.seed = seed
        self.process = process
        self.processes = processes
        self._orders: dict[int, Tensor] = {}

    @property
    def rows_per_step(self) -> int:
        """Rows of all processes together."""
        return self.batch_size * self.parts * self.processes

    def __len__(self) -> int:
        first, end = self.steps
        return max(0, end - first) * self.parts

    def __iter__(self) -> Iterator[list[int]]:
        for part in range(self.steps[0] * self.parts, self.steps[1] * self.parts):
            start = (part * self.processes + self.process) * self.batch_size
            yield self._drawn(start, start + self.batch_size)

    def _drawn(self, start: int, end: int) -> list[int]:
        """The rows at these places of all epochs joined."""
        found: list[int] = []
        while start < end:
            epoch, first = divmod(start, self.rows)
            taken = self._order(epoch)[first : first + end - start].tolist()
            found += taken
            start += len(taken)
        return found

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            self._orders = {key: order for key, order in self._orders.items() if key == epoch - 1}
            self._orders[epoch] = torch.randperm(
                self.rows, generator=batch_generator(self.seed, ("epoch", epoch))
            )
        return self._orders[epoch]
