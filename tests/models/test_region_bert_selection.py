"""A region BERT points at regions: the contract, who may be chosen, both kinds of labels, and errors."""

import pytest
import torch
from contract import ModelContract
from region_bert_tiny import MIXED, NAMES, mixed, tiny_config
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.testing import assert_close

from hf_mm.models.region_bert.selection_region_bert import MMRegionBertForRegionSelection

COUNTS = MIXED[1]
RIGHT = torch.tensor([2, 1, 5])


def tiny(name="uniter", **changes):
    """VL-BERT's regions say something from the start, not only when it has learnt."""
    torch.manual_seed(0)
    return MMRegionBertForRegionSelection(tiny_config(name, region_norm_init=1.0, **changes)).eval()


class TestSelection(ModelContract):
    model_class = MMRegionBertForRegionSelection

    def config(self, **changes):
        """Longer products with one column round by where in memory weights lie; loaded ones lie elsewhere."""
        return tiny_config(**({"hidden_size": 8, "num_attention_heads": 2} | changes))

    def inputs(self):
        return {**mixed(2), "labels": RIGHT[:2]}


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_a_choice_among_the_regions_of_a_row(name):
    model, batch = tiny(name), mixed()
    out = model(**batch, labels=RIGHT)
    assert out.logits.shape == (3, 6)
    rows = [cross_entropy(out.logits[row, :count], RIGHT[row]) for row, count in enumerate(COUNTS)]
    assert_close(out.loss, torch.stack(rows).mean())
    assert torch.equal(out.logits == -torch.inf, batch["region_mask"] == 0)


@pytest.mark.parametrize("name", NAMES)
def test_a_score_follows_its_region_when_regions_change_places(name):
    model, batch = tiny(name), mixed()
    before = model(**batch).logits
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    for part in ("region_features", "region_boxes", "region_mask"):
        batch[part] = batch[part][:, order]
    assert_close(model(**batch).logits, before[:, order])


def test_overlaps_cost_the_cross_entropy_of_each_region_but_padding():
    model, batch = tiny(), mixed()
    overlaps = torch.rand(3, 6, generator=torch.Generator().manual_seed(0))
    real = batch["region_mask"].bool()
    out = model(**batch, labels=overlaps.masked_fill(~real, -100))
    assert_close(out.loss, binary_cross_entropy_with_logits(out.logits[real], overlaps[real]))
    assert_close(model(**batch, labels=overlaps).loss, out.loss)


@pytest.mark.parametrize("soft", [False, True])
def test_parts_of_a_batch_add_up_however_many_regions_they_have(soft):
    model, batch = tiny().train(), mixed()
    labels = RIGHT
    if soft:
        labels = torch.rand(3, 6).masked_fill(batch["region_mask"] == 0, -100)
    whole = model(**batch, labels=labels).loss
    count = (labels != -100).sum()
    total = 0.0
    for row, most in enumerate(COUNTS):
        part = {name: values[row : row + 1] for name, values in batch.items()}
        part |= {name: values[:, :most] for name, values in part.items() if name.startswith("region")}
        own = labels[row : row + 1, :most] if soft else labels[row : row + 1]
        total += model(**part, labels=own, num_items_in_batch=count).loss
    assert_close(total, whole)


def test_many_texts_choose_among_the_regions_of_one_image():
    model, batch = tiny(), mixed()
    index = torch.tensor([2, 0, 2])
    regions = ("region_features", "region_boxes", "region_mask")
    repeated = {name: values[index] if name in regions else values for name, values in batch.items()}
    shared = model(**batch, region_index=index, labels=torch.tensor([4, 3, 0]))
    assert_close(shared.logits, model(**repeated).logits)
    assert_close(shared.loss, model(**repeated, labels=torch.tensor([4, 3, 0])).loss)


def test_no_right_region_costs_exactly_nothing():
    model = tiny().train()
    for labels in (torch.full((3,), -100), torch.full((3, 6), -100.0)):
        loss = model(**mixed(), labels=labels).loss
        loss.backward()
        assert loss.item() == 0.0
        assert not model.selection_output.weight.grad.any()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(2).long(), r"`labels` must be \(3,\) class indices, got \(2,\)"),
        (
            torch.zeros(3, 5),
            r"`labels` must be \(3,\) numbers of regions or \(3, 6\) overlaps with the right",
        ),
        (torch.zeros(3, 6).long(), r"got \(3, 6\) of torch.int64"),
    ],
)
def test_labels_of_other_regions_are_named(labels, message):
    with pytest.raises(ValueError, match=message):
        tiny()(**mixed(), labels=labels)
