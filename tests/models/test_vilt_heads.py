"""ViLT's heads on text and image as wholes: the common contract, their losses, and errors."""

import pytest
import torch
from contract import ModelContract
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.testing import assert_close
from vilt_tiny import MIXED, images, mixed, texts, tiny_config

from hf_mm.models.vilt.heads_vilt import (
    MMViltForImageAndTextRetrieval,
    MMViltForImagesAndTextClassification,
    MMViltForQuestionAnswering,
)

LENGTHS, GRIDS = MIXED


def tiny(model_class, **changes):
    torch.manual_seed(0)
    return model_class(tiny_config(**changes)).eval()


def pairs(rows=3):
    """Texts with two images each."""
    both = images(GRIDS + GRIDS[::-1])
    return {**texts(LENGTHS[:rows]), **{name: v.unflatten(0, (3, 2))[:rows] for name, v in both.items()}}


class TestQuestionAnswering(ModelContract):
    model_class = MMViltForQuestionAnswering

    def config(self, **changes):
        return tiny_config(num_labels=5, **changes)

    def inputs(self):
        scores = torch.tensor([[1.0, 0, 0, 0.3, 0], [0, 0.6, 0, 0, 0]])
        return {**mixed(2), "labels": scores}


class TestRetrieval(ModelContract):
    model_class = MMViltForImageAndTextRetrieval

    def config(self, **changes):
        return tiny_config(**changes)

    def inputs(self):
        """Two images with three texts each."""
        words = texts((5, 9, 3, 4, 7, 6))
        return {
            **words,
            **images(GRIDS[:2]),
            "image_index": torch.tensor([0, 0, 0, 1, 1, 1]),
            "labels": torch.tensor([0, 2]),
        }

    def parts(self):
        whole = self.inputs()
        parts = []
        for group in range(2):
            rows = slice(3 * group, 3 * group + 3)
            part = {name: values[rows] for name, values in whole.items() if len(values) == 6}
            part |= {name: values[group : group + 1] for name, values in whole.items() if len(values) == 2}
            parts.append(part | {"image_index": torch.zeros(3, dtype=torch.long)})
        return parts


class TestImagesAndText(ModelContract):
    model_class = MMViltForImagesAndTextClassification

    def config(self, **changes):
        return tiny_config(num_labels=3, **changes)

    def inputs(self):
        return {**pairs(2), "labels": torch.tensor([2, 0])}


def test_soft_answers_cost_what_transformers_says_and_single_ones_the_cross_entropy():
    model, scores = tiny(MMViltForQuestionAnswering, num_labels=5), torch.rand(3, 5)
    out = model(**mixed(), labels=scores)
    assert_close(out.loss, binary_cross_entropy_with_logits(out.logits, scores) * 5)
    right = torch.tensor([4, 0, 1])
    assert_close(model(**mixed(), labels=right).loss, cross_entropy(out.logits, right))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.rand(3, 4), r"`labels` must be \(3, 5\) scores of the answers \(`num_labels`=5\) or \(3,\)"),
        (torch.ones(3, 5).long(), r"got \(3, 5\) of torch.int64"),
        (torch.ones(2).long(), r"`labels` must be \(3,\) class indices, got \(2,\)"),
    ],
)
def test_answers_of_another_list_are_named(labels, message):
    with pytest.raises(ValueError, match=message):
        tiny(MMViltForQuestionAnswering, num_labels=5)(**mixed(), labels=labels)


def test_a_checkpoint_of_more_answers_does_not_load_into_fewer(tmp_path):
    tiny(MMViltForQuestionAnswering, num_labels=5).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        MMViltForQuestionAnswering.from_pretrained(tmp_path, num_labels=4)


def test_ranking_is_a_choice_among_the_texts_of_an_image():
    case = TestRetrieval().inputs()
    model = tiny(MMViltForImageAndTextRetrieval)
    out = model(**case)
    assert out.logits.shape == (6, 1)
    assert_close(out.loss, cross_entropy(out.logits.view(2, 3), case["labels"]))
    case["labels"] = torch.tensor([-100, 2])
    assert_close(model(**case).loss, cross_entropy(out.logits.view(2, 3)[1:], torch.tensor([2])))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(2).long(), r"one integer for each group of candidates, 3 rows in all, got \(2,\)"),
        (torch.zeros(1), "got .* of torch.float32"),
        (torch.zeros(3).long(), "`labels` are 3 for 3 rows, one candidate each: nothing to choose from"),
    ],
)
def test_groups_of_candidates_that_do_not_come_out_even_are_named(labels, message):
    with pytest.raises(ValueError, match=message):
        tiny(MMViltForImageAndTextRetrieval)(**mixed(), labels=labels)


def test_every_image_has_a_modality_of_its_own():
    model, batch = tiny(MMViltForImagesAndTextClassification, num_labels=3), pairs()
    swapped = {**batch, **{name: batch[name].flip(1) for name in ("pixel_values", "pixel_mask")}}
    same = {
        **batch,
        **{name: batch[name][:, :1].expand_as(batch[name]) for name in swapped if "pixel" in name},
    }
    states = []
    model.images_classifier.register_forward_hook(
        lambda module, args, out: states.append(args[0].unflatten(1, (2, 32)))
    )
    model(**same)
    assert not torch.allclose(states[0][:, 0], states[0][:, 1])
    assert not torch.allclose(model(**batch).logits, model(**swapped).logits)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            mixed(),
            r"must be \(batch, 2, 3, height, width\), `num_images`=2 images for each text, got \(3, 3, 32",
        ),
        (texts(LENGTHS), "`num_images`=2 images for each text, got None"),
        (pairs() | {"pixel_values": torch.ones(3, 3, 3, 32, 40)}, r"got \(3, 3, 3, 32, 40\)"),
        (pairs() | {"pixel_mask": torch.ones(3, 1, 32, 40)}, r"`pixel_mask` must be \(3, 2, 32, 40\)"),
    ],
)
def test_another_number_of_images_than_the_model_compares_is_named(batch, message):
    with pytest.raises(ValueError, match=message):
        tiny(MMViltForImagesAndTextClassification)(**batch)


def test_a_model_of_one_image_says_how_it_learns_to_see_two():
    model = tiny(MMViltForImagesAndTextClassification, modality_type_vocab_size=2)
    with pytest.raises(
        ValueError, match=r"has a row for text and 1 images, `num_images`=2; call `resize_modal"
    ):
        model(**pairs())
    model.resize_modality_types(3)
    assert model(**pairs()).logits.shape == (3, 2)
