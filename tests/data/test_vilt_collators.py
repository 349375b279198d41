"""Batches of questions, of statements about pairs of pictures, of captions to write and of texts to rank."""

import numpy as np
import pytest
import torch
from transformers import BertTokenizer

from hf_mm import (
    MMViltImageProcessor,
    MMViltProcessor,
    ViltCaptionCollator,
    ViltPairsOfImagesCollator,
    ViltQuestionCollator,
    ViltRetrievalCollator,
)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "dog", "cat", "is", "it", "?"]
LABELS = {"yes": 0, "no": 1, "red": 2}
INPUTS = ["input_ids", "attention_mask", "token_type_ids", "pixel_values", "pixel_mask"]


@pytest.fixture(scope="module")
def processor():
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
    images = MMViltImageProcessor(size={"shortest_edge": 16}, size_divisor=8)
    return MMViltProcessor(images, tokenizer, max_length=8)


def picture(height=16, width=24, value=9):
    return np.full((height, width, 3), value, np.uint8)


def question(answer="yes", text="is it red ?"):
    return {"image": picture(), "question": text, "answer": answer}


def statement(images=None, label=True):
    return {"images": images or [picture(), picture(24, 16)], "statement": "it is red", "label": label}


def words(ids):
    return [" ".join(WORDS[i] for i in row) for row in ids.tolist()]


def test_questions_get_a_score_for_each_answer(processor):
    people = ["yes"] * 7 + ["no"] * 2 + ["red"]
    rows = [question("no"), question(people), question({"red": 0.5})]
    batch = ViltQuestionCollator(processor, LABELS)(rows)
    expected = processor([picture()] * 3, ["is it red ?"] * 3)
    assert all(torch.equal(batch[name], expected[name]) for name in INPUTS)
    wanted = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.6, 0.3], [0.0, 0.0, 0.5]])
    torch.testing.assert_close(batch["labels"], wanted, rtol=0, atol=0)


def test_questions_can_get_the_number_of_the_right_answer(processor):
    collate = ViltQuestionCollator(processor, LABELS, soft=False)
    assert collate([question("red"), question("yes")])["labels"].tolist() == [2, 0]
    with pytest.raises(ValueError, match="Row 1 of the batch has not one right answer; use `soft=True`"):
        collate([question("red"), question({"red": 0.5})])
    with pytest.raises(ValueError, match="`unknown_answers=True` needs `soft=True`"):
        ViltQuestionCollator(processor, LABELS, soft=False, unknown_answers=True)


def test_answers_outside_the_vocabulary_are_an_error_or_count_as_wrong(processor):
    rows = [question("no"), question({"green": 1.0, "red": 0.3}), question("green")]
    with pytest.raises(
        ValueError, match="Row 1 of the batch has the answer 'green', which is not among the 3"
    ):
        ViltQuestionCollator(processor, LABELS)(rows)
    labels = ViltQuestionCollator(processor, LABELS, unknown_answers=True)(rows)["labels"]
    torch.testing.assert_close(labels, torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.3], [0.0, 0.0, 0.0]]))


def test_faulty_questions_are_named(processor):
    collate = ViltQuestionCollator(processor, LABELS)
    with pytest.raises(ValueError, match=r"Row 0 of the batch has no \['answer'\], only \['image', 'quest"):
        collate([{"image": picture(), "question": "a"}])
    with pytest.raises(ValueError, match="Row 1 of the batch has ' ' in 'question'; give a text"):
        collate([question(), question(text=" ")])
    with pytest.raises(ValueError, match="`text` 0 has 11 tokens"):
        collate([question(text="dog " * 9)])
    cut = ViltQuestionCollator(processor, LABELS, truncation=True)([question(text="dog " * 9)])
    assert cut["input_ids"].shape == (1, 8)


def test_pairs_of_pictures_stay_together(processor):
    batch = ViltPairsOfImagesCollator(processor)([statement(), statement(label=0)])
    flat = processor([picture(), picture(24, 16)] * 2, ["it is red"] * 2)
    assert batch["pixel_values"].shape == (2, 2, 3, 24, 24)
    assert torch.equal(batch["pixel_values"].flatten(0, 1), flat["pixel_values"])
    assert torch.equal(batch["pixel_mask"].flatten(0, 1), flat["pixel_mask"])
    assert batch["labels"].tolist() == [1, 0]


def test_one_picture_where_two_are_expected_is_an_error(processor):
    message = "Row 1 of the batch has 1 pictures in 'images', the model compares `num_images`=2"
    for images in ([picture()], picture()):
        with pytest.raises(ValueError, match=message):
            ViltPairsOfImagesCollator(processor)([statement(), {**statement(), "images": images}])
    three = statement([picture()] * 3)
    assert ViltPairsOfImagesCollator(processor, 3)([three])["pixel_values"].shape[:2] == (1, 3)


def test_faulty_statements_are_named(processor):
    collate = ViltPairsOfImagesCollator(processor)
    with pytest.raises(ValueError, match="Row 0 of the batch has 'True' in 'label'; give `True` or `False`"):
        collate([statement(label="True")])
    with pytest.raises(ValueError, match="Row 0 of the batch has -1 in 'label'"):
        collate([statement(label=-1)])
    with pytest.raises(
        ValueError, match="Row 0 of the batch, 'images', picture 1 cannot be read as an image"
    ):
        collate([statement([picture(), b"no"])])


def test_captions_are_learned_to_their_end_and_prompts_are_not(processor):
    rows = [
        {"image": picture(), "prompt": "is it", "caption": "red ?"},
        {"image": picture(), "prompt": "", "caption": "a dog"},
    ]
    batch = ViltCaptionCollator(processor, prompt_column="prompt")(rows)
    assert words(batch["input_ids"]) == ["[CLS] is it red ? [SEP]", "[CLS] a dog [SEP] [PAD] [PAD]"]
    assert batch["attention_mask"].sum(1).tolist() == [6, 4]
    assert batch["prefix_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
    learned = (batch["attention_mask"] - batch["prefix_mask"]).bool()
    assert torch.equal(batch["labels"] != -100, learned)
    assert torch.equal(batch["labels"][learned], batch["input_ids"][learned])
    assert torch.equal(batch["pixel_values"], processor(images=[picture()] * 2)["pixel_values"])


def test_a_caption_with_its_prompt_is_what_generation_starts_from(processor):
    row = {"image": picture(), "prompt": "is it", "caption": "red ?"}
    batch = ViltCaptionCollator(processor, prompt_column="prompt")([row])
    start = processor.prompts(picture(), "is it")["input_ids"]
    assert torch.equal(batch["input_ids"][batch["prefix_mask"].bool()], start[0])


def test_captions_that_are_too_long_with_their_prompt_are_named(processor):
    row = {"image": picture(), "caption": "a dog " * 4}
    with pytest.raises(
        ValueError, match=r"Row 1 of the batch has 10 tokens with its prompt, .* is 8: 'a dog"
    ):
        ViltCaptionCollator(processor)([{"image": picture(), "caption": "a"}, row])


def test_one_of_several_captions_is_drawn_by_the_seed(processor):
    rows = [{"image": picture(), "caption": ["red", "blue"]}] * 8
    drawn = [words(ViltCaptionCollator(processor, seed=seed)(rows)["input_ids"]) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert set(drawn[0]) == {"[CLS] red [SEP]", "[CLS] blue [SEP]"}


TEXTS = ["a dog", "a cat", "red", "blue", "red dog", "blue cat", "red"]


def test_a_true_text_comes_before_different_false_ones(processor):
    rows = [
        {"image": picture(16, 16), "caption": ["a dog", "red dog"]},
        {"image": picture(24, 16), "caption": "a cat"},
    ]
    torch.manual_seed(0)
    collate, seen = ViltRetrievalCollator(processor, TEXTS, candidates=4), set()
    for _ in range(30):
        batch = collate(rows)
        texts = [processor.tokenizer.decode(row, skip_special_tokens=True) for row in batch["input_ids"]]
        assert texts[0] in {"a dog", "red dog"}
        assert texts[4] == "a cat"
        assert len(set(texts[:4])) == len(set(texts[4:])) == 4
        assert {"a dog", "red dog"}.isdisjoint(texts[1:4])
        seen |= {texts[0], *texts[5:]}
    assert seen == set(TEXTS) - {"a cat"}
    assert batch["image_index"].tolist() == [0] * 4 + [1] * 4
    assert batch["labels"].tolist() == [0, 0]
    assert batch["pixel_values"].shape[0] == 2


def test_too_few_false_texts_are_an_error(processor):
    row = {"image": picture(), "caption": ["a dog", "a cat"]}
    with pytest.raises(ValueError, match="Row 0 of the batch needs 5 false texts, `texts` has 4 that are no"):
        ViltRetrievalCollator(processor, TEXTS, candidates=6)([row])
    with pytest.raises(ValueError, match="`candidates`=1 must be at least 2"):
        ViltRetrievalCollator(processor, TEXTS, candidates=1)
