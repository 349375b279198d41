"""Answers to numbers and scores; an answer list that changed is refused."""

import pytest

from hf_mm import answer_scores, answer_vocabulary, check_answer_vocabulary


def test_frequent_answers_come_first_and_equals_by_alphabet():
    answers = ["no", "yes", "red", "yes", "blue", "no"]
    assert answer_vocabulary(answers) == {"no": 0, "yes": 1, "blue": 2, "red": 3}
    assert answer_vocabulary(answers, least=2) == {"no": 0, "yes": 1}
    assert answer_vocabulary(answers, most=3) == {"no": 0, "yes": 1, "blue": 2}


def test_an_empty_vocabulary_is_refused():
    with pytest.raises(ValueError, match="None of 2 answers is given `least`=3 times"):
        answer_vocabulary(["a", "b"], least=3)


def test_scores_are_those_of_vqas_accuracy():
    assert answer_scores("yes") == {"yes": 1.0}
    people = ["a"] * 4 + ["b"] * 3 + ["c"] * 2 + ["d"]
    assert answer_scores(people) == {"a": 1.0, "b": 0.9, "c": 0.6, "d": 0.3}
    assert answer_scores({"yes": 0.9, "no": None}) == {"yes": 0.9}


@pytest.mark.parametrize("answer", [3, None, ["yes", "no"], [1] * 10])
def test_what_is_no_answer_is_named(answer):
    with pytest.raises(ValueError, match="is no answer; give a text, the texts of 10 people, or a score"):
        answer_scores(answer)


def test_scores_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"Scores of answers must be from 0 to 1, got \{'yes': 3.0}"):
        answer_scores({"yes": 3})


def test_the_answer_list_of_the_checkpoint_passes():
    check_answer_vocabulary({"no": 1, "yes": 0}, {"yes": 0, "no": 1})


@pytest.mark.parametrize(
    ("label2id", "message"),
    [
        ({"yes": 1, "no": 0}, "in 2 of 2 answers: 'yes' is number 1, in the checkpoint 0"),
        ({"yes": 0}, "in 1 of 2 answers: 'no' is number None, in the checkpoint 1"),
        ({"yes": 0, "no": 1, "red": 2}, "in 1 of 2 answers: 'red' is number 2, in the checkpoint None"),
    ],
)
def test_an_answer_list_that_changed_is_refused(label2id, message):
    with pytest.raises(ValueError, match=message + ". Use the checkpoint's `config.label2id`"):
        check_answer_vocabulary(label2id, {"yes": 0, "no": 1})
