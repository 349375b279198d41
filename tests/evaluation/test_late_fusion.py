"""Late fusion: it joins what picture and question say, repeats itself, and names wrong vectors."""

import pytest
import torch

from hf_mm import LateFusion


def rows(count):
    """Pictures and questions that are one of three each; the answer is whether they are the same one."""
    generator = torch.Generator().manual_seed(count)
    seen, asked = torch.randint(3, (2, count), generator=generator)
    noise = 0.05 * torch.randn(2, count, 3, generator=generator)
    answers = ["yes" if one == other else "no" for one, other in zip(seen, asked, strict=True)]
    return torch.eye(3)[seen] + noise[0], torch.eye(3)[asked] + noise[1], answers


def test_an_answer_that_needs_picture_and_question_is_learnt():
    *vectors, answers = rows(600)
    model = LateFusion(hidden=32, epochs=60).fit(*vectors, answers)
    *new, right = rows(200)
    said = model.predict(*new)
    assert sum(one == other for one, other in zip(said, right, strict=True)) >= 196
    assert LateFusion(hidden=32, epochs=60).fit(*vectors, answers).predict(*new) == said


def test_wrong_vectors_are_named():
    images, questions, answers = rows(10)
    with pytest.raises(ValueError, match="`LateFusion` has learnt nothing yet; call `fit` first"):
        LateFusion().predict(images, questions)
    with pytest.raises(ValueError, match=r"as many rows, got \(9, 3\) and \(10, 3\)"):
        LateFusion().fit(images[:9], questions, answers)
    with pytest.raises(ValueError, match="9 answers for 10 questions"):
        LateFusion().fit(images, questions, answers[:9])
    images[4, 1] = float("nan")
    with pytest.raises(ValueError, match="Row 4 of `images` or `questions` has NaN"):
        LateFusion().fit(images, questions, answers)
