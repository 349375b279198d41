"""The scale of latents, which whatever learns to generate them wants near one.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", appendix G
(https://arxiv.org/abs/2112.10752): latents are multiplied by 1 / their standard deviation.

Shapes: B pictures, C channels of the latents.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

__all__ = ["measure_scaling_factor"]

LEAST_DEVIATION_SHARE = 1e-6  # of the mean; below it the difference of squares is rounding


@torch.no_grad()
def measure_scaling_factor(model: Any, batches: Iterable[Mapping[str, Tensor] | Tensor]) -> float:
    """1 / the standard deviation of the latents of pictures, which is also written into the model's config.

    Of a posterior the deviation of its samples is computed, without drawing any: that of the means, and the
    mean of the variances.

    Args:
        model: `AutoencoderKL`, `MMVQAutoencoder` (whose quantised latents count) or diffusers' `VQModel`
            (whose latents before the codebook count). It is measured in evaluation mode.
        batches: Pictures of the training split, (B, C, Y, X) in [-1, 1], or dictionaries with them as
            `pixel_values`; a `DataLoader` will do.

    Returns:
        The factor, `model.config.scaling_factor` from now on, and in what `save_pretrained` writes.

    Raises:
        ValueError: There are no pictures, or all latents are equal, or some are not finite; the config is as
            it was.
    """
    count, total, squares = 0, 0.0, 0.0
    training = model.training
    model.eval()
    try:
        for batch in batches:
            pixels = batch if isinstance(batch, Tensor) else batch["pixel_values"]
            latents, variance = _latents(model, pixels.to(model.device, model.dtype))
            count += latents.numel()
            total += float(latents.double().sum())
            squares += float(latents.double().square().sum() + variance.double().sum())
    finally:
        model.train(training)
    if not count:
        raise ValueError("`batches` has no pictures; give those of the training split.")
    if not math.isfinite(squares):
        raise ValueError(
            f"Some of the {count} latents are not finite, so they have no scale; the pictures or the weights "
            f"are not, or {model.dtype} is too coarse for this encoder."
        )
    mean = total / count
    deviation = max(squares / count - mean**2, 0.0) ** 0.5
    if deviation <= LEAST_DEVIATION_SHARE * abs(mean):
        raise ValueError(
            f"All {count} latents equal {mean:.4g}, so they have no scale; the encoder has collapsed."
        )
    factor = 1.0 / deviation
    model.register_to_config(scaling_factor=factor)
    return factor


def _latents(model: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Latents, and the variance that drawing them adds."""
    if isinstance(model, AutoencoderKL):
        posterior = model.encode(pixels).latent_dist
        return posterior.mean, posterior.var
    latents = model.encode(pixels).latents
    return latents, torch.zeros_like(latents)
