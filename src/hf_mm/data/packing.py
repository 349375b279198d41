"""Several conversations about the same images in one row: the images once, each conversation a branch.

As Molmo trains on images with several annotations (Deitke et al. 2024, https://arxiv.org/abs/2409.17146,
section 3): every branch sees the trunk and itself, and its positions continue from the trunk.
"""

from itertools import takewhile

__all__ = ["fill_rows", "pack_branches", "unpack_branches"]

IGNORED = -100


def pack_branches(
    conversations: list[tuple[list[int], list[int]]], image_ids: frozenset[int] = frozenset()
) -> dict[str, list[int]]:
    """Join tokenised conversations that begin alike into one row.

    The trunk is what all of them begin with, up to the last token but one before the first label: the first
    token of a branch carries none, since what predicts it is shared by all branches.

    Args:
        conversations: Tokens and labels of each, the images as their final tokens.
        image_ids: Tokens of images.

    Returns:
        `input_ids`, `labels`, `position_ids`, `document_ids` (1 throughout) and `branch_ids` (0 in the
        trunk, then 1, 2, ...).

    Raises:
        ValueError: There is nothing to learn from in a conversation, or an image would be in several
            branches.
    """
    shared = len(_common_prefix([ids for ids, _ in conversations]))
    for number, (_, labels) in enumerate(conversations):
        first = next((i for i, label in enumerate(labels) if label != IGNORED), 0)
        if not first:
            raise ValueError(
                f"conversation {number} has no labels after its first token; nothing can be learnt."
            )
        shared = min(shared, first - 1)
    if len(conversations) > 1:
        for number, (ids, _) in enumerate(conversations):
            if not image_ids.isdisjoint(ids[shared:]):
                raise ValueError(
                    f"conversation {number} has an image after what all conversations begin with ({shared} "
                    "tokens); put the images first, after the same words, or encode with `packed=False`."
                )
    ids, labels = conversations[0][0][:shared], [IGNORED] * shared
    positions, branches = list(range(shared)), [0] * shared
    for number, (branch_ids, branch_labels) in enumerate(conversations, 1):
        ids = ids + branch_ids[shared:]
        labels = labels + branch_labels[shared:]
        positions += range(shared, len(branch_ids))
        branches += [number] * (len(branch_ids) - shared)
    return {
        "input_ids": ids,
        "labels": labels,
        "position_ids": positions,
        "document_ids": [1] * len(ids),
        "branch_ids": branches,
    }


def fill_rows(rows: list[dict], max_length: int) -> list[dict]:
    """Join packed rows to longer ones, which see nothing of each other, so that little is padded.

    The longest first, each into the first joined row that has room.

    Args:
        rows: What `encode_rows` returns with `packed=True`.
        max_length: Most tokens of a joined row.

    Returns:
        Rows of the same columns; `document_ids` count 1, 2, ... in each.

    Raises:
        ValueError: A row is longer than `max_length`; it is named.
    """
    joined: list[list[dict]] = []
    room: list[int] = []
    for number in sorted(range(len(rows)), key=lambda number: -len(rows[number]["input_ids"])):
        length = len(rows[number]["input_ids"])
        if length > max_length:
            raise ValueError(
                f"Row {number} has {length} tokens, more than `max_length`={max_length}; raise it, or split "
                "the conversations of the row."
            )
        place = next((place for place, free in enumerate(room) if free >= length), len(room))
        if place == len(room):
            joined.append([])
            room.append(max_length)
        joined[place].append(rows[number])
        room[place] -= length
    return [_join(parts) for parts in joined]


def _join(rows: list[dict]) -> dict:
    numbered = [
        {**row, "document_ids": [document] * len(row["input_ids"])} for document, row in enumerate(rows, 1)
    ]
    return {name: [item for row in numbered for item in row[name]] for name in numbered[0]}


def unpack_branches(row: dict) -> list[tuple[list[int], list[int]]]:
    """Tokens and labels of each conversation of a packed row, as `pack_branches` got them."""
    columns = list(zip(row["input_ids"], row["labels"], row["branch_ids"], strict=True))
    conversations = []
    for number in range(1, max(row["branch_ids"]) + 1):
        kept = [(token, label) for token, label, branch in columns if branch in (0, number)]
        conversations.append(([token for token, _ in kept], [label for _, label in kept]))
    return conversations


def _common_prefix(sequences: list[list[int]]) -> list[tuple[int, ...]]:
    return list(takewhile(lambda tokens: len(set(tokens)) == 1, zip(*sequences, strict=False)))
