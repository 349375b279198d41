"""Pictures to codes and back, by any tokenizer: ours, or diffusers' `VQModel`.

Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis", section 3.1
(https://arxiv.org/abs/2012.09841). Ours give `encode(pixels).indices` and `decode_indices(indices)`; the
stock model has the parts for both, but no such methods.

Shapes: B pictures, C channels, Y x X pixels, h x w codes, D width of a codebook vector.
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["codebook_size", "codes_of_pictures", "pictures_of_codes"]


def codebook_size(vqvae: Any) -> int:
    """How many codes a tokenizer knows."""
    return int(vqvae.quantize.n_e if _is_stock(vqvae) else vqvae.num_codes)


@torch.no_grad()
def codes_of_pictures(vqvae: Any, pixel_values: Tensor) -> Tensor:
    """The codes (B, h, w) of pictures (B, C, Y, X) in [-1, 1].

    Raises:
        ValueError: Other channels than the tokenizer reads, or no batch of pictures.
    """
    channels = vqvae.config.in_channels
    if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
        raise ValueError(
            f"`pixel_values` must be (batch, {channels}, height, width) for this tokenizer, got "
            f"{tuple(pixel_values.shape)}."
        )
    encoded = vqvae.encode(pixel_values.to(vqvae.device, vqvae.dtype))
    if not _is_stock(vqvae):
        return encoded.indices
    batch, _, height, width = encoded.latents.shape
    indices = vqvae.quantize(encoded.latents)[2][2]  # (B * h * w,)
    return indices.reshape(batch, height, width)


def pictures_of_codes(vqvae: Any, codes: Tensor) -> Tensor:
    """The pictures (B, C, Y, X), about in [-1, 1], of codes (B, h, w).

    Raises:
        ValueError: No batch of codes, or one is outside the codebook; its place is named.
    """
    if codes.ndim != 3:
        raise ValueError(f"`codes` must be (batch, height, width), got {tuple(codes.shape)}.")
    size = codebook_size(vqvae)
    outside = ((codes < 0) | (codes >= size)).nonzero()
    if len(outside):
        place = outside[0].tolist()
        raise ValueError(
            f"`codes`{place} is {int(codes[tuple(place)])} but the codebook ends at {size - 1}; these are "
            "codes of another tokenizer, or tokens that are no codes."
        )
    codes = codes.to(vqvae.device)
    if not _is_stock(vqvae):
        return vqvae.decode_indices(codes).sample
    shape = (*codes.shape, vqvae.quantize.vq_embed_dim)
    latents = vqvae.quantize.get_codebook_entry(codes.flatten(), shape)  # (B, D, h, w)
    spatial = latents if vqvae.config.norm_type == "spatial" else None
    return vqvae.decoder(vqvae.post_quant_conv(latents), spatial)


def _is_stock(vqvae: Any) -> bool:
    return not hasattr(vqvae, "decode_indices")
