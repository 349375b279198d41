"""Packed rows: many questions about one image cost the image once and change neither loss nor gradient."""

import pytest
import torch
from models.vlm_tiny import IMAGE, PAD, batch_of, pictures, text_config, tiny_model, words
from torch.testing import assert_close
from transformers import GPT2Config, MistralConfig, Qwen2Config

from hf_mm.layers.packed_mask import packed_attention_mask

TRUNK = [IMAGE] * 4 + words(3, 9)
BRANCHES = [words(length, seed) for seed, length in enumerate((4, 7, 3))]
SMALL = text_config().to_diff_dict()


def packed(documents):
    """One row: of each document (trunk, branches) the trunk once, then its branches; labels on the last two
    tokens of each branch."""
    columns = {name: [] for name in ("input_ids", "labels", "position_ids", "document_ids", "branch_ids")}
    for number, (trunk, branches) in enumerate(documents, 1):
        for branch, tokens in enumerate([trunk, *branches]):
            start = len(trunk) if branch else 0
            columns["input_ids"] += tokens
            columns["labels"] += [-100] * (len(tokens) - 2) + tokens[-2:] if branch else [-100] * len(tokens)
            columns["position_ids"] += range(start, start + len(tokens))
            columns["document_ids"] += [number] * len(tokens)
            columns["branch_ids"] += [branch] * len(tokens)
    return {name: torch.tensor([column]) for name, column in columns.items()}


def unpacked(documents):
    rows = [trunk + branch for trunk, branches in documents for branch in branches]
    batch = batch_of(rows)
    labels = torch.full_like(batch["input_ids"], -100)
    for index, row in enumerate(rows):
        labels[index, len(row) - 2 : len(row)] = torch.tensor(row[-2:])
    return batch | {"labels": labels}


def loss_and_gradients(model, **inputs):
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss, {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "language",
    [
        text_config(),
        Qwen2Config(**SMALL | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 6,
                               "max_window_layers": 1}),
        MistralConfig(**SMALL | {"model_type": "mistral", "sliding_window": 5}),
        GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0,
                   attn_pdrop=0.0),
    ],
    ids=lambda config: config.model_type,
)  # fmt: skip
def test_packing_changes_neither_loss_nor_gradient(language, kernel):
    model = tiny_model(text_config=language).train()
    model.set_attn_implementation(kernel)
    look = pictures(2)
    documents = [(TRUNK, BRANCHES), ([IMAGE] * 4 + words(2, 7), [words(5, 8)])]
    alone = loss_and_gradients(model, **unpacked(documents), pixel_values=look[[0, 0, 0, 1]])
    row = loss_and_gradients(model, **packed(documents), pixel_values=look)
    assert_close(row, alone, rtol=1e-5, atol=1e-5)


def test_rows_of_a_batch_may_end_in_padding():
    model, look = tiny_model().train(), pictures(2)
    long, short = packed([(TRUNK, BRANCHES)]), packed([([IMAGE] * 4, [words(3, 5)])])
    missing = long["input_ids"].shape[1] - short["input_ids"].shape[1]
    fillers = {"input_ids": PAD, "labels": -100}
    batch = {
        name: torch.cat(
            (long[name], torch.nn.functional.pad(short[name], (0, missing), value=fillers.get(name, 0)))
        )
        for name in long
    }
    documents = [(TRUNK, BRANCHES), ([IMAGE] * 4, [words(3, 5)])]
    alone = loss_and_gradients(model, **unpacked(documents), pixel_values=look[[0, 0, 0, 1]])
    assert_close(loss_and_gradients(model, **batch, pixel_values=look), alone, rtol=1e-5, atol=1e-5)


def test_logits_of_labelled_places_only_give_the_same_loss():
    model, look = tiny_model().train(), pictures(1)
    row = packed([(TRUNK, BRANCHES)])
    places = torch.nn.functional.pad(row["labels"], (0, 1), value=-100)[:, 1:] != -100
    whole = loss_and_gradients(model, **row, pixel_values=look)
    few = loss_and_gradients(model, **row, pixel_values=look, logits_to_keep=places)
    assert_close(few, whole, rtol=1e-6, atol=1e-7)
    assert model(**row, pixel_values=look, logits_to_keep=places).logits.shape == (6, 64)


def test_a_branch_sees_the_trunk_and_itself():
    ids = packed([(words(2), [words(2, 1), words(1, 2)]), (words(1, 3), [words(1, 4)])])
    config = tiny_model().language_model.config
    seen = packed_attention_mask(
        config, ids["document_ids"], ids["branch_ids"], ids["position_ids"], torch.float32
    )
    expected = torch.tensor(
        [
            [1, 0, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0, 0],
            [1, 1, 1, 1, 0, 0, 0],
            [1, 1, 0, 0, 1, 0, 0],
            [0, 0, 0, 0, 0, 1, 0],
            [0, 0, 0, 0, 0, 1, 1],
        ]
    )
    assert_close(seen[0, 0].int(), expected.int())


def test_what_packing_cannot_do_is_said():
    model, row = tiny_model(), packed([(TRUNK, BRANCHES)])
    row.pop("labels")
    look = pictures(1)
    positions = row.pop("position_ids")
    with pytest.raises(ValueError, match="need `position_ids` that restart in each branch"):
        model(**row, pixel_values=look)
    cache = model(**batch_of([words(3)]), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="are for training"):
        model(**row, position_ids=positions, pixel_values=look, past_key_values=cache)
    model.language_model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(
        ValueError, match="not 'flash_attention_2'; load the model with attn_implementation=\"sdpa\""
    ):
        model(**row, position_ids=positions, pixel_values=look)
