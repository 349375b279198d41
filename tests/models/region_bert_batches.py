"""Batches for the pre-training of tiny region BERTs, with the columns of any tasks."""

import torch
from region_bert_tiny import MASK, regions, texts, tiny_config

ALL = {
    "mlm": 1.0,
    "itm": 0.5,
    "wra": 0.1,
    "mrfr": 2.0,
    "smooth": 0.7,
    "mrc": 0.3,
    "mrc_kl": 1.5,
    "object": 0.9,
    "attribute": 0.8,
    "tags": 0.6,
    "answer": 1.2,
    "caption": 0.4,
}
# Items of each task in `columns`.
ITEMS = {
    "mlm": 4,
    "itm": 4,
    "wra": 4,
    "mrfr": 5,
    "smooth": 5,
    "mrc": 4,
    "mrc_kl": 5,
    "object": 4,
    "attribute": 4,
    "tags": 3,
    "answer": 2,
    "caption": 15,
}
COLUMNS = {
    "mlm": ("mlm_input_ids", "mlm_labels"),
    "itm": ("itm_region_index", "itm_labels"),
    "wra": ("itm_region_index", "itm_labels"),
    "mrfr": ("masked_regions",),
    "smooth": ("masked_regions",),
    "mrc": ("masked_regions", "region_class_labels"),
    "mrc_kl": ("masked_regions", "region_class_scores"),
    "object": ("masked_regions", "object_labels"),
    "attribute": ("masked_regions", "attribute_labels"),
    "tags": ("tag_input_ids", "tag_attention_mask", "tag_token_type_ids", "tag_labels"),
    "answer": ("answer_labels",),
    "caption": ("caption_labels",),
}
REGION_TASKS = ("mrfr", "smooth", "mrc", "mrc_kl", "object", "attribute")


def all_tasks(name="uniter", **changes):
    """A preset, tiny, with heads for every task; VL-BERT's regions say something from the start."""
    heads = {"task_weights": ALL, "num_tag_classes": 3, "num_labels": 4, "region_norm_init": 1.0}
    return tiny_config(name, **(heads | changes))


def columns(*tasks):
    """A batch of four pairs with what these tasks need; the first two swap regions."""
    batch = {**texts((5, 9, 3, 6)), **regions((4, 2, 6, 3))}
    wanted = {column for task in tasks for column in COLUMNS[task]}
    every = every_column(batch["input_ids"], batch["attention_mask"])
    return batch | {column: values for column, values in every.items() if column in wanted}


def every_column(ids, mask):
    """The columns of all tasks."""
    draw = torch.Generator().manual_seed(0)
    words = torch.full((4, 9), -100)
    words[0, 1], words[0, 3], words[1, 2], words[3, 4] = 7, 9, 30, 2
    hidden = torch.zeros(4, 6, dtype=torch.bool)
    hidden[0, [1, 3]] = hidden[1, 0] = hidden[2, 5] = hidden[3, 2] = True
    unlabelled = ~hidden
    unlabelled[0, 3] = True
    classes = [torch.randint(count, (4, 6), generator=draw) for count in (7, 6, 5)]
    classes = [labels.masked_fill(unlabelled, -100) for labels in classes]
    written = ids.masked_fill(mask == 0, -100)
    written[:, :2] = -100
    return {
        "mlm_input_ids": ids.masked_fill(words != -100, MASK),
        "mlm_labels": words,
        "itm_region_index": torch.tensor([1, 0, 2, 3]),
        "itm_labels": torch.tensor([0, 0, 1, 1]),
        "masked_regions": hidden,
        "region_class_labels": classes[0],
        "region_class_scores": torch.randn(4, 6, 7, generator=draw).softmax(2),
        "object_labels": classes[1],
        "attribute_labels": classes[2],
        **{f"tag_{name}": values for name, values in texts((7, 9, 5, 8), seed=1).items()},
        "tag_token_type_ids": (torch.arange(9) > 3).long().expand(4, -1).contiguous(),
        "tag_labels": torch.tensor([0, 1, 2, -100]),
        "answer_labels": torch.tensor([1, -100, 2, 0]),
        "caption_labels": written,
    }


def halves(batch):
    """The first two pairs and the last two: those that swap regions stay together."""
    parts = [{name: values[2 * half : 2 * half + 2] for name, values in batch.items()} for half in (0, 1)]
    if "itm_region_index" in batch:
        parts[1]["itm_region_index"] = parts[1]["itm_region_index"] - 2
    return parts
