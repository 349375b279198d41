"""One shard of a store of regions: a safetensors file that tells on its own what it holds, and is it whole.

The regions of all its images lie one behind the other, in tensors: `boxes`, `features` and what else the
detector says of each. `offsets` tells where an image begins, `checksums` (CRC-32) what its bytes must add up
to, so that reading one image checks one image. The metadata, which are JSON, hold the ids, the tags and what
the store is; head and tables have a checksum of their own, in the index of the store.

Shapes: N images in the shard, R regions of them in all, r of one image, F width of the features.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["RegionShard", "StoredRegions", "save_shard"]

TABLES = ("offsets", "checksums", "image_size")
FORMAT = "1"


@dataclass(frozen=True)
class StoredRegions:
    """The regions of one image as they are stored.

    Attributes:
        image_id: Of the image.
        columns: Tensors of r rows, by name.
        image_size: Width and height in pixels; zeros where nobody knows.
        tags: The word of each region, or `None`.
    """

    image_id: str
    columns: dict[str, Tensor]
    image_size: tuple[int, int]
    tags: list[str] | None

    def __len__(self) -> int:
        return len(self.columns["boxes"])


def save_shard(path: Path, images: Sequence[StoredRegions], about: Mapping[str, Any]) -> None:
    """Write images that have the same columns into one file.

    Args:
        path: The file, which is overwritten.
        images: At least one.
        about: What the store is; JSON.
    """
    counts = torch.tensor([0, *map(len, images)])
    tensors = {name: torch.cat([image.columns[name] for image in images]) for name in images[0].columns}
    tensors["offsets"] = counts.cumsum(0)  # (N + 1,)
    tensors["image_size"] = torch.tensor([image.image_size for image in images])  # (N, 2)
    tensors["checksums"] = torch.tensor([_checksum(image.columns, image.image_size) for image in images])
    metadata = {
        "hf_mm_regions": FORMAT,
        "about": json.dumps(about, sort_keys=True),
        "ids": json.dumps([image.image_id for image in images]),
    }
    if images[0].tags is not None:
        metadata["tags"] = json.dumps([image.tags for image in images])
    save_file(tensors, path, metadata)


class RegionShard:
    """A shard, open: its head is read, its regions are mapped into memory and read when asked for.

    Args:
        path: The file.
        name: What to call it in errors.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, cut short, or no shard of regions.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self._open()

    def _open(self) -> None:
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.name} is missing; {self.cure}.")
        try:
            self._file = safe_open(self.path, "pt")
            metadata = self._file.metadata() or {}
            if metadata.get("hf_mm_regions") != FORMAT:
                raise ValueError(
                    f"{self.name} is no shard of regions of format {FORMAT}, its metadata have "
                    f"{sorted(metadata)}; take it away."
                )
            self.about: dict[str, Any] = json.loads(metadata["about"])
            self.ids: list[str] = json.loads(metadata["ids"])
            self._tags = json.loads(metadata["tags"]) if "tags" in metadata else None
            self._tables = {table: self._file.get_tensor(table).clone() for table in TABLES}
            keys = [key for key in self._file.offset_keys() if key not in TABLES]
            self._columns = {key: self._file.get_slice(key) for key in keys}
        except (SafetensorError, UnicodeDecodeError, json.JSONDecodeError, KeyError) as error:
            raise ValueError(
                f"{self.name} is damaged: it cannot be opened ({type(error).__name__}: {error}); {self.cure}."
            ) from error

    @property
    def cure(self) -> str:
        """What to do when the shard is broken."""
        return (
            "fetch it again, or take it out of the store by `drop_broken_shards`, and extract its images anew"
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getstate__(self) -> dict:
        return {"path": self.path, "name": self.name}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open()

    def entry(self) -> dict[str, int]:
        """What the index says of the shard: numbers of images, regions and bytes, and the head's checksum."""
        with self.path.open("rb") as file:
            head = file.read(8)
            head += file.read(int.from_bytes(head, "little"))
        checksum = zlib.crc32(head)
        for table in TABLES:
            checksum = zlib.crc32(self._tables[table].numpy(), checksum)
        return {
            "images": len(self),
            "regions": int(self._tables["offsets"][-1]),
            "bytes": self.path.stat().st_size,
            "checksum": checksum,
        }

    def read(self, row: int) -> dict[str, Any]:
        """The regions of one image, floats in float32.

        Raises:
            ValueError: Its bytes are not those that were written.
        """
        start, end = self._tables["offsets"][row : row + 2].tolist()
        stored = {name: column[start:end] for name, column in self._columns.items()}  # views of the file
        width, height = self._tables["image_size"][row].tolist()
        found, wanted = _checksum(stored, (width, height)), int(self._tables["checksums"][row])
        if found != wanted:
            raise ValueError(
                f"{self.name}, row {row} (image {self.ids[row]!r}) is damaged: its {end - start} regions "
                f"have the checksum {found:08x}, not {wanted:08x}; {self.cure}."
            )
        regions: dict[str, Any] = {
            name: part.to(torch.float32 if part.is_floating_point() else part.dtype, copy=True)
            for name, part in stored.items()
        }
        regions["image_size"] = (width, height) if width else None
        if self._tags is not None:
            regions["tags"] = self._tags[row]
        return regions


def _checksum(columns: Mapping[str, Tensor], image_size: tuple[int, int]) -> int:
    """CRC-32 of what is stored of one image, in the order of the columns' names."""
    checksum = zlib.crc32(repr(image_size).encode())
    for name in sorted(columns):
        checksum = zlib.crc32(columns[name].contiguous().numpy(), checksum)
    return checksum
