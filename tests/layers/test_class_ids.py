"""Classes by number or name, whatever holds them, and what is no class."""

import numpy as np
import pytest
import torch

from hf_mm.layers.class_ids import check_class_ids, class_ids

NAMES = ("bag", "boot", "coat")


@pytest.mark.parametrize(
    "labels",
    [
        ["coat", "bag"],
        ["coat", 0],
        (2, 0),
        [np.int64(2), torch.tensor(0)],
        np.array([2, 0], dtype=np.uint8),
        torch.tensor([2, 0]),
    ],
)
def test_numbers_and_names_are_read_alike(labels):
    found = class_ids(labels, 3, NAMES)
    assert (found.tolist(), found.dtype) == ([2, 0], torch.long)


@pytest.mark.parametrize("label", [1, "boot", np.int64(1), torch.tensor(1), np.array(1)])
def test_one_label_stands_for_itself(label):
    assert class_ids(label, 3, NAMES).tolist() == [1]


@pytest.mark.parametrize(
    ("labels", "place"),
    [
        ([0, 1.7], r"\[1\]=1\.7"),
        (1.0, r"\[0\]=1\.0"),
        (torch.tensor([1.7]), r"\[0\]=1\.7"),
        (np.array([0.0]), r"\[0\]=0\.0"),
        ([True], r"\[0\]=True"),
        ([None], r"\[0\]=None"),
    ],
)
def test_nothing_is_rounded_to_a_class(labels, place):
    with pytest.raises(TypeError, match=rf"`class_labels`{place}.* is neither the number nor the name of a"):
        class_ids(labels, 3, NAMES)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "No picture is asked for: `class_labels` is empty"),
        ([0, "hat"], r"`class_labels`\[1\]='hat' is none of \['bag', 'boot', 'coat'\]"),
        ([0, 3], r"`class_labels`\[1\] is 3, but the model knows the classes 0 to 2"),
        (-1, r"`class_labels`\[0\] is -1, but the model knows the classes 0 to 2"),
    ],
)
def test_what_is_no_class_is_named(labels, message):
    with pytest.raises(ValueError, match=message):
        class_ids(labels, 3, NAMES)


def test_without_names_or_classes_that_is_said():
    with pytest.raises(ValueError, match=r"`class_labels`\[0\]='bag' is no name of a class; there are none"):
        class_ids("bag", 3)
    with pytest.raises(ValueError, match=r"`class_labels`\[0\] is 0, but the model knows no classes"):
        class_ids(0, 0)


def test_rows_of_a_batch_are_named():
    with pytest.raises(ValueError, match=r"`class_labels`\[2\] is 9, but"):
        check_class_ids(torch.tensor([0, 2, 9, 1]), 3)
    with pytest.raises(TypeError, match=r"`class_labels` are torch\.float32, but classes are whole numbers"):
        check_class_ids(torch.tensor([0.0, 1.0]), 3)
