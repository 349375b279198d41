"""Guidance without a classifier: two predictions, and from the one beyond the other.

Ho and Salimans 2022, "Classifier-Free Diffusion Guidance" (https://arxiv.org/abs/2207.12598). Kynkaanniemi et
al. 2024, "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion
Models" (https://arxiv.org/abs/2404.07724): outside the interval one prediction is enough.

Shapes: B pictures, C channels, Y x X places, L tokens, D width of a text encoder.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["DenoisingCondition", "Guidance"]


@dataclass
class DenoisingCondition:
    """What pictures shall show.

    Args:
        class_labels: (B,), for denoisers with classes.
        text_states: (B, L, D), for denoisers with texts.
        text_mask: (B, L), 0 on padding, for those that do not read it.
    """

    class_labels: Tensor | None = None
    text_states: Tensor | None = None
    text_mask: Tensor | None = None

    def rows(self, rows: slice) -> "DenoisingCondition":
        """That of some of the pictures."""
        return DenoisingCondition(*(None if part is None else part[rows] for part in self._parts()))

    def followed_by(self, other: "DenoisingCondition") -> "DenoisingCondition":
        """(2 B) both."""
        pairs = zip(self._parts(), other._parts(), strict=True)
        return DenoisingCondition(
            *(
                None if first is None or second is None else torch.cat([first, second])
                for first, second in pairs
            )
        )

    def _parts(self) -> tuple[Tensor | None, ...]:
        return self.class_labels, self.text_states, self.text_mask


@dataclass
class Guidance:
    """What pictures shall show, what they shall not, and how strongly.

    Args:
        wanted: What was asked for.
        unwanted: The null condition, or what was asked not to show; `None` without guidance.
        scale: s of u + s (c - u); 1 is c, as in training.
        interval: Times between which it acts, 0 that of a picture and 1 that of noise.
    """

    wanted: DenoisingCondition
    unwanted: DenoisingCondition | None = None
    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)

    def rows(self, rows: slice) -> "Guidance":
        """That of some of the pictures."""
        unwanted = None if self.unwanted is None else self.unwanted.rows(rows)
        return Guidance(self.wanted.rows(rows), unwanted, self.scale, self.interval)

    @cached_property
    def _both(self) -> DenoisingCondition | None:
        return None if self.unwanted is None else self.unwanted.followed_by(self.wanted)

    def predict(
        self, call: Callable[[Tensor, DenoisingCondition], Tensor], noisy: Tensor, time: float
    ) -> Tensor:
        """The guided prediction, by one call of the denoiser with B rows or with 2 B.

        Args:
            call: The denoiser, of noisy pictures and their conditions.
            noisy: (B, C, Y, X).
            time: Of this step, in [0, 1].

        Returns:
            (B, C, Y, X).
        """
        lowest, highest = self.interval
        if self._both is None or not lowest <= time <= highest:
            return call(noisy, self.wanted)
        without, showing = call(torch.cat([noisy, noisy]), self._both).chunk(2)
        return without + self.scale * (showing - without)
