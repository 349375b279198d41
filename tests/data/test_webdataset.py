"""Pairs from webdataset tars: each sample once, whoever reads; broken ones skipped, counted and named."""

import functools
import http.server
import io
import json
import logging
import tarfile
import threading

import numpy as np
import pytest
from datasets.distributed import split_dataset_by_node
from PIL import Image
from torch.utils.data import DataLoader

from hf_mm import webdataset_pairs
from hf_mm.data.webdataset import _parts


def _picture(value=0, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(stream, kind)
    return stream.getvalue()


def _write(path, samples):
    """A tar of {key: {extension: bytes}}."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for key, files in samples.items():
            for extension, content in files.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def _tars(folder, counts):
    """Tars of so many good samples each, and all keys."""
    keys = []
    for shard, count in enumerate(counts):
        names = [f"s{shard}-{i:03}" for i in range(count)]
        _write(folder / f"{shard:03}.tar", {n: {"png": _picture(), "txt": n.encode()} for n in names})
        keys += names
    return sorted(keys)


def _keys(rows):
    return [row["key"] for row in rows]


def test_rows_are_pictures_with_captions(tmp_path):
    _write(tmp_path / "a.tar", {"x/1": {"jpg": _picture(255, "JPEG"), "txt": b" a white wall\n"}})
    (row,) = webdataset_pairs(tmp_path)
    assert row["caption"] == "a white wall"
    assert row["key"] == "x/1"
    assert row["shard"] == str(tmp_path / "a.tar")
    assert row["image"].size == (5, 4)
    assert row["image"].getpixel((0, 0)) == (255, 255, 255)


def test_captions_come_from_a_field_of_json_too(tmp_path):
    samples = {
        "1": {"png": _picture(), "json": json.dumps({"title": "a wall", "x": 1}).encode()},
        "2": {"png": _picture(), "json": json.dumps({"title": ["one", " ", "two"]}).encode()},
    }
    _write(tmp_path / "a.tar", samples)
    rows = webdataset_pairs(tmp_path, caption="json.title")
    assert [row["caption"] for row in rows] == ["a wall", ["one", "two"]]


def test_the_extension_of_the_picture_can_be_chosen(tmp_path):
    files = {"depth.png": _picture(1), "PNG": _picture(2), "txt": b"a"}
    _write(tmp_path / "a.tar.gz", {"1": files})
    for extension, value in ((None, 2), ("png", 2), ("depth.png", 1)):
        (row,) = webdataset_pairs(tmp_path, image=extension)
        assert row["image"].getpixel((0, 0))[0] == value


@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (2, 0), (2, 2), (3, 2)])
@pytest.mark.parametrize("counts", [[7], [5, 4, 6], [3, 1, 2, 4, 2, 3, 3, 5]])
def test_every_sample_is_read_once(tmp_path, processes, workers, counts):
    keys = _tars(tmp_path, counts)
    stream = webdataset_pairs(tmp_path, readers=processes * max(workers, 1))
    seen = []
    for rank in range(processes):
        part = split_dataset_by_node(stream, rank, processes)
        loader = DataLoader(part, batch_size=2, num_workers=workers, collate_fn=_keys)
        batches = list(loader)
        assert batches
        seen += [key for batch in batches for key in batch]
    assert sorted(seen) == keys


@pytest.mark.parametrize(("processes", "workers"), [(2, 2), (3, 2)])
def test_every_sample_is_read_once_by_readers_that_were_not_announced(tmp_path, processes, workers):
    keys = _tars(tmp_path, [5, 4, 6])
    seen = []
    for rank in range(processes):
        part = split_dataset_by_node(webdataset_pairs(tmp_path), rank, processes)
        seen += [k for batch in DataLoader(part, 2, num_workers=workers, collate_fn=_keys) for k in batch]
    assert sorted(seen) == keys


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("counts", [[9], [5, 4, 6]])
def test_a_resumed_stream_goes_on_with_the_next_row(tmp_path, processes, counts):
    keys = _tars(tmp_path, counts)
    seen = []
    for rank in range(processes):
        first = split_dataset_by_node(webdataset_pairs(tmp_path, readers=processes), rank, processes)
        rows = iter(first)
        seen += [next(rows)["key"] for _ in range(2)]
        state = json.loads(json.dumps(first.state_dict()))  # as a checkpoint keeps it
        resumed = split_dataset_by_node(webdataset_pairs(tmp_path, readers=processes), rank, processes)
        resumed.load_state_dict(state)
        seen += _keys(resumed)
    assert sorted(seen) == keys


def test_a_resumed_stream_skips_broken_rows_as_before(tmp_path):
    samples = {str(i): {"png": _picture() if i % 3 else b"no", "txt": b"a"} for i in range(9)}
    _write(tmp_path / "a.tar", samples)
    first = webdataset_pairs(tmp_path)
    rows = iter(first)
    before = [next(rows)["key"] for _ in range(3)]
    resumed = webdataset_pairs(tmp_path)
    resumed.load_state_dict(first.state_dict())
    assert before + _keys(resumed) == ["1", "2", "4", "5", "7", "8"]


@pytest.mark.parametrize(("processes", "workers"), [(2, 2), (3, 2)])
def test_skipping_the_batches_that_were_trained_on_resumes_with_workers(tmp_path, processes, workers):
    keys = _tars(tmp_path, [5, 4, 6])
    seen = []
    for rank in range(processes):
        part = split_dataset_by_node(webdataset_pairs(tmp_path, readers=processes * workers), rank, processes)
        trained = [b for b, _ in zip(_load(part, workers), range(2), strict=False)]
        seen += [key for batch in [*trained, *list(_load(part, workers))[2:]] for key in batch]
    assert sorted(seen) == keys


def _load(stream, workers):
    return DataLoader(stream, batch_size=1, num_workers=workers, collate_fn=_keys)


def test_shuffled_epochs_differ_and_lose_nothing(tmp_path):
    keys = _tars(tmp_path, [5, 4, 6])
    stream = webdataset_pairs(tmp_path).shuffle(seed=1, buffer_size=10)
    orders = []
    for epoch in (0, 1):
        stream.set_epoch(epoch)
        orders.append(_keys(stream))
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == keys


@pytest.mark.parametrize("readers", [1, 2, 3, 4, 6, 16])
@pytest.mark.parametrize("tars", [1, 3, 8, 12])
def test_readers_have_as_many_parts_each(tars, readers):
    parts = _parts([f"{i}.tar" for i in range(tars)], readers)
    assert len(parts) % readers == 0
    shares = [sum(1 / count for _, _, count in parts[reader::readers]) for reader in range(readers)]
    assert shares == pytest.approx([tars / readers] * readers)


def test_broken_samples_are_skipped_named_and_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="hf_mm.data.webdataset")
    samples = {
        "good": {"png": _picture(), "txt": b"a"},
        "cut": {"png": _picture()[:40], "txt": b"a"},
        "alone": {"txt": b"a"},
        "blank": {"png": _picture(), "txt": b" \n"},
        "mute": {"png": _picture()},
        "latin": {"png": _picture(), "txt": "Ä".encode("latin-1")},
        "last": {"png": _picture(), "txt": b"b"},
    }
    tar = _write(tmp_path / "a.tar", samples)
    assert _keys(webdataset_pairs(tmp_path)) == ["good", "last"]
    named = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [line.split(":")[0] for line in named] == [
        f"Skipped {key} in {tar}" for key in ("cut", "alone", "blank", "mute", "latin")
    ]
    assert "7 samples read, 2 skipped for their picture and 3 for their caption" in caplog.text


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"title": 3}', b'{"title": []}'])
def test_json_without_a_caption_is_skipped(tmp_path, content):
    _write(tmp_path / "a.tar", {"1": {"png": _picture(), "json": content}})
    assert _keys(webdataset_pairs(tmp_path, caption="json.title")) == []


def test_too_many_broken_samples_stop_the_run(tmp_path):
    samples = {f"k{i:02}": {"png": _picture() if i % 2 else b"no", "txt": b"a"} for i in range(20)}
    _write(tmp_path / "a.tar", samples)
    message = (
        r"9 samples read, 5 skipped for their picture and 0 for their caption, more than `max_broken`=0.4 of "
        r"them; the last was k08 in .*a\.tar: .*cannot be read as an image.* Repair the shards"
    )
    with pytest.raises(ValueError, match=message):
        list(webdataset_pairs(tmp_path, max_broken=0.4, judged_after=10))
    assert len(list(webdataset_pairs(tmp_path, max_broken=0.6, judged_after=10))) == 10


def test_a_wrong_field_for_the_caption_stops_the_run(tmp_path):
    _tars(tmp_path, [20])
    with pytest.raises(ValueError, match=r"11 for their caption.*there is no \.text, only \['png', 'txt'\]"):
        list(webdataset_pairs(tmp_path, caption="text"))


@pytest.mark.parametrize("size", [3100, 2650])  # within the next header, and within a file
def test_tars_that_end_too_soon_are_named(tmp_path, size):
    _tars(tmp_path, [3])
    tar = tmp_path / "000.tar"
    tar.write_bytes(tar.read_bytes()[:size])
    with pytest.raises(
        ValueError, match=r"000\.tar is damaged or cut short after s0-00[01] .*fetch it again"
    ):
        list(webdataset_pairs(tmp_path))


def test_files_that_are_no_tars_are_named(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"x" * 2000)
    with pytest.raises(ValueError, match=r"a\.tar is damaged or cut short after its beginning"):
        list(webdataset_pairs(tmp_path))


def test_patterns_and_lists_name_tars(tmp_path):
    keys = _tars(tmp_path, [2, 2, 2])
    for source in (
        f"{tmp_path}/{{000..002}}.tar",
        f"{tmp_path}/*.tar",
        [tmp_path / "000.tar", f"{tmp_path}/{{001..002}}.tar"],
    ):
        assert _keys(webdataset_pairs(source)) == keys
    with pytest.raises(FileNotFoundError, match=r"no tars at .*/003\.tar; check the path"):
        webdataset_pairs(f"{tmp_path}/{{000..003}}.tar")
    with pytest.raises(FileNotFoundError, match="no tars at"):
        webdataset_pairs(tmp_path / "nowhere")


def test_tars_are_streamed_from_addresses(tmp_path):
    keys = _tars(tmp_path, [3, 3])
    handler = functools.partial(_Silent, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stream = webdataset_pairs(f"http://127.0.0.1:{server.server_port}/{{000..001}}.tar", readers=3)
        assert sorted(_keys(stream)) == keys
        server.shutdown()


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"readers": 0}, r"`readers`=0 must be at least 1"),
        ({"max_broken": 2}, r"`max_broken`=2 is a share"),
        ({"caption": "txt.a"}, r"`caption`='txt.a' must be an extension"),
        ({"caption": "json"}, r"'json' names no field"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        webdataset_pairs(tmp_path, **arguments)
