"""Training on several tasks at once: each task's loss is logged, and each is divided by its own items."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .trainer import MeasuringTrainer

__all__ = ["MultitaskTrainer"]


class MultitaskTrainer(MeasuringTrainer):
    """Trainer for models that return the loss of each task, such as `MMViltForPreTraining`.

    Tasks have different numbers of items: hidden words, pairs, hidden patches. The loss of each is divided by
    the items of all accumulated batches in all processes, so that accumulation and the number of processes
    leave loss and gradients as they are for one large batch. With `loss`, the logs hold what the model
    returns as `<task>_loss`, means over the steps since the last log that had items of the task.

    Args:
        *args: Of `Trainer`.
        count_items: Of a batch, the items of each task by name; given to the model as `num_items_by_task`.
            Every process must find the same tasks, with 0 items of those that its batch does not have.
        **kwargs: Of `MeasuringTrainer`.
    """

    def __init__(
        self, *args: Any, count_items: Callable[[Mapping[str, Tensor]], dict[str, Tensor]], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.count_items = count_items
        self._items: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}  # of losses since the last log, by task, as are
        self._steps: dict[str, Tensor] = {}  # the steps that had items of it
        self._all_steps = 0

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """Take the batches of a step and count the items of each task in them."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._items = self._counted(batches, device)
        for task, items in self._items.items():
            self._steps[task] = self._steps.get(task, torch.zeros_like(items)) + (items > 0)
        self._all_steps += bool(batches)
        return batches, count

    def _counted(self, batches: Sequence[Mapping[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
        if not batches:
            return {}
        counts = [self.count_items(batch) for batch in batches]
        tasks = sorted({task for found in counts for task in found})
        found = ([count[task].to(device) for count in counts if task in count] for task in tasks)
        totals = torch.stack([torch.stack(of_task).sum() for of_task in found])
        return dict(zip(tasks, self.accelerator.reduce(totals, "sum"), strict=True))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a batch; in training this batch's part of the loss of the step."""
        if model.training:
            inputs = {**inputs, "num_items_by_task": self._items}
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if model.training:
            self._remember(outputs)
            # `Trainer` takes the mean over accumulated batches and processes; parts are to be added up.
            loss = loss * (self.current_gradient_accumulation_steps * self.accelerator.num_processes)
        return (loss, outputs) if return_outputs else loss

    def _remember(self, outputs: Mapping[str, Any]) -> None:
        for name, value in outputs.items():
            if name.endswith("_loss") and value is not None:
                task = name.removesuffix("_loss")
                self._sums[task] = self._sums.get(task, 0.0) + value.detach()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as `Trainer` does, the losses of the tasks beside theirs."""
        if "loss" in logs and self._all_steps:
            logs |= self._mean_losses()
            self._sums, self._steps, self._all_steps = {}, {}, 0
        super().log(logs, start_time)

    def _mean_losses(self) -> dict[str, float]:
        tasks = sorted({*self._steps, *self._sums})
        nothing = torch.zeros((), device=self.args.device)
        told = torch.tensor([task in self._sums for task in tasks], device=nothing.device)
        sums = torch.stack([self._sums.get(task, nothing).float() for task in tasks])
        totals = self.accelerator.reduce(torch.stack((sums, told)), "sum").tolist()
        steps = [int(self._steps.get(task, self._all_steps)) for task in tasks]
        rows = zip(tasks, *totals, steps, strict=True)
        return {
            f"{task}_loss": round(total / max(1, count), 4) for task, total, known, count in rows if known
        }
