"""Sizes of pictures and their latents, pictures to begin with, masks.

Shapes: B pictures, C channels, Y x X pixels, c x h x w latents, or pixels where there is no autoencoder.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

__all__ = [
    "downscale_of",
    "latent_channels_of",
    "latent_size",
    "patch_size_of",
    "read_masks",
    "read_pictures",
]

MODES = {1: ("L", "grey"), 3: ("RGB", "colour")}


def downscale_of(vae: Any) -> int:
    """Pixels per latent, in each direction; 1 without an autoencoder."""
    return 1 if vae is None else 2 ** (len(vae.config["block_out_channels"]) - 1)


def latent_channels_of(vae: Any) -> int:
    """Channels of what an autoencoder, `AutoencoderKL` or one with a codebook, decodes."""
    width = vae.config.get("vq_embed_dim")
    return vae.config["latent_channels"] if width is None else width


def patch_size_of(side: int, fewest: int, most: int, least: int) -> int:
    """The least patch of a transformer that leaves few enough of them a side.

    Args:
        side: Of a picture, in pixels, or of a latent.
        fewest: Patches a side, at least.
        most: Patches a side, at most; more where `side` cannot be divided so.
        least: Pixels of a patch in each direction, at least.
    """
    counts = [count for count in range(fewest, side + 1) if side % count == 0]
    fitting = [count for count in counts if count <= most and side // count >= least]
    return side // max(fitting, default=min((count for count in counts if count > most), default=side))


def latent_size(denoiser: Any, vae: Any, height: int | None, width: int | None) -> tuple[int, int]:
    """(h, w) for a size in pixels, by default that of training.

    Raises:
        ValueError: There is none by default, or the denoiser or the autoencoder cannot halve it often enough.
    """
    factor, config = downscale_of(vae), denoiser.config
    own = config["sample_size"]
    sides = (own, own) if isinstance(own, int) or own is None else tuple(own)
    multiple = factor * _coarsest(config)
    found = []
    for name, given, side in (("height", height, sides[0]), ("width", width, sides[1])):
        if given is None and side is None:
            raise ValueError(f"The denoiser's config has no `sample_size`; pass `{name}` in pixels.")
        pixels = side * factor if given is None else given
        if pixels < 1 or pixels % multiple:
            raise ValueError(
                f"`{name}`={pixels} px is no multiple of {multiple}, which "
                f"{type(denoiser).__name__}{'' if vae is None else ' on these latents'} needs; take "
                f"{max(1, round(pixels / multiple)) * multiple}."
            )
        found.append(pixels // factor)
    return found[0], found[1]


def read_pictures(image: Any, channels: int, name: str = "image") -> Tensor:
    """(N, C, Y, X) in [-1, 1], float32, of pictures in any form.

    Args:
        image: PIL images, one or several; an array (N, Y, X, C) or a tensor (N, C, Y, X), in [0, 1].
        channels: C.
        name: Of the argument.

    Raises:
        ValueError: Of other channels, sizes that differ, or numbers outside [0, 1].
        TypeError: No pictures.
    """
    pixels = _as_tensor(image, channels, name)
    if pixels.ndim != 4 or pixels.shape[1] != channels or not len(pixels):
        raise ValueError(
            f"`{name}` must be (pictures, {channels}, height, width) as a tensor or (pictures, height, "
            f"width, {channels}) as an array, got {tuple(pixels.shape)} with the channels in second place."
        )
    least, most = pixels.aminmax()
    if not 0 <= least <= most <= 1:
        raise ValueError(f"`{name}` must be in [0, 1], got {float(least):.4g} to {float(most):.4g}.")
    return pixels * 2 - 1


def read_masks(mask_image: Any, pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 1, h, w): 1 where is to be drawn, 0 where the picture stays.

    Args:
        mask_image: Grey PIL images, one or several; an array (N, Y, X, 1) or a tensor (N, 1, Y, X) in [0, 1].
            What is 0.5 or brighter is to be drawn.
        pixels: (N, C, Y, X) the pictures.
        size: (h, w).

    Raises:
        ValueError: A mask of another size than its picture, or none or too many of them.
    """
    masks = (read_pictures(mask_image, 1, "mask_image") >= 0).float()  # of [-1, 1]
    if masks.shape[2:] != pixels.shape[2:] or len(masks) not in (1, len(pixels)):
        height, width = pixels.shape[2:]
        raise ValueError(
            f"`mask_image` has {len(masks)} of {masks.shape[3]}x{masks.shape[2]} px for {len(pixels)} "
            f"pictures of {width}x{height} px; give one for all or one for each, of the same size."
        )
    return interpolate(masks, size=size)


def _coarsest(config: Any) -> int:
    """The denoiser's own steps: patches, or halvings that do not round."""
    if "patch_size" in config:
        return config["patch_size"]
    # `UNet2DConditionModel` rounds sizes up on its way down and cuts them on its way up
    return 1 if "cross_attention_dim" in config else 2 ** (len(config["block_out_channels"]) - 1)


def _as_tensor(image: Any, channels: int, name: str) -> Tensor:
    """(N, C, Y, X) as they are, PIL images in [0, 1]."""
    if isinstance(image, Tensor):
        return image.float()
    if isinstance(image, np.ndarray):
        array = torch.from_numpy(image).float()
        return array.movedim(-1, 1) if array.ndim == 4 else array
    pictures: Sequence[Any] = [image] if isinstance(image, Image.Image) else list(image)
    others = sorted({type(picture).__name__ for picture in pictures if not isinstance(picture, Image.Image)})
    if others or not pictures:
        raise TypeError(
            f"`{name}` must be PIL images, an array or a tensor, got {', '.join(others) or 'an empty list'}."
        )
    mode, colours = MODES.get(channels, ("", f"{channels} channels"))
    sizes, modes = sorted({picture.size for picture in pictures}), sorted({p.mode for p in pictures})
    if len(sizes) > 1 or modes not in ([mode], ["1"] if channels == 1 else [mode]):
        raise ValueError(
            f"`{name}` has the sizes {sizes} px and the modes {modes}, the pipeline draws one size in "
            f"{colours}; resize them, and convert them (`convert({mode!r})`)."
        )
    arrays = [np.asarray(p.convert(mode), dtype=np.float32) / 255 for p in pictures]
    return torch.from_numpy(np.stack([a.reshape(*a.shape[:2], channels) for a in arrays])).movedim(-1, 1)
