"""One step of one phase: all small batches, then the optimizer."""

from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, get_total_norm

from ..objectives.phased import PhasedObjective
from .phased_meter import FiniteWatch, RunningMeans
from .phased_phases import Phase, average_gradients

__all__ = ["PhaseTaker"]


class PhaseTaker:
    """Takes steps of phases, measures them, and sees that only the phase's parameters get gradients.

    Args:
        objective: What is learnt; nothing in it requires gradients between steps.
        accelerator: Of the run.
        max_grad_norm: Longest gradient of a phase; 0 cuts none.
        means: Where losses and gradients are added up.
    """

    def __init__(
        self, objective: PhasedObjective, accelerator: Accelerator, max_grad_norm: float, means: RunningMeans
    ) -> None:
        self.objective = objective
        self.accelerator = accelerator
        self.max_grad_norm = max_grad_norm
        self.means = means
        self.watch = FiniteWatch(accelerator.device)

    def take(self, phase: Phase, batches: Sequence[Mapping[str, Any]], step: int) -> None:
        """Take a step.

        Args:
            phase: Which.
            batches: The small batches of this process.
            step: Its number, from 1.

        Raises:
            DivergedError: On the CPU, a loss or a gradient is not finite; elsewhere `watch.check` raises it.
            ValueError: The objective's loss is no scalar with a gradient.
        """
        phase.require_grad(True)
        losses = [self._differentiated(phase, batch, len(batches)) for batch in batches]
        loss = sum(losses[1:], losses[0]) / len(losses)
        if self.accelerator.num_processes > 1:
            loss = average_gradients(phase.parameters, loss)
        self._move(phase, loss, step)
        phase.clear()
        phase.require_grad(False)

    def _differentiated(self, phase: Phase, batch: Mapping[str, Any], parts: int) -> Tensor:
        """The loss of a small batch, after its share of the gradient was added."""
        with self.accelerator.autocast():
            loss, scalars = self.objective.loss(batch, phase.name)
        if loss.ndim or not loss.requires_grad:
            raise ValueError(
                f"`loss` of {type(self.objective).__name__} in phase {phase.name!r} must be a scalar that "
                f"depends on the phase's parameters, got {tuple(loss.shape)}"
                f"{'' if loss.requires_grad else ' without a graph'}."
            )
        self.accelerator.backward(loss / parts)
        self.means.add({f"{phase.name}_loss": loss, **scalars})
        return loss.detach()

    def _move(self, phase: Phase, loss: Tensor, step: int) -> None:
        """Clip the gradients, look at them, and move the parameters."""
        scaler = self.accelerator.scaler
        if scaler is not None:
            scaler.unscale_(phase.optimizer)
        if self.max_grad_norm:
            norm = clip_grad_norm_(phase.parameters, self.max_grad_norm, foreach=True)
        else:
            gradients = [weight.grad for weight in phase.parameters if weight.grad is not None]
            norm = get_total_norm(gradients, foreach=True)
        self.means.add({f"{phase.name}_grad_norm": norm})
        self.watch.look(step, f"loss of phase {phase.name!r}", loss)
        if scaler is None:
            self.watch.look(step, f"gradient of phase {phase.name!r}", norm)
            phase.optimizer.step()
            phase.scheduler.step()
            return
        # A gradient beyond float16 is no fault: the scaler skips the step and chooses a smaller scale.
        before = scaler.get_scale()
        scaler.step(phase.optimizer)
        scaler.update()
        if scaler.get_scale() >= before:
            phase.scheduler.step()
