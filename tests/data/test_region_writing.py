"""Stores of regions survive being killed at any moment, and several processes at once."""

import signal
import time

import numpy as np
import pytest
import torch
from data.regions_tiny import FEATURES, regions, same, write
from fresh_forks import FRESH_FORKS

from hf_mm import RegionStore, RegionStoreWriter


def fill(folder, numbers, writer=0):
    """What a process does that writes: in small shards, so that it can be killed between any two steps."""
    with RegionStoreWriter(folder, FEATURES, "detr", writer=writer, images_per_shard=3) as out:
        for number in numbers:
            if number not in out:
                out.add(number, regions(number))


def start(folder, numbers, writer=0):
    process = FRESH_FORKS.Process(target=fill, args=(folder, numbers, writer))
    process.start()
    return process


def writer(folder, **changes):
    return RegionStoreWriter(folder, **({"feature_size": FEATURES, "detector": "detr"} | changes))


def test_killed_at_any_moment_and_resumed_it_holds_every_image_once(tmp_path):
    """The kills are real ones; what is found then is whole, and nothing that was entered is lost."""
    held = set()
    for kill in range(5):
        shards = len(list(tmp_path.glob("*/[0-9]*.safetensors")))
        process = start(tmp_path, range(10**6))
        while len(list(tmp_path.glob("*/[0-9]*.safetensors"))) < shards + 2:
            assert process.is_alive()
            time.sleep(0.01)
        time.sleep(0.0023 * kill)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        store = RegionStore(tmp_path)
        store.check()
        assert held < set(store)
        held = set(store)
    numbers = range(len(held) + 10)
    assert held.isdisjoint(write(tmp_path, numbers))
    store = RegionStore(tmp_path)
    assert set(store) == {str(number) for number in numbers}
    for number in numbers[:: max(1, len(numbers) // 20)]:
        same(store[number], regions(number))
    assert not list(tmp_path.rglob("_unfinished-*"))


def test_two_processes_write_one_store(tmp_path):
    processes = [start(tmp_path, range(rank, 40, 2), rank) for rank in range(2)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    store = RegionStore(tmp_path)
    assert set(store) == {str(number) for number in range(40)}
    assert {path.parent.name for path in tmp_path.glob("*/*.safetensors")} == {"writer-00000", "writer-00001"}
    for number in range(40):
        same(store[number], regions(number))


def test_others_may_go_on_in_another_number_than_began(tmp_path):
    write(tmp_path, range(0, 10, 2), writer=0)
    write(tmp_path, range(1, 10, 2), writer=3)
    assert write(tmp_path, range(12), writer=0) == ["10", "11"]
    assert set(RegionStore(tmp_path)) == {str(number) for number in range(12)}


def test_a_shard_that_was_not_entered_any_more_is_entered_by_the_next(tmp_path):
    """As a process leaves it that is killed between the two steps; the index itself may be gone, too."""
    write(tmp_path, range(4), images_per_shard=2)
    index = (tmp_path / "index.json").read_bytes()
    write(tmp_path, range(4, 8), images_per_shard=2)
    (tmp_path / "index.json").write_bytes(index)
    (tmp_path / "writer-00000" / "_unfinished-0.safetensors").write_bytes(b"half a")
    assert len(RegionStore(tmp_path)) == 4
    assert write(tmp_path, range(8)) == []
    assert len(RegionStore(tmp_path)) == 8
    assert not list(tmp_path.rglob("_unfinished-*"))
    (tmp_path / "index.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"has 4 shards but no index.json; open it by `RegionStoreWri"
    ):
        RegionStore(tmp_path)
    write(tmp_path, [])
    same(RegionStore(tmp_path)[7], regions(7))


def fill_with(folder, images):
    with writer(folder) as out:
        for image_id, given in images.items():
            out.add(image_id, given)


def test_what_is_held_is_written_when_another_image_is_faulty(tmp_path):
    faulty = {"boxes": np.zeros((0, 4)), "features": np.zeros((0, FEATURES))}
    with pytest.raises(ValueError, match="Image 'none' has no regions; leave it out"):
        fill_with(tmp_path, {0: regions(0), "none": faulty})
    assert list(RegionStore(tmp_path)) == ["0"]


def test_a_number_belongs_to_one_process(tmp_path):
    with (
        writer(tmp_path),
        pytest.raises(ValueError, match=r"Another process writes to .* as `writer`=0; give"),
    ):
        writer(tmp_path)
    writer(tmp_path).close()


def test_an_image_of_two_processes_is_refused_and_the_store_stays_whole(tmp_path):
    with writer(tmp_path, writer=0) as first, writer(tmp_path, writer=1) as second:
        for number in (1, 2):
            first.add(number, regions(number))
        first.flush()
        for number in (2, 3):
            second.add(number, regions(number))
        with pytest.raises(
            ValueError, match=r"Image '2' of writer-00001/00000.safetensors is in writer-00000/00000"
        ):
            second.flush()
        assert 3 not in second
        assert 1 in second
        second.add(3, regions(3))
    assert list(RegionStore(tmp_path)) == ["1", "2", "3"]


def boxes(*rows, **more):
    given = {"boxes": list(rows), "features": np.zeros((len(rows), FEATURES), np.float32)}
    return given | more


GOOD = [0.1, 0.1, 0.5, 0.5]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"boxes": [GOOD]}, r"Image 'a' has no `features`, only \['boxes'\]"),
        (
            boxes(GOOD, [0.5, 0.1, 0.5, 0.9]),
            r"Image 'a', region 1: the box \[0.5, 0.1, 0.5, 0.9\] has no area",
        ),
        (
            boxes([0, 0, 64, 48]),
            r"Image 'a': `boxes` must be .* as shares of the image in 0..1, got a maximum of 64; divide",
        ),
        (boxes([-0.1, 0, 1, 1]), r"Image 'a', region 0: the box \[-0.1, "),
        (boxes(GOOD, [float("nan"), 0, 1, 1]), r"Image 'a', region 1: the box \[nan, "),
        (
            boxes(GOOD, features=np.zeros((1, 7))),
            r"`features` must be \(1, 8\), got \(1, 7\); features of anoth",
        ),
        (boxes(GOOD, features=np.zeros((2, 8))), r"`features` must be \(1, 8\), got \(2, 8\)"),
        (boxes(GOOD, scores=[0.1, 0.2]), r"`scores` must be \(1,\), got \(2,\); give a row for each region"),
        (
            boxes(GOOD, detector="yolos"),
            "regions of the detector 'yolos', the store is of 'detr'; write them",
        ),
        (boxes(GOOD, offsets=[1]), r"`offsets` must be \(1,\), got \(1,\); choose another name"),
        (
            boxes(GOOD, GOOD, scores=[0.1, np.inf]),
            r"Image 'a', region 1: `scores` has a value that is not fin",
        ),
        (boxes(GOOD, names=["cat"]), r"Image 'a', `names` is no array of numbers"),
        (
            boxes(GOOD, scores=[[[0.1]]]),
            r"Image 'a', `scores` is \(1, 1, 1\) of torch.float64; give numbers wi",
        ),
        (
            boxes(GOOD, tags=["cat", "dog"]),
            r"has the `tags` \['cat', 'dog'\]; give a word for each of its 1 reg",
        ),
        (boxes(GOOD, image_size=(0, 48)), r"has the `image_size` \(0, 48\); give width and height"),
    ],
)
def test_regions_that_cannot_be_are_named(given, message, tmp_path):
    with writer(tmp_path) as out, pytest.raises(ValueError, match=message):
        out.add("a", given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (boxes([0, 0, 64, 48]), "has boxes in pixels but no `image_size`"),
        (
            boxes([0, 0, 65, 48], image_size=(64, 48)),
            r"the box \[0, 0, 65, 48\] is not in the image, its 64x48 px",
        ),
        (
            boxes(GOOD, image_size=(64, 48)),
            r"of 64x48 px has boxes up to 0.5 px.*; set `box_format='shares'`",
        ),
    ],
)
def test_pixels_that_cannot_be_are_named(given, message, tmp_path):
    with writer(tmp_path, box_format="pixels") as out, pytest.raises(ValueError, match=message):
        out.add("a", given)


def test_rounding_at_the_border_is_no_fault(tmp_path):
    with writer(tmp_path) as out:
        out.add("a", boxes([-0.00001, 0, 1.00001, 1]))
    assert RegionStore(tmp_path)["a"]["boxes"].tolist() == [[0, 0, 1, 1]]


def test_all_images_have_the_same_columns(tmp_path):
    with writer(tmp_path) as out:
        out.add("a", boxes(GOOD))
        message = (
            r"'b' has the columns .*'scores': 'float32'}, the images before have {'boxes': 'float32 x 4', 'fe"
        )
        with pytest.raises(ValueError, match=message):
            out.add("b", boxes(GOOD, scores=[0.5]))
    with writer(tmp_path) as out, pytest.raises(ValueError, match=message):
        out.add("b", boxes(GOOD, scores=[0.5]))


def test_an_image_is_added_once_and_one_value_too_large_for_float16_is_named(tmp_path):
    with writer(tmp_path, dtype="float16") as out:
        out.add("a", boxes(GOOD))
        with pytest.raises(
            ValueError, match="'a' is in the store, in this process; leave out what `in` says"
        ):
            out.add("a", boxes(GOOD))
        with pytest.raises(
            ValueError, match=r"`features` has 7e\+04, more than torch.float16 holds; store flo"
        ):
            out.add("b", boxes(GOOD, features=torch.full((1, FEATURES), 7e4)))
    with (
        writer(tmp_path, dtype="float16") as out,
        pytest.raises(ValueError, match=r"in writer-00000/00000\.saf"),
    ):
        out.add("a", boxes(GOOD))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "bfloat16"}, r"`dtype`='bfloat16' must be one of \['float16', 'float32'\]"),
        ({"box_format": "xywh"}, "`box_format`='xywh' 'shares' or 'pixels'"),
        ({"writer": -1}, "`writer`=-1 at least 0"),
        ({"images_per_shard": 0}, "`images_per_shard`=0 must be at least 1"),
    ],
)
def test_arguments_out_of_range_are_named(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        writer(tmp_path, **changes)
