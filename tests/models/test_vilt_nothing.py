"""Where ViLT has nothing to learn it costs exactly nothing, and where it has nothing to read it says so."""

import pytest
import torch
from torch.testing import assert_close
from vilt_tiny import MIXED, images, mixed, texts, tiny_config

from hf_mm.models.vilt.generation_vilt import MMViltForImageToText
from hf_mm.models.vilt.heads_vilt import (
    MMViltForImageAndTextRetrieval,
    MMViltForImagesAndTextClassification,
    MMViltForQuestionAnswering,
)
from hf_mm.models.vilt.masked_image_vilt import MMViltForMaskedImageModeling
from hf_mm.models.vilt.pretraining_vilt import MMViltForPreTraining
from hf_mm.models.vilt.text_heads_vilt import MMViltForMaskedLM, MMViltForTokenClassification

LENGTHS, GRIDS = MIXED
PLACES, ROWS = torch.full((3, 9), -100), torch.full((3,), -100)
ALL = {"mlm": 1.0, "itm": 1.0, "wpa": 0.1, "mpp": 1.0}


def pairs():
    both = {name: values.unflatten(0, (3, 2)) for name, values in images(GRIDS + GRIDS[::-1]).items()}
    return {**texts(LENGTHS), **both}


def candidates():
    """Two texts for each of three images."""
    return {**texts((5, 9, 3, 4, 7, 6)), **images(GRIDS), "image_index": torch.arange(3).repeat_interleave(2)}


def nothing_asked():
    """Every task of pre-training, and nothing in any."""
    words = {"mlm_input_ids": mixed()["input_ids"], "mlm_labels": PLACES}
    matching = {"itm_image_index": torch.tensor([1, 0, 2]), "itm_labels": ROWS}
    return {**mixed(), **words, **matching, "bool_masked_patches": torch.zeros(3, 15, dtype=torch.bool)}


# (head, inputs in which nothing is to be learnt, fields of the config)
HEADS = {
    "hidden words": (MMViltForMaskedLM, lambda: {**mixed(), "labels": PLACES}, {}),
    "kinds of words": (MMViltForTokenClassification, lambda: {**mixed(), "labels": PLACES}, {}),
    "texts": (MMViltForImageToText, lambda: {**mixed(), "labels": PLACES}, {}),
    "answers": (MMViltForQuestionAnswering, lambda: {**mixed(), "labels": ROWS}, {}),
    "ranking": (MMViltForImageAndTextRetrieval, lambda: {**candidates(), "labels": ROWS}, {}),
    "pairs of images": (MMViltForImagesAndTextClassification, lambda: {**pairs(), "labels": ROWS}, {}),
    "hidden pixels": (
        MMViltForMaskedImageModeling,
        lambda: {**mixed(), "bool_masked_patches": torch.zeros(3, 15, dtype=torch.bool)},
        {},
    ),
    "pre-training": (MMViltForPreTraining, nothing_asked, {"task_weights": ALL}),
}


def built(head):
    torch.manual_seed(0)
    model_class, inputs, fields = HEADS[head]
    return model_class(tiny_config(num_labels=5, **fields)), inputs()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("head", HEADS)
def test_nothing_to_learn_costs_an_exact_zero_with_gradient_zero(head, training):
    model, inputs = built(head)
    counts = [{}] if head == "pre-training" else [{}, {"num_items_in_batch": 0}, {"num_items_in_batch": 7}]
    for count in counts:
        model.zero_grad()
        out = model.train(training)(**inputs, **count)
        out.loss.backward()
        assert out.loss.item() == 0.0
        assert not any(weight.grad.any() for weight in model.parameters() if weight.grad is not None)


def test_each_task_of_pre_training_is_zero_by_itself_also_as_a_part_of_a_larger_batch():
    model, inputs = built("pre-training")
    for items in (None, dict.fromkeys(ALL, 0), dict.fromkeys(ALL, torch.tensor(0)), dict.fromkeys(ALL, 4)):
        out = model(**inputs, num_items_by_task=items)
        assert [out[f"{task}_loss"].item() for task in ALL] == [0.0] * 4


def test_texts_without_words_have_nothing_to_move():
    """[CLS] and [SEP] alone: alignment is an exact zero, and every gradient is a number."""
    model, _ = built("pre-training")
    batch = {**texts((2, 2, 2)), **images(GRIDS), "itm_labels": torch.tensor([1, 0, 1])}
    out = model.train()(**batch)
    assert out.wpa_loss.item() == 0.0
    out.loss.backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)


@pytest.mark.parametrize("head", ["hidden words", "kinds of words", "texts", "answers", "pairs of images"])
def test_rows_without_a_label_change_nothing_for_the_others(head):
    model, inputs = built(head)
    labels = inputs["labels"].clone()
    if labels.ndim == 2:
        labels[1, 2:4] = 3
    else:
        labels[1] = 3
    together = model(**inputs | {"labels": labels})
    alone = model(**{name: values[1:2] for name, values in (inputs | {"labels": labels}).items()})
    assert together.loss > 0
    assert_close(together.loss, alone.loss)


@pytest.mark.parametrize("head", [head for head in HEADS if head not in ("ranking", "pairs of images")])
@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("attention_mask", "Row 1 of `input_ids` has no token at all: its `attention_mask` is 0 throughout"),
        ("pixel_mask", "Row 1 of `pixel_mask` shows no patch of its image"),
    ],
)
def test_rows_that_are_all_padding_are_an_error_in_every_head(head, column, message):
    model, inputs = built(head)
    if head == "pre-training":
        inputs["itm_image_index"] = torch.arange(3)
    inputs[column][1] = 0
    with pytest.raises(ValueError, match=message):
        model(**inputs)
