"""What each process of a pre-training on several tasks does: a program, so that it forks before it computes.

    python pretraining_processes.py FOLDER

lets two processes meet at a free port, runs all of `CASES` in them, and writes what each found to
FOLDER/RANK.pt. An alarm ends a process that waits for the other in vain.
"""

import faulthandler
import os
import socket
import sys
from importlib import import_module
from pathlib import Path

import torch
from models import region_bert_tiny, regions_tiny_rows
from models.vilt_tiny import images, scrambled, texts, tiny_config
from pair_runs import Recorder
from torch.multiprocessing import start_processes
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainingArguments

from hf_mm import (
    MMRegionBertForPreTraining,
    MMRegionProcessor,
    MMViltForPreTraining,
    MultitaskTrainer,
    RegionPretrainingCollator,
    pretraining_items,
)

__all__ = ["CASES", "DRAWN", "LIMIT_S", "case_run", "drawn_collator", "drawn_rows"]

LIMIT_S = 120
ROWS = 8
LENGTHS = (5, 9, 3, 6, 4, 8, 7, 3)
GRIDS = ((3, 5), (2, 2), (4, 1), (1, 6), (3, 3), (2, 4), (1, 1), (2, 3))
HIDDEN_WORDS = (3, 0, 1, 2, 0, 0, 4, 1)  # of each row; the second step of the first process has none at all
HIDDEN_PATCHES = (2, 1, 0, 3, 0, 0, 1, 2)
SWAPPED = (True, True, False, False, False, False, True, True)  # has the image of the row beside it
COUNTS = (4, 2, 6, 1, 3, 5, 2, 4)  # regions
HIDDEN_REGIONS = (2, 1, 1, 0, 0, 0, 2, 3)
REGION_CLASSES = {"region_class_labels": 7, "object_labels": 6, "attribute_labels": 5}
ACCUMULATED = {"gradient_accumulation_steps": 2}
CASES = {
    "vilt": {},
    "vilt accumulated": ACCUMULATED,
    "lxmert": {},
    "lxmert accumulated": ACCUMULATED,
    "uniter": {},
    "uniter accumulated": ACCUMULATED,
    "vilbert": {},
    "oscar": {},
    "drawn": {},
    "drawn accumulated": ACCUMULATED,
}
DRAWN = {"mlm": 1.0, "itm": 0.5, "wra": 0.1, "mrfr": 2.0, "mrc_kl": 0.7}
CAPTIONS = ("a red dog", "blue dog", "a cat", "red cats", "is it blue ?", "it is a dog", "a dog", "blue cats")
REGION_TASKS = {
    "lxmert": ("mlm", "itm", "object", "attribute", "smooth", "answer"),
    "uniter": ("mlm", "itm", "wra", "mrfr", "mrc", "mrc_kl"),
    "vilbert": ("mlm", "itm", "mrc_kl"),
    "oscar": ("mlm", "tags", "caption"),
}
COLUMNS = {  # of tasks, beside text and regions
    "mlm": ("mlm_input_ids", "mlm_labels"),
    "itm": ("away", "itm_labels"),
    "mrfr": ("masked_regions",),
    "smooth": ("masked_regions",),
    "mrc": ("masked_regions", "region_class_labels"),
    "mrc_kl": ("masked_regions", "region_class_scores"),
    "object": ("masked_regions", "object_labels"),
    "attribute": ("masked_regions", "attribute_labels"),
    "answer": ("answer_labels",),
    "tags": ("tag_input_ids", "tag_attention_mask", "tag_labels"),
    "caption": ("caption_labels",),
}
INPUTS = ("input_ids", "attention_mask", "region_features", "region_boxes", "region_mask")


def vilt_model():
    """All tasks of the family."""
    tasks = {"mlm": 1.0, "itm": 0.5, "wpa": 0.1, "mpp": 2.0}
    return scrambled(MMViltForPreTraining(tiny_config(task_weights=tasks))).train()


def vilt_rows():
    """Pairs none of which is like another, nor has as many items."""
    made = []
    for number in range(ROWS):
        text = {name: part[0] for name, part in texts(LENGTHS[number : number + 1], seed=number).items()}
        image = {name: part[0] for name, part in images(GRIDS[number : number + 1], seed=number).items()}
        made.append({**text, **image, **hidden_words(text["input_ids"], number), **swap(number)})
        patches = GRIDS[number][0] * GRIDS[number][1]
        made[-1]["bool_masked_patches"] = torch.arange(patches) < HIDDEN_PATCHES[number]
    return made


def hidden_words(ids, number):
    """The task of guessing words: the first few behind [CLS]."""
    places = torch.arange(len(ids))
    hidden = (places > 0) & (places <= min(HIDDEN_WORDS[number], len(ids) - 2))
    return {"mlm_input_ids": ids.masked_fill(hidden, 38), "mlm_labels": ids.masked_fill(~hidden, -100)}


def swap(number):
    """The task of matching: how far off in the batch the image of this text is."""
    away = (1 - 2 * (number % 2)) * SWAPPED[number]
    return {"away": torch.tensor(away), "itm_labels": torch.tensor(int(not away))}


def region_model(preset):
    """A preset with tasks of several kinds, each with a weight of its own."""
    tasks = {task: 0.5 + 0.25 * number for number, task in enumerate(REGION_TASKS[preset])}
    config = region_bert_tiny.tiny_config(preset, task_weights=tasks, num_labels=5)
    return scrambled(MMRegionBertForPreTraining(config)).train()


def region_rows(preset):
    """Texts and regions none of which is like another, with the columns of the tasks of a preset."""
    wanted = {*INPUTS, *(name for task in REGION_TASKS[preset] for name in COLUMNS.get(task, ()))}
    made = []
    for number in range(ROWS):
        text = {name: part[0] for name, part in texts(LENGTHS[number : number + 1], seed=number).items()}
        image = region_bert_tiny.regions(COUNTS[number : number + 1], seed=number)
        row = {**text, **{name: part[0] for name, part in image.items()}, **swap(number)}
        row |= {**hidden_words(text["input_ids"], number), **hidden_regions(number), **asked(text, number)}
        made.append({name: values for name, values in row.items() if name in wanted})
    return made


def hidden_regions(number):
    """The tasks of guessing regions: what is hidden, and what the detector says of it."""
    draw, places = torch.Generator().manual_seed(number), torch.arange(COUNTS[number])
    hidden = places < HIDDEN_REGIONS[number]
    labels = {
        name: torch.randint(0, count, places.shape, generator=draw).masked_fill(~hidden, -100)
        for name, count in REGION_CLASSES.items()
    }
    scores = torch.randn(len(places), 7, generator=draw).softmax(dim=1)
    return {"masked_regions": hidden, "region_class_scores": scores, **labels}


def asked(text, number):
    """The tasks of answers, tags and captions; some rows have none of them."""
    ids = text["input_ids"]
    tags = torch.tensor([7 + number, 9, 37])[: 2 + number % 2]
    written = ids.masked_fill(torch.arange(len(ids)) < 1 + number % 2, -100)
    return {
        "answer_labels": torch.tensor(-100 if number in (2, 5) else number % 5),
        "tag_input_ids": torch.cat((ids, tags)),
        "tag_attention_mask": torch.ones(len(ids) + len(tags), dtype=torch.long),
        "tag_labels": torch.tensor(-100 if number in (0, 1) else number % 2),
        "caption_labels": written.masked_fill(torch.tensor(number in (3, 6)), -100),
    }


def region_collate(rows):
    """Rows to a padded batch."""
    batch = collate_but(rows, set())
    if "away" in batch:
        batch["itm_region_index"] = torch.arange(len(rows)) + batch.pop("away")
    return batch


def vilt_collate(rows):
    """Rows to a padded batch."""
    most = [max(row["pixel_mask"].shape[axis] for row in rows) for axis in (0, 1)]
    batch = collate_but(rows, {"pixel_values", "pixel_mask"})
    for name in ("pixel_values", "pixel_mask"):
        padded = [torch.zeros(*row[name].shape[:-2], *most, dtype=row[name].dtype) for row in rows]
        for place, row in zip(padded, rows, strict=True):
            height, width = row[name].shape[-2:]
            place[..., :height, :width] = row[name]
        batch[name] = torch.stack(padded)
    batch["itm_image_index"] = torch.arange(len(rows)) + batch.pop("away")
    return batch


def collate_but(rows, others):
    """All columns but `others`, padded along their first dimension."""
    names = [name for name in rows[0] if name not in others]
    return {
        name: torch.stack([row[name] for row in rows])
        if not rows[0][name].dim()
        else pad_sequence(
            [row[name] for row in rows], batch_first=True, padding_value=-100 if "labels" in name else 0
        )
        for name in names
    }


def drawn_model():
    """Of the tasks from which one is drawn for each batch."""
    regions = {
        "region_feature_size": regions_tiny_rows.WIDTH,
        "num_region_classes": regions_tiny_rows.CLASSES,
    }
    ids = {"bos_token_id": 2, "eos_token_id": 3, "mask_token_id": 4}
    config = region_bert_tiny.tiny_config("uniter", task_weights=DRAWN, **regions, **ids)
    return scrambled(MMRegionBertForPreTraining(config)).train()


def drawn_rows():
    """Captions and what a detector found."""
    return [
        {"caption": caption, "regions": regions_tiny_rows.regions(2 + number % 4, seed=number)}
        for number, caption in enumerate(CAPTIONS)
    ]


def drawn_collator():
    """One task for each batch of each process, by the seed and the captions."""
    processor = MMRegionProcessor(regions_tiny_rows.tokenizer())
    return RegionPretrainingCollator(processor, DRAWN, "draw", mismatch_share=0.9, seed=1)


def parts_of(kind):
    """Model, rows, collator, how items are counted, and whether a process may have no use for a weight."""
    if kind == "vilt":
        return vilt_model(), vilt_rows(), vilt_collate, pretraining_items, False
    if kind == "drawn":
        collate = drawn_collator()
        return drawn_model(), drawn_rows(), collate, collate.count_items, True
    return region_model(kind), region_rows(kind), region_collate, pretraining_items, False


def case_run(name, folder, size=2, **changes):
    """Losses and gradients of two steps of a case; `size` rows at a time."""
    model, rows, collate, count_items, unused = parts_of(name.split()[0])
    recorder = Recorder()
    settings = {
        "per_device_train_batch_size": size,
        "max_steps": 2,
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "ddp_find_unused_parameters": unused,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "logging_steps": 1,
    }
    run = MultitaskTrainer(
        model,
        TrainingArguments(folder, **(settings | CASES[name] | changes)),
        data_collator=collate,
        train_dataset=rows,
        callbacks=[recorder],
        count_items=count_items,
    )
    run.train()
    logged = [entry for entry in run.state.log_history if "loss" in entry]
    return {
        "losses": [
            {name: entry[name] for name in sorted(entry) if name.endswith("loss")} for entry in logged
        ],
        "gradients": recorder.steps,
    }


def process(rank, folder, port):
    torch.set_num_threads(1)
    meeting = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in ({"RANK": rank, "LOCAL_RANK": rank} | meeting).items()}
    found = {}
    for name in CASES:
        faulthandler.dump_traceback_later(LIMIT_S, exit=True)
        found[name] = case_run(name, folder / "runs")
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def main(folder):
    import_module("torch._dynamo")  # DistributedDataParallel wants it: here once for both processes
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(process, (folder, port), nprocs=2, start_method="fork")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
