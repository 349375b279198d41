"""Writing a store of regions: by several processes at once, killed and begun again as often as may be.

Each process writes shards of its own under its own number. A shard takes its name when it is whole and on the
disk (`atomic_write`), then it is entered in the index, under a lock that dies with its holder. A process
that is killed between the two leaves a whole shard that is not entered yet: the next writer enters it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from ..hub.saving import UNFINISHED, atomic_write
from ..imaging.box_shares import box_shares
from .region_shards import RegionShard, StoredRegions, save_shard
from .region_store import FORMAT, INDEX, index_lock, open_shard, read_index, write_index

__all__ = ["RegionStoreWriter"]

DTYPES = {"float32": torch.float32, "float16": torch.float16}
RESERVED = ("offsets", "checksums")


class RegionStoreWriter:
    """Add the regions of images to a store, which is begun or continued.

        with RegionStoreWriter("regions", feature_size=2048, detector="facebook/detr-resnet-50") as writer:
            for image_id in ids:
                if image_id not in writer:
                    writer.add(image_id, extract(image_id))

    Several processes may write one store: each takes its own `writer` and its own share of the images.

    Args:
        folder: Of the store.
        feature_size: Width of the features.
        detector: What the regions are of, such as the detector's id; readers may insist on it.
        dtype: Of features and distributions on the disk, "float32" or "float16", which takes half of the room
            and rounds to three digits. All else is stored as it is.
        box_format: What `add` is given: boxes as "shares" of the image, or in "pixels" with `image_size`.
        writer: Number of this process among those that write.
        images_per_shard: So many images are held in memory before they are written; what a killed process
            held is lost and not in the store.

    Raises:
        ValueError: The store has another width, detector or type, or another process writes as `writer`.
    """

    def __init__(
        self,
        folder: str | Path,
        feature_size: int,
        detector: str,
        dtype: Literal["float32", "float16"] = "float32",
        box_format: Literal["shares", "pixels"] = "shares",
        writer: int = 0,
        images_per_shard: int = 512,
    ) -> None:
        if dtype not in DTYPES or box_format not in ("shares", "pixels"):
            raise ValueError(
                f"`dtype`={dtype!r} must be one of {sorted(DTYPES)}, `box_format`={box_format!r} 'shares' or "
                "'pixels'."
            )
        if feature_size < 1 or writer < 0 or images_per_shard < 1:
            raise ValueError(
                f"`feature_size`={feature_size} and `images_per_shard`={images_per_shard} must be at least "
                f"1, `writer`={writer} at least 0."
            )
        self.folder, self.box_format, self.images_per_shard = Path(folder), box_format, images_per_shard
        self._about: dict[str, Any] = {"feature_size": feature_size, "detector": detector, "dtype": dtype}
        self._columns: dict[str, str] | None = None
        self._ids: dict[str, str] = {}  # of images that are in the index, with their shards
        self._read: set[str] = set()  # shards whose ids are among these
        self._held: dict[str, StoredRegions] = {}
        self._own = self.folder / f"writer-{writer:05d}"
        self._own.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._own / ".lock")
        self._take_number(writer)
        try:
            self._enter_all()
        except BaseException:
            self._lock.release()
            raise

    def _take_number(self, writer: int) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"Another process writes to {self.folder} as `writer`={writer}; give each process a "
                "number of its own."
            ) from None
        for left in self._own.glob(f"{UNFINISHED}*"):  # of a process that was killed
            left.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Images in the store, as far as this process knows, and those it holds."""
        return len(self._ids) + len(self._held)

    def __contains__(self, image_id: object) -> bool:
        return str(image_id) in self._ids or str(image_id) in self._held

    def add(self, image_id: str | int, regions: Mapping[str, Any]) -> None:
        """Add the regions of one image.

        Args:
            image_id: What the image is found by; 7 and "7" are the same.
            regions: `boxes` (r, 4) and `features` (r, F), `image_size` (width, height) in pixels where it is
                known, `tags` (r words), the name of the `detector` if it is to be compared, and any other
                arrays of r rows, such as `scores` (r,), `labels` (r,) or `class_scores` (r, C). All images
                have the same ones.

        Raises:
            ValueError: There are no regions, a value is not finite, a box is not in its image, something has
                another shape than in the images before, or the image is in the store. Image, region and value
                are named.
        """
        image_id = str(image_id)
        if image_id in self:
            where = self._ids.get(image_id, "this process")
            raise ValueError(
                f"Image {image_id!r} is in the store, in {where}; leave out what `in` says is there."
            )
        stored = self._checked(f"Image {image_id!r}", image_id, regions)
        columns = _kinds(stored)
        if self._columns is None:
            self._columns = columns
        if columns != self._columns:
            raise ValueError(
                f"Image {image_id!r} has the columns {columns}, the images before have {self._columns}; all "
                "images of a store have the same."
            )
        self._held[image_id] = stored
        if len(self._held) >= self.images_per_shard:
            self.flush()

    def flush(self) -> None:
        """Write the images that are held as a shard.

        Raises:
            ValueError: Another process has added one of them; none is then written.
        """
        if not self._held:
            return
        images, self._held = list(self._held.values()), {}
        number = max((int(path.stem) for path in self._own.glob("[0-9]*.safetensors")), default=-1) + 1
        path = self._own / f"{number:05d}.safetensors"
        with atomic_write(path) as temporary:
            save_shard(temporary, images, {**self._about, "columns": self._columns})
        try:
            self._enter_all()
        except ValueError:
            path.unlink()
            raise

    def close(self) -> None:
        """Write what is held, and let others write under this number."""
        try:
            self.flush()
        finally:
            self._lock.release()

    def _enter_all(self) -> None:
        """Enter all shards in the index that are not there, and learn what others have entered."""
        with index_lock(self.folder):
            fresh: dict[str, Any] = {"format": FORMAT, **self._about, "columns": {}, "shards": {}}
            index = read_index(self.folder) if (self.folder / INDEX).exists() else fresh
            self._check_same(index)
            self._columns = self._columns or index["columns"] or None
            for name in self._unread(index):
                entry = index["shards"].get(name)
                if entry is None:
                    shard = RegionShard(self.folder / name, f"The shard {self.folder / name}")
                    self._check_same(shard.about)
                    entry = index["shards"][name] = shard.entry()
                    self._columns = index["columns"] = shard.about["columns"]
                else:
                    shard = open_shard(self.folder, name, entry)
                self._learn(name, shard.ids)
            write_index(self.folder, index)

    def _unread(self, index: Mapping[str, Any]) -> list[str]:
        """Shards that are in the index or on the disk, first those in the index, its own last.

        If two processes have added an image, the one that comes later is so told.
        """
        found = {
            path.relative_to(self.folder).as_posix()
            for path in self.folder.glob("writer-*/[0-9]*.safetensors")
        }

        def order(name: str) -> tuple[bool, bool, str]:
            return name not in index["shards"], (self.folder / name).parent == self._own, name

        return sorted((found | set(index["shards"])) - self._read, key=order)

    def _learn(self, name: str, ids: list[str]) -> None:
        for image_id in ids:
            other = self._ids.get(image_id, name)
            if other != name:
                raise ValueError(
                    f"Image {image_id!r} of {name} is in {other}, too, which another process wrote; give "
                    "each process images of its own."
                )
        self._ids.update(dict.fromkeys(ids, name))
        self._read.add(name)

    def _check_same(self, found: Mapping[str, Any]) -> None:
        wrong = [key for key, value in self._about.items() if found[key] != value]
        if wrong:
            key = wrong[0]
            raise ValueError(
                f"The store {self.folder} has `{key}`={found[key]!r}, not {self._about[key]!r}; write into "
                "another folder."
            )
        if self._columns and found["columns"] and found["columns"] != self._columns:
            raise ValueError(
                f"The store {self.folder} has the columns {found['columns']}, these images have "
                f"{self._columns}; all images of a store have the same."
            )

    def _checked(self, name: str, image_id: str, regions: Mapping[str, Any]) -> StoredRegions:
        for key in ("boxes", "features"):
            if regions.get(key) is None:
                raise ValueError(f"{name} has no `{key}`, only {sorted(regions)}.")
        detector = regions.get("detector", self._about["detector"])
        if detector != self._about["detector"]:
            raise ValueError(
                f"{name} has regions of the detector {detector!r}, the store is of "
                f"{self._about['detector']!r}; write them into another store."
            )
        arrays = {
            key: _tensor(value, f"{name}, `{key}`")
            for key, value in regions.items()
            if key not in ("boxes", "image_size", "tags", "detector") and value is not None
        }
        size = _size(regions.get("image_size"), name)
        boxes = box_shares(regions["boxes"], size, self.box_format, name)
        count, wanted = len(boxes), self._about["feature_size"]
        for key, array in arrays.items():
            shape = (count, wanted) if key == "features" else (count, *array.shape[1:2])
            if tuple(array.shape) != shape or key in RESERVED:
                raise ValueError(f"{name}: `{key}` must be {shape}, got {tuple(array.shape)}; {_hint(key)}.")
        tags = regions.get("tags")
        if tags is not None and (len(tags) != count or not all(isinstance(tag, str) for tag in tags)):
            raise ValueError(
                f"{name} has the `tags` {list(tags)!r:.200}; give a word for each of its {count} regions."
            )
        columns = {key: self._as_stored(key, array, name) for key, array in arrays.items()}
        columns["boxes"] = boxes
        return StoredRegions(image_id, columns, size or (0, 0), None if tags is None else list(tags))

    def _as_stored(self, key: str, array: Tensor, name: str) -> Tensor:
        if not array.is_floating_point():
            return array.long()
        if not array.isfinite().all():
            row = int((~array.isfinite()).reshape(len(array), -1).any(1).nonzero()[0])
            raise ValueError(f"{name}, region {row}: `{key}` has a value that is not finite.")
        kept = array.to(DTYPES[self._about["dtype"]] if array.dim() == 2 else torch.float32)
        if not kept.isfinite().all():
            raise ValueError(
                f"{name}: `{key}` has {float(array.abs().max()):.4g}, more than {kept.dtype} holds; store "
                "float32."
            )
        return kept


def _tensor(value: Any, name: str) -> Tensor:
    try:
        array = torch.as_tensor(value if isinstance(value, Tensor) else np.array(value)).detach().cpu()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is no array of numbers ({error}).") from error
    if array.dim() not in (1, 2) or array.is_complex() or array.dtype == torch.bool:
        raise ValueError(
            f"{name} is {tuple(array.shape)} of {array.dtype}; give numbers with a row for each region."
        )
    return array


def _size(size: Any, name: str) -> tuple[int, int] | None:
    if size is None:
        return None
    width, height = (int(side) for side in size)
    if width < 1 or height < 1:
        raise ValueError(f"{name} has the `image_size` {(width, height)}; give width and height in pixels.")
    return width, height


def _hint(key: str) -> str:
    if key == "features":
        return "features of another width are of another detector"
    return "choose another name" if key in RESERVED else "give a row for each region"


def _kinds(stored: StoredRegions) -> dict[str, str]:
    """What each column is, as words: "float16 x 2048", "int64", "text"."""
    kinds = {
        key: " x ".join([str(array.dtype).removeprefix("torch."), *map(str, array.shape[1:])])
        for key, array in sorted(stored.columns.items())
    }
    return kinds if stored.tags is None else {**kinds, "tags": "text"}
