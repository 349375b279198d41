"""How a picture comes out of noise: the strip from noise to picture, the channels of latents.

What the denoiser expects at each step is the clean picture that it sees in its noisy input, as in Ho et al.
2020, "Denoising Diffusion Probabilistic Models", figure 6 (https://arxiv.org/abs/2006.11239).

Shapes: S steps, B pictures, c channels, h x w places of latents, or of pixels where there is no autoencoder.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..imaging.pixel_levels import pixel_levels
from .sample_grids import LEAST_PX, Pictures, film_strip, sample_grid

__all__ = ["DenoisingFilm", "denoising_strip", "latent_channel_grid", "record_denoising", "seen_inputs"]

SPREADS = 3.0  # a latent channel is black and white so many standard deviations from 0
TAKEN = ("callback_on_step_end", "callback_on_step_end_tensor_inputs", "chunk_size", "output_type")


@dataclass(frozen=True)
class DenoisingFilm:
    """All steps of some pictures.

    Attributes:
        timesteps: (S,) as the scheduler counts.
        noisy: (S, B, c, h, w) what the denoiser was given at each.
        clean: (S, B, c, h, w) the picture that it saw in it.
        images: B pictures at the end.
    """

    timesteps: Tensor
    noisy: Tensor
    clean: Tensor
    images: list[Image.Image]


def record_denoising(pipeline: Any, **call: Any) -> DenoisingFilm:
    """Draw, and keep what happens at each step.

    Args:
        pipeline: An `ImageDiffusionPipeline`.
        **call: As it is called: `prompt` or `class_labels`, `seed`, `num_inference_steps`, ...

    Raises:
        ValueError: An argument that recording needs for itself; else as the call.
    """
    taken = [f"`{name}`" for name in TAKEN if name in call]
    if taken:
        raise ValueError(f"Recording sets {', '.join(taken)} itself; leave it out.")
    timesteps: list[float] = []
    noisy: list[Tensor] = []
    clean: list[Tensor] = []

    def keep(_: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        timesteps.append(float(timestep))
        clean.append(tensors["clean"].float().cpu())
        noisy.append(seen[-1][-len(clean[-1]) :].float().cpu())  # guided ones come twice
        seen.clear()
        return {}

    with seen_inputs(pipeline.denoiser) as seen:
        images = pipeline(
            **call, callback_on_step_end=keep, callback_on_step_end_tensor_inputs=["latents", "clean"]
        ).images
    return DenoisingFilm(torch.tensor(timesteps), torch.stack(noisy), torch.stack(clean), images)


def denoising_strip(
    pipeline: Any,
    film: DenoisingFilm,
    frames: int = 8,
    show: Literal["noisy", "clean", "both"] = "both",
    labels: Sequence[str] | None = None,
    least_px: int = LEAST_PX,
) -> Image.Image:
    """From noise to picture, left to right: what the denoiser is given, and what it sees in that.

    Args:
        pipeline: The one that drew, which decodes latents.
        film: Of `record_denoising`.
        frames: So many steps, spread evenly, the first and the last among them; the picture comes on top.
        show: "noisy" inputs, the "clean" pictures seen in them, or a row of each for every picture.
        labels: A text for each picture.
        least_px: See `sample_grid`.

    Raises:
        ValueError: Fewer than one frame, another word for `show`, or another count of labels.
    """
    if frames < 1 or show not in ("noisy", "clean", "both"):
        raise ValueError(f"`frames`={frames} must be at least 1, `show`={show!r} 'noisy', 'clean' or 'both'.")
    if labels is not None and len(labels) != len(film.images):
        raise ValueError(f"{len(labels)} `labels` for {len(film.images)} pictures; give one for each.")
    steps = np.unique(np.linspace(0, len(film.timesteps) - 1, frames).round().astype(int)).tolist()
    kinds = ("noisy", "clean") if show == "both" else (show,)
    parts = {kind: _decode(pipeline, getattr(film, kind)[steps]) for kind in kinds}
    rows, texts = [], []
    for number, image in enumerate(film.images):
        for kind in kinds:
            rows.append([*(frame[number] for frame in parts[kind]), image])
            text = labels[number] if labels is not None else ""
            texts.append(text if kind == kinds[0] else "")
    titles = [f"{film.timesteps[step]:.0f}" for step in steps] + ["picture"]
    return film_strip(rows, labels=None if labels is None else texts, titles=titles, least_px=least_px)


def latent_channel_grid(
    latents: Tensor, pictures: Pictures | None = None, titles: bool = True
) -> Image.Image:
    """Each picture, and on its right the channels of its latents, grey in the middle at 0.

    Args:
        latents: (B, c, h, w), scaled to a variance of about 1, as `ImageDiffusionPipeline.encode` gives them.
        pictures: B pictures, see `Pictures`; `None` for the channels alone.
        titles: Number the channels.

    Raises:
        ValueError: No four dimensions, or another count of pictures.
    """
    if latents.ndim != 4 or (pictures is not None and len(pictures) != len(latents)):
        beside = "no" if pictures is None else len(pictures)
        raise ValueError(
            f"`latents` are {tuple(latents.shape)} for {beside} `pictures`; give (pictures, channels, "
            "height, width) and as many pictures."
        )
    levels = ((latents.detach().float().cpu() / SPREADS + 1) * 127.5).round().clamp(0, 255).byte().numpy()
    channels = [[Image.fromarray(channel) for channel in one] for one in levels]
    names = [f"channel {number}" for number in range(latents.shape[1])]
    if pictures is not None:
        beside = _as_images(pictures)
        size = beside[0].size
        channels = [
            [picture, *(channel.resize(size, Image.Resampling.NEAREST) for channel in one)]
            for picture, one in zip(beside, channels, strict=True)
        ]
        names = ["picture", *names]
    tiles = [tile for row in channels for tile in row]
    return sample_grid(tiles, len(names), titles=names if titles else None)


@contextmanager
def seen_inputs(denoiser: nn.Module) -> Generator[list[Tensor]]:
    """Within it, each call of a denoiser adds the noisy pictures that it was given.

    Args:
        denoiser: Of a pipeline.
    """
    seen: list[Tensor] = []

    def keep(_: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.append((args[0] if args else kwargs["sample"]).detach())

    handle = denoiser.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def _decode(pipeline: Any, latents: Tensor) -> list[list[Image.Image]]:
    """Of (T, B, c, h, w), T lists of B pictures."""
    device, dtype = pipeline._execution_device, pipeline.denoiser.dtype
    return [pipeline.decode(part.to(device, dtype), "pil") for part in latents]


def _as_images(pictures: Pictures) -> list[Image.Image]:
    if not isinstance(pictures, Tensor):
        return list(pictures)
    levels = pixel_levels(pictures, "pictures").cpu().permute(0, 2, 3, 1).numpy()  # (B, Y, X, C)
    return [Image.fromarray(part[..., 0] if part.shape[-1] == 1 else part) for part in levels]
