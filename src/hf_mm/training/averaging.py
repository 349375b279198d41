"""Weights averaged over the steps of a run, which often do better than those of its last step.

Polyak and Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging"
(https://doi.org/10.1137/0330046); the exponential form as torch has it.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..hub.saving import atomic_write

__all__ = ["EMACallback", "averaged_copy", "swap_averages"]

STATE_FILE = "averaged_weights.pt"


class EMACallback(TrainerCallback):
    """An exponential moving average of weights and buffers, taken after each optimizer step.

    The trainers of this package save it in their checkpoints and go on with it from there; `Trainer` itself
    only averages, and a run that it resumes is refused. Buffers that count are copied, not averaged.

    Args:
        decay: Share of the old average kept at each step; about 1 / (1 - decay) steps count.
        evaluate: Evaluate with the averaged weights, and choose the best checkpoint by them.
        replace_at_end: Put the averaged weights into the model when training ends; after
            `load_best_model_at_end` those of the best checkpoint.

    Raises:
        ValueError: `decay` outside 0..1.
    """

    def __init__(self, decay: float = 0.999, evaluate: bool = True, replace_at_end: bool = False) -> None:
        _check_decay(decay)
        self.decay = decay
        self.evaluate = evaluate
        self.replace_at_end = replace_at_end
        self._average: AveragedModel | None = None
        self._checkpoint: Path | None = None

    @property
    def started(self) -> bool:
        """Whether there is an average yet."""
        return self._average is not None

    @property
    def model(self) -> Any:
        """The averaged model, a copy of the one in training.

        Raises:
            ValueError: Training has not begun.
        """
        return self._running().module

    def save_ema(self, folder: str | Path) -> None:
        """Save the averaged model, for `from_pretrained`.

        Raises:
            ValueError: Training has not begun.
        """
        self.model.save_pretrained(folder)

    @contextmanager
    def applied(self, model: nn.Module) -> Generator[None]:
        """Give a model the averaged weights while the block runs, and its own again afterwards."""
        swap_averages(model, self._running())
        try:
            yield
        finally:
            swap_averages(model, self._running())

    def save_state(self, folder: str | Path) -> None:
        """Write the average into a checkpoint."""
        with atomic_write(Path(folder) / STATE_FILE) as temporary:
            torch.save(self._running().state_dict(), temporary)

    def resume_from(self, folder: str | Path) -> None:
        """Go on, when training begins, with the average in a checkpoint.

        Raises:
            FileNotFoundError: The checkpoint holds none.
        """
        self._checkpoint = Path(folder)
        if not (self._checkpoint / STATE_FILE).is_file():
            raise FileNotFoundError(
                f"{folder} has no {STATE_FILE}: it was written without EMACallback, or with "
                "`save_only_model=True`; leave the callback out or go on from another checkpoint."
            )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._average = averaged_copy(kwargs["model"], self.decay)
        if self._checkpoint is not None:
            self._load(self._checkpoint)
            self._checkpoint = None
        elif state.global_step:
            raise ValueError(
                f"The run goes on from step {state.global_step} but its averaged weights were not loaded; "
                "use a trainer that loads them with a checkpoint, such as ContrastiveTrainer."
            )
        if args.load_best_model_at_end and args.save_only_model:
            raise ValueError(
                "`load_best_model_at_end` needs the averaged weights of the best checkpoint, which "
                "`save_only_model=True` leaves out; set one of them to False."
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._running().update_parameters(kwargs["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.load_best_model_at_end and state.best_model_checkpoint:
            self._load(Path(state.best_model_checkpoint))
        if self.replace_at_end:
            for own, averaged in _pairs(kwargs["model"], self._running()):
                own.copy_(averaged)

    def _running(self) -> AveragedModel:
        if self._average is None:
            raise ValueError("There are no averaged weights before training begins; call `train()` first.")
        return self._average

    def _load(self, folder: Path) -> None:
        average = self._running()
        device = next(average.module.parameters()).device
        average.load_state_dict(torch.load(folder / STATE_FILE, map_location=device, weights_only=True))


def averaged_copy(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of a model, of its buffers too, which an exponential average starts from.

    Args:
        model: What is trained; any module.
        decay: Share of the old average kept at each `update_parameters`. The first copies the model.

    Raises:
        ValueError: `decay` outside 0..1.
    """
    _check_decay(decay)
    exponential = get_ema_multi_avg_fn(decay)

    def update(averaged: Any, current: Any, count: Tensor | int) -> None:
        if averaged[0].is_floating_point():
            exponential(averaged, current, count)
        else:  # 0.9 * 7 + 0.1 * 7 can fall short of 7
            for own, other in zip(averaged, current, strict=True):
                own.copy_(other)

    average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    # Mixed precision hangs its own `forward` on the model in training; it would run that one here too.
    for name in ("forward", "_original_forward"):
        average.module.__dict__.pop(name, None)
    average.module.requires_grad_(False).eval()
    return average


@torch.no_grad()
def swap_averages(model: nn.Module, average: AveragedModel) -> None:
    """Exchange the weights and buffers of a model with their averages; a second call takes it back."""
    for own, averaged in _pairs(model, average):
        before = own.clone()
        own.copy_(averaged)
        averaged.copy_(before)


def _pairs(model: nn.Module, average: AveragedModel) -> Iterator[tuple[Tensor, Tensor]]:
    """Each weight and buffer of a model, detached, with its average."""
    averaged = average.module
    for own, other in zip(
        chain(model.parameters(), model.buffers()),
        chain(averaged.parameters(), averaged.buffers()),
        strict=True,
    ):
        yield own.detach(), other.detach()


def _check_decay(decay: float) -> None:
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"`decay`={decay} must be at least 0 and below 1; 0.999 averages about 1000 steps.")
