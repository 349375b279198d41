"""What the collators make is what the heads of region BERTs take."""

import pytest
import torch
from models.region_bert_tiny import SIZES, scrambled
from models.regions_tiny_rows import CLASSES, WIDTH, WORDS, regions, tokenizer
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.testing import assert_close
from transformers import TrainingArguments

from hf_mm import (
    MMRegionBertConfig,
    MMRegionBertForImageAndTextRetrieval,
    MMRegionBertForImagesAndTextClassification,
    MMRegionBertForPreTraining,
    MMRegionBertForQuestionAnswering,
    MMRegionBertForRegionSelection,
    MMRegionProcessor,
    MultitaskTrainer,
    PairsOfRegionsCollator,
    RegionCaptionCollator,
    RegionPretrainingCollator,
    RegionQuestionCollator,
    RegionRetrievalCollator,
    RegionSelectionCollator,
)

TEXTS = ["a red dog", "a cat", "blue", "is it a dog ?"]
LABELS = {"yes": 0, "no": 1, "red": 2}
OF_TOKENIZER = {"vocab_size": len(WORDS), "bos_token_id": 2, "eos_token_id": 3, "mask_token_id": 4}
OF_DETECTOR = {
    "region_feature_size": WIDTH,
    "num_region_classes": CLASSES,
    "num_object_classes": CLASSES,
    "num_attribute_classes": 3,
}
TASKS = dict.fromkeys(("mlm", "itm", "mrfr", "smooth", "mrc", "mrc_kl", "object", "attribute", "tags"), 1.0)


def processor_of(**options):
    return MMRegionProcessor(tokenizer(), max_length=12, **options)


def config_of(name="uniter", **changes):
    return MMRegionBertConfig.preset(name, depth=2, **(SIZES | OF_TOKENIZER | OF_DETECTOR | changes))


def built(kind, **changes):
    torch.manual_seed(0)
    return kind(config_of(**changes)).eval()


def learned(model, batch):
    """The output for a batch; its loss has a finite gradient."""
    out = model(**batch)
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    return out


def captions(count=4):
    return [
        {
            "regions": regions(2 + i % 4, seed=i),
            "caption": f"{TEXTS[i % 4]}{' a' * (i // 4)}",
            "answer": "yes",
        }
        for i in range(count)
    ]


@pytest.mark.parametrize("name", ["uniter", "lxmert", "vilbert", "vl-bert", "oscar", "visualbert"])
def test_pre_training_does_every_task_of_a_batch(name):
    tasks = TASKS | {"answer": 0.5, "caption": 0.5} | ({"wra": 0.1} if name == "uniter" else {})
    processor = processor_of(max_tags=2)
    collate = RegionPretrainingCollator(processor, tasks, label2id=LABELS, seed=0)
    batch = collate(captions())
    out = learned(built(MMRegionBertForPreTraining, name=name, task_weights=tasks, num_labels=3), batch)
    losses = {task: out[f"{task}_loss"] for task in tasks}
    assert all(loss.isfinite() and loss != 0 for loss in losses.values())
    assert_close(out.loss, sum(tasks[task] * loss for task, loss in losses.items()))
    items = collate.count_items(batch)
    with torch.no_grad():
        model = built(MMRegionBertForPreTraining, name=name, task_weights=tasks, num_labels=3)
        assert_close(model(**batch, num_items_by_task=items).loss, out.loss.detach())


def test_presets_learn_what_their_configuration_says():
    for name in ("uniter", "lxmert", "oscar"):
        config = config_of(name, num_labels=3)
        schedule = config.task_weights, config.task_schedule, config.task_rates
        processor = processor_of(max_tags=2 if name == "oscar" else 0)
        collate = RegionPretrainingCollator(processor, *schedule, label2id=LABELS, seed=0)
        batch = collate(captions())
        every, asked = set(config.task_weights), set(batch["tasks"])
        assert asked < every if name == "uniter" else asked == every
        torch.manual_seed(0)
        assert learned(MMRegionBertForPreTraining(config).eval(), batch).loss.isfinite()


def test_questions_are_scored_either_way():
    rows = [{"regions": regions(3, seed=i), "question": text, "answer": "no"} for i, text in enumerate(TEXTS)]
    model = built(MMRegionBertForQuestionAnswering, num_labels=3)
    soft = RegionQuestionCollator(processor_of(), LABELS)(rows)
    hard = RegionQuestionCollator(processor_of(), LABELS, soft=False)(rows)
    logits = learned(model, soft).logits.detach()
    assert_close(model(**soft).loss, binary_cross_entropy_with_logits(logits, soft["labels"]) * 3)
    assert_close(model(**hard).loss, cross_entropy(logits, hard["labels"]))


def test_expressions_choose_among_the_regions_of_their_picture():
    rows = [
        {"regions": regions(2 + i, seed=i), "expression": text, "label": i % 2}
        for i, text in enumerate(TEXTS)
    ]
    model = built(MMRegionBertForRegionSelection)
    out = learned(model, RegionSelectionCollator(processor_of())(rows))
    assert_close(out.loss, cross_entropy(out.logits, torch.tensor([0, 1, 0, 1])))
    soft = RegionSelectionCollator(processor_of(), soft=True)(rows)
    counted = soft["labels"] != -100
    wanted = binary_cross_entropy_with_logits(out.logits[counted], soft["labels"][counted])
    assert_close(model(**soft).loss, wanted)


def test_pairs_of_pictures_are_compared():
    rows = [
        {"regions": [regions(3, seed=i), regions(2, seed=i + 9)], "statement": TEXTS[i], "label": i % 2}
        for i in range(4)
    ]
    model = built(MMRegionBertForImagesAndTextClassification, num_labels=2)
    out = learned(model, PairsOfRegionsCollator(processor_of())(rows))
    assert_close(out.loss, cross_entropy(out.logits, torch.tensor([0, 1, 0, 1])))


def test_the_first_of_a_pictures_texts_is_the_one_to_rank_first():
    batch = RegionRetrievalCollator(processor_of(), TEXTS, candidates=3, seed=0)(captions())
    out = learned(built(MMRegionBertForImageAndTextRetrieval), batch)
    assert_close(out.loss, -out.logits.view(4, 3).log_softmax(dim=1)[:, 0].mean())


def test_captions_are_written_behind_their_prompt():
    rows = [{**row, "prompt": "is it"} for row in captions()]
    batch = RegionCaptionCollator(processor_of(), prompt_column="prompt")(rows)
    batch["caption_labels"] = batch.pop("labels")
    batch = {name: part.double() if part.is_floating_point() else part for name, part in batch.items()}
    model = scrambled(built(MMRegionBertForPreTraining, task_weights={"caption": 1.0})).double()
    loss = learned(model, batch).loss
    changed = batch | {"input_ids": batch["input_ids"].clone()}
    last = batch["attention_mask"].sum(1) - 1  # the end of a text is guessed, and nothing follows it
    changed["input_ids"][torch.arange(4), last] = 5
    assert_close(model(**changed).loss, loss, rtol=0, atol=1e-12)
    changed["input_ids"][:, 1] = 6
    assert abs(model(**changed).loss - loss) > 1e-6


def trained(folder, resume=False):
    """Weights after four steps, of two accumulated batches each, with a task drawn for every batch."""
    tasks = {"mlm": 1.0, "itm": 1.0, "mrfr": 1.0}
    collate = RegionPretrainingCollator(processor_of(), tasks, "draw", seed=0)
    torch.manual_seed(0)
    args = TrainingArguments(
        output_dir=folder,
        max_steps=4,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        save_steps=2,
        logging_steps=1,
        remove_unused_columns=False,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = MultitaskTrainer(
        MMRegionBertForPreTraining(config_of(task_weights=tasks)),
        args,
        data_collator=collate,
        train_dataset=captions(12),
        count_items=collate.count_items,
    )
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2") if resume else None)
    return trainer.model.state_dict(), [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.slow
def test_a_resumed_run_draws_what_it_would_have_drawn(tmp_path):
    whole, said = trained(tmp_path)
    again, said_again = trained(tmp_path, resume=True)
    assert [set(entry) for entry in said] == [set(entry) for entry in said_again]
    assert len({frozenset(entry) for entry in said}) > 1  # not the same tasks in each step
    for name, weight in whole.items():
        assert_close(again[name], weight, rtol=1e-6, atol=1e-6)
