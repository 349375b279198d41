"""Pictures to latents of about unit variance, and back, by any autoencoder.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", appendix G
(https://arxiv.org/abs/2112.10752): latents are multiplied by `scaling_factor`, after `shift_factor` was taken
off where the config has one.

Shapes: B pictures, C channels, Y x X pixels; c channels and y x x places of latents.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "latent_moments",
    "latents_of_pictures",
    "pictures_of_latents",
    "scaled_latents",
    "unscaled_latents",
]


def latents_of_pictures(
    vae: Any,
    pixel_values: Tensor,
    sample: bool = False,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> Tensor:
    """The scaled latents (B, c, y, x) of pictures.

    Args:
        vae: `AutoencoderKL`, `MMVQAutoencoder` or diffusers' `VQModel`.
        pixel_values: (B, C, Y, X) in [-1, 1].
        sample: Draw from the posterior of a VAE instead of its mean; a codebook has none.
        generator: For `sample`; by default torch's own.
    """
    encoded = vae.encode(pixel_values.to(vae.dtype))
    if "latent_dist" not in encoded:
        return scaled_latents(vae, encoded.latents)
    posterior = encoded.latent_dist
    return scaled_latents(vae, posterior.sample(generator) if sample else posterior.mode())


def latent_moments(vae: Any, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (B, c, y, x) of the scaled latents of pictures; the deviation of a codebook is 0.

    Args:
        vae: `AutoencoderKL`, `MMVQAutoencoder` or diffusers' `VQModel`.
        pixel_values: (B, C, Y, X) in [-1, 1].
    """
    encoded = vae.encode(pixel_values.to(vae.dtype))
    if "latent_dist" not in encoded:
        latents = scaled_latents(vae, encoded.latents)
        return latents, torch.zeros_like(latents)
    posterior = encoded.latent_dist
    return scaled_latents(vae, posterior.mean), posterior.std * vae.config.scaling_factor


def pictures_of_latents(vae: Any, latents: Tensor) -> Tensor:
    """The pictures (B, C, Y, X), about in [-1, 1], of scaled latents (B, c, y, x)."""
    return vae.decode(unscaled_latents(vae, latents).to(vae.dtype)).sample


def scaled_latents(vae: Any, latents: Tensor) -> Tensor:
    """Latents as the autoencoder gives them to those that are generated."""
    return (latents - _shift_factor(vae)) * vae.config.scaling_factor


def unscaled_latents(vae: Any, latents: Tensor) -> Tensor:
    """Latents that were generated to those that the autoencoder takes."""
    return latents / vae.config.scaling_factor + _shift_factor(vae)


def _shift_factor(vae: Any) -> float:
    return vae.config.get("shift_factor") or 0.0
