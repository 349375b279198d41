"""The latents of all pictures, made once and kept on the disk: what latent diffusion learns from.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", section 3.1
(https://arxiv.org/abs/2112.10752): the autoencoder stays as it is while the denoiser learns. So its work can
be done once. Of a posterior its mean and its deviation are kept, and each epoch draws anew.

A store is a folder of shards, see `shard_folder.py`: `latents-*.npy`, which the system reads as they are
asked for, so that a store may be larger than the memory.

Shapes: N pictures, B of a batch, V views of each, M moments (mean, or mean and deviation), C channels, S
pixels a side; c channels and y x x places of latents.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..generators.diffusion.scaled_latents import latent_moments
from .image_codes import View, seen_pictures
from .pixel_rows import PixelRows
from .shard_folder import DTYPES, ShardFolder, check_shard_options, model_fingerprint, pixels_fingerprint

__all__ = ["LatentStore", "extract_latents", "load_autoencoder"]


class LatentStore:
    """The latents of a folder, scaled to about unit variance.

        latents = extract_latents(vae, rows, "latents/train", picture_views(flip=True))
        latents[0]  # (V, M, c, y, x)

    Args:
        folder: Of the store.
        vae: The autoencoder whose latents they must be; by default any.

    Raises:
        FileNotFoundError: There is no store, or a shard is missing.
        ValueError: The store is not complete, a shard is damaged, or another autoencoder made it.
    """

    def __init__(self, folder: str | Path, vae: Any = None) -> None:
        shards = _shards_of(folder)
        index = shards.index()
        if vae is not None:
            shards.check_model(index, model_fingerprint(vae))
        shards.check_finished(index)
        self.views: list[View] = [tuple(view) for view in index["views"]]
        self.latent_size: tuple[int, int, int] = tuple(index["latent_size"])
        """c, y, x."""
        self._rows_of_a_shard: int = index["shard_size"]
        self._shards = [shards.read(number, index, mapped=True) for number in range(index["shards"])]
        self._count = sum(len(shard) for shard in self._shards)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tensor:
        """Mean and deviation of each view of a picture: (V, M, c, y, x); M is 1 without deviations."""
        number = range(self._count)[index]  # an IndexError where a list would raise it
        shard, row = divmod(number, self._rows_of_a_shard)
        return torch.from_numpy(self._shards[shard][row].astype(np.float32))


def load_autoencoder(place: str | Path, codes: bool = False) -> Any:
    """An autoencoder for its latents or its codes, alone or out of a pipeline.

    Args:
        place: Folder or Hub id of the autoencoder, or folder of a pipeline that has one.
        codes: It is to have a codebook.

    Raises:
        FileNotFoundError: There is none.
        ValueError: There is another kind of model.
    """
    from diffusers import AutoModel

    folder, given = Path(place), f"`{'tokenizer' if codes else 'vae'}`={str(place)!r}"
    kind = "a model with a codebook" if codes else "an autoencoder"
    train_one = f"train one by `hf-mm train autoencoder --model {'vq' if codes else 'vae'}`."
    options = {"subfolder": "vae"} if (folder / "model_index.json").is_file() else {}
    if folder.is_dir() and not (folder / options.get("subfolder", "") / "config.json").is_file():
        raise FileNotFoundError(f"{given} is a folder without {kind}; {train_one}")
    try:
        model: Any = AutoModel.from_pretrained(str(place), **options)
    except (OSError, ValueError) as error:
        if folder.is_dir():
            raise
        raise FileNotFoundError(
            f"{given}: there is no such folder, and the Hub gives no such model; {train_one}"
        ) from error
    if not hasattr(model, "quantize" if codes else "encode"):
        lacks = "has no codes" if codes else "encodes no pictures"
        raise ValueError(f"{given} is {type(model).__name__}, which {lacks}; {train_one}")
    return model.eval()


def extract_latents(
    vae: Any,
    rows: PixelRows,
    folder: str | Path,
    views: Sequence[View] = ((False, 0, 0),),
    batch_size: int = 64,
    shard_size: int = 4096,
    dtype: str = "float32",
    progress: bool = True,
) -> LatentStore:
    """Encode every view of every picture, or read what was encoded before.

    Args:
        vae: `AutoencoderKL`, `MMVQAutoencoder` or diffusers' `VQModel`; of the first deviations too.
        rows: Pictures.
        folder: Of the store; what is there is used, what is missing is made.
        views: See `picture_views`.
        batch_size: Pictures that the autoencoder is given at once.
        shard_size: Pictures of a shard.
        dtype: Of the numbers on the disk, "float32" or "float16" (half the room).
        progress: Show a bar.

    Returns:
        The latents, in the order of `rows`.

    Raises:
        ValueError: The folder holds latents of another autoencoder, of other pictures, views or numbers; a
            shard is damaged; or the autoencoder gives latents that are not finite.
    """
    check_shard_options(dtype, shard_size, batch_size)
    if not len(rows):
        raise ValueError("`rows` has no pictures; there is nothing to encode.")
    if rows.channels != vae.config.in_channels:
        raise ValueError(
            f"The pictures have {rows.channels} channels, {type(vae).__name__} takes "
            f"{vae.config.in_channels}; train one on such pictures."
        )
    if not views:
        raise ValueError("`views` is empty; give at least (False, 0, 0), the picture as it is.")
    shards = _shards_of(folder)
    new = {
        "vae": model_fingerprint(vae),
        "pictures": pixels_fingerprint(rows.pixels),
        "views": [list(view) for view in views],
        "shard_size": shard_size,
        "dtype": dtype,
    }
    index = shards.begin(new, tuple(new)[1:], -(-len(rows) // shard_size))

    def make(number: int) -> np.ndarray:
        firsts = range(number * shard_size, min((number + 1) * shard_size, len(rows)), batch_size)
        ends = [min(first + batch_size, (number + 1) * shard_size) for first in firsts]
        parts = zip(firsts, ends, strict=True)
        moments = torch.cat([_moments(vae, rows[first:end], views, first) for first, end in parts])
        index["latent_size"] = list(moments.shape[-3:])
        return moments.numpy().astype(DTYPES[dtype])

    shards.fill(index, vae, make, "Encoding pictures", progress)
    return LatentStore(folder)


@torch.no_grad()
def _moments(vae: Any, rows: PixelRows, views: Sequence[View], first: int) -> Tensor:
    """(B, V, M, c, y, x) of some pictures, the first of which has the number `first`."""
    seen = seen_pictures(rows.pixel_values(), views).flatten(0, 1)  # (B * V, C, S, S)
    mean, deviation = (part.float().cpu() for part in latent_moments(vae, seen.to(vae.device)))
    found = torch.stack((mean, deviation), 1) if deviation.any() else mean[:, None]  # (B * V, M, c, y, x)
    if not found.isfinite().all():
        row = int((~found.isfinite().flatten(1).all(1)).nonzero()[0]) // len(views)
        raise ValueError(
            f"The autoencoder gives latents of picture {first + row} that are not finite; check its weights, "
            "or encode in float32."
        )
    return found.unflatten(0, (-1, len(views)))


def _shards_of(folder: str | Path) -> ShardFolder:
    return ShardFolder(Path(folder), "latents", "extract_latents", "encode the pictures again", "vae")
