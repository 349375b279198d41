"""Pictures with captions of any source, as the two columns that contrastive training reads."""

from pathlib import Path

from datasets import Dataset, Features, Image, IterableDataset, LargeList, List, Value

from .sources import open_source

__all__ = ["image_text_pairs"]

LISTS = (List, LargeList)


def image_text_pairs(
    source: str | Path | Dataset | IterableDataset,
    split: str = "train",
    image: str = "image",
    caption: str = "caption",
) -> Dataset | IterableDataset:
    """Open a source of pictures and captions.

    Args:
        source: A data set or a stream; an id of the Hub; a parquet, JSON or CSV file; or a folder that
            `load_dataset` (with `metadata.jsonl` for pictures and captions) or `load_from_disk` reads.
        split: Of a source that has several.
        image: Column of the picture, or of the path to it, from the folder of the file that names it.
        caption: Column of the caption, or of a list of captions.

    Returns:
        The columns `image` and `caption` alone: a data set, or a stream if `source` is one.

    Raises:
        FileNotFoundError: A path leads nowhere.
        ValueError: A column is missing or of another kind; there are no rows; or one has no caption and is
            named; in a stream, when `PairCollator` meets it.
    """
    opened = not isinstance(source, Dataset | IterableDataset)
    name = str(source) if opened else "The data set"
    rows = open_source(str(source), split) if opened else source
    if isinstance(rows, IterableDataset) and rows.features is None:
        rows = rows._resolve_features()
    columns = rows.column_names or []
    missing = [column for column in (image, caption) if column not in columns]
    if missing:
        raise ValueError(
            f"{name} has no column {missing[0]!r}; it has {sorted(columns)}. Name the columns of pictures "
            "and captions by `image` and `caption`."
        )
    if image == caption:
        raise ValueError(f"`image` and `caption` are both {image!r}; name two columns.")
    features = Features(rows.features or {})
    _check_kinds(name, features, image, caption)
    rows = rows.select_columns([image, caption])
    rows = rows.rename_columns(
        {old: new for old, new in ((image, "image"), (caption, "caption")) if old != new}
    )
    if features[image] == Value("string") and opened and Path(str(source)).is_file():
        rows = rows.map(_Located(Path(str(source)).parent))
    if not isinstance(features[image], Image):
        rows = rows.cast_column("image", Image())
    if isinstance(rows, Dataset):
        _check_captions(name, rows, caption)
    return rows


class _Located:
    """Paths from a folder, as whole paths."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, row: dict) -> dict:
        return {"image": row["image"] if "://" in row["image"] else str(self.folder / row["image"])}


def _check_kinds(name: str, features: Features, image: str, caption: str) -> None:
    kind = features[image]
    stored = isinstance(kind, dict) and {"bytes", "path"} >= set(kind)
    if not isinstance(kind, Image) and kind not in (Value("string"), Value("binary")) and not stored:
        raise ValueError(f"{name}: column {image!r} is {kind}, not pictures, their bytes or their paths.")
    kind = features[caption]
    text = kind.feature if isinstance(kind, LISTS) else kind
    if text not in (Value("string"), Value("large_string")):
        raise ValueError(f"{name}: column {caption!r} is {kind}, not a text or a list of texts.")


def _check_captions(name: str, rows: Dataset, caption: str) -> None:
    if not len(rows):
        raise ValueError(f"{name} is empty: there is no pair to learn from.")
    for number, row in enumerate(rows.select_columns("caption")):
        value = row["caption"]
        texts = [value] if isinstance(value, str) else value or []
        if not any(text and text.strip() for text in texts):
            raise ValueError(
                f"{name}: row {number} has no caption in {caption!r}: {value!r}; leave it out or give one."
            )
