"""Batches of questions, expressions, statements about pairs of pictures and captions, on regions."""

import pytest
import torch
from models.regions_tiny_rows import BOXES, WORDS, regions, tokenizer

from hf_mm import (
    MMRegionProcessor,
    PairsOfRegionsCollator,
    RegionCaptionCollator,
    RegionQuestionCollator,
    RegionRetrievalCollator,
    RegionSelectionCollator,
    box_iou,
)

LABELS = {"yes": 0, "no": 1, "red": 2}
INPUTS = ["input_ids", "attention_mask", "token_type_ids", "region_features", "region_boxes", "region_mask"]
STORE = {"a.jpg": regions(3), "b.jpg": regions(2, seed=1)}


@pytest.fixture(scope="module")
def processor():
    return MMRegionProcessor(tokenizer(), max_length=8)


def question(answer="yes", text="is it red ?", picture=None):
    return {"regions": regions(3) if picture is None else picture, "question": text, "answer": answer}


def expression(label=1, text="a red dog", picture=None):
    return {"regions": regions(4) if picture is None else picture, "expression": text, "label": label}


def statement(label=True, pictures=None):
    pictures = [regions(3), regions(2, seed=1)] if pictures is None else pictures
    return {"regions": pictures, "statement": "it is red", "label": label}


def words(ids):
    return [" ".join(WORDS[i] for i in row) for row in ids.tolist()]


def assert_inputs(batch, expected):
    assert set(batch) == {*INPUTS, "labels"}
    assert all(torch.equal(batch[name], expected[name]) for name in INPUTS)


def test_questions_get_a_score_for_each_answer(processor):
    people = ["yes"] * 7 + ["no"] * 2 + ["red"]
    batch = RegionQuestionCollator(processor, LABELS)([question("no"), question(people, "a dog ?")])
    assert_inputs(batch, processor(["is it red ?", "a dog ?"], [regions(3)] * 2))
    torch.testing.assert_close(batch["labels"], torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.6, 0.3]]))


def test_questions_can_get_the_number_of_the_right_answer_and_a_mask_to_read_it_at(processor):
    collate = RegionQuestionCollator(processor, LABELS, soft=False, masked_answer=True)
    batch = collate([question("red"), question("yes")])
    assert batch["labels"].tolist() == [2, 0]
    assert words(batch["input_ids"]) == ["[CLS] is it red ? [MASK] [SEP]"] * 2


def test_regions_are_found_in_a_store_by_the_id_of_the_picture(processor):
    rows = [question(picture="b.jpg"), question(picture=regions(1, seed=2)), question(picture="a.jpg")]
    batch = RegionQuestionCollator(processor, LABELS, store=STORE)(rows)
    pictures = [STORE["b.jpg"], regions(1, seed=2), STORE["a.jpg"]]
    assert_inputs(batch, processor(["is it red ?"] * 3, pictures))


def test_boxes_in_pixels_are_taken_where_that_is_said(processor):
    pixels = regions(3, boxes=torch.tensor(BOXES[:3]) * torch.tensor([200.0, 100.0, 200.0, 100.0]))
    batch = RegionQuestionCollator(processor, LABELS, box_format="pixels")([question(picture=pixels)])
    torch.testing.assert_close(batch["region_boxes"][0], torch.tensor(BOXES[:3]))


def test_faulty_questions_are_named(processor):
    collate = RegionQuestionCollator(processor, LABELS, store=STORE)
    with pytest.raises(ValueError, match=r"Row 0 of the batch has no \['answer'\], only \['question', 'regi"):
        collate([{"regions": regions(1), "question": "a"}])
    with pytest.raises(ValueError, match="Row 1 of the batch has ' ' in 'question'; give a text"):
        collate([question(), question(text=" ")])
    with pytest.raises(
        ValueError, match="Row 1 of the batch has the answer 'blue', which is not among the 3"
    ):
        collate([question(), question("blue")])
    with pytest.raises(
        ValueError, match=r"Row 1 of the batch has 'c\.jpg' in 'regions', an id of which the `sto"
    ):
        collate([question(), question(picture="c.jpg")])
    with pytest.raises(
        ValueError, match=r"Row 0 of the batch has 'a\.jpg' in 'regions', no regions; give a dic"
    ):
        RegionQuestionCollator(processor, LABELS)([question(picture="a.jpg")])
    with pytest.raises(ValueError, match="`text` 0 has 11 tokens"):
        collate([question(text="dog " * 9)])
    cut = RegionQuestionCollator(processor, LABELS, truncation=True)([question(text="dog " * 9)])
    assert cut["input_ids"].shape == (1, 8)
    with pytest.raises(ValueError, match="`unknown_answers=True` needs `soft=True`"):
        RegionQuestionCollator(processor, LABELS, soft=False, unknown_answers=True)
    maskless = tokenizer()
    maskless.mask_token = None
    with pytest.raises(ValueError, match="The tokenizer has no `mask_token` to read answers at"):
        RegionQuestionCollator(MMRegionProcessor(maskless), LABELS, masked_answer=True)


def test_expressions_get_the_number_of_the_region_that_is_meant(processor):
    rows = [expression(1), expression(2, "a cat", regions(3, seed=1))]
    batch = RegionSelectionCollator(processor)(rows)
    assert_inputs(batch, processor(["a red dog", "a cat"], [regions(4), regions(3, seed=1)]))
    assert batch["labels"].tolist() == [1, 2]


def test_a_box_that_is_meant_is_the_region_that_overlaps_it_most(processor):
    near = [0.55, 0.5, 1.0, 0.95]
    assert RegionSelectionCollator(processor)([expression(near)])["labels"].tolist() == [2]
    pixels = regions(3, boxes=torch.tensor(BOXES[:3]) * torch.tensor([200.0, 100.0, 200.0, 100.0]))
    collate = RegionSelectionCollator(processor, box_format="pixels")
    assert collate([expression([110, 50, 200, 95], picture=pixels)])["labels"].tolist() == [2]
    with pytest.raises(
        ValueError, match=r"Row 0 of the batch: no region overlaps the box \[0.3, 0.3, 0.7, 0.7\]"
    ):
        RegionSelectionCollator(processor)([expression([0.3, 0.3, 0.7, 0.7])])


def test_labels_can_be_the_overlap_of_each_region_with_the_right_one(processor):
    rows = [expression(0), expression([0.3, 0.3, 0.7, 0.7], picture=regions(2))]
    batch = RegionSelectionCollator(processor, soft=True)(rows)
    boxes = torch.tensor(BOXES[:4])
    torch.testing.assert_close(batch["labels"][0], box_iou(boxes, boxes[:1])[:, 0])
    assert batch["labels"][0, 0] == 1
    expected = box_iou(boxes[:2], torch.tensor([[0.3, 0.3, 0.7, 0.7]]))[:, 0]
    torch.testing.assert_close(batch["labels"][1, :2], expected)
    assert batch["labels"][1, 2:].tolist() == [-100, -100]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (4, "Row 1 of the batch has the label 4 in 'label' and 4 regions; give the number of one of them"),
        (-1, "Row 1 of the batch has the label -1 in 'label' and 4 regions"),
        (True, "Row 1 of the batch has True in 'label'; give the number of the right region, or the box"),
        ("a dog", "Row 1 of the batch has 'a dog' in 'label'"),
        ([0.1, 0.2], r"Row 1 of the batch has \[0.1, 0.2\] in 'label'"),
        ([0, 0, 64, 64], "Row 1 of the batch, 'label': `boxes` must be .* as shares .* got a maximum of 64"),
    ],
)
def test_labels_that_are_no_region_are_named(processor, label, message):
    with pytest.raises(ValueError, match=message):
        RegionSelectionCollator(processor)([expression(), expression(label)])


def test_pairs_of_pictures_stay_together(processor):
    rows = [statement(), statement(0, ["b.jpg", "a.jpg"])]
    batch = PairsOfRegionsCollator(processor, store=STORE)(rows)
    pictures = [[regions(3), regions(2, seed=1)], [STORE["b.jpg"], STORE["a.jpg"]]]
    assert_inputs(batch, processor(["it is red"] * 2, pictures))
    assert batch["region_features"].shape[:2] == (2, 2)
    assert batch["labels"].tolist() == [1, 0]


def test_faulty_statements_are_named(processor):
    collate = PairsOfRegionsCollator(processor)
    message = "Row 1 of the batch has 1 pictures in 'regions', the model compares `num_images`=2"
    for pictures in ([regions(2)], regions(2)):
        with pytest.raises(ValueError, match=message):
            collate([statement(), statement(pictures=pictures)])
    assert PairsOfRegionsCollator(processor, 1)([statement(pictures=[regions(2)])])["region_mask"].ndim == 3
    with pytest.raises(ValueError, match="Row 0 of the batch has 'True' in 'label'; give `True` or `False`"):
        collate([statement("True")])


def test_captions_are_learned_to_their_end_and_prompts_are_not(processor):
    rows = [
        {"regions": "a.jpg", "prompt": "is it", "caption": "red ?"},
        {"regions": "b.jpg", "prompt": "", "caption": "a dog"},
    ]
    batch = RegionCaptionCollator(processor, prompt_column="prompt", store=STORE)(rows)
    assert set(batch) == {*INPUTS, "labels"}
    assert words(batch["input_ids"]) == ["[CLS] is it red ? [SEP]", "[CLS] a dog [SEP] [PAD] [PAD]"]
    learned = batch["labels"] != -100
    assert learned.tolist() == [[False] * 3 + [True] * 3, [False] + [True] * 3 + [False] * 2]
    assert torch.equal(batch["labels"][learned], batch["input_ids"][learned])
    assert batch["region_mask"].sum(1).tolist() == [3, 2]
    start = processor.prompts(STORE["a.jpg"], "is it")["input_ids"]
    assert torch.equal(batch["input_ids"][0, ~learned[0]], start[0])


def test_one_of_several_captions_is_drawn_by_the_seed(processor):
    rows = [{"regions": "a.jpg", "caption": ["red", "blue"]}] * 8
    drawn = [
        words(RegionCaptionCollator(processor, store=STORE, seed=seed)(rows)["input_ids"])
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert set(drawn[0]) == {"[CLS] red [SEP]", "[CLS] blue [SEP]"}


@pytest.mark.parametrize("max_tags", [0, 2])
def test_a_true_text_comes_before_different_false_ones(max_tags):
    processor = MMRegionProcessor(tokenizer(), max_tags=max_tags)
    rows = [{"regions": "a.jpg", "caption": ["a dog", "red dog"]}, {"regions": "b.jpg", "caption": "a cat"}]
    texts = ["a dog", "a cat", "red", "blue", "red dog", "it"]
    collate = RegionRetrievalCollator(processor, texts, candidates=4, store=STORE, seed=0)
    batch = collate(rows)
    segments = [told.split(" [SEP]")[:-1] for told in words(batch["input_ids"])]
    told = [first.removeprefix("[CLS] ") for first, *_ in segments]
    assert told[0] in {"a dog", "red dog"}
    assert told[4] == "a cat"
    assert {"a dog", "red dog"}.isdisjoint(told[1:4])
    assert len(set(told[:4])) == len(set(told[4:])) == 4
    assert batch["region_index"].tolist() == [0] * 4 + [1] * 4
    assert batch["region_mask"].sum(1).tolist() == [3, 2]
    assert batch["labels"].tolist() == [0, 0]
    assert [tags for _, *tags in segments] == [[" dog cat"] if max_tags else []] * 8
    assert torch.equal(collate(rows)["input_ids"], batch["input_ids"])
