"""Conversations about one image in one row: the same tokens, labels and positions as apart."""

import pytest
import torch
from chat_tiny import CHATML, picture, processor, turn
from models.vlm_tiny import text_config, tiny_model

from hf_mm import VLMCollator, encode_rows
from hf_mm.data.packing import fill_rows, pack_branches, unpack_branches

ROWS = [
    {
        "images": [picture(number)],
        "conversations": [
            [turn("user", picture(), question), turn("assistant", answer)]
            for question, answer in [("is it red?", "no"), ("is there a circle in it?", "yes"), ("?", "red")][
                : number + 1
            ]
        ],
    }
    for number in range(3)
]


@pytest.mark.parametrize("template", [None, CHATML])
def test_a_packed_row_and_its_conversations_carry_the_same_tokens_and_labels(template):
    p = processor(template)
    packed, apart = encode_rows(p, ROWS), encode_rows(p, ROWS, packed=False)
    unpacked = [pair for row in packed for pair in unpack_branches(row)]
    assert unpacked == [(row["input_ids"], row["labels"]) for row in apart]


def test_positions_restart_after_the_trunk_in_every_branch():
    row = pack_branches([([1, 2, 3, 4], [-100, -100, -100, 4]), ([1, 2, 5, 6, 7], [-100, -100, -100, 6, 7])])
    assert row == {
        "input_ids": [1, 2, 3, 4, 5, 6, 7],
        "labels": [-100, -100, -100, 4, -100, 6, 7],
        "position_ids": [0, 1, 2, 3, 2, 3, 4],
        "document_ids": [1] * 7,
        "branch_ids": [0, 0, 1, 1, 2, 2, 2],
    }


def test_equal_beginnings_are_shared_but_for_the_token_before_the_first_label():
    row = pack_branches([([1, 2, 3, 4], [-100, -100, -100, 4])] * 2)
    assert row["branch_ids"] == [0, 0, 1, 1, 2, 2]
    assert row["labels"] == [-100, -100, -100, 4, -100, 4]


def test_the_first_token_of_a_branch_and_the_trunk_carry_no_label():
    for row in encode_rows(processor(), ROWS):
        for place, (label, branch) in enumerate(zip(row["labels"], row["branch_ids"], strict=True)):
            if branch == 0 or branch != row["branch_ids"][place - 1]:
                assert label == -100


def test_an_image_that_branches_do_not_share_is_refused():
    p = processor()
    row = {
        "images": [picture()],
        "conversations": [
            [turn("user", text, picture()), turn("assistant", "no")] for text in ("red", "blue")
        ],
    }
    with pytest.raises(
        ValueError, match=r"Row 0: conversation 0 has an image after .* \(1 tokens\); put the images first"
    ):
        encode_rows(p, [row])
    assert len(encode_rows(p, [row], packed=False)) == 2


def test_one_conversation_may_have_images_anywhere():
    turns = [
        turn("user", picture(), "a"),
        turn("assistant", "b"),
        turn("user", picture(), "c"),
        turn("assistant", "d"),
    ]
    row = {"images": [picture(0), picture(1)], "conversations": [turns]}
    p = processor()
    (packed,), (apart,) = encode_rows(p, [row]), encode_rows(p, [row], packed=False)
    assert packed["input_ids"] == apart["input_ids"]
    assert packed["position_ids"] == list(range(len(apart["input_ids"])))


def test_a_conversation_without_labels_is_refused():
    with pytest.raises(ValueError, match="conversation 1 has no labels after its first token"):
        pack_branches([([1, 2, 3], [-100, -100, 3]), ([1, 2, 3], [-100] * 3)])


@pytest.mark.parametrize("spare", [0, 60])
def test_filled_rows_keep_every_document_whole(spare):
    p = processor()
    rows = encode_rows(p, ROWS)
    longest = max(len(row["input_ids"]) for row in rows) + spare
    filled = fill_rows(rows, longest)
    assert len(filled) == (1 if spare else 3)
    assert all(len(row["input_ids"]) <= longest for row in filled)
    documents = [
        [
            [item for item, d in zip(row[name], row["document_ids"], strict=True) if d == document]
            for name in names
        ]
        for row in filled
        for document in range(1, max(row["document_ids"]) + 1)
        for names in [("input_ids", "labels", "position_ids", "branch_ids")]
    ]
    expected = [[row[name] for name in ("input_ids", "labels", "position_ids", "branch_ids")] for row in rows]
    assert sorted(documents) == sorted(expected)
    images = [image for row in filled for image in row["images"]]
    assert {id(image) for image in images} == {id(image) for row in ROWS for image in row["images"]}
    labels = VLMCollator(p)(filled)["labels"]
    assert (labels != -100).sum() == sum((torch.tensor(row["labels"]) != -100).sum() for row in rows)


def test_a_row_too_long_to_fill_in_is_refused():
    rows = encode_rows(processor(), ROWS)
    with pytest.raises(ValueError, match=r"Row 2 has \d+ tokens, more than `max_length`=20"):
        fill_rows(rows, 20)


def test_packed_filled_and_unpacked_rows_have_the_same_loss():
    p = processor()
    size = len(p.tokenizer)
    model = tiny_model(text_config=text_config(vocab_size=size), image_token_id=p.image_token_id)
    packed, apart = encode_rows(p, ROWS), encode_rows(p, ROWS, packed=False)
    with torch.no_grad():
        expected = model(**VLMCollator(p, packed=False)(apart)).loss
        for rows in (packed, fill_rows(packed, 90)):
            torch.testing.assert_close(model(**VLMCollator(p)(rows)).loss, expected, atol=1e-5, rtol=0)
