"""Canonical rows to tokens and labels, thousands of conversations a second.

A canonical row is `{"images": [...], "conversations": [[{"role": ..., "content": ...}, ...], ...]}`: any
number of conversations about the same images. Images stay as they are (PIL images, paths, bytes); the
collator reads them. Text is tokenised with one placeholder per image, and the image's tokens are put in
afterwards.
"""

import io
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path

from PIL import Image

from ..imaging.loading import load_rgb
from ..models.vlm.chat_vlm import IGNORED_LABEL, label_tokens
from ..models.vlm.processing_vlm import MMVLMProcessor
from .packing import pack_branches

__all__ = ["encode", "encode_rows", "encoder"]

EXIF_ORIENTATION = 0x0112  # above 4 the picture is stored lying on its side


def encode(processor: MMVLMProcessor, row: dict, packed: bool = True) -> list[dict]:
    """One canonical row as rows of tokens, see `encode_rows`."""
    return encode_rows(processor, [row], packed)


def encode_rows(
    processor: MMVLMProcessor, rows: Iterable[dict], packed: bool = True, first_row: int = 0
) -> list[dict]:
    """Canonical rows as rows of tokens.

    Args:
        processor: Its tokenizer must be a fast one.
        rows: Canonical rows.
        packed: One row per canonical row, its conversations as branches (see `pack_branches`); else one row
            per conversation.
        first_row: The number of the first row, for errors.

    Returns:
        `images`, `input_ids` and `labels`; and if packed `position_ids`, `document_ids` and `branch_ids`.

    Raises:
        ValueError: A row has no conversation, a conversation has nothing to learn from, or not one
            placeholder per image. The row is named.
    """
    rows = [_checked(row, number) for number, row in enumerate(rows, first_row)]
    names = [
        f"Row {number}" + (f", conversation {index}" if len(row["conversations"]) > 1 else "")
        for number, row in enumerate(rows, first_row)
        for index in range(len(row["conversations"]))
    ]
    chats = processor.render_chats([chat for row in rows for chat in row["conversations"]], names=names)
    tokens = _tokenize(processor, [text for text, _ in chats])
    conversations = zip(names, chats, *tokens, strict=True)
    encoded = []
    for number, row in enumerate(rows, first_row):
        layouts = [
            _layout(processor, image, f"Row {number}, image {i}") for i, image in enumerate(row["images"])
        ]
        parts = []
        for _ in row["conversations"]:
            name, (_, spans), ids, offsets = next(conversations)
            labels = label_tokens(ids, offsets, spans, processor.unlabelled_ids)
            parts.append(_put_images_in(name, ids, labels, layouts, processor))
        if packed:
            try:
                encoded.append({"images": row["images"], **pack_branches(parts, processor.unlabelled_ids)})
            except ValueError as error:
                raise ValueError(f"Row {number}: {error}") from error
        else:
            encoded += [
                {"images": row["images"], "input_ids": ids, "labels": labels} for ids, labels in parts
            ]
    return encoded


def encoder(
    processor: MMVLMProcessor, packed: bool = True
) -> Callable[[dict[str, list], list[int]], dict[str, list]]:
    """`encode_rows` for `Dataset.map` and streams.

    dataset.map(encoder(processor), batched=True, with_indices=True, remove_columns=dataset.column_names)
    """

    def encode_columns(columns: dict[str, list], indices: list[int]) -> dict[str, list]:
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        encoded = encode_rows(processor, rows, packed, first_row=indices[0])
        return {name: [row[name] for row in encoded] for name in encoded[0]}

    return encode_columns


def _checked(row: dict, number: int) -> dict:
    missing = [name for name in ("images", "conversations") if row.get(name) is None]
    if missing:
        raise ValueError(f"Row {number} has no `{missing[0]}`, only {sorted(row)}; see `hf_mm.data.chat`.")
    if not len(row["conversations"]) or not all(len(chat) for chat in row["conversations"]):
        raise ValueError(f"Row {number} has no conversation, or an empty one; leave it out or give it turns.")
    return row


def _tokenize(processor: MMVLMProcessor, texts: Sequence[str]) -> tuple[list, list]:
    tokenizer = processor.tokenizer
    bos = tokenizer.bos_token
    output = tokenizer(
        list(texts),
        # As `apply_chat_template` decides it: a template that writes the first token writes them all.
        add_special_tokens=not (bos and texts and texts[0].startswith(bos)),
        return_offsets_mapping=True,
        return_attention_mask=False,
    )
    return output["input_ids"], output["offset_mapping"]


def _layout(processor: MMVLMProcessor, image: object, name: str) -> list[int]:
    """The tokens of an image."""
    image_processor = processor.image_processor
    grid = image_processor.grid_for(*_height_width(image, name)) if image_processor.max_crops else (0, 0)
    return processor.image_layout_ids(tuple(grid))


def _height_width(image: object, name: str) -> tuple[int, int]:
    """Size in pixels as it will be seen; of files only the head is read."""
    source = image
    if isinstance(source, dict):
        source = source["bytes"] if source.get("bytes") is not None else source.get("path")
    if isinstance(source, bytes):
        source = io.BytesIO(source)
    try:
        opened = Image.open(source) if isinstance(source, io.BytesIO | str | Path) else source
    except OSError:
        opened = None
    if not isinstance(opened, Image.Image):
        return load_rgb(image, name).shape[:2]
    width, height = opened.size
    return (width, height) if opened.getexif().get(EXIF_ORIENTATION, 1) > 4 else (height, width)


def _put_images_in(
    name: str, ids: list[int], labels: list[int], layouts: list[list[int]], processor: MMVLMProcessor
) -> tuple[list[int], list[int]]:
    """Put the tokens of the images in the place of their placeholders."""
    places = [i for i, token in enumerate(ids) if token == processor.image_token_id]
    if len(places) != len(layouts):
        raise ValueError(
            f"{name} has {len(places)} `{processor.image_token}` but {len(layouts)} images; write one for "
            "each image, where it belongs."
        )
    starts = [0, *(place + 1 for place in places)]
    pieces = zip(starts, [*places, len(ids)], [*layouts, []], strict=True)
    joined = [(ids[first:last], labels[first:last], layout) for first, last, layout in pieces]
    return (
        list(chain.from_iterable(part + layout for part, _, layout in joined)),
        list(chain.from_iterable(part + [IGNORED_LABEL] * len(layout) for _, part, layout in joined)),
    )
