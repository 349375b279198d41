"""Heads of the region BERTs on words, and on text and image as wholes: contract, losses, and errors."""

import pytest
import torch
from contract import ModelContract
from region_bert_tiny import MASK, MIXED, NAMES, mixed, regions, scrambled, texts, tiny_config
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, kl_div
from torch.testing import assert_close

from hf_mm.models.region_bert.heads_region_bert import (
    MMRegionBertForImageAndTextRetrieval,
    MMRegionBertForImagesAndTextClassification,
    MMRegionBertForQuestionAnswering,
)
from hf_mm.models.region_bert.text_heads_region_bert import (
    MMRegionBertForMaskedLM,
    MMRegionBertForTokenClassification,
)

LENGTHS, COUNTS = MIXED
HEADS = (
    MMRegionBertForMaskedLM,
    MMRegionBertForTokenClassification,
    MMRegionBertForQuestionAnswering,
    MMRegionBertForImageAndTextRetrieval,
    MMRegionBertForImagesAndTextClassification,
)


def tiny(model_class, name="uniter", **changes):
    torch.manual_seed(0)
    return model_class(tiny_config(name, **changes)).eval()


def pairs(rows=3):
    """Texts with two images each."""
    both = regions(COUNTS + COUNTS[::-1])
    return {**texts(LENGTHS[:rows]), **{name: v.unflatten(0, (3, 2))[:rows] for name, v in both.items()}}


def hidden_words(rows=3):
    batch = mixed(rows)
    labels = torch.full(batch["input_ids"].shape, -100)
    labels[0, 1], labels[0, 3], labels[1, 2] = 7, 9, 30
    return {**batch, "input_ids": batch["input_ids"].masked_fill(labels != -100, MASK), "labels": labels}


class TestMaskedLM(ModelContract):
    model_class = MMRegionBertForMaskedLM

    def config(self, **changes):
        return tiny_config(**changes)

    def inputs(self):
        return hidden_words(2)


class TestTokenClassification(ModelContract):
    model_class = MMRegionBertForTokenClassification

    def config(self, **changes):
        return tiny_config(num_labels=3, **changes)

    def inputs(self):
        batch = mixed(2)
        return {**batch, "labels": (batch["input_ids"] % 3).masked_fill(batch["attention_mask"] == 0, -100)}


class TestQuestionAnswering(ModelContract):
    model_class = MMRegionBertForQuestionAnswering

    def config(self, **changes):
        return tiny_config(num_labels=5, **changes)

    def inputs(self):
        scores = torch.tensor([[1.0, 0, 0, 0.3, 0], [0, 0.6, 0, 0, 0]])
        return {**mixed(2), "labels": scores}


class TestRetrieval(ModelContract):
    model_class = MMRegionBertForImageAndTextRetrieval

    def config(self, **changes):
        """Longer products with one column round by where in memory weights lie; loaded ones lie elsewhere."""
        return tiny_config(**({"pooler_size": 8} | changes))

    def inputs(self):
        """Two images with three texts each."""
        index = torch.tensor([0, 0, 0, 1, 1, 1])
        pictured = {**texts((5, 9, 3, 4, 7, 6)), **regions(COUNTS[:2]), "region_index": index}
        return {**pictured, "labels": torch.tensor([0, 2])}

    def parts(self):
        whole, parts = self.inputs(), []
        for group in range(2):
            rows = slice(3 * group, 3 * group + 3)
            part = {name: values[rows] for name, values in whole.items() if len(values) == 6}
            part |= {name: values[group : group + 1] for name, values in whole.items() if len(values) == 2}
            parts.append(part | {"region_index": torch.zeros(3, dtype=torch.long)})
        return parts


class TestImagesAndText(ModelContract):
    model_class = MMRegionBertForImagesAndTextClassification

    def config(self, **changes):
        return tiny_config(num_labels=3, **changes)

    def inputs(self):
        return {**pairs(2), "labels": torch.tensor([2, 0])}


@pytest.mark.parametrize("model_class", HEADS)
@pytest.mark.parametrize("name", NAMES)
def test_every_head_of_every_model_learns_from_its_labels(name, model_class):
    model = tiny(model_class, name, num_labels=3, initializer_range=0.2).train()
    labels = {
        MMRegionBertForMaskedLM: hidden_words()["labels"],
        MMRegionBertForTokenClassification: mixed()["input_ids"] % 3,
        MMRegionBertForImageAndTextRetrieval: torch.tensor([1]),
    }
    batch = pairs() if model_class is MMRegionBertForImagesAndTextClassification else mixed()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(5):
        loss = model(**batch, labels=labels.get(model_class, torch.tensor([2, 0, 1]))).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_hidden_words_cost_their_cross_entropy_and_while_training_logits_stay_unmade():
    model, batch = tiny(MMRegionBertForMaskedLM), hidden_words()
    out = model(**batch)
    assert_close(out.loss, cross_entropy(out.logits.flatten(0, 1), batch["labels"].flatten()))
    trained = model.train()(**batch)
    assert trained.logits is None
    assert_close(trained.loss, out.loss)


@pytest.mark.parametrize("model_class", [MMRegionBertForMaskedLM, MMRegionBertForTokenClassification])
def test_nothing_labelled_costs_exactly_nothing(model_class):
    model = tiny(model_class).train()
    loss = model(**mixed(), labels=torch.full((3, 9), -100)).loss
    loss.backward()
    assert loss.item() == 0.0
    assert all(not weight.grad.any() for weight in model.parameters() if weight.grad is not None)


def test_no_answer_and_no_right_candidate_cost_exactly_nothing():
    nothing = torch.full((3,), -100)
    assert tiny(MMRegionBertForQuestionAnswering)(**mixed(), labels=nothing).loss.item() == 0.0
    assert tiny(MMRegionBertForImageAndTextRetrieval)(**mixed(), labels=nothing[:1]).loss.item() == 0.0
    assert tiny(MMRegionBertForImagesAndTextClassification)(**pairs(), labels=nothing).loss.item() == 0.0


def test_answers_cost_what_torch_says():
    model, scores = tiny(MMRegionBertForQuestionAnswering, num_labels=5), torch.rand(3, 5)
    out = model(**mixed(), labels=scores)
    assert_close(out.loss, binary_cross_entropy_with_logits(out.logits, scores) * 5)
    right = torch.tensor([4, 0, 1])
    assert_close(model(**mixed(), labels=right).loss, cross_entropy(out.logits, right))
    model.config.answers_as_distribution = True
    shares = scores / scores.sum(1, keepdim=True)
    peer = kl_div(out.logits.log_softmax(1), shares, reduction="batchmean")
    assert_close(model(**mixed(), labels=shares).loss, peer)


def test_an_answer_is_read_from_the_token_before_the_end_wherever_padding_stands():
    model = scrambled(tiny(MMRegionBertForQuestionAnswering, "visualbert"))
    batch, read = mixed(), []
    model.answer_classifier.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    on_the_right = model(**batch)
    states = model.region_bert(**batch).last_hidden_state
    assert_close(read[0], states[torch.arange(3), torch.tensor(LENGTHS) - 2])
    for name in ("input_ids", "attention_mask"):
        batch[name] = torch.stack([row.roll(9 - n) for row, n in zip(batch[name], LENGTHS, strict=True)])
    assert_close(model(**batch).logits, on_the_right.logits)


def test_ranking_is_a_choice_among_candidates():
    case = TestRetrieval().inputs()
    model = tiny(MMRegionBertForImageAndTextRetrieval)
    out = model(**case)
    assert out.logits.shape == (6, 1)
    assert_close(out.loss, cross_entropy(out.logits.view(2, 3), case["labels"]))


def test_a_text_meets_each_image_in_a_pass_of_its_own():
    model, batch = tiny(MMRegionBertForImagesAndTextClassification), pairs()
    seen = []
    model.images_classifier.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(**batch)
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    for number, vectors in enumerate(seen[0].chunk(2, dim=1)):
        image = {name: values[:, number] for name, values in batch.items() if name not in text}
        assert_close(vectors, model.region_bert(**text, **image).pooler_output)


def test_images_together_are_one_image_with_the_regions_of_all():
    model, batch = tiny(MMRegionBertForImagesAndTextClassification, "visualbert"), pairs()
    model.config.images_together = True
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    image = {name: values.flatten(1, 2) for name, values in batch.items() if name not in text}
    expected = model.images_classifier(model.region_bert(**text, **image).pooler_output)
    assert_close(model(**batch).logits, expected)


def test_a_head_says_that_it_cannot_hide_regions():
    hidden = torch.ones(3, 6, dtype=torch.bool)
    with pytest.raises(ValueError, match="`masked_regions`: this head has no vector that stands for hidden"):
        tiny(MMRegionBertForQuestionAnswering)(**mixed(), masked_regions=hidden)


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
        tiny(MMRegionBertForQuestionAnswering, num_labels=5)(**mixed(), labels=labels)


@pytest.mark.parametrize("model_class", [MMRegionBertForMaskedLM, MMRegionBertForTokenClassification])
def test_labels_of_other_places_are_named(model_class):
    with pytest.raises(
        ValueError, match=r"`labels` must be \(3, 9\) integers, one for each place of the text"
    ):
        tiny(model_class)(**mixed(), labels=torch.zeros(3, 8).long())


def test_groups_of_candidates_that_do_not_come_out_even_are_named():
    with pytest.raises(ValueError, match="one integer for each group of candidates, 3 rows in all"):
        tiny(MMRegionBertForImageAndTextRetrieval)(**mixed(), labels=torch.zeros(2).long())


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (mixed(), r"must be \(batch, 2, regions, 16\), those of `num_images`=2 images .* got \(3, 6, 16\)"),
        (texts(LENGTHS), "`num_images`=2 images for each text, got None"),
        (pairs() | {"region_boxes": torch.rand(3, 2, 5, 4)}, r"`region_boxes` must be \(3, 2, 6, 4\) as"),
        (
            pairs() | {"region_mask": torch.ones(3, 1, 6)},
            r"`region_mask` must be \(3, 2, 6\) as .* got \(3, 1",
        ),
    ],
)
def test_another_number_of_images_than_the_model_compares_is_named(batch, message):
    with pytest.raises(ValueError, match=message):
        tiny(MMRegionBertForImagesAndTextClassification)(**batch)
