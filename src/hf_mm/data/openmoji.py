"""OpenMoji: 2,465 emoji with names and tags, as pictures with captions.

OpenMoji, HfG Schwäbisch Gmünd, https://openmoji.org, CC BY-SA 4.0: who shows or shares its pictures names
OpenMoji and passes the licence on; each row has both. The npm package `openmoji` has 4,495 SVG files and
`data/openmoji.json`; 2,030 of them are skin tones of others, told by their field `skintone`. That leaves
2,465.

The split is by groups of near-twins (see `near_twins.py`), so that nothing held out was learnt as the same
drawing with other hair: version 17.0.0 has 1,856 groups, 1,972 emoji to train on and 493 held out.
"""

import hashlib
import io
import json
import logging
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset, DatasetInfo, Features, Image, List, Value, concatenate_datasets, config
from datasets.utils import tqdm
from PIL import Image as PILImage

from ..hub.saving import atomic_folder
from .near_twins import alike, group_of_each, held_out, stem_of

__all__ = ["openmoji"]

LICENCE = "CC BY-SA 4.0"
HOMEPAGE = "https://openmoji.org"
TWIN_SIDE_PX, TWIN_DISTANCE = 64, 0.05
"""Drawings that differ by less (root mean square over 16 x 16 cells, 1 is white) are twins. From about 0.06
on the chains join faces of different meaning."""
TEST_SHARE, LARGEST_TEST_GROUP = 0.2, 40
LAYOUT = 1
"""Raise it when rows change, so that no cache of the old ones is read."""
FEATURES = Features(
    {
        "image": Image(),
        "caption": List(Value("string")),
        **{
            name: Value("string")
            for name in (
                "annotation",
                "group",
                "subgroups",
                "hexcode",
                "twin_group",
                "licence",
                "attribution",
            )
        },
        "tags": List(Value("string")),
    }
)

logger = logging.getLogger(__name__)


def openmoji(
    folder: str | Path,
    split: Literal["train", "test", "all"] = "train",
    size_px: int = 64,
    cache_folder: str | Path | None = None,
) -> Dataset:
    """Emoji without skin tones, drawn on white, with captions.

    The first call draws all of them (seconds) and keeps them in `cache_folder`.

    Args:
        folder: The unpacked npm package, with `data/openmoji.json` and `color/svg`.
        split: "train" or "test", which share no near-twins; or "all".
        size_px: Width and height. The split does not depend on it.
        cache_folder: Where drawn pictures are kept; by default beside the data sets of `datasets`.

    Returns:
        Columns `image`; `caption`, a list: the annotation, the annotation with tags (if any say more), the
        annotation with its subgroup; `annotation`, `tags`, `group`, `subgroups`, `hexcode`; `twin_group`,
        the hexcode of the first of its near-twins; `licence` and `attribution`. In version 17.0.0 eleven
        annotations occur twice, both on one side: ten in "train", one ("axe") in "test".

    Raises:
        FileNotFoundError: `folder` is not the package; the message says how to get it.
        ImportError: The package `resvg-py`, which draws, is not installed.
        ValueError: An unknown split, a size below 1, or a faulty file, which is named.
    """
    if split not in ("train", "test", "all"):
        raise ValueError(f"OpenMoji has the splits 'train', 'test' and 'all', not {split!r}.")
    if size_px < 1:
        raise ValueError(f"`size_px`={size_px} must be at least 1.")
    folder = Path(folder)
    emoji = _read(folder)
    files = [folder / "color" / "svg" / f"{item['hexcode']}.svg" for item in emoji]
    root = Path(config.HF_DATASETS_CACHE) if cache_folder is None else Path(cache_folder)
    cache = root / "hf_mm_openmoji" / _fingerprint(emoji, files, size_px)
    if not (cache / "complete").is_file():
        _draw_all(emoji, files, size_px, cache)
    parts = ("train", "test") if split == "all" else (split,)
    return concatenate_datasets([Dataset.load_from_disk(cache / part) for part in parts])


def _read(folder: Path) -> list[dict]:
    """The entries of emoji without skin tones, in the package's order."""
    table = folder / "data" / "openmoji.json"
    if not table.is_file() or not (folder / "color" / "svg").is_dir():
        raise FileNotFoundError(
            f"{folder} is not the unpacked npm package `openmoji`: it lacks data/openmoji.json or color/svg. "
            "Get it by `npm pack openmoji`, unpack it (`tar xf openmoji-*.tgz`), give its folder `package`."
        )
    try:
        entries = json.loads(table.read_text(encoding="utf-8"))
        emoji = [
            {**item, "annotation": item["annotation"].strip()} for item in entries if not item["skintone"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{table} is not OpenMoji's table: {type(error).__name__}: {error}. Unpack the package again."
        ) from error
    if not emoji:
        raise ValueError(f"{table} has no emoji without skin tone among its {len(entries)} entries.")
    return emoji


def _fingerprint(emoji: list[dict], files: list[Path], size_px: int) -> str:
    """A name for what is drawn: the table, the sizes of the drawings, and what draws them."""
    _drawing_library()
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{files[0].parent} lacks {len(missing)} of {len(files)} drawings, such as {missing[0]}; unpack "
            "the package again."
        )
    parts = [LAYOUT, size_px, version("resvg-py"), [path.stat().st_size for path in files], emoji]
    return f"{size_px}px-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]}"


def _draw_all(emoji: list[dict], files: list[Path], size_px: int, cache: Path) -> None:
    drawn = [_draw(path, size_px) for path in tqdm(files, desc="Drawing OpenMoji", unit="emoji")]
    small = drawn
    if size_px != TWIN_SIDE_PX:
        small = [_draw(path, TWIN_SIDE_PX) for path in tqdm(files, desc="Comparing OpenMoji", unit="emoji")]
    pairs = alike(np.stack([np.asarray(picture) for picture in small]), TWIN_DISTANCE)
    groups = group_of_each([stem_of(item["annotation"]) for item in emoji], pairs)
    hexcodes = [item["hexcode"] for item in emoji]
    in_test = held_out(groups, hexcodes, TEST_SHARE, LARGEST_TEST_GROUP)
    rows = [
        _row(item, picture, hexcodes[group])
        for item, picture, group in zip(emoji, drawn, groups, strict=True)
    ]
    info = DatasetInfo(
        description="OpenMoji without skin tones, drawn on white.",
        homepage=HOMEPAGE,
        license=LICENCE,
        features=FEATURES,
    )
    with atomic_folder(cache) as temporary:
        for part, wanted in (("train", False), ("test", True)):
            chosen = [row for row, held in zip(rows, in_test, strict=True) if held == wanted]
            Dataset.from_list(chosen, features=FEATURES, info=info).save_to_disk(temporary / part)
    (cache / "complete").touch()
    logger.info(
        "OpenMoji: %d emoji in %d groups of near-twins, %d held out",
        len(rows),
        len(set(groups)),
        sum(in_test),
    )


def _draw(path: Path, size_px: int) -> PILImage.Image:
    try:
        data = _drawing_library().svg_to_bytes(
            svg_path=str(path), width=size_px, height=size_px, background="white", skip_system_fonts=True
        )
        picture = PILImage.open(io.BytesIO(bytes(data))).convert("RGB")
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be drawn: {error}. Unpack the package again.") from error
    if picture.size == (size_px, size_px):
        return picture
    square = PILImage.new("RGB", (size_px, size_px), "white")  # a drawing that is no square keeps its shape
    square.paste(picture, ((size_px - picture.width) // 2, (size_px - picture.height) // 2))
    return square


def _row(item: dict, picture: PILImage.Image, twin_group: str) -> dict:
    png = io.BytesIO()
    picture.save(png, "PNG")
    tags = _tags(item)
    return {
        "image": {"bytes": png.getvalue(), "path": f"{item['hexcode']}.png"},
        "caption": _captions(item["annotation"], tags, item["subgroups"]),
        "annotation": item["annotation"],
        "group": item["group"],
        "subgroups": item["subgroups"],
        "hexcode": item["hexcode"],
        "twin_group": twin_group,
        "licence": LICENCE,
        "attribution": f"{item.get('openmoji_author') or 'OpenMoji'}, OpenMoji ({HOMEPAGE})",
        "tags": tags,
    }


def _tags(item: dict) -> list[str]:
    """Both lists of tags, each tag once, in order."""
    tags = f"{item.get('tags', '')},{item.get('openmoji_tags', '')}".split(",")
    return list(dict.fromkeys(tag.strip() for tag in tags if tag.strip()))


def _captions(annotation: str, tags: list[str], subgroup: str) -> list[str]:
    """The annotation; with the tags that add a word to it; with its subgroup."""
    said = set(annotation.lower().split())
    more = [tag for tag in tags if not set(tag.lower().split()) <= said]
    captions = [annotation, f"{annotation}: {', '.join(more)}" if more else annotation]
    if subgroup:
        captions.append(f"{annotation}, {subgroup.replace('-', ' ')}")
    return list(dict.fromkeys(captions))


def _drawing_library() -> Any:
    try:
        return import_module("resvg_py")
    except ImportError as error:
        raise ImportError("OpenMoji is drawn by resvg-py: pip install 'hf-mm[openmoji]'.") from error
