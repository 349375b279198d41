"""Trainers that also evaluate by using the model, and that know averaged weights."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from .averaging import EMACallback

__all__ = ["AnsweringTrainer", "MeasuringTrainer"]


class MeasuringTrainer(Trainer):
    """Trainer whose `evaluate` adds what a function measures on the model itself.

    The measures are logged, and can choose the best checkpoint (`metric_for_best_model`) and stop a run
    early, as any other metric. An `EMACallback` is saved and resumed with the checkpoints, and evaluation
    uses its weights when it says so.

    Args:
        *args: Of `Trainer`.
        measure: Called with the model, out of its wrappers and in evaluation mode, at each evaluation;
            returns metrics by name, without the "eval_" prefix. Only the main process calls it, the others
            are told.
        **kwargs: Of `Trainer`.
    """

    def __init__(
        self, *args: Any, measure: Callable[[nn.Module], dict[str, float]] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.measure = measure

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
