"""What processes that share one batch tell each other, in a form that gradients pass through.

Every function here is differentiated as if the losses of all processes were added up, so that averaging
gradients over processes, as DistributedDataParallel does, yields the gradient of the mean of their losses.

Shapes: n rows of this process, N of all processes, P width.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, distributed
from torch.autograd import Function
from torch.autograd.function import once_differentiable

__all__ = [
    "BatchShares",
    "InFlight",
    "gather_features",
    "gather_rows",
    "log_sum_exp_over_processes",
    "mean_over_processes",
]


@dataclass(frozen=True)
class BatchShares:
    """How the rows of one batch lie on the processes of a group.

    Args:
        sizes: Rows of each process, in the order of their ranks.
        rank: Of this process in the group.
        group: The processes; `None` for all.
    """

    sizes: tuple[int, ...]
    rank: int
    group: "distributed.ProcessGroup | None"

    @classmethod
    def of(cls, features: Tensor, group: "distributed.ProcessGroup | None" = None) -> Self:
        """Ask all processes for their number of rows; without processes, this one has them all.

        Raises:
            ValueError: The processes' features differ in more than the number of rows.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls((len(features),), 0, None)
        own = torch.tensor(features.shape, device=features.device)
        shapes = [torch.empty_like(own) for _ in range(distributed.get_world_size(group))]
        distributed.all_gather(shapes, own, group=group)
        rows = torch.stack(shapes).tolist()
        for process, shape in enumerate(rows):
            if shape[1:] != list(features.shape[1:]):
                raise ValueError(
                    f"Process {process} has features of shape {tuple(shape)}, this one "
                    f"{tuple(features.shape)}; only the number of rows may differ."
                )
        return cls(tuple(shape[0] for shape in rows), distributed.get_rank(group), group)

    @property
    def processes(self) -> int:
        """How many there are."""
        return len(self.sizes)

    @property
    def rows(self) -> int:
        """N."""
        return sum(self.sizes)

    @property
    def own(self) -> slice:
        """Where the rows of this process are among all."""
        first = sum(self.sizes[: self.rank])
        return slice(first, first + self.sizes[self.rank])


def gather_features(features: Tensor, group: "distributed.ProcessGroup | None" = None) -> Tensor:
    """The rows of all processes, in the order of their ranks; gradients find their way back.

    Args:
        features: (n, ...), where n may differ between processes, also be 0.
        group: The processes; `None` for all. Without processes, the features come back as they are.

    Returns:
        (N, ...), the same on every process.

    Raises:
        ValueError: The processes' features differ in more than the number of rows.
    """
    return gather_rows(features, BatchShares.of(features, group))


def gather_rows(features: Tensor, shares: BatchShares) -> Tensor:
    """`gather_features` for rows whose shares are known."""
    return features if shares.processes == 1 else _GatherRows.apply(features, shares)


def log_sum_exp_over_processes(values: Tensor, shares: BatchShares) -> Tensor:
    """The logarithm of the sum over processes of exp(values), for every element.

    Args:
        values: (N,), on every process over other summands.
        shares: Names the processes.

    Returns:
        (N,), the same on every process.
    """
    return values if shares.processes == 1 else _LogSumExpOverProcesses.apply(values, shares)


def mean_over_processes(loss: Tensor, shares: BatchShares) -> Tensor:
    """Replace the value of a loss by its mean over processes; its gradient stays that of this process."""
    if shares.processes == 1:
        return loss
    mean = loss.detach() / shares.processes
    distributed.all_reduce(mean, group=shares.group)
    return loss + (mean - loss.detach())


class InFlight:
    """A tensor on its way to the next process of the ring, while that of the one before is on its way here.

    Args:
        tensor: Of one shape on all processes; not to be changed before `arrived` returns.
        shares: Names the processes.
    """

    def __init__(self, tensor: Tensor, shares: BatchShares) -> None:
        after, before = ((shares.rank + step) % shares.processes for step in (1, -1))
        if shares.group is not None:
            after, before = (distributed.get_global_rank(shares.group, rank) for rank in (after, before))
        self.received = torch.empty_like(tensor)
        self.requests = distributed.batch_isend_irecv(
            [
                distributed.P2POp(distributed.isend, tensor, after, shares.group),
                distributed.P2POp(distributed.irecv, self.received, before, shares.group),
            ]
        )

    def arrived(self) -> Tensor:
        """Wait for the tensor of the process before."""
        for request in self.requests:
            request.wait()
        return self.received


class _GatherRows(Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, shares: BatchShares) -> Tensor:
        ctx.shares = shares
        padded = features.new_zeros(max(shares.sizes), *features.shape[1:])
        padded[: len(features)] = features
        everyones = [torch.empty_like(padded) for _ in shares.sizes]
        distributed.all_gather(everyones, padded, group=shares.group)
        return torch.cat([rows[:size] for rows, size in zip(everyones, shares.sizes, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # Half precision holds too few digits to add up many processes.
        total = gradient.to(torch.promote_types(gradient.dtype, torch.float32), copy=True)
        distributed.all_reduce(total, group=ctx.shares.group)
        return total[ctx.shares.own].to(gradient.dtype), None


class _LogSumExpOverProcesses(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, shares: BatchShares) -> Tensor:
        largest = values.clone()
        distributed.all_reduce(largest, distributed.ReduceOp.MAX, group=shares.group)
        total = (values - largest).exp_()
        distributed.all_reduce(total, group=shares.group)
        total = total.log_().add_(largest)
        ctx.shares = shares
        ctx.save_for_backward(values, total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        values, total = ctx.saved_tensors
        everyones = gradient.clone()
        distributed.all_reduce(everyones, group=ctx.shares.group)
        return everyones * (values - total).exp(), None
