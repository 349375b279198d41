"""A language model's own texts: as many, as long, its own, and learnt without a picture."""

import pytest
import torch
from chat_tiny import tokenizer
from torch.testing import assert_close

from hf_mm import VLMCollator
from hf_mm.models.vlm.small_vlm import small_vlm
from hf_mm.training.rehearsal import OPENINGS, rehearsal_rows


@pytest.fixture(scope="module")
def kit():
    torch.manual_seed(0)
    model, parts = small_vlm(tokenizer())
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(3)  # so that some words are likelier than others
    return model.eval(), parts


def test_texts_have_the_wanted_number_and_length_and_begin_as_told(kit):
    model, parts = kit
    rows = rehearsal_rows(model, parts.tokenizer, 30, "<|im_start|>user\n", length=20, batch_size=8)
    assert len(rows) == 30
    assert {len(row["input_ids"]) for row in rows} == {20}
    opened = [parts.tokenizer.decode(row["input_ids"]) for row in rows]
    chats = [text for text in opened if text.startswith("<|im_start|>user\n")]
    assert len(chats) == 12  # the second half of a round of 24 openings, the first 6 of which follow again
    assert all(text.startswith(OPENINGS) for text in opened if text not in chats)


def test_a_seed_gives_the_same_texts_and_another_others(kit):
    model, parts = kit

    def written(seed):
        torch.manual_seed(seed)
        return [row["input_ids"] for row in rehearsal_rows(model, parts.tokenizer, 4, length=16)]

    assert written(0) == written(0)
    assert written(0) != written(1)


def test_texts_are_drawn_as_the_model_draws_them(kit):
    """Frequencies of the first word that is written against the model's own probabilities."""
    model, parts = kit
    torch.manual_seed(0)
    start = parts.tokenizer("The")["input_ids"]
    rows = rehearsal_rows(model, parts.tokenizer, 400, None, ["The"], length=len(start) + 1, batch_size=400)
    drawn = torch.tensor([row["input_ids"][-1] for row in rows])
    with torch.no_grad():
        right = model(input_ids=torch.tensor([start])).logits[0, -1].softmax(-1)
    told = drawn.bincount(minlength=len(right)) / len(drawn)
    uniform = torch.full_like(right, 1 / len(right))
    far = (told - right).abs().sum() / 2
    assert far < 0.3
    assert (told - uniform).abs().sum() / 2 > 2 * far


def test_it_is_learnt_without_a_picture_and_every_token_counts(kit):
    model, parts = kit
    torch.manual_seed(0)
    rows = rehearsal_rows(model, parts.tokenizer, 3, length=16)
    batch = VLMCollator(parts)(rows)
    assert "pixel_values" not in batch
    ids = batch["input_ids"]
    with torch.no_grad():
        loss = model(**batch).loss
        logits = model(input_ids=ids).logits[:, :-1]
    right = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    assert_close(loss, right)


def test_a_length_without_room_for_the_opening_is_refused(kit):
    model, parts = kit
    with pytest.raises(ValueError, match=r"`length`=3 leaves no room behind an opening of \d+ tokens"):
        rehearsal_rows(model, parts.tokenizer, 1, length=3)
