"""easy-VQA's regions: what its pictures show, kept once computed, read off linearly."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.testing import assert_close

from hf_mm import EasyVQARegions, RegionStoreWriter, easy_vqa_classes, easy_vqa_regions
from hf_mm.data.easy_vqa import image_paths
from hf_mm.data.easy_vqa_regions import EASY_VQA_ATTRIBUTES, colour_attributes


@pytest.fixture(scope="module")
def extract():
    return EasyVQARegions()


def test_regions_are_the_thing_the_picture_and_its_quarters(extract):
    regions = extract([image_paths("train")[0]])[0]
    shapes = {name: tuple(value.shape) for name, value in regions.items() if isinstance(value, torch.Tensor)}
    assert shapes == {
        "boxes": (6, 4),
        "features": (6, extract.feature_size),
        "scores": (6,),
        "labels": (6,),
        "class_scores": (6, 1000),
        "attributes": (6,),
    }
    assert regions["boxes"][1].tolist() == [0, 0, 1, 1]
    assert regions["image_size"] == (64, 64)


def test_tags_are_the_colours_that_the_captions_name(extract):
    rows = easy_vqa_classes("test").select(range(0, 888, 111))
    for caption, regions in zip(rows["caption"], extract(rows["image"]), strict=True):
        assert regions["tags"][0] == caption.split()[0]
        assert regions["attributes"][0] == EASY_VQA_ATTRIBUTES.index(caption.split()[0])


def test_where_there_is_background_alone_it_is_said():
    picture = np.full((8, 8, 3), 200, np.uint8)
    picture[:4, :4] = (255, 0, 0)
    boxes = np.array([[0, 0, 1, 1], [0.5, 0.5, 1, 1], [0.25, 0.25, 0.75, 0.75]], np.float32)
    found = [EASY_VQA_ATTRIBUTES[number] for number in colour_attributes(picture, boxes).tolist()]
    assert found == ["red", "background", "red"]


def test_a_store_that_was_begun_is_completed_and_then_only_read(tmp_path, extract):
    folder = tmp_path / "hf_mm_easy_vqa_regions" / "test-5"
    paths = image_paths("test")
    with RegionStoreWriter(folder, extract.feature_size, extract.detector, "float16") as writer:
        writer.add(0, extract([paths[0]])[0])  # and then it was stopped
    store = easy_vqa_regions("test", tmp_path, max_images=5)
    assert list(store) == ["0", "1", "2", "3", "4"]
    expected = extract([paths[3]])[0]
    assert_close(store[3]["features"], expected["features"], atol=1e-2, rtol=1e-2)  # kept in float16
    assert_close(store[3]["boxes"], expected["boxes"])
    assert store[3]["tags"] == expected["tags"]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert len(easy_vqa_regions("test", tmp_path, max_images=5)) == 5
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before


@pytest.mark.slow
def test_shape_and_colour_are_read_off_linearly(extract):
    """On 200 pictures; `benchmarks/easy_vqa_regions.py` has the whole training split."""
    rows = easy_vqa_classes("train").select(range(200))
    features = torch.stack([regions["features"][0] for regions in extract(rows["image"])]).numpy()
    for place in (0, 1):
        names = [caption.split()[place] for caption in rows["caption"]]
        model = LogisticRegression(C=0.1, max_iter=300).fit(features[:150], names[:150])
        assert model.score(features[150:], names[150:]) >= 0.96


def test_numbers_out_of_range_are_named(tmp_path):
    with pytest.raises(ValueError, match="`max_images`=0 must be at least 1"):
        easy_vqa_regions("test", tmp_path, max_images=0)
    with pytest.raises(ValueError, match="'train' and 'test', not 'all'"):
        easy_vqa_regions("all", tmp_path)
