"""The codes of all pictures, made once and kept on the disk: what a model over codes learns from.

Encoding takes a tokenizer longer than a small transformer's step takes, and the codes of a picture never
change. So pictures are encoded once, each in several views (Sun et al. 2024, section 3.1,
https://arxiv.org/abs/2406.06525, take ten crops), and a run reads numbers.

A store is a folder of shards, see `shard_folder.py`: `codes-*.npy`, uint16 where that is enough.

Shapes: N pictures, V views of each, C channels, S pixels a side, h x w codes, L = h w.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..generators.autoregressive.picture_codes import codebook_size, codes_of_pictures
from .pixel_rows import PixelRows
from .shard_folder import ShardFolder, model_fingerprint, pixels_fingerprint

__all__ = ["ImageCodes", "View", "extract_codes", "picture_views", "seen_pictures"]

View = tuple[bool, int, int]  # mirrored; moved down and right, in pixels


class ImageCodes:
    """The codes of a store, in memory.

        codes = extract_codes(vqvae, rows, "codes/train", picture_views(flip=True, shift_px=2))
        codes[0]  # (V, L)

    Args:
        folder: Of the store.
        vqvae: The tokenizer whose codes they must be; by default any.

    Raises:
        FileNotFoundError: There is no store, or a shard is missing.
        ValueError: The store is not complete, a shard is damaged, or these are codes of another tokenizer.
    """

    def __init__(self, folder: str | Path, vqvae: Any = None) -> None:
        shards = _shards_of(folder)
        index = shards.index()
        if vqvae is not None:
            shards.check_model(index, model_fingerprint(vqvae))
        shards.check_finished(index)
        parts = [_signed(shards.read(number, index)) for number in range(index["shards"])]
        self.codes: Tensor = torch.from_numpy(np.concatenate(parts))
        """(N, V, L), int32 or smaller."""
        self.num_codes: int = index["num_codes"]
        self.code_size: tuple[int, int] = tuple(index["code_size"])
        self.views: list[View] = [tuple(view) for view in index["views"]]

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: Any) -> Tensor:
        """The codes of a picture (V, L), or of several."""
        return self.codes[index].long()


def picture_views(flip: bool = False, shift_px: int = 0) -> list[View]:
    """Ways to see a picture: as it is, moved to each of four corners, and all of these mirrored.

    Args:
        flip: Mirrored too; not where left and right have a meaning.
        shift_px: How far a picture is moved each way; what comes in repeats its edge. 0 moves nothing.

    Raises:
        ValueError: A move below 0.
    """
    if shift_px < 0:
        raise ValueError(f"`shift_px`={shift_px} must be 0 or more; 0 moves nothing.")
    moves = [(0, 0)]
    if shift_px:
        moves += [(down, right) for down in (-shift_px, shift_px) for right in (-shift_px, shift_px)]
    return [(mirrored, *move) for mirrored in ((False, True) if flip else (False,)) for move in moves]


def extract_codes(
    vqvae: Any,
    rows: PixelRows,
    folder: str | Path,
    views: Sequence[View] = ((False, 0, 0),),
    batch_size: int = 256,
    shard_size: int = 4096,
    progress: bool = True,
) -> ImageCodes:
    """Encode every view of every picture, or read what was encoded before.

    Args:
        vqvae: `MMVQAutoencoder`, diffusers' `VQModel`, or what has their `encode`.
        rows: Pictures.
        folder: Of the store; what is there is used, what is missing is made.
        views: See `picture_views`.
        batch_size: Pictures that the tokenizer is given at once.
        shard_size: Pictures of a shard.
        progress: Show a bar.

    Returns:
        The codes, in the order of `rows`.

    Raises:
        ValueError: The folder holds codes of another tokenizer, of other pictures or other views, a shard is
            damaged, or the tokenizer gives codes outside its codebook.
    """
    shards, views = _shards_of(folder), [tuple(view) for view in views]
    new = _new_index(vqvae, rows, views, shard_size)
    index = shards.begin(new, ("pictures", "views", "shard_size"), -(-len(rows) // shard_size))

    def make(number: int) -> np.ndarray:
        part = rows[number * shard_size : (number + 1) * shard_size]
        codes, index["code_size"] = _encode(vqvae, part, views, batch_size)
        return codes

    shards.fill(index, vqvae, make, "Encoding pictures", progress)
    return ImageCodes(folder)


def _new_index(vqvae: Any, rows: PixelRows, views: list[View], shard_size: int) -> dict[str, Any]:
    if shard_size < 1:
        raise ValueError(f"`shard_size`={shard_size} must be at least 1.")
    if not views:
        raise ValueError("`views` is empty; give at least (False, 0, 0), the picture as it is.")
    return {
        "tokenizer": model_fingerprint(vqvae),
        "pictures": pixels_fingerprint(rows.pixels),
        "num_codes": codebook_size(vqvae),
        "views": [list(view) for view in views],
        "shard_size": shard_size,
    }


def _encode(vqvae: Any, rows: PixelRows, views: list[View], batch_size: int) -> tuple[np.ndarray, list[int]]:
    """Codes (n, V, L) of some pictures, and h and w."""
    made: list[Tensor] = []
    shape: list[int] = []
    for start in range(0, len(rows), batch_size):
        pixels = rows[start : start + batch_size].pixel_values()  # (B, C, S, S)
        seen = seen_pictures(pixels, views)  # (B, V, C, S, S)
        codes = codes_of_pictures(vqvae, seen.flatten(0, 1)).cpu()  # (B * V, h, w)
        shape = list(codes.shape[1:])
        made.append(codes.flatten(1).unflatten(0, (-1, len(views))))
    codes, size = torch.cat(made), codebook_size(vqvae)
    if codes.min() < 0 or codes.max() >= size:
        raise ValueError(
            f"The tokenizer gives codes from {int(codes.min())} to {int(codes.max())}, but its codebook ends "
            f"at {size - 1}."
        )
    return codes.numpy().astype(np.uint16 if size <= 2**16 else np.int32), shape


def seen_pictures(pixels: Tensor, views: Sequence[View]) -> Tensor:
    """Every view of pictures (B, C, S, S): (B, V, C, S, S)."""
    return torch.stack([_view(pixels, *view) for view in views], dim=1)


def _view(pixels: Tensor, mirrored: bool, down: int, right: int) -> Tensor:
    """Pictures (B, C, S, S), moved, their edges repeated, then mirrored."""
    side = torch.arange(pixels.shape[-1])
    lines, columns = ((side - by).clamp(0, len(side) - 1) for by in (down, right))
    return pixels[:, :, lines][..., columns.flip(0) if mirrored else columns]


def _signed(codes: np.ndarray) -> np.ndarray:
    """Torch can count with int32, not with uint16."""
    return codes if codes.dtype != np.uint16 else codes.astype(np.int32)


def _shards_of(folder: str | Path) -> ShardFolder:
    return ShardFolder(Path(folder), "codes", "extract_codes", "encode the pictures again", "tokenizer")
