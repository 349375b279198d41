"""A Trainer that also evaluates by letting the model answer."""

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import Trainer

__all__ = ["AnsweringTrainer"]


class AnsweringTrainer(Trainer):
    """Trainer whose `evaluate` adds metrics measured on generated answers.

    They are logged, and can choose the best checkpoint (`metric_for_best_model`), as any other metric.

    Args:
        answer_metrics: Called with the model at each evaluation; returns metrics by name, without the
            "eval_" prefix. Only the main process calls it.
        **kwargs: Of `Trainer`.
    """

    def __init__(
        self, *args: Any, answer_metrics: Callable[[nn.Module], dict[str, float]] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.answer_metrics = answer_metrics

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Losses as `Trainer` measures them, then the metrics of the generated answers."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if self.answer_metrics is not None and self.is_world_process_zero():
            model = self.accelerator.unwrap_model(self.model)
            answers = {
                f"{metric_key_prefix}_{name}": value for name, value in self.answer_metrics(model).items()
            }
            self.log(dict(answers))
            metrics.update(answers)
        return metrics
