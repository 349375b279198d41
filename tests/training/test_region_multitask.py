"""Pre-training of a region BERT by `MultitaskTrainer`: accumulated batches are one, task by task."""

import pytest
import torch
from torch.testing import assert_close
from transformers import TrainingArguments

from hf_mm import MMRegionBertConfig, MultitaskTrainer, pretraining_items
from hf_mm.models.region_bert.pretraining_region_bert import MMRegionBertForPreTraining

WEIGHTS = {
    "mlm": 1.0,
    "itm": 0.5,
    "wra": 0.1,
    "mrfr": 2.0,
    "mrc": 0.4,
    "mrc_kl": 0.7,
    "answer": 0.9,
    "tags": 0.3,
    "caption": 0.6,
}


def rows(count=8):
    """Pairs with one hidden word and region, or several: a mean of means would differ."""
    draw = torch.Generator().manual_seed(0)
    made = []
    for number in range(count):
        ids = torch.randint(5, 40, (8,), generator=draw)
        ids[0] = 2
        hidden = (torch.arange(8) < 2 + number % 4) & (torch.arange(8) > 0)
        masked = torch.arange(4) <= number % 3
        features = torch.randn(4, 6, generator=draw)
        made.append(
            {
                "input_ids": ids,
                "attention_mask": torch.ones(8, dtype=torch.long),
                "region_features": features,
                "region_boxes": torch.tensor([0.1, 0.2, 0.6, 0.9]).expand(4, -1) * (1 - 0.1 * number),
                "region_mask": (torch.arange(4) < 3 + number % 2).long(),
                "mlm_input_ids": ids.masked_fill(hidden, 4),
                "mlm_labels": ids.masked_fill(~hidden, -100),
                "itm_labels": torch.tensor(number % 2),
                "masked_regions": masked,
                "region_class_labels": (torch.arange(4) + number).remainder(5).masked_fill(~masked, -100),
                "region_class_scores": features[:, :5].softmax(1),
                "answer_labels": torch.tensor(number % 3 if number % 4 else -100),
                "tag_input_ids": ids.flip(0),
                "tag_labels": torch.tensor(number % 2 if number > 2 else -100),
                "caption_labels": ids.masked_fill(torch.arange(8) < 1 + number % 5, -100),
            }
        )
    return made


def collate(batch):
    return {name: torch.stack([row[name] for row in batch]) for name in batch[0]}


def drawn(batch):
    """One task for each batch, by its first row."""
    first, made = int(batch[0]["input_ids"][1]), collate(batch)
    return made | {"tasks": (("mlm",), ("itm", "wra"), ("mrfr",), ("mrc_kl",))[first % 4]}


def trained(folder, batch, steps, collator=collate):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 40}
    ids = {"bos_token_id": 2, "eos_token_id": 3, "mask_token_id": 4, "num_labels": 3}
    regions = {"region_feature_size": 6, "num_region_classes": 5, "max_position_embeddings": 8}
    still = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "task_weights": WEIGHTS}
    config = MMRegionBertConfig.preset("uniter", 1, **sizes, **ids, **regions, **still)
    args = TrainingArguments(
        folder,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=steps,
        max_steps=2,
        logging_steps=1,
        learning_rate=1e-2,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = MultitaskTrainer(
        MMRegionBertForPreTraining(config),
        args,
        data_collator=collator,
        train_dataset=rows(),
        count_items=pretraining_items,
    )
    trainer.train()
    return trainer.model.state_dict(), [entry for entry in trainer.state.log_history if "loss" in entry]


def test_accumulation_leaves_every_task_as_one_large_batch_has_it(tmp_path):
    whole, said = trained(tmp_path, 8, 1)
    parts, said_of_parts = trained(tmp_path, 2, 4)
    for name, weight in whole.items():
        assert_close(parts[name], weight, rtol=1e-4, atol=1e-5)
    for entry, entry_of_parts in zip(said, said_of_parts, strict=True):
        for name in ("loss", "grad_norm", *(f"{task}_loss" for task in WEIGHTS)):
            assert entry_of_parts[name] == pytest.approx(entry[name], abs=2e-4, rel=1e-4), name


def test_tasks_drawn_for_each_batch_are_those_that_are_learnt_and_counted(tmp_path):
    _, said = trained(tmp_path, 2, 4, drawn)
    for entry in said:
        done = {task for task in WEIGHTS if f"{task}_loss" in entry}
        assert done <= {"mlm", "itm", "wra", "mrfr", "mrc_kl"}
        total = sum(WEIGHTS[task] * entry[f"{task}_loss"] for task in done)
        assert total == pytest.approx(entry["loss"], abs=5e-4)
