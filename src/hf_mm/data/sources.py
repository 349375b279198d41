"""Where rows come from: a data set of the Hub, a file or folder, or a folder in the JSON format of LLaVA."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset, DatasetDict, IterableDataset, load_dataset, load_from_disk

from .chat import group_by_image

__all__ = ["llava_rows", "load_rows", "open_source"]

FORMATS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
PLACEHOLDER = "<image>"


def load_rows(
    source: str | Path | Dataset | IterableDataset,
    split: str = "train",
    image: str = "image",
    question: str | None = "question",
    answer: str = "answer",
    key: str | None = None,
    image_folder: str | Path | None = None,
) -> list[dict]:
    """Canonical rows of any source, all questions about an image in one row.

    Args:
        source: A data set; an id of the Hub; a parquet, JSON or CSV file; a folder that `load_dataset` or
            `load_from_disk` reads; or a JSON file in LLaVA's format, or the folder it is in.
        split: Of a data set that has several.
        image: Column of the image, or of a list of images.
        question: Column of the question; `None` for captions.
        answer: Column of the answer, or of several answers.
        key: Column that tells images apart; by default their paths or bytes do.
        image_folder: Where the images of a LLaVA file are; by default beside it.

    Raises:
        FileNotFoundError: A path leads nowhere, or an image file is missing.
        ValueError: There are no rows, an unknown column or split, or a faulty row, which is named.
    """
    if not isinstance(source, Dataset | IterableDataset):
        llava = _llava_file(Path(source))
        if llava is not None:
            return list(llava_rows(llava, image_folder))
        source = open_source(str(source), split)
    return group_by_image(source, image, question, answer, key)


def llava_rows(path: str | Path, image_folder: str | Path | None = None) -> Iterator[dict]:
    """Canonical rows of a JSON file in the format of LLaVA, one per entry, in its order.

    An entry is `{"id": ..., "image": "a.jpg", "conversations": [{"from": "human", "value": "<image> What is
    it?"}, {"from": "gpt", "value": "A cat."}]}`; several images are a list, no `image` is a row of text
    only.

    Args:
        path: The file.
        image_folder: What the names of the images start from; by default the file's folder.

    Raises:
        FileNotFoundError: An image file is missing.
        ValueError: There are no entries; turns out of order; an empty answer; or not one "<image>" per
            image. The row is named.
    """
    path = Path(path)
    folder = path.parent if image_folder is None else Path(image_folder)
    entries = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} is empty or no list of entries; there is nothing to learn from.")
    for number, entry in enumerate(entries):
        name = f"Row {number}" + (f" (id {entry['id']!r})" if "id" in entry else "")
        names = entry.get("image") or []
        files = [folder / file for file in ([names] if isinstance(names, str) else names)]
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(
                    f"{name}: there is no image {file}; set `image_folder` to where they are."
                )
        turns = [_turn(name, *item) for item in enumerate(entry.get("conversations") or [])]
        _check_order(name, [turn["role"] for turn in turns])
        asked = sum(part["type"] == "image" for turn in turns for part in turn["content"])
        if asked != len(files):
            raise ValueError(
                f"{name} has {asked} {PLACEHOLDER!r} but {len(files)} images; write one per image."
            )
        yield {"images": [str(file) for file in files], "conversations": [turns]}


def _turn(name: str, number: int, turn: dict) -> dict:
    role, text = ROLES.get(turn.get("from", "")), turn.get("value")
    if role is None or not isinstance(text, str):
        raise ValueError(
            f'{name}, turn {number} needs "from", one of {sorted(ROLES)}, and "value", got {turn}.'
        )
    if role == "assistant" and not text.strip():
        raise ValueError(f"{name}, turn {number} is an empty answer; leave the row out or give one.")
    # The line break after an image is the template's to write.
    parts: list[dict] = []
    for number, piece in enumerate(re.split(rf"{PLACEHOLDER}\n?", text)):
        parts += [{"type": "image"}] if number else []
        parts += [{"type": "text", "text": piece}] if piece else []
    return {"role": role, "content": parts}


def _check_order(name: str, roles: list[str]) -> None:
    asked = roles[1:] if roles[:1] == ["system"] else roles
    for number, role in enumerate(asked, len(roles) - len(asked)):
        due = ("user", "assistant")[(number - len(roles) + len(asked)) % 2]
        if role != due:
            raise ValueError(
                f"{name}, turn {number} is the {role}'s where the {due}'s is due; turns alternate."
            )
    if not asked or asked[-1] != "assistant":
        raise ValueError(f"{name} ends without an answer, after {roles}; leave it out or add one.")


def _llava_file(path: Path) -> Path | None:
    """The JSON file in LLaVA's format that `path` is, or that lies in it."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path] if path.suffix == ".json" else []
    found = [file for file in files if file.is_file() and _is_llava(file)]
    if len(found) > 1:
        raise ValueError(
            f"{path} has several files in LLaVA's format, {[f.name for f in found]}; name one of them."
        )
    return found[0] if found else None


def _is_llava(file: Path) -> bool:
    with file.open(encoding="utf-8") as stream:
        head = stream.read(1 << 16)
    return head.lstrip().startswith("[") and '"conversations"' in head and '"from"' in head


def open_source(source: str, split: str) -> Dataset | IterableDataset:
    """What `load_dataset` or `load_from_disk` makes of an id of the Hub, a file or a folder.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The folder is empty, or has no such split.
    """
    path = Path(source)
    if path.suffix in FORMATS:
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {source}; check the path, from {Path.cwd()}.")
        return load_dataset(FORMATS[path.suffix], data_files=source, split="train")
    if not path.is_dir():
        return load_dataset(source, split=split)
    if not any(path.iterdir()):
        raise ValueError(f"The folder {source} is empty: there is no row to learn from.")
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        opened = load_from_disk(source)
        if not isinstance(opened, DatasetDict):
            return opened
    else:
        opened = load_dataset(source)
    if split not in opened:
        raise ValueError(f"{source} has no split {split!r}; there are {sorted(opened)}.")
    return opened[split]
