"""Trainers that also evaluate by using the model, and that know weights: averaged, of tokens, in stages."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from .averaging import EMACallback
from .memory import heap_kept, peak_memory_mb, reset_peak_memory
from .schedule import build_schedule
from .stages import Stage, check_stages, frozen_weights, stage_at

__all__ = ["AnsweringTrainer", "MeasuringTrainer"]


class MeasuringTrainer(Trainer):
    """Trainer whose `evaluate` adds what a function measures on the model itself.

    The measures are logged, and can choose the best checkpoint (`metric_for_best_model`) and stop a run
    early, as any other metric. An `EMACallback` is saved and resumed with the checkpoints, and evaluation
    uses its weights when it says so. The metrics at the end of training hold `train_peak_memory_mb`, see
    `peak_memory_mb`; of several processes that of the main one.

    Batches with a column `loss_weights` (B, L), the weight of each label, are divided by the sum of the
    weights of all accumulated batches in all processes, as they are by the number of labels without it.

    Args:
        *args: Of `Trainer`.
        measure: Called with the model, out of its wrappers and in evaluation mode, at each evaluation;
            returns metrics by name, without the "eval_" prefix. Only the main process calls it, the others
            are told.
        warmups: Steps of warm-up by tower, see `build_schedule`; needs the optimizer of `build_optimizer`.
        stages: Which towers are trained until which step, see `read_stages`; all that the optimizer holds,
            always, when empty. What rests gets no gradient, so that neither momentum nor weight decay move
            it. With one process it costs no work either; with several it is computed and dropped, since
            they agree at the start on what they exchange. A run that is resumed goes on in its stage.
        **kwargs: Of `Trainer`.
    """

    def __init__(
        self,
        *args: Any,
        measure: Callable[[nn.Module], dict[str, float]] | None = None,
        warmups: Mapping[str, float] | None = None,
        stages: Sequence[Stage] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.measure = measure
        self.warmups = dict(warmups or {})
        self.stages = list(stages)
        self._stage: Stage | None = None
        self._resting: list[nn.Parameter] = []
        forward = inspect.signature(self._base().forward).parameters
        self._takes_weights = "loss_weights" in forward

    @heap_kept()
    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, see `Trainer.train`."""
        reset_peak_memory(self.args.device)
        self._stage = None
        try:
            return super().train(*args, **kwargs)
        finally:
            self._wake()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as `Trainer` does, the peak memory with what ends training."""
        if "train_runtime" in logs:
            logs["train_peak_memory_mb"] = round(peak_memory_mb(self.args.device), 1)
        super().log(logs, start_time)

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """The schedule of `args`, with the warm-ups of the towers if there are any."""
        if self.warmups and self.lr_scheduler is None:
            chosen: Any = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = build_schedule(chosen, self.args, num_training_steps, self.warmups)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """A forward and a backward pass; what rests in this stage is left without a gradient."""
        if self.stages:
            self._enter(stage_at(self.stages, self.state.global_step), model)
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            for weight in self._resting:
                weight.grad = None
        return loss

    def _enter(self, stage: Stage, model: nn.Module) -> None:
        if stage is self._stage:
            return
        optimizer: Any = self.optimizer
        if self._stage is None:
            check_stages(self.stages, model, optimizer)
        self._wake()
        self._stage, self._resting = stage, frozen_weights(stage, model, optimizer)
        if self.args.world_size == 1:  # wrappers of several processes do not let weights come and go
            for weight in self._resting:
                weight.requires_grad_(False)

    def _wake(self) -> None:
        for weight in self._resting:
            weight.requires_grad_(True)
        self._resting = []

    def _base(self) -> nn.Module:
        """The model, out of the wrappers of PEFT and of training."""
        model: Any = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | int | None:
        weighted = any("loss_weights" in batch for batch in batch_samples)
        if weighted and not self._takes_weights:
            raise ValueError(
                f"The batches have `loss_weights`, which {type(self._base()).__name__} does not take; train "
                "a model that does, or leave the column out."
            )
        if not self._takes_weights or not batch_samples or "labels" not in batch_samples[0]:
            return super()._get_num_items_in_batch(batch_samples, device)
        if weighted and self.args.n_gpu > 1:
            raise ValueError(
                "`loss_weights` need one process for each device; start them with torchrun --nproc_per_node."
            )
        # Also without weights as a sum of floats: processes with and without them add up to one number.
        total = torch.stack([_weight_of(batch).to(device) for batch in batch_samples]).sum()
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            total = self.accelerator.gather(total).sum()
        if not total > 0:
            raise ValueError(
                f"The labels of a step weigh {total.item():g} in all: its {len(batch_samples)} batches have "
                "nothing to learn from; leave out rows without labels or with `loss_weights` of 0."
            )
        return total / (self.get_tp_size() * self.get_cp_size() * self.get_sp_size())

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Losses as `Trainer` measures them, then what `measure` finds."""
        model: Any = self.model
        with ExitStack() as stack:
            for average in self._averages():
                if average.evaluate:
                    stack.enter_context(average.applied(model))
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
            if self.measure is not None and description == "Evaluation":
                found = self._measured(self.measure)
                named = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
                output = output._replace(metrics={**(output.metrics or {}), **named})
        return output

    def _measured(self, measure: Callable[[nn.Module], dict[str, float]]) -> dict[str, float]:
        found: list[Any] = [None]
        if self.is_world_process_zero():
            found = [measure(self.accelerator.unwrap_model(self.model))]
        if self.args.world_size > 1:  # every process asks the metric whether this checkpoint is the best
            broadcast_object_list(found)
        return found[0]

    def _averages(self) -> list[EMACallback]:
        return [
            one for one in self.callback_handler.callbacks if isinstance(one, EMACallback) and one.started
        ]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        # Not at `on_save`: a checkpoint is complete, and older ones are deleted, before that.
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            for average in self._averages():
                average.save_state(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EMACallback) and checkpoint is not None:
                callback.resume_from(checkpoint)


class AnsweringTrainer(MeasuringTrainer):
    """Trainer whose `evaluate` adds metrics measured on generated answers.

    Args:
        *args: Of `Trainer`.
        answer_metrics: The `measure` of a `MeasuringTrainer`.
        **kwargs: Of `Trainer`.
    """

    def __init__(
        self, *args: Any, answer_metrics: Callable[[nn.Module], dict[str, float]] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, measure=answer_metrics, **kwargs)


def _weight_of(batch: Mapping[str, Tensor]) -> Tensor:
    """The sum of the weights of a batch's labels; the first token of a row follows none and is no target."""
    labelled = (batch["labels"][..., 1:] != -100).float()
    return (labelled * batch["loss_weights"][..., 1:]).sum() if "loss_weights" in batch else labelled.sum()
