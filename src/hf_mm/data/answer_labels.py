"""Answers of visual question answering as labels of a classifier, with one vocabulary for all questions.

Antol et al. 2015, "VQA: Visual Question Answering" (https://arxiv.org/abs/1505.00468): ten people answer each
question. Teney et al. 2018, "Tips and Tricks for Visual Question Answering", section 3.3: their shares as
soft labels (https://arxiv.org/abs/1708.02711).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["AnswerLabels", "answer_scores", "answer_vocabulary", "check_answer_vocabulary"]

PEOPLE = 10  # who answered each question of VQA
SCORE_OF_ONE = 0.3  # of an answer that one of them gave; full from the fourth on


def answer_vocabulary(answers: Iterable[str], least: int = 1, most: int | None = None) -> dict[str, int]:
    """Number the answers, the frequent ones first and of equals in alphabetic order.

    Args:
        answers: Of the training questions, as often as they are given; of VQA nine times or more (`least=9`)
            leaves 3,129.
        least: How often an answer must be given.
        most: How many to keep.

    Returns:
        Answer to number, for `label2id` of a config.

    Raises:
        ValueError: No answer is left.
    """
    counts = Counter(answers)
    kept = sorted((answer for answer in counts if counts[answer] >= least), key=lambda a: (-counts[a], a))
    if not kept[:most]:
        raise ValueError(
            f"None of {len(counts)} answers is given `least`={least} times and among the `most`={most} "
            "frequent; lower the one or raise the other."
        )
    return {answer: number for number, answer in enumerate(kept[:most])}


def answer_scores(answer: object) -> dict[str, float]:
    """What each answer to a question counts, from 0 to 1.

    Args:
        answer: The one right answer; or those of ten people, each of which counts 0.3 for each person who
            gave it and at most 1, as in VQA's own accuracy; or scores that are known.

    Raises:
        ValueError: It is none of these.
    """
    if isinstance(answer, str):
        return {answer: 1.0}
    if isinstance(answer, Mapping):
        scores = {str(text): float(score) for text, score in answer.items() if score is not None}
        if not all(0 <= score <= 1 for score in scores.values()):
            raise ValueError(f"Scores of answers must be from 0 to 1, got {scores!r:.80}.")
        return scores
    people = list(answer) if isinstance(answer, Iterable) else []
    if len(people) != PEOPLE or not all(isinstance(text, str) for text in people):
        raise ValueError(
            f"{answer!r:.80} is no answer; give a text, the texts of {PEOPLE} people, or a score for "
            "each text."
        )
    return {text: round(min(1.0, SCORE_OF_ONE * count), 1) for text, count in Counter(people).items()}


def check_answer_vocabulary(label2id: Mapping[str, int], trained: Mapping[str, int]) -> None:
    """Refuse an answer list other than that of a checkpoint, whose head has one row for each of its answers.

    Args:
        label2id: The list in use.
        trained: That of the checkpoint, `config.label2id`.

    Raises:
        ValueError: An answer is new, gone or elsewhere; one is named.
    """
    changed = [a for a in {**trained, **label2id} if label2id.get(a) != trained.get(a)]
    if changed:
        first = changed[0]
        raise ValueError(
            f"The answer list differs from the checkpoint's in {len(changed)} of {len(trained)} answers: "
            f"{first!r} is number {label2id.get(first)}, in the checkpoint {trained.get(first)}. Use the "
            "checkpoint's `config.label2id`, or load it with the new list and `ignore_mismatched_sizes=True` "
            "to train the head anew."
        )


@dataclass(frozen=True)
class AnswerLabels:
    """The answers to a batch of questions as labels of a classifier.

    Args:
        label2id: Number of each of A answers, of the model's config.
        unknown_answers: Take answers that `label2id` lacks for wrong ones; a question that has no other gets
            zeros throughout. Otherwise they are an error.
        soft: Labels are a score for each answer, for the binary cross-entropy of VQA. `False` for the number
            of the one right answer, for the cross-entropy among all.

    Raises:
        ValueError: Numbers of answers that may be unknown.
    """

    label2id: Mapping[str, int]
    unknown_answers: bool = False
    soft: bool = True

    def __post_init__(self) -> None:
        if self.unknown_answers and not self.soft:
            raise ValueError(
                "`unknown_answers=True` needs `soft=True`: a number names an answer of the list."
            )

    def __call__(self, answers: Sequence[object]) -> Tensor:
        """The labels of B questions.

        Args:
            answers: Of each row, as `answer_scores` takes them.

        Returns:
            (B, A) float32 scores, or without `soft` (B,) int64.

        Raises:
            ValueError: An answer is not in `label2id`, or, without `soft`, a question has not one right one.
        """
        scores = torch.stack([self._scores(answer, number) for number, answer in enumerate(answers)])
        if self.soft:
            return scores
        right = scores == 1
        several = (right.sum(dim=1) != 1).nonzero()
        if len(several):
            raise ValueError(
                f"Row {int(several[0])} of the batch has not one right answer; use `soft=True` for answers "
                "of several people."
            )
        return right.int().argmax(dim=1)

    def _scores(self, answer: object, number: int) -> Tensor:
        """(A,) score of each answer to the question of a row."""
        scores = torch.zeros(len(self.label2id))
        for text, score in answer_scores(answer).items():
            if text in self.label2id:
                scores[self.label2id[text]] = score
            elif not self.unknown_answers:
                raise ValueError(
                    f"Row {number} of the batch has the answer {text!r}, which is not among the "
                    f"{len(scores)} of `label2id`; leave the row out, make the list of all answers, or pass "
                    "`unknown_answers=True` to count it as wrong."
                )
        return scores
