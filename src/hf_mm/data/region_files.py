"""Regions that others have extracted: .npz of UNITER, .npy of Pythia, .tsv of bottom-up attention, .h5.

Each reader yields `(image id, regions)`, one image after the other, as `RegionStoreWriter.add` takes them:
`boxes` (r, 4) as shares of the image, `features` (r, F), and whatever else is there. Nothing is unpickled but
arrays and plain values: these files come from strangers.

- .npz, one per image: UNITER (https://github.com/ChenRocks/UNITER), with `norm_bb`, `features`, `conf` and
  `soft_labels`; or MCAN (https://github.com/MILVLG/bottom-up-attention.pytorch), with `x`, `bbox`, `image_w`
  and `image_h`.
- .npy, two per image: `NAME.npy` and `NAME_info.npy` of Pythia (https://github.com/facebookresearch/mmf).
- .tsv: bottom-up attention (Anderson et al. 2018, https://github.com/peteanderson80/bottom-up-attention), as
  it is, and with the further columns of ViLBERT or LXMERT; or of OSCAR, whose features end with the boxes.
- .h5: as written by `tsv_to_h5` of https://github.com/hengyuan-hu/bottom-up-attention-vqa.

Shapes: r regions, F width of the features, N images, T regions of all images.
"""

import base64
import binascii
import io
import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["read_region_files", "read_region_h5", "read_region_npy", "read_region_npz", "read_region_tsv"]

Found = Iterator[tuple[str, dict[str, Any]]]

BOTTOM_UP = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
OBJECTS = ("objects_id", "objects_conf", "attrs_id", "attrs_conf")
TSV_COLUMNS = {
    2: ("image_id", "json"),
    3: ("image_id", "num_boxes", "located_features"),
    6: BOTTOM_UP,
    7: (*BOTTOM_UP, "cls_prob"),
    10: ("image_id", "image_h", "image_w", *OBJECTS, *BOTTOM_UP[3:]),
}
INTEGERS = ("objects_id", "attrs_id")
COLUMNS = {
    "conf": "scores",
    "soft_labels": "class_scores",
    "cls_prob": "class_scores",
    "objects_id": "labels",
    "objects": "labels",
    "objects_conf": "scores",
    "attrs_id": "attributes",
    "attrs_conf": "attribute_scores",
}
"""How a store calls what others call otherwise."""


def read_region_files(source: str | Path, **options: Any) -> Found:
    """Regions from a file, or from a folder of .npz or .npy, told by its name.

    Args:
        source: A .tsv, .h5, .hdf5, .npz or .npy file, or a folder.
        **options: Of the reader of that format: `columns` of `read_region_tsv`, `ids` of `read_region_h5`.

    Raises:
        FileNotFoundError: There is nothing at `source`.
        ValueError: No reader knows it; and see the readers.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"There are no regions at {source}; check the path, from {Path.cwd()}.")
    suffixes = {path.suffix for path in source.iterdir()} if source.is_dir() else {source.suffix}
    readers = {
        ".npz": read_region_npz,
        ".npy": read_region_npy,
        ".tsv": read_region_tsv,
        ".h5": read_region_h5,
        ".hdf5": read_region_h5,
    }
    known = sorted(suffixes & set(readers))
    if len(known) != 1 or (source.is_dir() and known[0] not in (".npz", ".npy")):
        raise ValueError(
            f"{source} has {sorted(suffixes)}; give a file of {sorted(readers)}, or a folder of either .npz "
            "or .npy."
        )
    return readers[known[0]](source, **options)


def read_region_npz(source: str | Path) -> Found:
    """Regions of .npz files, one per image; the id of an image is the name of its file.

    Args:
        source: A file, or a folder of them, read in the order of their names.

    Raises:
        ValueError: A file is damaged, or lacks an array; it is named.
    """
    for path in _paths(Path(source), ".npz"):
        arrays = _load(path, lambda path=path: dict(np.load(path, allow_pickle=False)))
        if "norm_bb" in arrays:
            regions = {"boxes": arrays["norm_bb"][:, :4], "features": _need(arrays, "features", path)}
        else:
            features = _need(arrays, "x" if "x" in arrays else "features", path)
            size = (_whole(arrays, "image_w", path), _whole(arrays, "image_h", path))
            # Some of them have turned the features: (F, r).
            count = int(arrays.get("num_bbox", len(features)))
            features = features.T if len(features) != count and features.shape[1] == count else features
            regions = _in_pixels(_need(arrays, "bbox", path), features, size)
        yield path.stem, regions | _others(arrays)


def read_region_npy(source: str | Path) -> Found:
    """Regions of pairs of .npy files, `NAME.npy` with features and `NAME_info.npy` with all else.

    Args:
        source: `NAME.npy`, or a folder of pairs, read in the order of their names.

    Raises:
        FileNotFoundError: There is no `NAME_info.npy`.
        ValueError: A file is damaged, or holds other things than arrays, numbers and texts; it is named.
    """
    for path in _paths(Path(source), ".npy"):
        if path.stem.endswith("_info"):
            continue
        beside = path.with_name(f"{path.stem}_info.npy")
        if not beside.is_file():
            raise FileNotFoundError(f"{path} has no {beside.name} beside it, with the boxes; add it.")
        features = _load(path, lambda path=path: np.load(path, allow_pickle=False))
        info = _load(beside, lambda path=beside: _load_object(path))
        if not isinstance(info, Mapping):
            raise ValueError(f"{beside} holds a {type(info).__name__}, not a dictionary of boxes and sizes.")
        count = int(info.get("num_boxes", len(features)))
        size = (_whole(info, "image_width", beside), _whole(info, "image_height", beside))
        boxes = np.asarray(_need(info, "bbox", beside))[:count]
        yield path.stem, _in_pixels(boxes, features[:count], size) | _others(info, count)


def read_region_tsv(source: str | Path, columns: Sequence[str] | None = None) -> Found:
    """Regions of a .tsv file, an image in each line, arrays in base64.

    Args:
        source: The file.
        columns: Names of the columns, if they are not those of bottom-up attention (6), ViLBERT (7), LXMERT
            (10) or OSCAR (3, or 2 of which the second is JSON).

    Raises:
        ValueError: A line has another number of columns, an array is no base64 or has another size; line,
            image and column are named.
    """
    source = Path(source)
    with source.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            values = line.rstrip("\n").split("\t")
            names = columns or TSV_COLUMNS.get(len(values))
            if names is None or len(names) != len(values):
                raise ValueError(
                    f"{source}, line {number} has {len(values)} columns; "
                    + (f"`columns` names {len(columns)}." if columns else "name them by `columns`.")
                )
            row = dict(zip(names, values, strict=True))
            name = f"{source}, line {number} (image {row.get('image_id')!r})"
            if "json" in row:
                row |= _from_json(row.pop("json"), name)
            yield row["image_id"], _from_row(row, name)


def read_region_h5(source: str | Path, ids: Sequence[str | int] | None = None) -> Found:
    """Regions of an .h5 file with `image_features`, `spatial_features` and, if counts vary, `pos_boxes`.

    Args:
        source: The file.
        ids: Of the images, in the order of the file, which does not know them; by default their numbers.

    Raises:
        ImportError: h5py is missing.
        ValueError: The file lacks an array, or `ids` are another number than its images.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"{source} needs h5py: pip install 'hf-mm[h5]'.") from error
    with _load(Path(source), lambda: h5py.File(source, "r")) as file:
        features = _need(file, "image_features", source)  # (N, r, F) or (T, F)
        places = _need(file, "spatial_features", source)  # (N, r, 4 or more) or (T, 4 or more)
        if features.ndim == 3:
            images = [(number, ...) for number in range(len(features))]
        else:
            images = [slice(int(start), int(end)) for start, end in _need(file, "pos_boxes", source)]
        names = range(len(images)) if ids is None else ids
        if len(names) != len(images):
            raise ValueError(f"{source} has {len(images)} images, `ids` names {len(names)}; name each.")
        for name, image in zip(names, images, strict=True):
            yield str(name), {"boxes": places[image][:, :4], "features": features[image]}


def _paths(source: Path, suffix: str) -> list[Path]:
    return sorted(source.glob(f"*{suffix}")) if source.is_dir() else [source]


def _load(path: Path, load: Any) -> Any:
    try:
        return load()
    except Exception as error:  # what a broken file raises depends on where it broke
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {error}); fetch it again, or leave it out."
        ) from error


def _need(arrays: Mapping[str, Any], key: str, name: object) -> Any:
    if key not in arrays:
        raise ValueError(f"{name} has no `{key}`, only {sorted(arrays)}.")
    return arrays[key]


def _whole(arrays: Mapping[str, Any], key: str, name: object) -> int:
    return int(_need(arrays, key, name))


def _in_pixels(boxes: np.ndarray, features: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
    return {"boxes": boxes[:, :4] / np.array([*size, *size]), "features": features, "image_size": size}


def _others(arrays: Mapping[str, Any], count: int | None = None) -> dict[str, Any]:
    """Scores, classes and attributes, under the names of a store."""
    return {
        name: np.asarray(arrays[key])[:count]
        for key, name in COLUMNS.items()
        if key in arrays and np.ndim(arrays[key])
    }


def _from_json(text: str, name: str) -> dict[str, str]:
    try:
        found = json.loads(text)
        return {"num_boxes": str(found["num_boxes"]), "located_features": found["features"]}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{name} has in its second column {text!r:.60}, not JSON with `num_boxes` and `features`."
        ) from error


def _from_row(row: Mapping[str, str], name: str) -> dict[str, Any]:
    try:
        count = int(row["num_boxes"])
        arrays = {
            key: _from_base64(row[key], count, key, name)
            for key in ("boxes", "features", "located_features", *COLUMNS)
            if key in row
        }
        if "located_features" in arrays:
            both = arrays["located_features"]
            return {"boxes": both[:, -6:-2], "features": both[:, :-6]}
        size = (int(row["image_w"]), int(row["image_h"]))
    except KeyError as error:
        raise ValueError(f"{name} has no column {error}, only {list(row)}; set `columns`.") from error
    except ValueError as error:
        if str(error).startswith(name):
            raise
        raise ValueError(f"{name}: {error}; are these its `columns`, {list(row)}?") from error
    return _in_pixels(arrays["boxes"], arrays["features"], size) | _others(arrays)


def _from_base64(text: str, count: int, key: str, name: str) -> np.ndarray:
    """An array of `count` rows."""
    kind = np.dtype(np.int64 if key in INTEGERS else np.float32)
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{name}: `{key}` is no base64 ({error}); is the line cut short?") from error
    if count < 1 or not data or len(data) % (count * kind.itemsize):
        raise ValueError(
            f"{name}: `{key}` has {len(data)} bytes, which are not {count} rows of {kind}; is the line cut "
            "short?"
        )
    array = np.frombuffer(data, kind).copy().reshape(count, -1)
    return array[:, 0] if array.shape[1] == 1 else array


class _Plain(pickle.Unpickler):
    """Rebuilds arrays and plain values, and runs nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {"_reconstruct", "scalar", "_frombuffer", "ndarray", "dtype", "encode"}
        if module.split(".")[0] in ("numpy", "_codecs") and name in allowed:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it would run {module}.{name}")


def _load_object(path: Path) -> Any:
    """The one object of a .npy file."""
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, kind = read(file)
        data = file.read()
    if not kind.hasobject or shape != ():
        raise ValueError(f"it holds {kind} of {shape}, not one dictionary")
    return _Plain(io.BytesIO(data), encoding="latin1").load().item()
