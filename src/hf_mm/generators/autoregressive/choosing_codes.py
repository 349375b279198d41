"""From logits to one code: guidance, what is cut off, and a draw that depends on a row's own seed alone.

Ho and Salimans 2022, "Classifier-Free Diffusion Guidance" (https://arxiv.org/abs/2207.12598), as Sun et al.
2024 (https://arxiv.org/abs/2406.06525), section 2.2, use it on logits.

Shapes: B rows, K codes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

__all__ = ["code_warpers", "draw_codes", "guided_logits", "row_noise"]


def guided_logits(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Logits u + s (c - u): away from any picture, towards what was asked for; s = 1 gives c itself."""
    return unconditional + scale * (conditional - unconditional)


def code_warpers(temperature: float, top_k: int, top_p: float) -> Callable[[Tensor], Tensor]:
    """The warpers of transformers, in the order in which its `generate` applies them.

    Args:
        temperature: Logits are divided by it; 0 leaves only the likeliest code.
        top_k: Codes that are left to draw from; 0 leaves all.
        top_p: The likeliest codes are left that together have this probability; 1 leaves all.

    Returns:
        A function of logits (B, K), to logits that are minus infinity where nothing is to be drawn.

    Raises:
        ValueError: One is out of its range.
    """
    for name, value, wanted, fine in (
        ("temperature", temperature, "0 or more", temperature >= 0),
        ("top_k", top_k, "0 (all codes) or more", top_k >= 0),
        ("top_p", top_p, "above 0 and at most 1", 0 < top_p <= 1),
    ):
        if not fine:
            raise ValueError(f"`{name}`={value} must be {wanted}.")
    warpers: list[Callable[[Any, Tensor], Tensor]] = []
    if temperature not in (0, 1):
        warpers.append(TemperatureLogitsWarper(float(temperature)))
    if temperature == 0 or top_k:
        warpers.append(TopKLogitsWarper(top_k if temperature else 1))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))

    def warp(logits: Tensor) -> Tensor:
        for warper in warpers:
            logits = warper(None, logits)  # what was written before is nothing to these
        return logits

    return warp


def draw_codes(logits: Tensor, noise: Tensor) -> Tensor:
    """One code of each row, (B,), drawn by the softmax of its logits.

    The largest p / q is the draw of `torch.multinomial`: a seed gives the codes that `generate` gives.

    Args:
        logits: (B, K), in float32.
        noise: (B, K) q, exponentially distributed, see `row_noise`.
    """
    return (logits.softmax(-1) / noise).argmax(-1)


def row_noise(generators: Any, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Exponential noise (B, ...): each row from its own generator, whatever stands beside it.

    Drawn where the generators are, so that those of the CPU give the same on any device.
    """
    if isinstance(generators, list):
        rows = [torch.empty(shape[1:], device=one.device).exponential_(generator=one) for one in generators]
        return torch.stack(rows).to(device)
    home = device if generators is None else generators.device
    return torch.empty(shape, device=home).exponential_(generator=generators).to(device)
