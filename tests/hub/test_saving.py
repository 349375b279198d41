"""A save that fails or is killed costs nothing that was there before."""

import errno
import os
import signal
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers.modeling_utils
from fresh_forks import FRESH_FORKS

import hf_mm.hub.saving
from hf_mm import MMViTConfig, MMViTModel
from hf_mm.hub.saving import atomic_folder, atomic_write

SIZES = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 8}
CONFIG = MMViTConfig(image_size=16, patch_size=8, **SIZES)


def model(fill: float) -> MMViTModel:
    new = MMViTModel(CONFIG)
    for weight in new.parameters():
        weight.data.fill_(fill)
    return new


def save_and_stop(folder: Path, moment: str) -> None:
    """What a process does that is killed while it saves; it says when."""

    def stop(*args, **kwargs):
        (folder / "reached").touch()
        time.sleep(60)

    def stop_in_the_middle(tensors, filename, **kwargs):
        Path(filename).write_bytes(b"half")
        stop()

    if moment.startswith("half"):
        transformers.modeling_utils.safe_save_file = stop_in_the_middle
    else:
        hf_mm.hub.saving._move = stop
    model(2.0).save_pretrained(folder / "model")


def loaded(folder) -> float:
    """What the weights of a saved `model` were filled with."""
    values = {weight.unique().item() for weight in MMViTModel.from_pretrained(folder).parameters()}
    assert len(values) == 1
    return values.pop()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_atomic_write_makes_the_folder_and_keeps_the_suffix(tmp_path):
    with atomic_write(tmp_path / "a" / "grid.png") as temporary:
        assert temporary.suffix == ".png"
        temporary.write_bytes(b"new")
        assert not (tmp_path / "a" / "grid.png").exists()
    assert contents(tmp_path) == {"a/grid.png": b"new"}


def test_atomic_write_that_fails_keeps_the_old_file(tmp_path):
    (tmp_path / "results.json").write_text("old")

    def write():
        with atomic_write(tmp_path / "results.json") as temporary:
            temporary.write_text("half of the n")
            full_disk()

    with pytest.raises(OSError, match="No space left"):
        write()
    assert contents(tmp_path) == {"results.json": b"old"}


def test_atomic_folder_keeps_strangers_and_moves_subfolders(tmp_path):
    (tmp_path / "trainer_state.json").write_text("theirs")
    with atomic_folder(tmp_path) as temporary:
        (temporary / "chat_templates").mkdir()
        (temporary / "chat_templates" / "tool.jinja").write_text("ours")
    assert contents(tmp_path) == {"trainer_state.json": b"theirs", "chat_templates/tool.jinja": b"ours"}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("_")]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "model").write_text("a file")
    with pytest.raises(FileExistsError, match="model"):
        model(1.0).save_pretrained(tmp_path / "model")


@pytest.mark.parametrize("written", [0, 1, 3], ids=lambda n: f"{n} shards written")
def test_full_disk_while_weights_are_written_keeps_the_earlier_save(tmp_path, monkeypatch, written):
    model(1.0).save_pretrained(tmp_path, max_shard_size="1KB")
    before, calls = contents(tmp_path), []

    def save_file(tensors, filename, **kwargs):
        calls.append(filename)
        safetensors.torch.save_file(tensors, filename, **kwargs)
        if len(calls) > written:
            os.truncate(filename, 100)
            full_disk()

    monkeypatch.setattr(transformers.modeling_utils, "safe_save_file", save_file)
    with pytest.raises(OSError, match="No space left"):
        model(2.0).save_pretrained(tmp_path, max_shard_size="1KB")
    assert contents(tmp_path) == before
    assert loaded(tmp_path) == 1.0


def test_full_disk_while_the_config_is_written_keeps_the_earlier_save(tmp_path, monkeypatch):
    model(1.0).save_pretrained(tmp_path)
    before = contents(tmp_path)
    monkeypatch.setattr(MMViTConfig, "to_json_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        CONFIG.save_pretrained(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("moment", ["half of the weights written", "everything written, nothing renamed"])
def test_a_killed_save_keeps_the_earlier_save(tmp_path, moment):
    model(1.0).save_pretrained(tmp_path / "model")
    before = contents(tmp_path / "model")
    child = FRESH_FORKS.Process(target=save_and_stop, args=(tmp_path, moment))
    child.start()
    deadline = time.monotonic() + 120
    while not (tmp_path / "reached").exists() and child.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    child.kill()
    child.join()
    assert (tmp_path / "reached").exists()
    assert child.exitcode == -signal.SIGKILL
    after = contents(tmp_path / "model")
    assert {name: text for name, text in after.items() if not name.startswith("_unfinished-")} == before
    assert loaded(tmp_path / "model") == 1.0
    model(3.0).save_pretrained(tmp_path / "model")  # and the way is free
    assert loaded(tmp_path / "model") == 3.0


@pytest.mark.parametrize(("first", "second"), [("1KB", "50GB"), ("50GB", "1KB"), ("1KB", "2KB")])
def test_weights_of_the_earlier_save_do_not_outlive_the_new_ones(tmp_path, first, second):
    model(1.0).save_pretrained(tmp_path / "again", max_shard_size=first)
    model(2.0).save_pretrained(tmp_path / "again", max_shard_size=second)
    model(2.0).save_pretrained(tmp_path / "fresh", max_shard_size=second)
    assert loaded(tmp_path / "again") == 2.0
    assert contents(tmp_path / "again").keys() == contents(tmp_path / "fresh").keys()


def test_saving_into_the_folder_that_is_loaded_from_keeps_the_weights(tmp_path):
    """The loaded weights may still be read from the file that is written."""
    model(1.0).save_pretrained(tmp_path)
    MMViTModel.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert loaded(tmp_path) == 1.0


def test_a_given_state_dict_is_what_is_saved(tmp_path):
    weights = {name: torch.full_like(weight, 5.0) for name, weight in model(1.0).state_dict().items()}
    model(1.0).save_pretrained(tmp_path, state_dict=weights)
    assert loaded(tmp_path) == 5.0


def test_a_process_that_is_not_the_main_one_writes_nothing(tmp_path):
    model(1.0).save_pretrained(tmp_path)
    before = contents(tmp_path)
    model(2.0).save_pretrained(tmp_path, is_main_process=False)
    assert contents(tmp_path) == before
