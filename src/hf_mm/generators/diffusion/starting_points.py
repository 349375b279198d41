"""Where the way to a picture begins: at noise, or at a picture with noise on it.

Meng et al. 2022, "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations"
(https://arxiv.org/abs/2108.01073): the more noise, the freer. With a mask, what is to stay is put back at
each step with the noise of that step, as Lugmayr et al. 2022, "RePaint" (https://arxiv.org/abs/2201.09865),
and diffusers' inpainting with a denoiser of four channels do it.

Shapes: B pictures, c x h x w latents, or pixels where there is no autoencoder.
"""

from dataclasses import dataclass
from typing import Any

from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .image_inputs import downscale_of, latent_size, read_masks, read_pictures
from .scaled_latents import latents_of_pictures
from .scheduler_fit import begin_steps, noised_start

__all__ = ["DenoisingStart", "starting_point"]


@dataclass
class DenoisingStart:
    """Where pictures begin.

    Args:
        latents: (B, c, h, w), as the scheduler has them at the first step.
        first: Place of that step in `scheduler.timesteps`.
        noise: (B, c, h, w) what was put on `clean`; only with `mask`.
        clean: (B, c, h, w) of the picture; only with `mask`.
        mask: (B, 1, h, w), 1 where is to be drawn.
    """

    latents: Tensor
    first: int = 0
    noise: Tensor | None = None
    clean: Tensor | None = None
    mask: Tensor | None = None

    def rows(self, rows: slice) -> "DenoisingStart":
        """That of some of the pictures."""
        parts = (None if part is None else part[rows] for part in (self.noise, self.clean, self.mask))
        return DenoisingStart(self.latents[rows], self.first, *parts)

    def put_back(self, latents: Tensor, scheduler: Any, step: int) -> Tensor:
        """After step `step`: what is not to be drawn is the picture's again, with the noise of there."""
        if self.mask is None or self.clean is None or self.noise is None:
            return latents
        kept, timesteps = self.clean, scheduler.timesteps
        if step + 1 < len(timesteps):
            kept = noised_start(scheduler, kept, self.noise, timesteps[step + 1 : step + 2])
        return (1 - self.mask) * kept + self.mask * latents


def starting_point(
    pipe: Any,
    count: int,
    image: Any,
    mask_image: Any,
    strength: float,
    steps: int,
    size: tuple[int | None, int | None],
    latents: Tensor | None,
    generator: Any,
) -> DenoisingStart:
    """Where `count` pictures begin.

    Args:
        pipe: An `ImageDiffusionPipeline`.
        count: B.
        image: See the call, as all that follow.
        mask_image: What to draw anew.
        strength: Share of the way.
        steps: Of the whole way.
        size: Height and width in pixels.
        latents: The noise itself.
        generator: One for all pictures, or one for each.

    Raises:
        ValueError: Sizes or numbers that do not fit, or a mask without a picture.
    """
    if image is None and mask_image is not None:
        raise ValueError("`mask_image` says where to draw in a picture; pass that as `image`.")
    clean, mask = None, None
    if image is not None:
        clean, mask = _clean(pipe, count, image, mask_image, size, generator)
        size = (clean.shape[2] * downscale_of(pipe.vae), clean.shape[3] * downscale_of(pipe.vae))
    shape = (count, pipe.denoiser.config["in_channels"], *latent_size(pipe.denoiser, pipe.vae, *size))
    device, dtype = pipe._execution_device, pipe.denoiser.dtype
    if latents is not None and tuple(latents.shape) != shape:
        raise ValueError(f"`latents` must be {shape} for {count} pictures, got {tuple(latents.shape)}.")
    noise = randn_tensor(shape, generator, device, dtype) if latents is None else latents.to(device, dtype)
    scheduler = pipe.scheduler
    first = begin_steps(scheduler, steps, strength if clean is not None else 1.0, device)
    if clean is None or (mask is not None and strength == 1.0):
        begin = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    else:
        begin = noised_start(scheduler, clean, noise, scheduler.timesteps[first : first + 1])
    return DenoisingStart(begin, first, *((noise, clean, mask) if mask is not None else ()))


def _clean(
    pipe: Any, count: int, image: Any, mask_image: Any, size: tuple[int | None, int | None], generator: Any
) -> tuple[Tensor, Tensor | None]:
    """(B, c, h, w) latents of the pictures, and (B, 1, h, w) of their masks."""
    pixels = read_pictures(image, pipe.picture_channels)
    for name, wanted, side in zip(("height", "width"), size, pixels.shape[2:], strict=True):
        if wanted not in (None, side):
            raise ValueError(
                f"`{name}`={wanted}, but `image` has {side} px there; resize it, or leave it out."
            )
    height, width = latent_size(pipe.denoiser, pipe.vae, *pixels.shape[2:])
    if count % len(pixels):
        raise ValueError(
            f"{len(pixels)} pictures in `image` for {count} to be drawn; give one for all, or one for each."
        )
    device, dtype = pipe._execution_device, pipe.denoiser.dtype
    mask = None
    if mask_image is not None:
        mask = read_masks(mask_image, pixels, (height, width)).to(device, dtype)
        mask = mask.repeat_interleave(count // len(mask), 0)
    if isinstance(generator, list):  # each picture is encoded by its own chance
        pixels = pixels.repeat_interleave(count // len(pixels), 0)
    pixels = pixels.to(device, dtype)
    clean = pixels if pipe.vae is None else latents_of_pictures(pipe.vae, pixels, True, generator)
    # Neighbours are pictures of one prompt, so they begin at one picture.
    return clean.to(dtype).repeat_interleave(count // len(clean), 0), mask
