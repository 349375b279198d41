"""Pre-training of the region BERTs: contract, each loss by its formula, every preset, and errors."""

import pytest
import torch
from contract import ModelContract
from peft import LoraConfig, PeftModel, get_peft_model
from region_bert_batches import ALL, ITEMS, REGION_TASKS, all_tasks, columns, halves
from region_bert_tiny import NAMES, mixed, tiny_config
from torch.nn.functional import cross_entropy, kl_div, linear, mse_loss, pad, smooth_l1_loss
from torch.testing import assert_close

from hf_mm.data.task_items import pretraining_items
from hf_mm.models.region_bert.heads_region_bert import MMRegionBertForQuestionAnswering
from hf_mm.models.region_bert.pretraining_region_bert import (
    MMRegionBertForPreTraining,
    start_region_ranking,
)
from hf_mm.objectives.optimal_transport import word_patch_alignment_loss

# Tasks whose columns are not those of another.
APART = ("mlm", "itm", "tags", "answer", "caption", *REGION_TASKS)


def tiny(config=None, **changes):
    torch.manual_seed(0)
    return MMRegionBertForPreTraining(all_tasks(**changes) if config is None else config).eval()


def own_tasks(name):
    """A preset with heads for the tasks of its paper, and a batch of them."""
    config = tiny_config(name, num_labels=4)
    batch = columns(*config.task_weights)
    if "tag_labels" in batch:
        batch["tag_labels"] = batch["tag_labels"].clamp(max=config.num_tag_classes - 1)
    return config, batch


class TestPreTraining(ModelContract):
    model_class = MMRegionBertForPreTraining

    def config(self, **changes):
        return all_tasks(**changes)

    def inputs(self):
        return columns(*ALL)

    def parts(self):
        return halves(self.inputs())

    def test_parts_of_a_batch_add_up_to_its_loss_and_gradient(self):
        """Each task by its own number of items."""
        whole, pieces = self.model().train(), self.model().train()
        loss = whole(**self.inputs()).loss
        loss.backward()
        total = 0.0
        for part in self.parts():
            share = pieces(**part, num_items_by_task=ITEMS).loss
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


def test_items_are_what_each_loss_is_a_mean_over():
    assert {
        task: int(count) for task, count in pretraining_items(columns(*ALL)).items() if task in ALL
    } == ITEMS


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("name", ["uniter", "lxmert"])
def test_the_loss_is_the_weighted_sum_of_the_tasks(name, together):
    out = tiny(name=name, mask_together=together)(**columns(*ALL))
    assert_close(out.loss, sum(ALL[task] * out[f"{task}_loss"] for task in ALL))
    assert out.logits.shape == (4, 2)


@pytest.mark.parametrize("task", APART)
def test_a_task_alone_costs_what_it_costs_among_others(task):
    model = tiny()
    out, among = model(**columns(task)), model(**columns(*ALL))
    done = {other for other in ALL if f"{other}_loss" in out}
    assert done >= {task}
    assert done <= {
        task,
        *(("wra",) if task == "itm" else ("mrfr", "smooth") if task in REGION_TASKS else ()),
    }
    if task != "answer":  # beside matching, some of its texts have regions of others
        assert_close(out[f"{task}_loss"], among[f"{task}_loss"])


def encoded(model, batch, words="input_ids", **more):
    names = ("attention_mask", "region_features", "region_boxes", "region_mask")
    return model.region_bert(batch[words], **{name: batch[name] for name in names}, **more)


@pytest.mark.parametrize("together", [False, True])
def test_hidden_words_cost_their_cross_entropy(together):
    model, batch = tiny(mask_together=together), columns("mlm", "mrfr")
    hidden = {"masked_regions": batch["masked_regions"]} if together else {}
    logits = model.mlm_head(encoded(model, batch, "mlm_input_ids", **hidden).last_hidden_state)
    assert_close(model(**batch).mlm_loss, cross_entropy(logits.flatten(0, 1), batch["mlm_labels"].flatten()))


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_hidden_regions_cost_what_torch_says(name, together):
    changes = {"task_weights": dict.fromkeys(("mlm", *REGION_TASKS), 1.0), "mask_together": together}
    model, batch = tiny(name=name, **changes), columns("mlm", *REGION_TASKS)
    masked = batch["masked_regions"]
    words = "mlm_input_ids" if together else "input_ids"
    states = encoded(model, batch, words, masked_regions=masked).region_last_hidden_state
    states, features = states[:, -6:][masked], batch["region_features"][masked]
    out = model(**batch)
    projection = model.region_bert.region_embeddings.feature_projection.weight[:, : features.shape[1]]
    guessed = linear(model.feature_head.transform(states), projection.t(), model.feature_head.bias)
    assert_close(out.mrfr_loss, mse_loss(guessed, features))
    logits = model.region_classifier(states)
    assert_close(out.mrc_loss, cross_entropy(logits, batch["region_class_labels"][masked]))
    scores = batch["region_class_scores"][masked]
    assert_close(out.mrc_kl_loss, kl_div(logits.log_softmax(1), scores, reduction="batchmean"))
    head = model.detector_head
    transformed = head.transform(states)
    assert_close(out.smooth_loss, smooth_l1_loss(head.decoders["smooth"](transformed), features))
    for task in ("object", "attribute"):
        labels = batch[f"{task}_labels"][masked]
        assert_close(out[f"{task}_loss"], cross_entropy(head.decoders[task](transformed), labels))


def test_regions_that_are_not_hidden_do_not_count_whatever_their_labels():
    model, batch = tiny(), columns(*REGION_TASKS)
    expected = model(**batch).loss
    for column in ("region_class_labels", "object_labels", "attribute_labels"):
        batch[column] = batch[column].masked_fill(~batch["masked_regions"], 1)
    assert_close(model(**batch).loss, expected)
    batch["masked_regions"] = batch["masked_regions"] | (batch["region_mask"] == 0)
    assert_close(model(**batch).loss, expected)


def test_a_hidden_region_tells_nothing_of_its_feature():
    for name in NAMES:
        weights = {"mrc_kl": 1.0, "mlm": 1.0}
        model = tiny(name=name, task_weights=weights, mask_together=True)
        batch = columns("mrc_kl", "mlm")
        before = model(**batch).loss
        batch["region_features"][batch["masked_regions"]] += 5.0
        assert_close(model(**batch).loss, before)


def test_matching_and_alignment_see_the_regions_that_each_text_is_shown_with():
    model, batch = tiny(), columns("itm")
    seen = encoded(model, batch, region_index=batch["itm_region_index"])
    logits, out = model.itm_head(seen.pooler_output), model(**batch)
    assert_close(out.logits, logits)
    assert_close(out.itm_loss, cross_entropy(logits, batch["itm_labels"]))
    lengths = batch["attention_mask"].sum(1, keepdim=True)
    place = torch.arange(9)
    words = (place > 0) & (place < lengths - 1)
    real = batch["region_mask"][batch["itm_region_index"]].bool()
    pair = (seen.last_hidden_state, seen.region_last_hidden_state, words, real, batch["itm_labels"] == 1)
    assert_close(out.wra_loss, word_patch_alignment_loss(*pair))


def test_a_pair_that_is_not_asked_about_counts_neither_for_matching_nor_for_alignment():
    model, batch = tiny(), columns("itm")
    batch["itm_labels"][0] = -100
    left = {name: values[1:] for name, values in batch.items() if not name.startswith("region")}
    left |= {name: values for name, values in batch.items() if name.startswith("region")}
    out = model(**batch)
    seen = encoded(model, left, region_index=left["itm_region_index"])
    assert_close(out.itm_loss, cross_entropy(model.itm_head(seen.pooler_output), left["itm_labels"]))
    alone = [
        model(**{name: values[row : row + 1] for name, values in batch.items() if name != "itm_region_index"})
        for row in (2, 3)
    ]
    swapped = {**batch, "itm_labels": torch.tensor([-100, 0, -100, -100])}
    total = sum(part.wra_loss for part in alone) + model(**swapped).wra_loss
    assert_close(out.wra_loss, total / 3)


def test_tags_and_answers_cost_their_cross_entropy():
    model, batch = tiny(), columns("tags", "answer")
    names = ("region_features", "region_boxes", "region_mask")
    image = {name: batch[name] for name in names}
    tagged = [batch[f"tag_{name}"] for name in ("input_ids", "attention_mask", "token_type_ids")]
    logits = model.tag_head(model.region_bert(*tagged, **image).pooler_output)
    out = model(**batch)
    assert_close(out.tags_loss, cross_entropy(logits, batch["tag_labels"]))
    scores = model.answer_head(encoded(model, batch).pooler_output)
    assert_close(out.answer_loss, cross_entropy(scores, batch["answer_labels"]))


def test_an_answer_about_the_regions_of_another_text_does_not_count():
    model, batch = tiny(), columns("itm", "answer")
    seen = encoded(model, batch, region_index=batch["itm_region_index"])
    scores = model.answer_head(seen.pooler_output)[2:]
    assert_close(model(**batch).answer_loss, cross_entropy(scores, batch["answer_labels"][2:]))


@pytest.mark.parametrize("name", NAMES)
def test_a_caption_is_written_word_by_word_from_the_regions(name):
    model, batch = tiny(name=name, task_weights={"caption": 1.0}), columns("caption")
    labels = batch["caption_labels"]
    prefix = (labels == -100).long()
    logits = model.mlm_head(encoded(model, batch, prefix_mask=prefix).last_hidden_state)
    following = pad(labels[:, 1:], (0, 1), value=-100)
    assert_close(model(**batch).caption_loss, cross_entropy(logits.flatten(0, 1), following.flatten()))
    later = {**batch, "input_ids": batch["input_ids"].clone()}
    later["input_ids"][1, 6] = (batch["input_ids"][1, 6] + 1) % 30
    after = model.mlm_head(encoded(model, later, prefix_mask=prefix).last_hidden_state)
    assert_close(after[1, :6], logits[1, :6])
    assert not torch.allclose(after[1, 6], logits[1, 6])


def test_a_batch_may_name_the_tasks_that_it_is_for():
    model, batch = tiny(), columns(*ALL)
    out = model(**batch, tasks=("mrc_kl", "itm"))
    assert {task for task in ALL if f"{task}_loss" in out} == {"mrc_kl", "itm"}
    alone = model(
        **{name: values for name, values in batch.items() if name != "mlm_labels"} | {"mlm_input_ids": None}
    )
    assert_close(out.mrc_kl_loss, alone.mrc_kl_loss)


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_no_loss_and_no_gradient(name):
    changes = {"task_weights": {task: weight for task, weight in ALL.items() if task != "wra"}}
    losses, gradients = [], []
    for more in (0, 3):
        model, batch = tiny(name=name, **changes).train(), columns(*ALL)
        for column, values in batch.items():
            if column.startswith(("region", "masked", "object", "attribute_labels")):
                filled = -100 if column.endswith("labels") else 0
                sides = (0, 0) * (values.ndim - 2) + (0, more)
                batch[column] = pad(values, sides, value=filled)
            elif values.ndim == 2:
                batch[column] = pad(values, (0, more), value=-100 if column.endswith("labels") else 0)
        out = model(**batch)
        out.loss.backward()
        losses.append({task: out[f"{task}_loss"] for task in changes["task_weights"]})
        gradients.append([weight.grad for weight in model.parameters() if weight.grad is not None])
    assert_close(losses[1], losses[0])
    assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


def test_nothing_labelled_costs_exactly_nothing():
    batch = columns(*ALL)
    for column, values in batch.items():
        if column.endswith("labels"):
            values.fill_(-100)
    batch["masked_regions"].fill_(False)
    out = tiny().train()(**batch)
    out.loss.backward()
    assert {task: out[f"{task}_loss"].item() for task in ALL} == dict.fromkeys(ALL, 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_every_model_learns_the_tasks_of_its_paper_and_comes_back_from_disk(name, tmp_path):
    config, batch = own_tasks(name)
    model = tiny(config).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    before = model(**batch).loss
    before.backward()
    optimizer.step()
    after = model(**batch)
    assert after.loss < before
    assert {task for task in ALL if f"{task}_loss" in after} == set(config.task_weights)
    model.save_pretrained(tmp_path)
    again, report = MMRegionBertForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert_close(again(**batch).loss, model.eval()(**batch).loss, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_every_model_takes_lora(name, tmp_path):
    config, batch = own_tasks(name)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    tuned = get_peft_model(tiny(config), lora).train()
    optimizer = torch.optim.SGD([weight for weight in tuned.parameters() if weight.requires_grad], lr=0.5)
    losses = []
    for _ in range(3):
        loss = tuned(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    tuned.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny(config), tmp_path).eval()
    assert_close(again(**batch).loss, tuned.eval()(**batch).loss)


def test_every_model_loads_in_a_fresh_process_without_this_package(stranger, tmp_path):
    for name in NAMES:
        config, batch = own_tasks(name)
        model = tiny(config)
        model.save_pretrained(tmp_path / name)
        torch.save((batch, model(**batch).loss.detach()), tmp_path / f"{name}.pt")
    stranger.run(
        "import os, sys\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "from transformers import AutoModelForPreTraining\n"
        f"for name in {NAMES}:\n"
        "    batch, expected = torch.load(f'{name}.pt')\n"
        "    model = AutoModelForPreTraining.from_pretrained(f'./{name}', trust_remote_code=True)\n"
        "    assert torch.equal(model(**batch).loss, expected), name\n"
        "assert 'hf_mm' not in sys.modules\n"
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_pre_trained_model_begins_a_head(name, tmp_path):
    model = tiny(own_tasks(name)[0])
    model.save_pretrained(tmp_path)
    head, report = MMRegionBertForQuestionAnswering.from_pretrained(
        tmp_path, num_labels=5, output_loading_info=True
    )
    fresh = [
        key
        for key in report["missing_keys"]
        if not key.startswith(("answer_classifier.", "region_bert.pooler."))
    ]
    assert not fresh
    assert not report["unexpected_keys"]
    ours = head.region_bert.region_embeddings.feature_projection.weight
    assert_close(ours, model.region_bert.region_embeddings.feature_projection.weight)


def test_ranking_begins_as_the_logit_of_a_match():
    model = tiny()
    ranker = start_region_ranking(model)
    assert_close(ranker(**mixed()).logits[:, 0], model(**mixed()).logits[:, 1])
    assert ranker.rank_output.weight.requires_grad
    with pytest.raises(ValueError, match=r"has no matching \(\"itm\"\), so there is no head to begin with"):
        start_region_ranking(tiny(task_weights={"mlm": 1.0}))


def without(*names):
    return {name: values for name, values in columns(*ALL).items() if name not in names}


@pytest.mark.parametrize(
    ("batch", "tasks", "message"),
    [
        (without("mlm_labels"), ALL, "`mlm_input_ids` needs `mlm_labels` beside it"),
        (without("itm_labels"), ALL, "`itm_region_index` needs `itm_labels`"),
        (without("masked_regions"), ALL, "`region_class_labels` needs `masked_regions`"),
        (without("tag_input_ids"), ALL, "`tag_attention_mask` needs `tag_input_ids`"),
        (
            columns("mrfr"),
            {"mlm": 1.0},
            r"has `masked_regions`, a column of \['mrfr', .* no head for it \(`task_w",
        ),
        (columns("answer"), {"mlm": 1.0}, r"has `answer_labels`, a column of \['answer'\]"),
        (mixed(), {"mlm": 1.0}, r"has no matching \(\"itm\"\) and no columns of other tasks are given"),
        (
            columns("mlm") | {"tasks": ("mrc",)},
            ALL,
            r"`tasks` names 'mrc', but the batch has columns for \['mlm'\]",
        ),
        (
            columns("mrc") | {"object_labels": torch.zeros(4, 5).long()},
            ALL,
            r"`object_labels` must begin with \(4, 6\), one for each region, got \(4, 5\)",
        ),
        (
            columns("tags") | {"tag_labels": torch.zeros(3).long()},
            ALL,
            r"`labels` must be \(4,\) class indices",
        ),
        (
            columns("answer") | {"answer_labels": torch.zeros(4)},
            ALL,
            r"`labels` must be \(4,\) class indices",
        ),
        (
            columns("caption") | {"caption_labels": torch.zeros(4, 9).long()},
            ALL,
            "Row 0 has a label at its first token, which nothing stands before",
        ),
        (
            columns("caption") | {"caption_labels": torch.zeros(4, 8).long()},
            ALL,
            r"Labels of words to write must be \(4, 9\) integers as `input_ids`, got \(4, 8\)",
        ),
    ],
)
def test_columns_that_are_not_complete_are_named(batch, tasks, message):
    with pytest.raises(ValueError, match=message):
        tiny(task_weights=tasks)(**batch)


def test_words_and_regions_of_two_widths_cannot_be_aligned():
    with pytest.raises(
        Exception, match=r"has \"wra\", which compares words and regions: `region_hidden_size`=24"
    ):
        tiny(name="vilbert")
