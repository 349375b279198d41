"""How many bits a VAE needs for pictures, in honest units: a bound on the likelihood of their 8-bit levels.

Kingma and Welling 2014, "Auto-Encoding Variational Bayes", equation 3 (https://arxiv.org/abs/1312.6114). A
density over pixels can grow without end where pictures repeat a level, so the output distribution is cut into
the 256 levels that pixels have, as Salimans et al. 2017, "PixelCNN++", section 2.1, do it with another curve
(https://arxiv.org/abs/1701.05517): the probability of a level is what lies within half a step of it; the
first and the last take what lies beyond. Its width is one number, which training pictures decide.

Shapes: N pictures, B of a batch, S draws of latents, C channels, H x W pixels.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.special import log_ndtr

from ..imaging.pixel_levels import pixel_levels
from .features import evaluating
from .generation_scores import bits_per_dimension

__all__ = ["OUTPUT_DISTRIBUTIONS", "EvidenceBound", "evidence_bound", "level_nats"]

OUTPUT_DISTRIBUTIONS = ("gaussian", "laplace")
HALF_STEP = 1 / 255  # of levels in [-1, 1]
SCALES = (1e-4, 2.0)  # among which one is chosen
GOLDEN = (math.sqrt(5) - 1) / 2
NARROWINGS = 30  # each leaves 62 percent: of log-scales 10 apart, 5e-6 in the end


class EvidenceBound(NamedTuple):
    """An upper bound on the bits of a number of a picture, and of what it consists.

    Attributes:
        bits_per_dimension: Of pictures that were not learnt from; 8 without any model.
        reconstruction_bits: Of them, for the levels when the latents are known.
        divergence_bits: Of them, for the latents.
        distribution: Of the levels around what the decoder gives.
        scale: Its width for levels in [-1, 1]: standard deviation ("gaussian"), mean distance ("laplace").
    """

    bits_per_dimension: float
    reconstruction_bits: float
    divergence_bits: float
    distribution: str
    scale: float


def evidence_bound(
    model: Any,
    pictures: Tensor,
    fit_on: Tensor,
    distribution: str = "gaussian",
    *,
    draws: int = 1,
    batch_size: int = 250,
    seed: int = 0,
) -> EvidenceBound:
    """Bound the bits per dimension of pictures under a VAE with the prior N(0, 1).

    Args:
        model: diffusers' `AutoencoderKL`, or what encodes and decodes as it does.
        pictures: (N, C, H, W) to be measured, floats in [-1, 1] or uint8.
        fit_on: (M, C, H, W) of the training pictures, for the width of the distribution.
        distribution: "gaussian" or "laplace".
        draws: Latents that are drawn for each picture; the bound is their mean, more only make it surer.
        batch_size: Pictures at a time.
        seed: Of the draws.

    Raises:
        TypeError: The model has no posterior.
        ValueError: There is no such distribution, no draw, or these are no pictures, see `pixel_levels`.
    """
    if distribution not in OUTPUT_DISTRIBUTIONS:
        raise ValueError(f"`distribution`={distribution!r} must be one of {', '.join(OUTPUT_DISTRIBUTIONS)}.")
    if draws < 1:
        raise ValueError(f"`draws`={draws} must be at least 1.")
    noise = torch.Generator().manual_seed(seed)
    levels, known = pixel_levels(pictures, "pictures"), pixel_levels(fit_on, "fit_on")
    with evaluating(model):
        parts = [(part, means) for part, means, _ in _decoded(model, known, 1, batch_size, noise)]
        scale = _fitted_scale(parts, distribution)
        nats, divergences = [], []
        for part, means, divergence in _decoded(model, levels, draws, batch_size, noise):
            found = torch.stack([level_nats(part, mean, scale, distribution) for mean in means])  # (S, B)
            nats.append(found.mean(0))
            divergences.append(divergence)
    dimensions = levels[0].numel()
    reconstruction = bits_per_dimension(torch.cat(nats), dimensions)
    divergence = bits_per_dimension(torch.cat(divergences), dimensions)
    return EvidenceBound(reconstruction + divergence, reconstruction, divergence, distribution, scale)


def level_nats(levels: Tensor, means: Tensor, scale: float, distribution: str = "gaussian") -> Tensor:
    """The negative log-probability of each picture's levels.

    Args:
        levels: (N, C, H, W) uint8.
        means: (N, C, H, W) centres of the distributions, about in [-1, 1].
        scale: Their width, see `EvidenceBound`.
        distribution: One of `OUTPUT_DISTRIBUTIONS`.

    Returns:
        (N,) float64, in nats.
    """
    log_below = log_ndtr if distribution == "gaussian" else _log_laplace
    away = levels.double() / 127.5 - 1 - means.double()
    # By symmetry on the left of the centre, where logarithms of small probabilities are exact.
    first, last = levels == 0, levels == 255
    left, right = away >= 0, away < 0
    open_below, open_above = (first & right) | (last & left), (last & right) | (first & left)
    lower = (-away.abs() - HALF_STEP).masked_fill(open_below, -math.inf) / scale
    upper = (-away.abs() + HALF_STEP).masked_fill(open_above, math.inf) / scale
    above = log_below(upper)
    return -(above + torch.log1p(-(log_below(lower) - above).exp())).flatten(1).sum(1)


def _log_laplace(x: Tensor) -> Tensor:
    """The logarithm of the share of a Laplace distribution of width 1 that lies below."""
    return torch.where(x < 0, x - math.log(2), torch.log1p(-0.5 * (-x.clamp(min=0)).exp()))


def _decoded(
    model: Any, levels: Tensor, draws: int, batch_size: int, noise: torch.Generator
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Levels (B, C, H, W), what latents drawn for them decode to (S, B, C, H, W), and divergences (B,)."""
    weight = next(model.parameters())
    for part in levels.split(batch_size):
        encoded = model.encode(part.to(weight) / 127.5 - 1)
        if not hasattr(encoded, "latent_dist"):
            raise TypeError(
                f"{type(model).__name__} has no posterior (`encode(...).latent_dist`); the bound is of VAEs "
                "such as diffusers' AutoencoderKL."
            )
        posterior = encoded.latent_dist
        drawn = [model.decode(posterior.sample(generator=noise)).sample.cpu() for _ in range(draws)]
        yield part, torch.stack(drawn), posterior.kl().double().cpu()


def _fitted_scale(parts: list[tuple[Tensor, Tensor]], distribution: str) -> float:
    """The width under which levels are likeliest, by golden section of its logarithm."""

    def nats(exponent: float) -> float:
        return sum(
            level_nats(levels, means[0], math.exp(exponent), distribution).sum().item()
            for levels, means in parts
        )

    low, high = (math.log(scale) for scale in SCALES)
    inner = [high - GOLDEN * (high - low), low + GOLDEN * (high - low)]
    found = [nats(point) for point in inner]
    for _ in range(NARROWINGS):
        if found[0] < found[1]:
            high, inner[1], found[1] = inner[1], inner[0], found[0]
            inner[0] = high - GOLDEN * (high - low)
            found[0] = nats(inner[0])
        else:
            low, inner[0], found[0] = inner[0], inner[1], found[1]
            inner[1] = low + GOLDEN * (high - low)
            found[1] = nats(inner[1])
    return math.exp((low + high) / 2)
