"""Pictures with captions from data sets, files and folders: two columns, checked at the entrance."""

import json

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PILImage

from hf_mm import image_text_pairs

PICTURE = PILImage.fromarray(np.full((4, 5, 3), 7, np.uint8))


def _rows(captions, picture="image", caption="caption", kind=None):
    features = Features({picture: Image(), caption: kind or Value("string"), "source": Value("string")})
    data = {picture: [PICTURE] * len(captions), caption: captions, "source": ["x"] * len(captions)}
    return Dataset.from_dict(data, features=features)


def test_two_columns_are_left_under_the_names_of_pairs():
    pairs = image_text_pairs(_rows(["a", "b"], "photo", "text"), image="photo", caption="text")
    assert pairs.column_names == ["image", "caption"]
    assert pairs["caption"] == ["a", "b"]
    assert pairs[0]["image"].size == (5, 4)


def test_columns_can_swap_their_names():
    rows = _rows(["a"], picture="caption", caption="image")
    pairs = image_text_pairs(rows, image="caption", caption="image")
    assert pairs[0]["caption"] == "a"


def test_lists_of_captions_are_kept():
    pairs = image_text_pairs(_rows([["a", "b"], ["c"]], kind=List(Value("string"))))
    assert pairs["caption"] == [["a", "b"], ["c"]]


def test_streams_stay_streams():
    pairs = image_text_pairs(_rows(["a", "b"]).to_iterable_dataset())
    assert [row["caption"] for row in pairs] == ["a", "b"]
    assert next(iter(pairs))["image"].size == (5, 4)


def test_saved_data_sets_and_parquet_files_are_opened(tmp_path):
    _rows(["a"]).to_parquet(tmp_path / "rows.parquet")
    DatasetDict(dev=_rows(["b"])).save_to_disk(tmp_path / "saved")
    assert image_text_pairs(tmp_path / "rows.parquet")["caption"] == ["a"]
    assert image_text_pairs(tmp_path / "saved", split="dev")["caption"] == ["b"]
    with pytest.raises(ValueError, match=r"has no split 'train'; there are \['dev'\]"):
        image_text_pairs(tmp_path / "saved")


def test_paths_in_a_file_start_from_its_folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    PICTURE.save(tmp_path / "pictures" / "a.png")
    table = tmp_path / "rows.jsonl"
    table.write_text(json.dumps({"file": "pictures/a.png", "caption": "a"}) + "\n")
    pairs = image_text_pairs(table, image="file")
    assert pairs[0]["image"].size == (5, 4)


def test_folders_of_pictures_with_captions_are_opened(tmp_path):
    PICTURE.save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "a wall"}) + "\n")
    pairs = image_text_pairs(tmp_path, caption="text")
    assert pairs["caption"] == ["a wall"]
    assert pairs[0]["image"].size == (5, 4)


def test_missing_columns_and_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"The data set has no column 'text'; it has \['caption', 'image', "):
        image_text_pairs(_rows(["a"]), caption="text")
    with pytest.raises(ValueError, match=r"`image` and `caption` are both 'image'"):
        image_text_pairs(_rows(["a"]), caption="image")
    with pytest.raises(FileNotFoundError, match=r"no file .*rows\.csv"):
        image_text_pairs(tmp_path / "rows.csv")


def test_columns_of_another_kind_are_refused():
    with pytest.raises(ValueError, match=r"column 'caption' is .*int64.*, not a text"):
        image_text_pairs(_rows([1, 2], kind=Value("int64")))
    rows = Dataset.from_dict({"image": [1], "caption": ["a"]})
    with pytest.raises(ValueError, match=r"column 'image' is .*int64.*, not pictures"):
        image_text_pairs(rows)


@pytest.mark.parametrize(
    ("captions", "kind"),
    [(["a", " "], None), (["a", None], None), ([["a"], ["", " "]], List(Value("string")))],
)
def test_rows_without_a_caption_are_named(captions, kind):
    with pytest.raises(ValueError, match=r"The data set: row 1 has no caption in 'caption'"):
        image_text_pairs(_rows(captions, kind=kind))


def test_an_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="The data set is empty"):
        image_text_pairs(_rows([]))
