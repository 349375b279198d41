"""What a generator learns when one loss is not enough: phases, each with its parameters and its loss.

Goodfellow et al. 2014, "Generative Adversarial Networks", algorithm 1 (https://arxiv.org/abs/1406.2661): a
step first improves the discriminator, then the generator, each by its own loss and with its own optimizer.
An autoencoder without a discriminator is the case of one phase. `training/phased.py` runs the loop.

Shapes: B pictures of a batch, C channels, Y x X pixels (rows x columns).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

__all__ = ["DivergedError", "PhasedObjective"]


class DivergedError(RuntimeError):
    """A run that learns nothing any more: its numbers are not finite, or its generator collapsed."""


class PhasedObjective(nn.Module, ABC):
    """The models of a run and the losses they learn by.

    A subclass holds its models as submodules, calls `super().__init__()` first, and names its phases.

    Attributes:
        phases: Names of the phases, in the order in which a step takes them.
        averaged: Names of submodules ("generator", or "vae.decoder") of which a moving average is kept,
            weights and buffers. It stands in their place while `preview` and `pipeline` are called.
        frozen: Names of submodules that no phase trains and that stay in evaluation mode, such as a
            perceptual network. (What no phase trains needs no `requires_grad_(False)`: the trainer sees to
            that, and gradients flow through it all the same.)
        step: Steps that are done, set by the trainer before each; for late starts and schedules.
    """

    phases: tuple[str, ...] = ()
    averaged: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    step: int = 0

    def active_phases(self, step: int) -> tuple[str, ...]:
        """The phases that a step takes, in their order; all of them unless a subclass says so.

        Args:
            step: Steps that are done.
        """
        return self.phases

    def train(self, mode: bool = True) -> Self:
        """Set the training mode of all submodules but the `frozen` ones."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    @abstractmethod
    def phase_parameters(self, phase: str) -> list[nn.Parameter]:
        """What a phase trains; no parameter belongs to two phases.

        The trainer turns `requires_grad` on for these while the phase lasts and off for all others, so that
        the losses of one phase leave no gradient in the models of another.

        Args:
            phase: One of `phases`.
        """

    @abstractmethod
    def loss(self, batch: Mapping[str, Tensor], phase: str) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a phase: a mean over the rows of this batch.

        Args:
            batch: `pixel_values` (B, C, Y, X) in [-1, 1], and what else the collator gives.
            phase: One of `phases`.

        Returns:
            A scalar with its graph, and scalars for the log by name, detached; no two phases use one name.
            The trainer logs the loss itself as "PHASE_loss".
        """

    def preview(self, noise_generator: torch.Generator, count: int) -> Tensor | None:
        """Pictures to watch the run by: from the same noise each time, so that one sees them change.

        Called in evaluation mode, without gradients, with the averages in place.

        Args:
            noise_generator: On the CPU, seeded the same at each call.
            count: How many.

        Returns:
            (count, C, Y, X) in [-1, 1]; `None` when there is nothing to show.
        """
        return None

    @abstractmethod
    def pipeline(self) -> Any:
        """What is saved and pushed, a `DiffusionPipeline`. Called with the averages in place."""

    def health(self, logs: Mapping[str, float]) -> None:
        """Look at what is logged for signs that the run collapsed; the trainer sees what is not finite.

        Args:
            logs: Means since the last log, by name.

        Raises:
            DivergedError: The run is past help; says what was seen and what to change.
        """
