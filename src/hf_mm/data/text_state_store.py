"""The states of all texts, made once and kept on the disk: one row for each distinct text.

A text encoder that does not learn says the same of a text in every epoch. So each distinct text is encoded
once, the empty one among them, which stands for no condition (Ho and Salimans 2022, "Classifier-Free
Diffusion Guidance", https://arxiv.org/abs/2207.12598).

A store is a folder of shards, see `shard_folder.py`: `text-states-*.npy`.

Shapes: U distinct texts, B of a batch, L tokens, D width of the text encoder.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..generators.diffusion.denoising_call import encode_text
from ..generators.diffusion.text_states import prompt_tokens, text_context
from .shard_folder import DTYPES, ShardFolder, check_shard_options, model_fingerprint

__all__ = ["TextStateStore", "extract_text_states"]


class TextStateStore:
    """The states of the texts of a folder.

        states = extract_text_states(text_encoder, tokenizer, captions, "states")
        states(["a red apple", ""])  # (2, L, D), and their mask (2, L)

    Args:
        folder: Of the store.
        text_encoder: The model whose states they must be; by default any.

    Raises:
        FileNotFoundError: There is no store, or a shard is missing.
        ValueError: The store is not complete, a shard is damaged, or another text encoder made it.
    """

    def __init__(self, folder: str | Path, text_encoder: Any = None) -> None:
        shards = _shards_of(folder)
        index = shards.index()
        if text_encoder is not None:
            shards.check_model(index, model_fingerprint(text_encoder))
        shards.check_finished(index)
        self.folder = Path(folder)
        self.full_length: bool = index["full_length"]
        self._places = {text: number for number, text in enumerate(index["texts"])}
        self._lengths = torch.tensor(index["lengths"])
        self._rows_of_a_shard: int = index["shard_size"]
        self._shards = [shards.read(number, index, mapped=True) for number in range(index["shards"])]

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, text: object) -> bool:
        return text in self._places

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The states (B, L, D) float32 of some texts, and their mask (B, L), 0 on padding.

        L is that of the longest of them, or the context where padding is read.

        Raises:
            KeyError: A text is not there.
        """
        for text in texts:
            if text not in self._places:
                raise KeyError(
                    f"{self.folder} has no states of {text!r:.80} among its {len(self)} texts; encode it by "
                    "`extract_text_states` with all texts, in another folder."
                )
        places = [self._places[text] for text in texts]
        lengths = self._lengths[places]
        longest = int(lengths.max())
        found = [divmod(place, self._rows_of_a_shard) for place in places]
        states = np.stack([self._shards[shard][row][:longest] for shard, row in found])
        mask = torch.arange(longest) < lengths[:, None]
        return torch.from_numpy(states.astype(np.float32)), mask.long()


def extract_text_states(
    text_encoder: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    folder: str | Path,
    full_length: bool = False,
    batch_size: int = 64,
    shard_size: int = 1024,
    dtype: str = "float32",
    progress: bool = True,
) -> TextStateStore:
    """Encode each distinct text and the empty one, or read what was encoded before.

    Args:
        text_encoder: Any of transformers' with a `last_hidden_state`.
        tokenizer: Its own; what is beyond the context is cut off and reported, as in drawing.
        texts: In any order, any number of times.
        folder: Of the store; what is there is used, what is missing is made.
        full_length: Pad all texts to the context, and give the encoder no mask, for denoisers that read
            padding, as Stable Diffusion's does.
        batch_size: Texts that the encoder is given at once.
        shard_size: Texts of a shard.
        dtype: Of the numbers on the disk, "float32" or "float16".
        progress: Show a bar.

    Returns:
        The states.

    Raises:
        ValueError: The folder holds states of another encoder or tokenizer, of other texts or numbers; or a
            shard is damaged.
    """
    check_shard_options(dtype, shard_size, batch_size)
    distinct = sorted({"", *texts})
    context = text_context(tokenizer, text_encoder)
    ids, mask = prompt_tokens(tokenizer, distinct, context, full_length)  # (U, L)
    mask = torch.ones_like(mask) if full_length else mask
    shards = _shards_of(folder)
    new = {
        "text encoder": model_fingerprint(text_encoder),
        "texts": distinct,
        "tokens": hashlib.sha256(ids.numpy().tobytes()).hexdigest(),
        "lengths": mask.sum(1).tolist(),
        "full_length": full_length,
        "shard_size": shard_size,
        "dtype": dtype,
    }
    same = ("texts", "tokens", "full_length", "shard_size", "dtype")
    index = shards.begin(new, same, -(-len(distinct) // shard_size))

    def make(number: int) -> np.ndarray:
        some = slice(number * shard_size, (number + 1) * shard_size)
        parts = zip(ids[some].split(batch_size), mask[some].split(batch_size), strict=True)
        states = torch.cat([_states(text_encoder, *part, full_length) for part in parts])
        return states.numpy().astype(DTYPES[dtype])

    shards.fill(index, text_encoder, make, "Encoding texts", progress)
    return TextStateStore(folder)


@torch.no_grad()
def _states(text_encoder: Any, ids: Tensor, mask: Tensor, full_length: bool) -> Tensor:
    """(B, L, D)."""
    device = text_encoder.device
    given = None if full_length else mask.to(device)
    return encode_text(text_encoder, ids.to(device), given).float().cpu()


def _shards_of(folder: str | Path) -> ShardFolder:
    return ShardFolder(
        Path(folder), "text states", "extract_text_states", "encode the texts again", "text encoder"
    )
