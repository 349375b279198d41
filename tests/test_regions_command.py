"""`hf-mm regions` fills a store from any source, in parts, and goes on where it was stopped."""

import numpy as np
import pytest
import torch
from data.detectors_tiny import CLASSES, QUERIES, WIDTH, tiny_detector
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from test_cli import fails
from torch.testing import assert_close
from transformers import ResNetConfig, ResNetModel, ViTImageProcessorPil

from hf_mm import RegionFeatureExtractor, RegionStore, sliding_grid
from hf_mm.cli import main
from hf_mm.data.easy_vqa import image_paths


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    for part in tiny_detector("detr")[:2]:
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Five pictures, one of them in a folder below."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    chance = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "c.png", "d.png", "more/a.png"):
        Image.fromarray(chance.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_a_folder_of_pictures(detector, photos, tmp_path, capsys):
    assert (
        main(["regions", str(photos), "--out", str(tmp_path), "--detector", detector, "--dtype", "float32"])
        == 0
    )
    printed = capsys.readouterr()
    store = RegionStore(tmp_path, WIDTH, detector)
    assert list(store) == ["a.png", "b.jpg", "c.png", "d.png", "more/a.png"]
    model, processor, _ = tiny_detector("detr")
    expected = RegionFeatureExtractor(model, processor)([photos / "c.png"])[0]
    found = store["c.png"]
    for name in ("boxes", "features", "scores", "class_scores"):
        assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)
    assert found["tags"] == expected["tags"]
    assert found["class_scores"].shape == (QUERIES, CLASSES + 1)
    assert "5 pictures in " in printed.out
    assert " images/s; 0 were there." in printed.out
    size = round(store.bytes_per_image)
    assert f"5 pictures with 7.0 regions of 16 numbers in float32, {size:,} bytes per image" in printed.out
    assert "5/5" in printed.err  # the bar


def test_parts_fill_one_store_and_what_is_there_is_not_extracted_again(detector, photos, tmp_path, capsys):
    def run(part):
        command = [
            "regions",
            str(photos),
            "--out",
            str(tmp_path),
            "--detector",
            detector,
            "--batch_size",
            "2",
        ]
        assert main([*command, "--part", part]) == 0
        return capsys.readouterr().out

    assert run("1/2").startswith("2 pictures in")
    assert set(RegionStore(tmp_path)) == {"b.jpg", "d.png"}
    assert run("0/2").startswith("3 pictures in")
    assert {path.name for path in tmp_path.glob("writer-*")} == {"writer-00000", "writer-00001"}
    again = run("0/1")
    assert again.startswith("0 pictures in")
    assert "; 5 were there." in again


def test_rows_of_a_data_set_each_picture_once(detector, tmp_path):
    pictures = [{"bytes": None, "path": str(path)} for path in list(image_paths("test").values())[:3]]
    rows = Dataset.from_dict(
        {"photo": [*pictures, pictures[0]], "name": ["x", "y", "z", "x"]},
        features=Features({"photo": ImageFeature(), "name": Value("string")}),
    )
    rows.save_to_disk(tmp_path / "rows")
    command = ["regions", str(tmp_path / "rows"), "--detector", detector, "--image", "photo"]
    assert main([*command, "--id", "name", "--out", str(tmp_path / "named")]) == 0
    assert list(RegionStore(tmp_path / "named")) == ["x", "y", "z"]
    assert main([*command, "--out", str(tmp_path / "numbered")]) == 0
    assert list(RegionStore(tmp_path / "numbered")) == ["0", "1", "2", "3"]


def test_a_backbone_reads_the_boxes_of_a_grid_or_of_a_detector(detector, photos, tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 24], depths=[1] * 4)
    torch.manual_seed(0)
    backbone = ResNetModel(config).eval()
    backbone.save_pretrained(tmp_path / "resnet")
    ViTImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "resnet")
    command = ["regions", str(photos), "--backbone", str(tmp_path / "resnet"), "--max_regions", "4"]
    assert main([*command, "--out", str(tmp_path / "grid")]) == 0
    grid = RegionStore(tmp_path / "grid", 24, f"{tmp_path / 'resnet'} of 64 px, boxes: grid")
    assert_close(grid["a.png"]["boxes"].numpy(), sliding_grid(photos / "a.png")[:4])
    assert main([*command, "--out", str(tmp_path / "detected"), "--detector", detector]) == 0
    detected = RegionStore(tmp_path / "detected", 24, f"{tmp_path / 'resnet'} of 64 px, boxes: {detector}")
    model, processor, _ = tiny_detector("detr")
    expected = RegionFeatureExtractor(model, processor, max_regions=4)([photos / "a.png"])[0]
    assert_close(detected["a.png"]["boxes"], expected["boxes"], rtol=1e-4, atol=1e-5)


def test_slow_work_is_written_before_a_shard_is_full(detector, photos, tmp_path, monkeypatch):
    """So that a process that is killed loses a minute at most."""
    monkeypatch.setattr("hf_mm.cli.regions.LOST_SECONDS", 0.0)
    command = ["regions", str(photos), "--out", str(tmp_path), "--detector", detector, "--batch_size", "2"]
    assert main(command) == 0
    assert len(list(tmp_path.glob("writer-*/*.safetensors"))) == 3
    assert len(RegionStore(tmp_path)) == 5


def test_a_damaged_shard_is_repaired_when_asked(detector, photos, tmp_path, capsys):
    command = ["regions", str(photos), "--out", str(tmp_path), "--detector", detector]
    assert main(command) == 0
    shard = next(tmp_path.glob("writer-*/*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-9])
    assert "00000.safetensors of 5 images is damaged" in fails(capsys, *command)
    assert main([*command, "--repair"]) == 0
    assert capsys.readouterr().out.startswith("Taken out: The shard ")
    RegionStore(tmp_path).check()


def test_what_cannot_be_done_is_one_line(detector, photos, tmp_path, capsys):
    out = ["--out", str(tmp_path / "store")]
    assert "Give `--detector`, `--backbone` or both" in fails(capsys, "regions", str(photos), *out)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "half.png").write_bytes((photos / "a.png").read_bytes()[:200])
    assert main(["regions", str(tmp_path / "pictures"), *out, "--detector", detector]) == 2
    assert "half.png) cannot be read as an image" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    line = fails(capsys, "regions", str(tmp_path / "empty"), *out, "--detector", detector)
    assert "empty is empty: there is no row" in line
    Dataset.from_dict({"photo": ["a"]}).save_to_disk(tmp_path / "rows")
    line = fails(capsys, "regions", str(tmp_path / "rows"), *out, "--detector", detector)
    assert "has no column 'image', it has ['photo']; name yours by `--image`" in line


@pytest.mark.parametrize("part", ["2/2", "a/2", "1"])
def test_a_part_that_is_none_is_named(part, capsys):
    with pytest.raises(SystemExit):
        main(["regions", "x", "--out", "y", "--part", part])
    assert f"'{part}' is not I/N with I below N, such as 0/4" in capsys.readouterr().err
