"""Saving that loses nothing: a file is whole and on the disk before it takes its name.

Saving straight into a folder, as transformers does, leaves half a file under a good name when the disk is
full or the process is killed, and has by then destroyed the file that was there. Here everything is written
under a temporary name in the same folder (so on the same disk) and renamed at the end. The price is the room
for both versions at once. What a killed process leaves behind begins with `_unfinished-`: delete it.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from huggingface_hub import HfApi

__all__ = ["AtomicSaveMixin", "atomic_folder", "atomic_write", "publishing_folder"]

UNFINISHED = "_unfinished-"  # Trainer leaves files that begin with `_` out of what it pushes
# `name-00001-of-00002.safetensors`; beside `name.fp16-00001-of-00002.safetensors` of a variant stands
# `name.safetensors.index.fp16.json`
WEIGHTS_FILE = re.compile(
    r"(?P<stem>.+?)(-\d{5}-of-\d{5})?\.safetensors(\.index(?P<variant>\.[^.]+)?\.json)?"
)


@contextmanager
def atomic_write(path: str | Path) -> Generator[Path]:
    """Write one file so that `path` holds the old content or the new, never a part.

        with atomic_write("results.json") as temporary:
            temporary.write_text(json.dumps(results))

    Args:
        path: The final name; its folder is created when absent.

    Yields:
        A free name in the same folder with the same suffix. It becomes `path` when the block ends, and is
        removed when the block raises.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{UNFINISHED}{uuid4().hex}{path.suffix}")
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: str | Path) -> Generator[Path]:
    """Write several files into `folder`, which change only when all of them are complete.

    Other files of `folder` stay, except weights that the new ones replace under other names: shards of
    another count, their index, or the single file that was there before.

    Args:
        folder: The final place; created when absent.

    Yields:
        An empty folder to write into.

    Raises:
        FileExistsError: `folder` is a file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder))
    try:
        yield temporary
        _move(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move(source: Path, folder: Path) -> None:
    """Rename every file below `source` to the same place below `folder`, once all are on the disk."""
    files = sorted(path for path in source.rglob("*") if path.is_file())
    for path in files:
        _flush(path)
    names = [path.relative_to(source) for path in files]
    for name, path in zip(names, files, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        path.replace(folder / name)
    _remove_replaced_weights(folder, {name.as_posix() for name in names})
    _flush(folder)


def _remove_replaced_weights(folder: Path, saved: set[str]) -> None:
    """Weights of the earlier save: `from_pretrained` prefers one kind of them to newer ones of another."""
    stems = {_weights_stem(name) for name in saved} - {""}
    for parent in {Path(stem).parent for stem in stems}:
        for path in (folder / parent).glob("*.safetensors*"):
            name = (parent / path.name).as_posix()
            if _weights_stem(name) in stems and name not in saved:
                path.unlink()


def _weights_stem(name: str) -> str:
    """What the names of one model's weights have in common; nothing for a file of something else."""
    match = WEIGHTS_FILE.fullmatch(name)
    return match["stem"] + (match["variant"] or "") if match else ""


def _flush(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    if path.is_dir() and os.name != "posix":
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def publishing_folder(folder: str | Path, push_to_hub: bool, options: dict) -> Generator[Path]:
    """`atomic_folder` for a `save_pretrained`: what was saved is then pushed when asked.

    Args:
        folder: The final place.
        push_to_hub: Whether to push the files just saved, and the README beside them.
        options: Keyword arguments of the caller; `repo_id` (by default the name of `folder`),
            `commit_message`, `create_pr`, `private` and `token` are taken out of it.

    Yields:
        An empty folder to write into.
    """
    names = ("repo_id", "commit_message", "create_pr", "private", "token")
    hub = {name: options.pop(name) for name in names if name in options}
    with atomic_folder(folder) as temporary:
        yield temporary
        saved = [path.relative_to(temporary).as_posix() for path in temporary.rglob("*") if path.is_file()]
    if push_to_hub and saved:  # nothing: one of many processes, and not the one that writes
        _push(Path(folder), saved, **hub)


def _push(
    folder: Path,
    names: list[str],
    repo_id: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    private: bool | None = None,
    token: bool | str | None = None,
) -> None:
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id or folder.resolve().name, private=private, exist_ok=True).repo_id
    api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        allow_patterns=[*names, "README.md"],
        commit_message=commit_message or f"Upload {', '.join(names)}",
        create_pr=create_pr,
    )


class AtomicSaveMixin:
    """For models, before `PreTrainedModel`: the earlier save stays until the new one is whole."""

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        push_to_hub: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Save as `PreTrainedModel.save_pretrained` does, with the same arguments.

        Args:
            save_directory: Folder, created when absent.
            is_main_process: Whether this process writes; the others only help to gather sharded weights.
            state_dict: Weights to save instead of the model's own.
            push_to_hub: Also push what was saved, by `repo_id` and the like in `kwargs`.
            *args: All else that the parent's method takes.
            **kwargs: By name.
        """
        save = super().save_pretrained  # ty: ignore[missing-attribute]
        if not is_main_process or kwargs.get("distributed_checkpoint"):  # all processes write one folder
            save(save_directory, is_main_process, state_dict, push_to_hub, *args, **kwargs)
            return
        with publishing_folder(save_directory, push_to_hub, kwargs) as temporary:
            save(temporary, is_main_process, state_dict, False, *args, **kwargs)
