"""OpenMoji from an unpacked package: what is drawn, captioned, cached and held out."""

import json
import sys

import numpy as np
import pytest

from hf_mm import openmoji
from hf_mm.data.near_twins import alike, group_of_each, held_out, stem_of


def _svg(colour, x=20, y=20, width=32, height=32):
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72">'
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{colour}"/></svg>'
    )


def _entry(hexcode, annotation, tags="", skintone="", subgroups="face-smiling", openmoji_tags=""):
    return {
        "hexcode": hexcode,
        "annotation": annotation,
        "group": "smileys-emotion",
        "subgroups": subgroups,
        "tags": tags,
        "openmoji_tags": openmoji_tags,
        "openmoji_author": "Ada",
        "skintone": skintone,
    }


@pytest.fixture
def package(tmp_path):
    """Forty different drawings, three of them twins by name, and a skin tone."""
    folder = tmp_path / "package"
    (folder / "data").mkdir(parents=True)
    (folder / "color" / "svg").mkdir(parents=True)
    nouns = [chr(97 + i // 6) + chr(97 + i % 6) + "lo" for i in range(37)]
    entries = [
        _entry("A0", "man cook ", "chef, cook, man cook", openmoji_tags="chef, food"),
        _entry("A1", "woman cook"),
        _entry("A2", "cook"),
        *(_entry(f"B{i}", noun, subgroups="") for i, noun in enumerate(nouns)),
        _entry("A0-1F3FB", "man cook: light skin tone", skintone=1),
    ]
    for i, entry in enumerate(entries):
        drawing = _svg("red", x=(i * 5) % 40, y=(i * 11) % 50, width=10 + i, height=10 + (i * 7) % 20)
        (folder / "color" / "svg" / f"{entry['hexcode']}.svg").write_text(drawing)
    (folder / "data" / "openmoji.json").write_text(json.dumps(entries))
    return folder


def test_skin_tones_are_left_out(package, tmp_path):
    rows = openmoji(package, "all", cache_folder=tmp_path)
    assert len(rows) == 40
    assert "A0-1F3FB" not in rows["hexcode"]


def test_the_splits_are_disjoint_whole_and_share_no_group(package, tmp_path):
    train, test, both = (
        openmoji(package, split, cache_folder=tmp_path) for split in ("train", "test", "all")
    )
    assert sorted([*train["hexcode"], *test["hexcode"]]) == sorted(both["hexcode"])
    assert not set(train["twin_group"]) & set(test["twin_group"])
    assert 4 <= len(test) <= 8
    groups = dict(zip(both["hexcode"], both["twin_group"], strict=True))
    assert groups["A0"] == groups["A1"] == groups["A2"] == "A0"


def test_the_split_does_not_depend_on_the_size(package, tmp_path):
    small, large = (openmoji(package, "test", size, cache_folder=tmp_path) for size in (16, 64))
    assert small["hexcode"] == large["hexcode"]
    assert small[0]["image"].size == (16, 16)
    assert large[0]["image"].size == (64, 64)


def test_captions_say_the_name_its_tags_and_its_subgroup(package, tmp_path):
    rows = {row["hexcode"]: row for row in openmoji(package, "all", cache_folder=tmp_path)}
    assert rows["A0"]["caption"] == ["man cook", "man cook: chef, food", "man cook, face smiling"]
    assert rows["A0"]["tags"] == ["chef", "cook", "man cook", "food"]
    assert rows["B0"]["caption"] == [rows["B0"]["annotation"]]


def test_licence_and_author_are_carried_along(package, tmp_path):
    rows = openmoji(package, "all", cache_folder=tmp_path)
    assert set(rows["licence"]) == {"CC BY-SA 4.0"}
    assert rows[0]["attribution"] == "Ada, OpenMoji (https://openmoji.org)"
    assert openmoji(package, "test", cache_folder=tmp_path).info.license == "CC BY-SA 4.0"


def test_drawings_are_laid_on_white_with_soft_edges(package, tmp_path):
    (package / "color" / "svg" / "A2.svg").write_text(_svg("black", 31.5, 0, 36, 72))
    rows = {row["hexcode"]: row for row in openmoji(package, "all", 8, cache_folder=tmp_path)}
    picture = np.asarray(rows["A2"]["image"])
    assert rows["A2"]["image"].mode == "RGB"
    assert picture[0, 0].tolist() == [255, 255, 255]
    assert picture[4, 5].tolist() == [0, 0, 0]
    assert picture[4, 3].tolist() == pytest.approx([127.5] * 3, abs=2)  # half of it is paper


def test_a_second_call_reads_the_cache_and_a_changed_package_does_not(package, tmp_path):
    before = openmoji(package, "all", cache_folder=tmp_path)
    first = set(tmp_path.rglob("complete"))
    openmoji(package, "train", cache_folder=tmp_path)
    assert set(tmp_path.rglob("complete")) == first
    table = package / "data" / "openmoji.json"
    table.write_text(table.read_text().replace('"cook"', '"chef de cuisine"'))
    after = openmoji(package, "all", cache_folder=tmp_path)
    assert "chef de cuisine" in after["annotation"]
    assert "chef de cuisine" not in before["annotation"]


def test_a_drawing_cut_short_leaves_no_cache_behind(package, tmp_path):
    (package / "color" / "svg" / "B3.svg").write_text("<svg")
    with pytest.raises(ValueError, match=r"B3\.svg cannot be drawn: .* Unpack the package again"):
        openmoji(package, cache_folder=tmp_path)
    assert not list(tmp_path.rglob("complete"))


def test_a_wrong_folder_says_how_to_get_the_package(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lacks data/openmoji.json .*npm pack openmoji.*`package`"):
        openmoji(tmp_path)


def test_missing_drawings_are_named(package, tmp_path):
    (package / "color" / "svg" / "B5.svg").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of 40 drawings, such as B5\.svg"):
        openmoji(package, cache_folder=tmp_path)


@pytest.mark.parametrize("content", ["[{", "{}", '[{"hexcode": "A"}]', "[3]"])
def test_a_table_of_another_kind_is_refused(package, tmp_path, content):
    (package / "data" / "openmoji.json").write_text(content)
    with pytest.raises(ValueError, match=r"openmoji\.json (is not OpenMoji's table|has no emoji)"):
        openmoji(package, cache_folder=tmp_path)


def test_unknown_splits_and_sizes_are_refused(package):
    with pytest.raises(ValueError, match=r"'train', 'test' and 'all', not 'dev'"):
        openmoji(package, "dev")
    with pytest.raises(ValueError, match=r"`size_px`=0 must be at least 1"):
        openmoji(package, size_px=0)


def test_a_missing_library_says_how_to_get_it(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-mm\[openmoji\]'"):
        openmoji(package, cache_folder=tmp_path)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("man health worker", "woman health worker"),
        ("person: red hair", "man: bald"),
        ("person running", "woman running: facing right"),
        ("six-thirty", "twelve o\u2019clock"),
        ("keycap: 7", "keycap: #"),
        ("up-left arrow", "right arrow"),
        ("red heart", "light blue heart"),
        ("family: man, woman, boy", "family: woman, girl"),
        ("prince", "princess"),
        ("dog face", "dog"),
        ("flag: Canary Islands", "canary islands flag"),
        ("black medium-small square", "white large square"),
    ],
)
def test_variants_have_the_same_stem(one, other):
    assert stem_of(one) == stem_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("flag: Japan", "flag: Jordan"),
        ("health worker", "office worker"),
        ("man", "dog"),
        ("grinning face", "grinning cat"),
        ("c", "man"),
        ("red apple", "red heart"),
    ],
)
def test_different_things_have_different_stems(one, other):
    assert stem_of(one) != stem_of(other)


def test_mirrored_and_slightly_changed_pictures_are_alike():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    nudged = picture.copy()
    nudged[:4, :4] //= 2
    other = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert alike(np.stack([picture, picture[:, ::-1], nudged, other]), 0.05) == [(0, 1), (0, 2), (1, 2)]


def test_twins_of_twins_belong_together():
    assert group_of_each(["a", "b", "a", "c", "d"], [(2, 3)]) == [0, 1, 0, 0, 4]


def test_whole_groups_are_held_out_up_to_the_share():
    groups = [0, 0, 0, 0, 4, 4, 6, 7, 8, 9]
    names = [f"n{i}" for i in range(10)]
    chosen = held_out(groups, names, share=0.3, largest=3)
    assert sum(chosen) == 3
    assert not any(chosen[:4])
    assert chosen[4] == chosen[5]
    assert chosen == held_out(groups, names, share=0.3, largest=3)
