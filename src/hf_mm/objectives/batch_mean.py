"""The mean over a batch that comes in parts: of accumulated steps, of several processes, or all at once.

Every part divides its sum by the number of items in the whole batch, and the parts add up to the mean. The
mean of the parts' means is another number wherever they hold unequal numbers of items, as masked tokens do.

Shapes: K items, W classes.
"""

import torch
from torch import Tensor, distributed
from torch.nn.functional import cross_entropy

__all__ = ["IGNORED", "batch_mean", "items_per_process", "labelled_cross_entropy"]


IGNORED = -100  # the label of what has none


def batch_mean(
    total: Tensor, items: Tensor | int, num_items_in_batch: Tensor | int | float | None = None
) -> Tensor:
    """A sum as mean, or as this part's share in the mean of a larger batch.

    Args:
        total: Sum over the items here, a scalar.
        items: How many there are here.
        num_items_in_batch: Items in the whole batch of which this is a part; by default those here.

    Returns:
        A scalar. Without any items it is `total` itself, an exact 0, whose gradient is 0 too.
    """
    divisor = items if num_items_in_batch is None else num_items_in_batch
    if isinstance(divisor, Tensor):
        return total / torch.where(divisor == 0, 1, divisor).to(total)
    return total / (divisor or 1)


def items_per_process(items: Tensor, group: "distributed.ProcessGroup | None" = None) -> Tensor:
    """The mean number of items over processes: their `num_items_in_batch` where gradients are averaged.

    DistributedDataParallel averages gradients over W processes. When each divides its sum by N / W, that
    average is the gradient of the mean over all N items, however they lie on the processes. Every process
    has to call it.

    Args:
        items: Numbers of items of this process, any shape: one for each objective, say.
        group: The processes; `None` for all. Without processes the numbers come back as they are.

    Returns:
        As `items`, in float32: half an item per process is no rounding error.
    """
    mean = items.to(torch.float32, copy=True)
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(mean, group=group)
        mean /= distributed.get_world_size(group)
    return mean


def labelled_cross_entropy(
    logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | float | None = None
) -> Tensor:
    """Cross-entropy in nats over the items that have a label, in float32 whatever autocast says.

    Args:
        logits: (K, W); half precision is widened.
        labels: (K,) class indices, -100 where there is none.
        num_items_in_batch: As `batch_mean` takes it.

    Returns:
        A scalar; an exact 0 with gradient 0 when nothing has a label.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    with torch.autocast(logits.device.type, enabled=False):
        total = cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    return batch_mean(total, (labels != IGNORED).sum(), num_items_in_batch)
