"""Batches of hidden words and of labels of words, as the heads of ViLT take them; views drawn by a seed."""

import numpy as np
import pytest
import torch
from models.vilt_tiny import tiny_config
from PIL import Image
from torch.nn.functional import cross_entropy
from transformers import BertTokenizer

from hf_mm import (
    MMViltImageProcessor,
    MMViltProcessor,
    RandAugment,
    ViltCaptionCollator,
    ViltMaskedWordsCollator,
    ViltPairsOfImagesCollator,
    ViltPretrainingCollator,
    ViltQuestionCollator,
    ViltRetrievalCollator,
    ViltWordLabelsCollator,
)
from hf_mm.models.vilt.text_heads_vilt import MMViltForMaskedLM, MMViltForTokenClassification

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "red",
    "blue",
    "dog",
    "cat",
    "##s",
    "is",
    "it",
    "?",
]
CLS, SEP, MASK, NONE = 2, 3, 4, -100
LABELS = {"other": 0, "colour": 1, "thing": 2}


@pytest.fixture(scope="module")
def processor():
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
    images = MMViltImageProcessor(size={"shortest_edge": 16}, size_divisor=8)
    return MMViltProcessor(images, tokenizer, max_length=8)


def picture(number=0):
    sides = ((16, 24), (24, 16), (16, 16))[number % 3]
    return np.random.default_rng(number).integers(0, 256, (*sides, 3), dtype=np.uint8)


def captions(texts=("a red dogs", "a cat", "is it blue ?")):
    return [{"image": picture(i), "caption": text} for i, text in enumerate(texts)]


def labelled():
    return [
        {"image": picture(0), "words": ["a", "red", "dogs"], "labels": ["other", "colour", "thing"]},
        {"image": picture(1), "words": ["cats", "?"], "labels": ["thing", NONE]},
    ]


def test_hidden_words_are_whole_and_the_rest_is_as_it_was(processor):
    batch = ViltMaskedWordsCollator(processor, word_share=0.4, seed=1)(captions())
    plain = processor([row["image"] for row in captions()], [row["caption"] for row in captions()])
    assert set(batch) == {*plain, "labels"}
    hidden = batch["labels"] != NONE
    assert (hidden.sum(1) >= 1).all()
    assert torch.equal(batch["labels"][hidden], plain["input_ids"][hidden])
    assert torch.equal(batch["input_ids"][~hidden], plain["input_ids"][~hidden])
    assert (batch["input_ids"][hidden] == MASK).any()
    assert hidden[0, 3] == hidden[0, 4]  # dog ##s
    for name in ("attention_mask", "pixel_values", "pixel_mask"):
        assert torch.equal(batch[name], plain[name])


def test_a_seed_hides_the_same_words_again(processor):
    drawn = [ViltMaskedWordsCollator(processor, seed=seed)(captions())["labels"] for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_the_model_of_hidden_words_learns_from_a_batch(processor):
    torch.manual_seed(0)
    model, batch = (
        MMViltForMaskedLM(tiny_config()).eval(),
        ViltMaskedWordsCollator(processor, seed=0)(captions()),
    )
    out = model(**batch)
    torch.testing.assert_close(out.loss, cross_entropy(out.logits.flatten(0, 1), batch["labels"].flatten()))
    out.loss.backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)


def test_the_label_of_a_word_goes_to_its_first_token(processor):
    batch = ViltWordLabelsCollator(processor, LABELS)(labelled())
    assert batch["input_ids"].tolist() == [[CLS, 5, 6, 8, 10, SEP], [CLS, 9, 10, 13, SEP, 0]]
    assert batch["labels"].tolist() == [[NONE, 0, 1, 2, NONE, NONE], [NONE, 2, NONE, NONE, NONE, NONE]]
    assert batch["attention_mask"].sum(1).tolist() == [6, 5]
    assert not batch["token_type_ids"].any()
    assert torch.equal(batch["pixel_values"], processor([picture(0), picture(1)])["pixel_values"])


def test_all_tokens_of_a_word_can_have_its_label(processor):
    batch = ViltWordLabelsCollator(processor, LABELS, every_token=True)(labelled())
    assert batch["labels"].tolist() == [[NONE, 0, 1, 2, 2, NONE], [NONE, 2, 2, NONE, NONE, NONE]]


def test_labels_may_be_numbers(processor):
    rows = [{**row, "labels": [LABELS.get(label, label) for label in row["labels"]]} for row in labelled()]
    got, expected = (
        ViltWordLabelsCollator(processor)(rows),
        ViltWordLabelsCollator(processor, LABELS)(labelled()),
    )
    assert torch.equal(got["labels"], expected["labels"])


def test_the_model_of_kinds_of_words_learns_from_a_batch(processor):
    torch.manual_seed(0)
    model = MMViltForTokenClassification(tiny_config(num_labels=3)).eval()
    batch = ViltWordLabelsCollator(processor, LABELS)(labelled())
    out = model(**batch)
    torch.testing.assert_close(out.loss, cross_entropy(out.logits.flatten(0, 1), batch["labels"].flatten()))


def test_a_text_that_is_too_long_is_cut_with_its_labels_on_demand(processor):
    long = [{"image": picture(), "words": ["dogs"] * 4, "labels": ["thing"] * 4}]
    with pytest.raises(
        ValueError, match=r"Row 0 of the batch has 10 tokens, and `max_length` is 8: 'dogs dogs"
    ):
        ViltWordLabelsCollator(processor, LABELS)(long)
    cut = ViltWordLabelsCollator(processor, LABELS, truncation=True)(long)
    assert cut["labels"].tolist() == [[NONE, 2, NONE, 2, NONE, 2, NONE, NONE]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"labels": ["thing"]},
            r"Row 1 of the batch has 2 words and the labels \['thing'\]; give one for each",
        ),
        (
            {"labels": ["thing", "verb"]},
            r"Row 1 of the batch has the label 'verb'; give one of \['other', 'co",
        ),
        ({"labels": ["thing", 2]}, "Row 1 of the batch has the label 2; give one of"),
        ({"words": "cats ?"}, "Row 1 of the batch has 'cats \\?' in 'words'; give a list of words"),
        ({"words": [], "labels": []}, r"Row 1 of the batch has \[\] in 'words'"),
        (
            {"words": ["cats", "\x00"]},
            r"Row 1 of the batch: word 1, '\\x00', gives no token, so its label has",
        ),
    ],
)
def test_words_and_labels_that_do_not_go_together_are_named(processor, change, message):
    rows = [labelled()[0], labelled()[1] | change]
    with pytest.raises(ValueError, match=message):
        ViltWordLabelsCollator(processor, LABELS)(rows)


def test_numbers_that_are_no_labels_are_named(processor):
    rows = [{"image": picture(), "words": ["a"], "labels": ["other"]}]
    with pytest.raises(ValueError, match="Row 0 of the batch has the label 'other'; give a number, or -100"):
        ViltWordLabelsCollator(processor)(rows)
    with pytest.raises(ValueError, match=r"Row 0 of the batch has no \['words', 'labels'\]"):
        ViltWordLabelsCollator(processor)([{"image": picture()}])


@pytest.mark.parametrize("share", [0, 1.0])
def test_shares_that_hide_nothing_or_all_are_refused(processor, share):
    with pytest.raises(ValueError, match=f"`word_share`={share} must be above 0 and below 1"):
        ViltMaskedWordsCollator(processor, word_share=share)


def question(number):
    return {"image": picture(number), "question": "is it red ?", "answer": "yes"}


def statement(number):
    return {"images": [picture(number), picture(number + 1)], "statement": "it is red", "label": 1}


SEEDED = {
    "questions": (lambda p, **o: ViltQuestionCollator(p, {"yes": 0}, **o), [question(0), question(1)]),
    "pairs": (lambda p, **o: ViltPairsOfImagesCollator(p, **o), [statement(0), statement(1)]),
    "pre-training": (lambda p, **o: ViltPretrainingCollator(p, **o), captions()),
    "captions": (lambda p, **o: ViltCaptionCollator(p, **o), captions()),
    "ranking": (lambda p, **o: ViltRetrievalCollator(p, ["a", "it", "red"], candidates=2, **o), captions()),
    "hidden words": (lambda p, **o: ViltMaskedWordsCollator(p, **o), captions()),
    "kinds of words": (lambda p, **o: ViltWordLabelsCollator(p, LABELS, **o), labelled()),
}


@pytest.mark.parametrize("kind", SEEDED)
def test_pictures_are_changed_by_the_seed_and_the_batch_alone(processor, kind):
    """And torch's own generator goes on as if nothing was drawn."""
    build, rows = SEEDED[kind]
    augment, state = RandAugment(2, 30), torch.get_rng_state()
    first, again, other = (build(processor, augment=augment, seed=seed)(rows) for seed in (1, 1, 5))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["pixel_values"], other["pixel_values"])
    plain = build(processor, seed=1)(rows)
    assert first["pixel_values"].shape == plain["pixel_values"].shape
    assert not torch.equal(first["pixel_values"], plain["pixel_values"])


def test_without_a_seed_views_are_drawn_from_torchs_generator(processor):
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        collate = ViltQuestionCollator(processor, {"yes": 0}, augment=RandAugment(2, 30))
        drawn.append(collate([question(0), question(1)])["pixel_values"])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_picture_that_is_augmented_is_rgb(processor):
    rows = [{**question(0), "image": Image.new("L", (20, 20), 90)}]
    batch = ViltQuestionCollator(processor, {"yes": 0}, augment=RandAugment())(rows)
    assert batch["pixel_values"].shape == (1, 3, 16, 16)
