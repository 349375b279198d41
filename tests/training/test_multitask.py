"""Several tasks in one training: divided each by its own items, and logged each by itself."""

import pytest
import torch
from torch.testing import assert_close
from transformers import TrainingArguments

from hf_mm import MMViltConfig, MultitaskTrainer, pretraining_items
from hf_mm.models.vilt.pretraining_vilt import MMViltForPreTraining

WEIGHTS = {"mlm": 1.0, "itm": 0.5, "wpa": 0.1, "mpp": 2.0}


def rows(count=8):
    """Pairs with one hidden word, or two, three, four: a mean of means would differ."""
    draw = torch.Generator().manual_seed(0)
    made = []
    for number in range(count):
        ids = torch.randint(5, 40, (8,), generator=draw)
        hidden = torch.arange(8) < 1 + number % 4
        made.append(
            {
                "input_ids": ids,
                "attention_mask": torch.ones(8, dtype=torch.long),
                "pixel_values": torch.randn(3, 16, 16, generator=draw),
                "pixel_mask": torch.ones(16, 16, dtype=torch.long),
                "mlm_input_ids": ids.masked_fill(hidden, 4),
                "mlm_labels": ids.masked_fill(~hidden, -100),
                "itm_labels": torch.tensor(number % 2),
                "bool_masked_patches": torch.arange(4) <= number % 3,
            }
        )
    return made


def collate(batch):
    return {name: torch.stack([row[name] for row in batch]) for name in batch[0]}


def trained(folder, batch, steps, collator=collate, **options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ids = {"bos_token_id": 2, "eos_token_id": 3, "mask_token_id": 4, "task_weights": WEIGHTS}
    config = MMViltConfig(
        vocab_size=40, image_size=16, patch_size=8, max_position_embeddings=8, **sizes, **ids
    )
    usual = {"max_steps": 2, "logging_steps": 1, "save_strategy": "no"}
    args = TrainingArguments(
        folder,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=steps,
        learning_rate=1e-2,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **(usual | options),
    )
    trainer = MultitaskTrainer(
        MMViltForPreTraining(config),
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
        for name in ("loss", "mlm_loss", "itm_loss", "wpa_loss", "mpp_loss", "grad_norm"):
            assert entry_of_parts[name] == pytest.approx(entry[name], abs=2e-4, rel=1e-4), name


def test_the_weighted_losses_of_the_tasks_add_up_to_the_loss(tmp_path):
    _, said = trained(tmp_path, 4, 2)
    for entry in said:
        total = sum(weight * entry[f"{task}_loss"] for task, weight in WEIGHTS.items())
        assert total == pytest.approx(entry["loss"], abs=5e-4)


def test_items_are_what_each_loss_is_a_mean_over():
    items = pretraining_items(collate(rows(4)))
    assert {task: int(count) for task, count in items.items()} == {"mlm": 10, "itm": 4, "wpa": 4, "mpp": 7}
    assert set(pretraining_items({"mlm_labels": torch.tensor([[-100, 3]])})) == {"mlm"}


COLUMNS = {"mlm": ("mlm_input_ids", "mlm_labels"), "itm": ("itm_labels",), "mpp": ("bool_masked_patches",)}


class OneTask:
    """Batches with the columns of one task, of each in its turn."""

    def __init__(self, *turns):
        self.turns, self.made = turns, 0

    def __call__(self, batch):
        task = self.turns[self.made % len(self.turns)]
        self.made += 1
        others = {name for other in COLUMNS if other != task for name in COLUMNS[other]}
        return {name: value for name, value in collate(batch).items() if name not in others}


def test_a_loss_is_the_mean_over_the_steps_that_had_its_task(tmp_path):
    """What is drawn in one step of four is not logged as a quarter of itself."""
    turns = ("mlm", "itm", "mlm", "mlm")
    _, each = trained(tmp_path, 4, 1, OneTask(*turns), max_steps=4)
    assert [f"{task}_loss" for task in turns] == [
        min(set(entry) & {"mlm_loss", "itm_loss"}) for entry in each
    ]
    _, (said,) = trained(tmp_path, 4, 1, OneTask(*turns), max_steps=4, logging_steps=4)
    words = [entry["mlm_loss"] for entry in each if "mlm_loss" in entry]
    assert said["mlm_loss"] == pytest.approx(sum(words) / 3, abs=2e-4)
    assert said["itm_loss"] == pytest.approx(each[1]["itm_loss"], abs=2e-4)
    assert "mpp_loss" not in said
