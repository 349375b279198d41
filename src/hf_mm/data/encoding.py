"""Canonical rows to tokens and labels, thousands of conversations a second.

A canonical row is `{"images": [...], "conversations": [[{"role": ..., "content": ...}, ...], ...]}`: any
number of conversations about the same images. Images stay as they are (PIL images, paths, bytes); the
collator reads them. Text is tokenised with one placeholder per image, and the image's tokens are put in
afterwards.
"""

from collections.abc import Callable, Iterable, Sequence

from ..models.vlm.chat_vlm import IGNORED_LABEL, label_tokens, lacks_special_tokens, put_images_in
from ..models.vlm.processing_vlm import MMVLMProcessor
from .packing import BranchWeight, branch_weigher, pack_branches

__all__ = ["encode", "encode_rows", "encoder"]


def encode(processor: MMVLMProcessor, row: dict, packed: bool = True) -> list[dict]:
    """One canonical row as rows of tokens, see `encode_rows`."""
    return encode_rows(processor, [row], packed)


def encode_rows(
    processor: MMVLMProcessor,
    rows: Iterable[dict],
    packed: bool = True,
    max_length: int | None = None,
    first_row: int = 0,
    branch_weight: BranchWeight = "none",
) -> list[dict]:
    """Canonical rows as rows of tokens.

    Args:
        processor: Its tokenizer must be a fast one.
        rows: Canonical rows.
        packed: One row per canonical row, its conversations as branches (see `pack_branches`); else one row
            per conversation.
        max_length: Cut conversations to this many tokens.
        first_row: The number of the first row, for errors.
        branch_weight: "root" lets each label of a row with n conversations weigh sqrt(1/n), as Molmo does; or
            a function of n.

    Returns:
        `images`, `input_ids` and `labels`; and if packed `position_ids`, `document_ids` and `branch_ids`;
        with a `branch_weight` also `loss_weights`, one for each token.

    Raises:
        ValueError: There are no rows; a row has no conversation, a conversation has nothing to learn from,
            or not one placeholder per image; or cutting it would cut an image or leave nothing to learn. The
            row is named.
    """
    rows = [_checked(row, number) for number, row in enumerate(rows, first_row)]
    if not rows:
        raise ValueError("There are no rows to encode: the data set is empty.")
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
        images = row["images"]
        layouts = [
            processor.image_tokens(image, f"Row {number}, image {i}") for i, image in enumerate(images)
        ]
        parts = [_finish(processor, layouts, max_length, *next(conversations)) for _ in row["conversations"]]
        if not packed:
            encoded += [{"images": images, **part} for part in _apart(parts, branch_weight)]
            continue
        try:
            joined = pack_branches(parts, processor.unlabelled_ids, branch_weight)
            encoded.append({"images": images, **joined})
        except ValueError as error:
            raise ValueError(f"Row {number}: {error}") from error
    return encoded


def encoder(
    processor: MMVLMProcessor,
    packed: bool = True,
    max_length: int | None = None,
    branch_weight: BranchWeight = "none",
) -> Callable[[dict[str, list], list[int]], dict[str, list]]:
    """`encode_rows` for `Dataset.map` and streams, for more rows than memory holds.

    dataset.map(encoder(processor), batched=True, with_indices=True, remove_columns=dataset.column_names)
    """

    def encode_columns(columns: dict[str, list], indices: list[int]) -> dict[str, list]:
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        encoded = encode_rows(processor, rows, packed, max_length, indices[0], branch_weight)
        return {name: [row[name] for row in encoded] for name in encoded[0]}

    return encode_columns


def _apart(parts: list[tuple[list[int], list[int]]], branch_weight: BranchWeight) -> list[dict]:
    """Each conversation a row of its own, which weighs what it would weigh as a branch."""
    rows = [{"input_ids": ids, "labels": labels} for ids, labels in parts]
    weigh = branch_weigher(branch_weight)
    if weigh is None:
        return rows
    return [{**row, "loss_weights": [weigh(len(parts))] * len(row["labels"])} for row in rows]


def _checked(row: dict, number: int) -> dict:
    missing = [name for name in ("images", "conversations") if row.get(name) is None]
    if missing:
        raise ValueError(f"Row {number} has no `{missing[0]}`, only {sorted(row)}; see `hf_mm.data.chat`.")
    if not len(row["conversations"]) or not all(len(chat) for chat in row["conversations"]):
        raise ValueError(f"Row {number} has no conversation, or an empty one; leave it out or give it turns.")
    return row


def _tokenize(processor: MMVLMProcessor, texts: Sequence[str]) -> tuple[list, list]:
    tokenizer = processor.tokenizer
    output = tokenizer(
        list(texts),
        add_special_tokens=not texts or lacks_special_tokens(tokenizer, texts[0]),
        return_offsets_mapping=True,
        return_attention_mask=False,
    )
    return output["input_ids"], output["offset_mapping"]


def _finish(
    processor: MMVLMProcessor,
    layouts: list[list[int]],
    max_length: int | None,
    name: str,
    chat: tuple[str, list[tuple[int, int]]],
    ids: list[int],
    offsets: list[tuple[int, int]],
) -> tuple[list[int], list[int]]:
    """Tokens and labels of one conversation, its images put in."""
    labels = label_tokens(ids, offsets, chat[1], processor.unlabelled_ids)
    try:
        ids, labels = put_images_in(ids, labels, layouts, processor.image_token_id)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if max_length is None or len(ids) <= max_length:
        return ids, labels
    if not processor.unlabelled_ids.isdisjoint(ids[max_length:]):
        raise ValueError(
            f"{name}: cutting its {len(ids)} tokens to `max_length`={max_length} cuts an image; raise it."
        )
    if not any(label != IGNORED_LABEL for label in labels[:max_length]):
        raise ValueError(
            f"{name}: cutting its {len(ids)} tokens to `max_length`={max_length} leaves no answer to learn; "
            "raise it, or leave the row out."
        )
    return ids[:max_length], labels[:max_length]
