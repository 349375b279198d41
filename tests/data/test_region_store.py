"""A store of regions gives back what was written, whoever wrote, and names what is missing or damaged."""

import pickle

import pytest
import torch
from data.regions_tiny import FEATURES, regions, same, write
from torch.testing import assert_close
from torch.utils.data import DataLoader

from hf_mm import RegionStore, RegionStoreWriter, drop_broken_shards


def writer(folder, **changes):
    return RegionStoreWriter(folder, **({"feature_size": FEATURES, "detector": "detr"} | changes))


def shard_of(folder, number=0):
    return sorted(folder.glob("writer-*/*.safetensors"))[number]


def flip(path, place):
    """Another value in one byte of a file."""
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


def test_an_image_comes_back_as_it_was_written(tmp_path):
    write(tmp_path, range(7), images_per_shard=3)
    store = RegionStore(tmp_path, feature_size=FEATURES, detector="detr")
    assert list(store) == [str(number) for number in range(7)]
    for number in (6, 0, 3):
        same(store[number], regions(number))
    assert "6" in store
    assert 6 in store
    assert 7 not in store
    assert store.regions == sum(len(regions(number)["boxes"]) for number in range(7))


def test_float16_takes_half_of_the_room_and_rounds_features_and_distributions_only(tmp_path):
    for dtype in ("float32", "float16"):
        write(tmp_path / dtype, range(4), dtype=dtype, width=1024)
    full, half = (RegionStore(tmp_path / dtype) for dtype in ("float32", "float16"))
    assert half.bytes_per_image < 0.6 * full.bytes_per_image
    assert full.bytes_per_image == shard_of(tmp_path / "float32").stat().st_size / 4
    found, given = half[1], regions(1, width=1024)
    assert found["features"].dtype == torch.float32
    assert_close(found["features"], given["features"].half().float(), rtol=0, atol=0)
    assert_close(found["class_scores"], given["class_scores"].half().float(), rtol=0, atol=0)
    assert_close(found["scores"], given["scores"], rtol=0, atol=0)
    assert_close(found["boxes"], given["boxes"], rtol=0, atol=0)


def test_pixels_become_shares(tmp_path):
    given = {
        "boxes": [[0, 0, 64, 48], [16, 12, 32, 24]],
        "features": torch.zeros(2, FEATURES),
        "image_size": (64, 48),
    }
    with writer(tmp_path, box_format="pixels") as out:
        out.add("a", given)
    found = RegionStore(tmp_path)["a"]
    assert_close(found["boxes"], torch.tensor([[0, 0, 1, 1], [0.25, 0.25, 0.5, 0.5]]))
    assert found["image_size"] == (64, 48)


def test_changing_what_was_read_leaves_the_store_as_it_is(tmp_path):
    write(tmp_path, range(2))
    store = RegionStore(tmp_path)
    store[1]["features"].zero_()
    same(store[1], regions(1))


def test_workers_of_a_loader_read_the_same(tmp_path):
    write(tmp_path, range(6), images_per_shard=2)
    store = RegionStore(tmp_path)
    _ = store[5]
    loader = DataLoader(Rows(store), batch_size=2, num_workers=2, collate_fn=list)
    for number, found in enumerate(row for batch in loader for row in batch):
        same(found, regions(number))


class Rows:
    """The images of a store by their numbers."""

    def __init__(self, store):
        self.store = store

    def __len__(self):
        return len(self.store)

    def __getitem__(self, number):
        return self.store[number]


def test_a_pickled_store_holds_no_regions(tmp_path):
    write(tmp_path, range(3), width=4096)
    store = RegionStore(tmp_path)
    data = pickle.dumps(store)
    assert len(data) < 2000
    assert_close(pickle.loads(data)[2]["features"], store[2]["features"])


def test_every_byte_of_a_shard_is_watched(tmp_path):
    """One byte changed anywhere: the store does not open, or the image does not read, or is padding."""
    write(tmp_path, range(3), width=4)
    path = shard_of(tmp_path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 31):
        flip(path, place)
        with pytest.raises(ValueError, match=r"damaged|no shard of regions"):
            RegionStore(tmp_path).check()
        path.write_bytes(whole)
    RegionStore(tmp_path).check()


def test_a_damaged_image_is_named_and_the_others_are_read(tmp_path):
    write(tmp_path, range(5), images_per_shard=3, width=256)
    path = shard_of(tmp_path)
    data = path.read_bytes()
    place = data.index(regions(1, width=256)["features"].numpy().tobytes())
    flip(path, place + 100)
    store = RegionStore(tmp_path)
    for number in (0, 2, 3, 4):
        same(store[number], regions(number, width=256))
    with pytest.raises(
        ValueError,
        match=r"writer-00000/00000.safetensors of 3 images, row 1 \(image '1'\) is damaged: its 3 regions "
        r"have the checksum [0-9a-f]{8}, not [0-9a-f]{8}; fetch it again",
    ):
        _ = store[1]


def test_a_shard_cut_short_or_gone_is_named_at_once(tmp_path):
    write(tmp_path, range(5), images_per_shard=3)
    path = shard_of(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(
        ValueError, match=r"writer-00000/00000.safetensors of 3 images is damaged: it cannot be"
    ):
        RegionStore(tmp_path)
    path.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"00000.safetensors of 3 images is missing; fetch it again, or"
    ):
        RegionStore(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"00000.safetensors of 3 images is missing; fetch it again, or"
    ):
        writer(tmp_path)


def test_a_shard_of_another_store_is_refused(tmp_path):
    write(tmp_path / "a", range(3))
    write(tmp_path / "b", range(1, 4))
    shard_of(tmp_path / "b").replace(shard_of(tmp_path / "a"))
    with pytest.raises(ValueError, match=r"is damaged: its `\w+` is \d+, not \d+ as index.json says"):
        RegionStore(tmp_path / "a")


def test_broken_shards_are_dropped_and_their_images_extracted_anew(tmp_path):
    write(tmp_path, range(9), images_per_shard=2)
    shard_of(tmp_path, 3).unlink()
    flip(shard_of(tmp_path, 1), -5)
    broken = drop_broken_shards(tmp_path)
    assert list(broken) == ["writer-00000/00001.safetensors", "writer-00000/00003.safetensors"]
    assert "row 1 (image '3') is damaged" in broken["writer-00000/00001.safetensors"]
    assert "is missing" in broken["writer-00000/00003.safetensors"]
    assert list(RegionStore(tmp_path)) == ["0", "1", "4", "5", "8"]
    assert write(tmp_path, range(9)) == ["2", "3", "6", "7"]
    store = RegionStore(tmp_path)
    for number in range(9):
        same(store[number], regions(number))
    assert drop_broken_shards(tmp_path) == {}


def test_regions_of_another_width_or_detector_are_refused(tmp_path):
    write(tmp_path, range(2))
    with pytest.raises(ValueError, match=r"are 8 wide \(of 'detr'\), `feature_size`=2048 is wanted; extract"):
        RegionStore(tmp_path, feature_size=2048)
    with pytest.raises(ValueError, match=r"of the detector 'detr', `detector`='faster-rcnn' is wanted"):
        RegionStore(tmp_path, detector="faster-rcnn")
    with pytest.raises(ValueError, match=r"has `detector`='detr', not 'rt-detr'; write into another folder"):
        writer(tmp_path, detector="rt-detr")
    with pytest.raises(ValueError, match=r"has `dtype`='float32', not 'float16'"):
        writer(tmp_path, dtype="float16")


def test_an_unknown_image_is_a_key_error_that_names_some(tmp_path):
    write(tmp_path, range(5))
    store = RegionStore(tmp_path)
    with pytest.raises(
        KeyError, match=r"no regions of the image '17' among its 5 images \('0', '1', '2', ...\)"
    ):
        _ = store[17]
    assert store.get("17") is None


def test_what_is_no_store_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere is no store of regions: it has no index.json"):
        RegionStore(tmp_path / "nowhere")
    for text, message in [
        ("{", "is no index of a store of regions"),
        ("[]", "is no index of a store of regions"),
        ('{"format": 9}', "has the format 9, this version reads 1"),
        ('{"format": 1, "detector": "a"}', r"lacks \['feature_size', 'dtype', 'columns', 'shards'\]"),
    ]:
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            RegionStore(tmp_path)
