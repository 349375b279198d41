"""The progress bar of a phased run: its losses and its speed, where `Trainer` prints lines."""

from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback

__all__ = ["LossBar"]

SPEED = "images_per_second"


class LossBar(ProgressCallback):
    """Shows the last logged losses, and images per second, behind the bar."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write what was logged behind the bar."""
        if self.training_bar is None or not logs:
            return
        shown = {name: f"{value:.3g}" for name, value in logs.items() if name.endswith("_loss")}
        if SPEED in logs:
            shown["images/s"] = f"{logs[SPEED]:.0f}"
        if shown:  # a measurement leaves them as they are
            self.training_bar.set_postfix(shown)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar; a run may end before it has one."""
        if self.training_bar is not None:
            self.training_bar.close()
            self.training_bar = None
