"""Regions that others have extracted are read as they are meant, and nothing in their files is run."""

import base64
import json
import pickle

import h5py
import numpy as np
import pytest
from data.regions_tiny import FEATURES

from hf_mm import RegionStore, RegionStoreWriter, read_region_files
from hf_mm.data.region_files import read_region_h5, read_region_npy, read_region_npz, read_region_tsv

WIDTH, HEIGHT = 64, 48
PIXELS = np.array([[0, 0, 64, 48], [16, 12, 32, 24], [8, 6, 16, 48]], np.float32)
SHARES = np.array([[0, 0, 1, 1], [0.25, 0.25, 0.5, 0.5], [0.125, 0.125, 0.25, 1]], np.float32)
FOUND = np.random.default_rng(0).normal(size=(3, FEATURES)).astype(np.float32)
SCORES = np.array([0.9, 0.8, 0.7], np.float32)
CLASSES = np.random.default_rng(1).dirichlet(np.ones(5), 3).astype(np.float32)
OBJECTS = np.array([4, 0, 2], np.int64)
SIZES = np.concatenate([SHARES, SHARES[:, 2:] - SHARES[:, :2]], axis=1)  # x1, y1, x2, y2, w, h


def b64(array):
    return base64.b64encode(array.tobytes()).decode()


def bottom_up(image_id="7"):
    return [image_id, str(WIDTH), str(HEIGHT), "3", b64(PIXELS), b64(FOUND)]


def tsv(folder, *rows, name="a.tsv"):
    path = folder / name
    path.write_text("".join("\t".join(row) + "\n" for row in rows))
    return path


def only(found):
    """The one image, checked for what all formats hold."""
    [(image_id, regions)] = found
    np.testing.assert_allclose(regions["boxes"], SHARES, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(regions["features"], FOUND)
    return image_id, {name: value for name, value in regions.items() if name not in ("boxes", "features")}


def test_uniter(tmp_path):
    path = tmp_path / "nlvr2_a.npz"
    np.savez(path, norm_bb=SIZES, features=FOUND, conf=SCORES, soft_labels=CLASSES)
    image_id, others = only(read_region_npz(path))
    assert image_id == "nlvr2_a"
    assert set(others) == {"scores", "class_scores"}
    np.testing.assert_array_equal(others["scores"], SCORES)
    np.testing.assert_array_equal(others["class_scores"], CLASSES)


@pytest.mark.parametrize("turned", [False, True])
def test_mcan_whose_features_may_be_turned(turned, tmp_path):
    path = tmp_path / "a.npz"
    features = FOUND.T if turned else FOUND
    np.savez(path, x=features, bbox=PIXELS, image_w=WIDTH, image_h=HEIGHT, num_bbox=3)
    assert only(read_region_npz(path)) == ("a", {"image_size": (WIDTH, HEIGHT)})


def pythia(folder, name="a", **changes):
    info = {"bbox": PIXELS, "num_boxes": 3, "image_width": WIDTH, "image_height": HEIGHT, "objects": OBJECTS}
    np.save(folder / f"{name}.npy", FOUND)
    np.save(folder / f"{name}_info.npy", info | changes)
    return folder / f"{name}.npy"


def test_pythia(tmp_path):
    image_id, others = only(read_region_npy(pythia(tmp_path, cls_prob=CLASSES)))
    assert image_id == "a"
    assert others.pop("image_size") == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(others.pop("labels"), OBJECTS)
    np.testing.assert_array_equal(others.pop("class_scores"), CLASSES)
    assert not others


def test_bottom_up_attention_and_the_further_columns_of_vilbert_and_lxmert(tmp_path):
    assert only(read_region_tsv(tsv(tmp_path, bottom_up()))) == ("7", {"image_size": (WIDTH, HEIGHT)})
    _, vilbert = only(read_region_tsv(tsv(tmp_path, [*bottom_up(), b64(CLASSES)])))
    np.testing.assert_array_equal(vilbert["class_scores"], CLASSES)
    found = [b64(OBJECTS), b64(SCORES), b64(OBJECTS + 1), b64(SCORES / 2)]
    row = ["COCO_7", str(HEIGHT), str(WIDTH), *found, "3", b64(PIXELS), b64(FOUND)]
    image_id, lxmert = only(read_region_tsv(tsv(tmp_path, row)))
    assert image_id == "COCO_7"
    assert lxmert["image_size"] == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(lxmert["labels"], OBJECTS)
    np.testing.assert_array_equal(lxmert["scores"], SCORES)
    np.testing.assert_array_equal(lxmert["attributes"], OBJECTS + 1)
    np.testing.assert_array_equal(lxmert["attribute_scores"], SCORES / 2)


def test_oscar_whose_features_end_with_the_boxes(tmp_path):
    both = b64(np.concatenate([FOUND, SIZES], axis=1))
    assert only(read_region_tsv(tsv(tmp_path, ["9", "3", both]))) == ("9", {})
    packed = json.dumps({"num_boxes": 3, "features": both})
    assert only(read_region_tsv(tsv(tmp_path, ["9", packed]))) == ("9", {})


def test_columns_in_an_order_of_their_own(tmp_path):
    row = bottom_up()
    columns = ("features", "image_id", "image_w", "image_h", "num_boxes", "boxes")
    found = read_region_tsv(tsv(tmp_path, [row[-1], *row[:-1]]), columns)
    assert only(found) == ("7", {"image_size": (WIDTH, HEIGHT)})


@pytest.mark.parametrize("varying", [False, True])
def test_h5_with_the_same_and_with_varying_numbers_of_regions(varying, tmp_path):
    path = tmp_path / "train.h5"
    with h5py.File(path, "w") as file:
        if varying:
            file["image_features"] = np.concatenate([FOUND, FOUND[:2]])
            file["spatial_features"] = np.concatenate([SIZES, SIZES[:2]])
            file["pos_boxes"] = np.array([[0, 3], [3, 5]])
        else:
            file["image_features"] = np.stack([FOUND, FOUND[::-1]])
            file["spatial_features"] = np.stack([SIZES, SIZES[::-1]])
    first, (second_id, second) = read_region_h5(path, ids=[12, "b"])
    assert only([first]) == ("12", {})
    assert second_id == "b"
    order = slice(0, 2) if varying else slice(None, None, -1)
    np.testing.assert_array_equal(second["features"], FOUND[order])
    np.testing.assert_allclose(second["boxes"], SHARES[order], atol=1e-7)
    assert [name for name, _ in read_region_h5(path)] == ["0", "1"]
    with pytest.raises(ValueError, match=r"train.h5 has 2 images, `ids` names 1; name each"):
        list(read_region_h5(path, ids=["a"]))


def test_the_format_is_told_by_the_name_and_goes_into_a_store(tmp_path):
    (tmp_path / "npz").mkdir()
    for name in "ba":
        np.savez(tmp_path / "npz" / f"{name}.npz", norm_bb=SIZES, features=FOUND)
    (tmp_path / "npy").mkdir()
    pythia(tmp_path / "npy", "c", objects=None)
    with RegionStoreWriter(tmp_path / "store", FEATURES, "bottom-up attention") as writer:
        for source in ("npz", "npy"):
            for image_id, regions in read_region_files(tmp_path / source):
                writer.add(image_id, regions)
        for image_id, regions in read_region_files(tsv(tmp_path, bottom_up("d"))):
            writer.add(image_id, regions)
    store = RegionStore(tmp_path / "store")
    assert list(store) == ["a", "b", "c", "d"]
    for image_id in store:
        np.testing.assert_allclose(store[image_id]["boxes"].numpy(), SHARES, atol=1e-7)
        np.testing.assert_array_equal(store[image_id]["features"].numpy(), FOUND)


class Trap:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_file_that_would_run_code_is_refused_and_does_not_run_it(tmp_path):
    path = pythia(tmp_path, trap=Trap(tmp_path / "ran"))
    with pytest.raises(ValueError, match=r"a_info.npy cannot be read \(UnpicklingError: it would run .*open"):
        list(read_region_npy(path))
    np.savez(tmp_path / "b.npz", norm_bb=SIZES, features=np.array([Trap(tmp_path / "ran")], object))
    with pytest.raises(
        ValueError, match=r"b.npz cannot be read \(ValueError: Object arrays cannot be loaded"
    ):
        list(read_region_npz(tmp_path / "b.npz"))
    assert not (tmp_path / "ran").exists()
    assert pickle.loads(pickle.dumps(Trap(tmp_path / "ran")))  # it is a trap indeed
    assert (tmp_path / "ran").exists()


def changed(place, value):
    row = bottom_up()
    row[place] = value
    return row


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (bottom_up()[:5], r"a.tsv, line 2 has 5 columns; name them by `columns`"),
        (changed(5, "x" * 9), r"line 2 \(image '7'\): `features` is no base64 .*; is the line cut short"),
        (
            changed(4, b64(PIXELS)[:-4]),
            r"line 2 \(image '7'\): `boxes` has 45 bytes, which are not 3 rows of fl",
        ),
        (changed(3, "0"), r"line 2 \(image '7'\): `boxes` has 48 bytes, which are not 0 rows"),
        (
            changed(1, "wide"),
            r"line 2 \(image '7'\): invalid literal for int.*; are these its `columns`, \['ima",
        ),
        (["7", "{}"], r"line 2 \(image '7'\) has in its second column '{}', not JSON with `num_boxes`"),
    ],
)
def test_a_faulty_line_is_named(row, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        list(read_region_tsv(tsv(tmp_path, bottom_up(), row)))


def test_columns_that_do_not_fit_are_named(tmp_path):
    path = tsv(tmp_path, bottom_up())
    with pytest.raises(ValueError, match=r"line 1 has 6 columns; `columns` names 2"):
        list(read_region_tsv(path, ("image_id", "boxes")))
    names = ("image_id", "a", "b", "num_boxes", "boxes", "features")
    with pytest.raises(
        ValueError, match=r"line 1 \(image '7'\) has no column 'image_w', only \['image_id', 'a'"
    ):
        list(read_region_tsv(path, names))


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There are no regions at .*nowhere; check the path"):
        read_region_files(tmp_path / "nowhere")
    np.savez(tmp_path / "a.npz", x=FOUND)
    with pytest.raises(ValueError, match=r"a.npz has no `image_w`, only \['x'\]"):
        list(read_region_files(tmp_path))
    (tmp_path / "a.npz").write_bytes(b"PK half")
    with pytest.raises(ValueError, match=r"a.npz cannot be read \(.*\); fetch it again"):
        list(read_region_files(tmp_path))
    pythia(tmp_path, "b")
    with pytest.raises(ValueError, match=r"has \['.npy', '.npz'\]; give a file of"):
        read_region_files(tmp_path)
    (tmp_path / "b_info.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"b.npy has no b_info.npy beside it"):
        list(read_region_npy(tmp_path / "b.npy"))
    np.save(tmp_path / "b_info.npy", np.array([1, 2]))
    with pytest.raises(
        ValueError, match=r"b_info.npy cannot be read \(ValueError: it holds int64 of \(2,\), not"
    ):
        list(read_region_npy(tmp_path / "b.npy"))
    np.save(tmp_path / "b_info.npy", np.array([1, 2], object)[0:1].reshape(()))
    with pytest.raises(ValueError, match=r"b_info.npy holds a int, not a dictionary"):
        list(read_region_npy(tmp_path / "b.npy"))


def test_h5_without_its_package_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-mm\[h5\]'"):
        list(read_region_h5(tmp_path / "a.h5"))
