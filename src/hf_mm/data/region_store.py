"""Regions of many images on the disk, as a detector found them: written once, read in any order, checked.

A store is a folder: `index.json` says what the regions are (width, detector, columns) and which shards there
are, `writer-*/*.safetensors` are the shards, see `region_shards`. They are written by `RegionStoreWriter`. A
store holds boxes as shares of the image: x1, y1, x2, y2 in 0..1.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..hub.saving import UNFINISHED, atomic_write
from .region_shards import RegionShard

__all__ = ["RegionStore", "drop_broken_shards", "index_lock", "read_index", "write_index"]

INDEX = "index.json"
FORMAT = 1
KINDS = ("feature_size", "detector", "dtype", "columns")


class RegionStore(Mapping[str, dict[str, Any]]):
    """The regions of images by the ids of the images.

        store = RegionStore("regions", feature_size=2048)
        store["a.jpg"]["features"]  # (r, 2048)

    An image is read from the disk when it is asked for, and checked; nothing else is held in memory than ids
    and tables of places. Processes and workers of a `DataLoader` may share a store, forked or pickled.

    Args:
        folder: Of the store.
        feature_size: The width that the features must have; by default any.
        detector: The detector that the regions must be of; by default any.

    Raises:
        FileNotFoundError: There is no store, or a shard is missing; it is named.
        ValueError: Features have another width or are of another detector, a shard is damaged, or an image is
            there twice.
    """

    def __init__(
        self, folder: str | Path, feature_size: int | None = None, detector: str | None = None
    ) -> None:
        self.folder = Path(folder)
        index = read_index(self.folder)
        self.feature_size: int = index["feature_size"]
        self.detector: str = index["detector"]
        self.columns: dict[str, str] = index["columns"]
        self._check_kind(feature_size, detector)
        self._shards = [open_shard(self.folder, name, entry) for name, entry in index["shards"].items()]
        self._places: dict[str, tuple[int, int]] = {}
        for number, shard in enumerate(self._shards):
            for row, image_id in enumerate(shard.ids):
                other = self._places.setdefault(image_id, (number, row))
                if other != (number, row):
                    raise ValueError(
                        f"{shard.name}, row {row} has the image {image_id!r}, which "
                        f"{self._shards[other[0]].name} has, too; take one of them away."
                    )
        self.bytes: int = sum(entry["bytes"] for entry in index["shards"].values())
        self.regions: int = sum(entry["regions"] for entry in index["shards"].values())

    @property
    def bytes_per_image(self) -> float:
        """On the disk, the index aside."""
        return self.bytes / max(1, len(self))

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __contains__(self, image_id: object) -> bool:
        return str(image_id) in self._places

    def __getitem__(self, image_id: str | int) -> dict[str, Any]:
        """The regions of an image.

        Returns:
            `boxes` (r, 4) as shares of the image, `features` (r, F), and what else the detector gave; floats
            in float32. `tags` are a list, `image_size` is (width, height) in pixels or `None`, `detector` the
            store's.

        Raises:
            KeyError: The store has no such image.
            ValueError: The image's bytes are damaged; shard and row are named.
        """
        place = self._places.get(str(image_id))
        if place is None:
            some = ", ".join(repr(name) for name, _ in zip(self._places, range(3), strict=False)) or "none"
            raise KeyError(
                f"{self.folder} has no regions of the image {str(image_id)!r} among its {len(self)} images "
                f"({some}, ...); extract them, or leave the row out."
            )
        return {**self._shards[place[0]].read(place[1]), "detector": self.detector}

    def check(self) -> None:
        """Read all images once.

        Raises:
            ValueError: The bytes of an image are damaged; shard and row are named.
        """
        for shard in self._shards:
            for row in range(len(shard)):
                shard.read(row)

    def _check_kind(self, feature_size: int | None, detector: str | None) -> None:
        if feature_size is not None and feature_size != self.feature_size:
            raise ValueError(
                f"The features in {self.folder} are {self.feature_size} wide (of {self.detector!r}), "
                f"`feature_size`={feature_size} is wanted; extract them with the detector of the model."
            )
        if detector is not None and detector != self.detector:
            raise ValueError(
                f"The regions in {self.folder} are of the detector {self.detector!r}, "
                f"`detector`={detector!r} is wanted; features of one say nothing to a model of the other."
            )


def drop_broken_shards(folder: str | Path) -> dict[str, str]:
    """Take shards that are missing or damaged out of a store, so that their images can be extracted anew.

    Every image is read. No process may write meanwhile.

    Args:
        folder: Of the store.

    Returns:
        What is wrong, by the names of the shards taken out; their files are removed.
    """
    folder = Path(folder)
    broken: dict[str, str] = {}
    with index_lock(folder):
        index = read_index(folder)
        for name, entry in index["shards"].items():
            try:
                shard = open_shard(folder, name, entry)
                for row in range(len(shard)):
                    shard.read(row)
            except (FileNotFoundError, ValueError) as error:
                broken[name] = str(error)
        index["shards"] = {name: entry for name, entry in index["shards"].items() if name not in broken}
        write_index(folder, index)
        for name in broken:
            (folder / name).unlink(missing_ok=True)
    return broken


def open_shard(folder: Path, name: str, entry: Mapping[str, int]) -> RegionShard:
    """A shard that is as its entry in the index says.

    Raises:
        FileNotFoundError: It is missing.
        ValueError: It is not as the index says.
    """
    label = f"The shard {folder / name} of {entry['images']} images"
    shard = RegionShard(folder / name, label)
    found = shard.entry()
    wrong = [key for key in found if found[key] != entry[key]]
    if wrong:
        raise ValueError(
            f"{label} is damaged: its `{wrong[0]}` is {found[wrong[0]]}, not {entry[wrong[0]]} as {INDEX} "
            f"says; {shard.cure}."
        )
    return shard


def index_lock(folder: Path) -> FileLock:
    """What a process holds while it changes the index; the system frees it when the process dies."""
    return FileLock(folder / ".index.lock")


def read_index(folder: Path) -> dict[str, Any]:
    """What `index.json` says.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is no index of a store.
    """
    path = folder / INDEX
    if not path.is_file():
        shards = len(list(folder.glob("writer-*/*.safetensors")))
        if shards:
            raise FileNotFoundError(
                f"{folder} has {shards} shards but no {INDEX}; open it by `RegionStoreWriter` with the same "
                "arguments as before, which makes it anew."
            )
        raise FileNotFoundError(f"{folder} is no store of regions: it has no {INDEX}; check the path.")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if index["format"] != FORMAT:
            raise ValueError(f"{path} has the format {index['format']!r}, this version reads {FORMAT}.")
        missing = [key for key in (*KINDS, "shards") if key not in index]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no index of a store of regions ({type(error).__name__}: {error}); remove it, and "
            "`RegionStoreWriter` makes it anew from the shards."
        ) from error
    if missing:
        raise ValueError(f"{path} lacks {missing}; remove it, and `RegionStoreWriter` makes it anew.")
    return index


def write_index(folder: Path, index: dict[str, Any]) -> None:
    """Replace `index.json`, its shards in the order of their names; only who holds the lock may."""
    for left in folder.glob(f"{UNFINISHED}*"):  # of a process that was killed here
        left.unlink()
    index["shards"] = dict(sorted(index["shards"].items()))
    with atomic_write(folder / INDEX) as temporary:
        temporary.write_text(json.dumps(index, indent=1), encoding="utf-8")
