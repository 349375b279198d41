"""ViLT's pre-training and its hidden patches: the common contract, each loss by its formula, and errors."""

import pytest
import torch
from contract import ModelContract
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from vilt_tiny import MIXED, images, mixed, texts, tiny_config

from hf_mm.models.vilt.heads_vilt import MMViltForQuestionAnswering
from hf_mm.models.vilt.masked_image_vilt import MMViltForMaskedImageModeling
from hf_mm.models.vilt.pretraining_vilt import MMViltForPreTraining, start_ranking
from hf_mm.objectives.optimal_transport import word_patch_alignment_loss

LENGTHS, GRIDS = MIXED
ALL = {"mlm": 1.0, "itm": 0.5, "wpa": 0.1, "mpp": 2.0}


def tiny(model_class=MMViltForPreTraining, **changes):
    torch.manual_seed(0)
    return model_class(tiny_config(**changes)).eval()


def hidden_patches(rows=3):
    """A few of each image's own patches."""
    hidden = torch.zeros(3, 15, dtype=torch.bool)
    hidden[0, [2, 14]] = hidden[1, 3] = hidden[2, 0] = True
    return {"bool_masked_patches": hidden[:rows]}


def columns(*tasks):
    """A batch of four pairs with what these tasks need; the first two swap images."""
    batch = {**texts((5, 9, 3, 6)), **images((*GRIDS, (3, 5)))}
    labels = torch.full((4, 9), -100)
    labels[0, 1], labels[0, 3], labels[1, 2], labels[3, 4] = 7, 9, 30, 2
    hidden = torch.zeros(4, 15, dtype=torch.bool)
    hidden[0, [2, 14]] = hidden[1, 3] = hidden[2, 0] = hidden[3, 7] = True
    if "mlm" in tasks:
        batch |= {"mlm_input_ids": batch["input_ids"].masked_fill(labels != -100, 38), "mlm_labels": labels}
    if "itm" in tasks:
        batch |= {"itm_image_index": torch.tensor([1, 0, 2, 3]), "itm_labels": torch.tensor([0, 0, 1, 1])}
    return batch | ({"bool_masked_patches": hidden} if "mpp" in tasks else {})


class TestPreTraining(ModelContract):
    model_class = MMViltForPreTraining
    tasks = ("mlm", "itm", "mpp")

    def config(self, **changes):
        return tiny_config(**({"task_weights": ALL} | changes))

    def inputs(self):
        return columns(*self.tasks)

    def parts(self):
        """Two pairs each: those that swap images stay together."""
        parts = [{name: v[2 * half : 2 * half + 2] for name, v in self.inputs().items()} for half in (0, 1)]
        parts[1]["itm_image_index"] = parts[1]["itm_image_index"] - 2
        return parts

    def test_parts_of_a_batch_add_up_to_its_loss_and_gradient(self):
        """Each task by its own number of items: four words, four pairs, five patches here."""
        whole, pieces = self.model().train(), self.model().train()
        loss = whole(**self.inputs()).loss
        loss.backward()
        counts = {"mlm": 4, "itm": 4, "wpa": torch.tensor(4), "mpp": 5}
        total = 0.0
        for part in self.parts():
            share = pieces(**part, num_items_by_task=counts).loss
            share.backward()
            total += share.detach()
        assert_close(total, loss.detach())
        for (name, weight), (_, again) in zip(
            whole.named_parameters(), pieces.named_parameters(), strict=True
        ):
            assert_close(again.grad, weight.grad, rtol=1e-4, atol=1e-5, msg=name)

    def test_records_hidden_states_and_attentions(self):
        """Several passes have no states in common; those of one are what the encoder gives."""
        assert not hasattr(self.run(self.model()), "hidden_states")


class TestMaskedImage(ModelContract):
    model_class = MMViltForMaskedImageModeling
    answer = "reconstruction"

    def config(self, **changes):
        return tiny_config(**changes)

    def inputs(self):
        hidden = hidden_patches(2)
        labels = torch.zeros(2, 15).long().masked_fill(~hidden["bool_masked_patches"], -100)
        return {**mixed(2), **hidden, "labels": labels}

    def parts(self):
        """One image each; as many patches as the larger one has are asked for."""
        parts = super().parts()
        for part, grid in zip(parts, GRIDS, strict=False):
            for name in ("bool_masked_patches", "labels"):
                part[name] = part[name][:, : grid[0] * grid[1]]
        return parts

    def test_each_row_equals_the_same_row_alone(self):
        model, together = self.model(), self.answer_of(self.model())
        with torch.no_grad():
            for row, part in enumerate(self.parts()):
                alone = model(**part).reconstruction[0]
                assert_close(together[row, : len(alone)], alone)


def test_the_loss_is_the_weighted_sum_of_the_tasks():
    out = tiny(task_weights=ALL)(**columns("mlm", "itm", "mpp"))
    parts = {task: out[f"{task}_loss"] for task in ALL}
    assert_close(out.loss, sum(ALL[task] * loss for task, loss in parts.items()))
    assert out.logits.shape == (4, 2)


@pytest.mark.parametrize("tasks", [("mlm",), ("itm",), ("mpp",), ("mlm", "mpp")])
def test_tasks_without_columns_are_left_out(tasks):
    out = tiny(task_weights=ALL)(**columns(*tasks))
    done = set(tasks) | ({"wpa"} if "itm" in tasks else set())
    assert {task for task in ALL if f"{task}_loss" in out} == done
    assert_close(out.loss, sum(ALL[task] * out[f"{task}_loss"] for task in done))


def test_each_loss_is_that_of_its_formula():
    model, batch = tiny(task_weights=ALL), columns("mlm", "itm", "mpp")
    plain = {name: batch[name] for name in ("attention_mask", "pixel_values", "pixel_mask")}
    out = model(**batch)
    states = model.vilt(batch["mlm_input_ids"], **plain).last_hidden_state[:, :9]
    words = cross_entropy(model.mlm_head(states).flatten(0, 1), batch["mlm_labels"].flatten())
    assert_close(out.mlm_loss, words)
    index = batch["itm_image_index"]
    swapped = plain | {name: plain[name][index] for name in ("pixel_values", "pixel_mask")}
    seen = model.vilt(batch["input_ids"], **swapped)
    assert_close(out.itm_loss, cross_entropy(model.itm_head(seen.pooler_output), batch["itm_labels"]))
    inner = batch["attention_mask"].clone()
    inner[:, 0] = 0
    inner[range(4), [4, 8, 2, 5]] = 0
    counts = torch.tensor([rows * columns for rows, columns in (*GRIDS, (3, 5))])[index]
    real = torch.arange(15) < counts[:, None]
    aligned = word_patch_alignment_loss(
        seen.last_hidden_state[:, :9],
        seen.last_hidden_state[:, 10:],
        inner.bool(),
        real,
        batch["itm_labels"] == 1,
    )
    assert_close(out.wpa_loss, aligned)


def test_pairs_that_do_not_count_move_no_words():
    """As they are left out of matching."""
    model, batch = tiny(task_weights=ALL), columns("itm")
    batch["itm_labels"][1] = -100
    out, rows = model(**batch), torch.tensor([0, 2, 3])
    others = {n: v[rows] for n, v in batch.items() if not n.startswith("pixel")}
    others |= {n: v for n, v in batch.items() if n.startswith("pixel")}
    alone = model.vilt(
        others["input_ids"],
        others["attention_mask"],
        image_index=others["itm_image_index"],
        **{n: v for n, v in others.items() if n.startswith("pixel")},
    )
    assert_close(out.wpa_loss, alignment(alone, others, others["itm_labels"] == 1))
    assert_close(out.itm_loss, cross_entropy(out.logits[rows], others["itm_labels"]))


def alignment(seen, batch, matched, most=15):
    """The loss by the formula, of states of texts of 9 places and of at most so many patches."""
    place = batch["attention_mask"].cumsum(1) * batch["attention_mask"]
    inner = (place > 1) & (place < batch["attention_mask"].sum(1, keepdim=True))
    counts = torch.tensor([rows * columns for rows, columns in (*GRIDS, (3, 5))])[batch["itm_image_index"]]
    real = torch.arange(most) < counts[:, None]
    states = seen.last_hidden_state
    return word_patch_alignment_loss(states[:, :9], states[:, 10:], inner, real, matched)


def test_words_are_moved_onto_the_patches_that_were_drawn():
    """Of images of 15, 4, 4 and 15 patches in swapped pairs six at most; values and gradients."""
    model, batch = tiny(task_weights=ALL, max_patches=6).train(), columns("itm")
    torch.manual_seed(5)
    loss = model(**batch).wpa_loss
    weights = [weight for name, weight in model.named_parameters() if "vilt.blocks" in name]
    got = torch.autograd.grad(loss, weights)
    torch.manual_seed(5)
    image = {name: batch[name] for name in ("attention_mask", "pixel_values", "pixel_mask")}
    seen = model.vilt(batch["input_ids"], image_index=batch["itm_image_index"], **image)
    assert seen.last_hidden_state.shape == (4, 9 + 1 + 6, 32)
    expected = alignment(seen, batch, batch["itm_labels"] == 1, most=6)
    assert_close(loss, expected)
    assert_close(got, torch.autograd.grad(expected, weights), rtol=1e-5, atol=1e-5)
    torch.manual_seed(6)
    assert not torch.allclose(model(**batch).wpa_loss, loss)


def test_colours_are_those_of_the_hidden_patches_of_each_image():
    """Pixels counted out by hand: patch 3 of a 2x2 image stands in row 1, column 1 of the padded one."""
    model, batch = tiny(task_weights=ALL), columns("mpp")
    plain = {name: batch[name] for name in ("attention_mask", "pixel_values", "pixel_mask")}
    hidden = batch["bool_masked_patches"]
    states = model.vilt(batch["input_ids"], **plain, bool_masked_patches=hidden).last_hidden_state[:, 10:]
    logits = model.mpp_head(states[hidden]).view(-1, 3, 256)
    places = [(0, 0, 2), (0, 2, 4), (1, 1, 1), (2, 0, 0), (3, 1, 2)]  # image, row, column
    pixels = [
        batch["pixel_values"][i, :, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].mean((1, 2)) for i, y, x in places
    ]
    levels = ((torch.stack(pixels) * 0.5 + 0.5) * 255).floor().long()
    loss = cross_entropy(logits.flatten(0, 1), levels.flatten())
    assert_close(model(**batch).mpp_loss, loss, rtol=1e-4, atol=1e-4)


def test_hidden_pixels_are_those_of_the_hidden_patches_of_each_image():
    model, batch = tiny(MMViltForMaskedImageModeling), mixed()
    hidden = hidden_patches()["bool_masked_patches"]
    out = model(**batch, bool_masked_patches=hidden)
    places = [(0, 0, 2), (0, 2, 4), (1, 1, 1), (2, 0, 0)]
    pixels = [
        batch["pixel_values"][i, :, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].flatten() for i, y, x in places
    ]
    assert_close(out.loss, (out.reconstruction[hidden] - torch.stack(pixels)).abs().mean())
    trained = model.train()(**batch, bool_masked_patches=hidden)
    assert trained.reconstruction is None
    assert_close(trained.loss, out.loss)


def test_what_is_hidden_behind_the_last_patch_of_an_image_does_not_count():
    model, batch = tiny(MMViltForMaskedImageModeling), mixed()
    hidden = hidden_patches()["bool_masked_patches"]
    expected = model(**batch, bool_masked_patches=hidden).loss
    hidden[1, 4:] = True
    assert_close(model(**batch, bool_masked_patches=hidden).loss, expected)


def test_a_hidden_patch_tells_nothing_of_its_pixels():
    model, batch = tiny(MMViltForMaskedImageModeling), mixed()
    hidden = hidden_patches()
    before = model(**batch, **hidden).reconstruction
    batch["pixel_values"][1, :, 8:16, 8:16] += 5.0  # patch 3
    after = model(**batch, **hidden).reconstruction
    assert_close(after, before)


def test_nothing_hidden_costs_exactly_nothing():
    batch = columns("mlm", "mpp")
    batch["mlm_labels"].fill_(-100)
    batch["bool_masked_patches"].fill_(False)
    out = tiny(task_weights=ALL).train()(**batch)
    out.loss.backward()
    assert (out.mlm_loss.item(), out.mpp_loss.item()) == (0.0, 0.0)
    image = tiny(MMViltForMaskedImageModeling).train()
    assert image(**mixed(), bool_masked_patches=torch.zeros(3, 15).bool()).loss.item() == 0.0


def test_all_patches_are_kept_where_some_are_hidden():
    model = tiny(MMViltForMaskedImageModeling, max_patches=3).train()
    out = model(**mixed(), **hidden_patches())
    assert out.loss.isfinite()


def test_ranking_begins_as_the_logit_of_a_match():
    model = tiny(task_weights=ALL)
    ranker = start_ranking(model)
    assert_close(ranker(**mixed()).logits[:, 0], model(**mixed()).logits[:, 1])
    assert ranker.rank_output.weight.requires_grad
    with pytest.raises(ValueError, match=r"has no matching \(\"itm\"\), so there is no head to begin with"):
        start_ranking(tiny(task_weights={"mlm": 1.0}))


def test_a_pre_trained_model_begins_a_head(tmp_path):
    model = tiny(task_weights=ALL)
    model.save_pretrained(tmp_path)
    head, report = MMViltForQuestionAnswering.from_pretrained(
        tmp_path, num_labels=5, output_loading_info=True
    )
    assert all(name.startswith("answer_classifier.") for name in report["missing_keys"])
    assert not report["unexpected_keys"]
    assert_close(head.vilt.state_dict()["pooler.dense.weight"], model.vilt.pooler.dense.weight)


def without(*names):
    batch = columns("mlm", "itm", "mpp")
    return {name: values for name, values in batch.items() if name not in names}


@pytest.mark.parametrize(
    ("batch", "tasks", "message"),
    [
        (without("mlm_labels"), ALL, "`mlm_input_ids` and `mlm_labels` go together"),
        (without("itm_labels"), ALL, "`itm_image_index` needs `itm_labels`"),
        (
            columns("mpp"),
            {"mlm": 1.0},
            r"columns of the task 'mpp', the model has no head for it \(`task_weig",
        ),
        (columns("mlm"), {"mpp": 1.0}, "columns of the task 'mlm'"),
        (mixed(), {"mlm": 1.0}, r"has no matching \(\"itm\"\) and no columns of other tasks are given"),
    ],
)
def test_columns_that_are_not_complete_are_named(batch, tasks, message):
    with pytest.raises(ValueError, match=message):
        tiny(task_weights=tasks)(**batch)


def test_labels_of_patches_that_are_not_there_are_named():
    with pytest.raises(ValueError, match=r"`labels` must be \(3, 15\), -100 where .* got \(3, 4\)"):
        tiny(MMViltForMaskedImageModeling)(**mixed(), labels=torch.zeros(3, 4).long())
