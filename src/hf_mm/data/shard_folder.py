"""What a model made of all rows, in a folder of shards: written whole or not at all, and known by its maker.

Codes, latents and states of texts are made once and read in every epoch. `index.json` says whose they are, by
fingerprints, and holds the checksum of each shard; the shards are `.npy` files. A run that was killed goes on
where it stopped.
"""

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..hub.saving import atomic_write

__all__ = ["DTYPES", "ShardFolder", "check_shard_options", "model_fingerprint", "pixels_fingerprint"]

INDEX = "index.json"
FORMAT = 1
DTYPES = {"float32": np.float32, "float16": np.float16}
# Settings of transformers that say how a model was saved, not what it computes.
NO_SETTINGS = ("transformers_version", "architectures", "dtype", "torch_dtype")


@dataclass(frozen=True)
class ShardFolder:
    """Reads and writes one folder.

    Args:
        folder: Where.
        kind: What the shards hold, also the beginning of their names: "codes".
        maker: The function that fills the folder.
        again: What to do when something is broken: "encode the pictures again".
        maker_model: What made them: "tokenizer", which is also the key of its fingerprint in the index.
    """

    folder: Path
    kind: str
    maker: str
    again: str
    maker_model: str

    def index(self) -> dict[str, Any]:
        """What `index.json` says.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is no index of this kind.
        """
        path = self.folder / INDEX
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.folder} has no {self.kind}: it has no {INDEX}; make them by `{self.maker}`."
            )
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            known = index["format"] == FORMAT
            complete = {self.maker_model, "shards", "checksums"} <= set(index) or not known
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is no index of {self.kind} ({type(error).__name__}: {error}); remove {self.folder} "
                f"and {self.again}."
            ) from error
        if not known:
            raise ValueError(f"{path} has the format {index['format']!r}, this version reads {FORMAT}.")
        if not complete:
            raise ValueError(
                f"{path} is no index of {self.kind}: it has {sorted(index)}; name another folder."
            )
        return index

    def begin(self, index: Mapping[str, Any], same: Sequence[str], shards: int) -> dict[str, Any]:
        """The index of what is there, or a new one.

        Args:
            index: What the shards are of, plain numbers and texts; with the fingerprint of the model.
            same: Its keys that must be those of what is there, beside the model.
            shards: How many there will be.

        Raises:
            ValueError: What is there is of something else.
        """
        if not (self.folder / INDEX).is_file():
            return {"format": FORMAT, **index, "shards": shards, "checksums": {}}
        found = self.index()
        self.check_model(found, index[self.maker_model])
        for key in same:
            if found.get(key) != index[key]:
                raise ValueError(
                    f"{self.folder} has {self.kind} of other {key} ({found.get(key)!r:.60}, not "
                    f"{index[key]!r:.60}); give another folder, or remove this one."
                )
        return found

    def check_model(self, index: Mapping[str, Any], fingerprint: str) -> None:
        """Refuse what another model made.

        Raises:
            ValueError: It is of another model.
        """
        if index[self.maker_model] != fingerprint:
            raise ValueError(
                f"{self.folder} has {self.kind} of another {self.maker_model} "
                f"({index[self.maker_model][:12]}, not {fingerprint[:12]}); a number means another thing "
                "there. Give another folder, or remove this one."
            )

    def check_finished(self, index: Mapping[str, Any]) -> None:
        """Refuse what was left half done.

        Raises:
            ValueError: A shard was never written.
        """
        if missing := self.missing(index):
            raise ValueError(
                f"{self.folder} has {index['shards'] - len(missing)} of {index['shards']} shards: it was not "
                f"finished. Call `{self.maker}` with the same arguments to go on."
            )

    def fill(
        self, index: dict[str, Any], model: Any, make: Callable[[int], np.ndarray], title: str, progress: bool
    ) -> None:
        """Write the shards that are missing, with the model in evaluation mode.

        Args:
            index: Of the folder.
            model: Which makes them.
            make: From the number of a shard to its numbers.
            title: Of the bar.
            progress: Show a bar.
        """
        was_training = model.training
        model.eval()  # a codebook of moving averages would learn from what it encodes
        try:
            for number in tqdm(self.missing(index), title, unit="shard", disable=not progress):
                self.write(number, make(number), index)
        finally:
            model.train(was_training)

    def missing(self, index: Mapping[str, Any]) -> list[int]:
        """The numbers of the shards that are not written yet."""
        return [number for number in range(index["shards"]) if str(number) not in index["checksums"]]

    def write(self, number: int, values: np.ndarray, index: dict[str, Any]) -> None:
        """Write a shard and, after it, the index that knows it."""
        data = io.BytesIO()
        np.save(data, values)
        with atomic_write(self.path(number)) as temporary:
            temporary.write_bytes(data.getvalue())
        index["checksums"][str(number)] = hashlib.sha256(data.getvalue()).hexdigest()
        with atomic_write(self.folder / INDEX) as temporary:
            temporary.write_text(json.dumps(index, indent=1), encoding="utf-8")

    def read(self, number: int, index: Mapping[str, Any], mapped: bool = False) -> np.ndarray:
        """A shard, after its checksum was compared.

        Args:
            number: Of the shard.
            index: Of the folder.
            mapped: Leave the numbers on the disk, which the system reads when they are asked for.

        Raises:
            FileNotFoundError: It is missing.
            ValueError: It is damaged.
        """
        path = self.path(number)
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; remove {self.folder} and {self.again}.")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != index["checksums"][str(number)]:
            raise ValueError(
                f"{path} is damaged: its checksum is not the one in {INDEX}. Remove {self.folder} and "
                f"{self.again}."
            )
        return np.load(path, mmap_mode="r" if mapped else None)

    def path(self, number: int) -> Path:
        """Where a shard is."""
        return self.folder / f"{self.kind.replace(' ', '-')}-{number:05}.npy"


def check_shard_options(dtype: str, shard_size: int, batch_size: int) -> None:
    """Refuse what no shard can be written with.

    Raises:
        ValueError: Says what is wrong.
    """
    if dtype not in DTYPES:
        raise ValueError(f"`dtype`={dtype!r} must be one of {', '.join(DTYPES)}.")
    if shard_size < 1 or batch_size < 1:
        raise ValueError(f"`shard_size`={shard_size} and `batch_size`={batch_size} must be at least 1.")


def model_fingerprint(model: Any) -> str:
    """A name for the weights and the settings of a model of diffusers or transformers."""
    config = model.config if isinstance(model.config, Mapping) else model.config.to_dict()
    settings = {
        name: value for name, value in config.items() if not name.startswith("_") and name not in NO_SETTINGS
    }
    digest = hashlib.sha256(f"{type(model).__name__} {sorted(settings.items())}".encode())
    for name, weight in sorted(model.state_dict().items()):
        weight = weight.detach().cpu().contiguous()
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.view(-1).view(torch.uint8).numpy().tobytes() if weight.numel() else b"")
    return digest.hexdigest()


def pixels_fingerprint(pixels: torch.Tensor) -> str:
    """A name for pictures (N, C, S, S), uint8."""
    return hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()
