"""Answers chosen by comparing are those of one comparison per row, and stand next to chance and prior."""

import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from evaluation.contrastive_tiny import clip_processor, own_clip, pictures, transformers_clip

from hf_mm import clip_vqa, clip_vqa_results, easy_vqa, question_prior, write_results
from hf_mm.data.easy_vqa import ANSWERS

CANDIDATES = ["circle", "blue", "yes", "no"]


@pytest.fixture(scope="module")
def processor():
    return clip_processor()


def rows():
    one, other = pictures(2)
    return [
        {"image": one, "question": "what shape is it?", "answer": "circle", "question_type": "shape"},
        {"image": other, "question": "what shape is it?", "answer": "circle", "question_type": "shape"},
        {"image": one, "question": "is it blue?", "answer": "yes", "question_type": "presence"},
        {"image": one, "question": "which color?", "answer": "teal", "question_type": "colour"},
    ]


@pytest.mark.parametrize("build", [transformers_clip, own_clip, lambda: own_clip(similarity="euclidean")])
def test_answers_are_those_of_asking_row_by_row(processor, build):
    model, expected = build(), []
    for row in rows():
        texts = [f"question: {row['question']} answer: {answer}" for answer in CANDIDATES]
        inputs = processor(text=texts, images=row["image"], padding=True, return_tensors="pt")
        with torch.no_grad():
            expected.append(CANDIDATES[int(model(**inputs).logits_per_image[0].argmax())])
    assert clip_vqa(model, processor, rows(), CANDIDATES, batch_size=1, progress=False) == expected


def test_a_shared_picture_is_encoded_once_and_data_sets_are_read(processor, monkeypatch):
    model, seen = own_clip(), []
    embed = model.embed_images

    def count(pixel_values):
        seen.append(len(pixel_values))
        return embed(pixel_values)

    monkeypatch.setattr(model, "embed_images", count)
    expected = clip_vqa(model, processor, rows(), CANDIDATES, progress=False)
    texts = {"question": Value("string"), "answer": Value("string"), "question_type": Value("string")}
    dataset = Dataset.from_list(rows(), features=Features({"image": ImageFeature(), **texts}))
    assert clip_vqa(model, processor, dataset, CANDIDATES, progress=False) == expected
    assert seen == [2, 2]


def test_results_stand_next_to_chance_and_prior(tmp_path):
    train = [
        *rows(),
        {"question": "is it blue?", "answer": "no"},
        {"question": "is it blue?", "answer": "no"},
    ]
    results = clip_vqa_results(rows(), ["Circle", "blue", "yes", "blue"], CANDIDATES, train)
    assert results["exact_match"] == pytest.approx(2 / 4)
    assert results["prior"] == pytest.approx(3 / 4)  # "is it blue?" is mostly answered no
    assert results["chance"] == pytest.approx(3 / 16)  # "teal" is no candidate
    assert (results["questions"], results["candidates"]) == (4, 4)
    assert results["by_type"] == [
        {"type": "colour", "n": 1, "chance": 0.0, "prior": 1.0, "exact_match": 0.0},
        {"type": "presence", "n": 1, "chance": 0.25, "prior": 0.0, "exact_match": 1.0},
        {"type": "shape", "n": 2, "chance": 0.25, "prior": 1.0, "exact_match": 0.5},
        {"type": "all", "n": 4, "chance": 0.1875, "prior": 0.75, "exact_match": 0.5},
    ]
    write_results(tmp_path / "vqa.json", results)


@pytest.mark.slow
def test_easy_vqa_has_its_known_prior_and_chance(processor):
    test, train = easy_vqa("test"), easy_vqa("train")
    results = clip_vqa_results(test, question_prior(train, test), ANSWERS, train)
    assert results["chance"] == pytest.approx(1 / 13)
    assert results["exact_match"] == results["prior"] == pytest.approx(0.67, abs=0.005)
    answers = clip_vqa(own_clip(), processor, test.select(range(20)), ANSWERS, progress=False)
    assert len(answers) == 20
    assert set(answers) <= set(ANSWERS)


@pytest.mark.parametrize(
    ("given", "answers", "template", "message"),
    [
        ([], CANDIDATES, None, "`rows` is empty; give at least one question"),
        (rows(), [], None, r"`answers` is \[\]; give a list of candidates, at least one"),
        (rows(), "yes", None, "`answers` is 'yes'; give a list of candidates"),
        (rows(), ["yes", "no", "yes"], None, "`answers` has 'yes' twice; give each candidate once"),
        (rows(), CANDIDATES, "{question}?", r"The template '\{question\}\?' has no \{answer\}"),
        ([*rows(), {"question": "why?"}], CANDIDATES, None, r"Row 4 has no `image`, only \['question'\]"),
        ([{"image": b"broken", "question": "why?"}], CANDIDATES, None, "image 0 cannot be read"),
    ],
)
def test_what_cannot_be_asked_is_named(processor, given, answers, template, message):
    options = {} if template is None else {"template": template}
    with pytest.raises(ValueError, match=message):
        clip_vqa(own_clip(), processor, given, answers, progress=False, **options)
