"""How many items each pre-training task of a batch has: hidden words, pairs, hidden patches or regions."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["pretraining_items"]

# column of labels, -100 where nothing counts: the tasks whose items they are
LABELS_OF_TASKS = {
    "mlm_labels": ("mlm",),
    "itm_labels": ("itm",),
    "region_class_labels": ("mrc",),
    "object_labels": ("object",),
    "attribute_labels": ("attribute",),
    "tag_labels": ("tags",),
    "answer_labels": ("answer",),
    "caption_labels": ("caption",),
}
# column that is true at hidden places: the tasks that guess what is there
HIDDEN_OF_TASKS = {
    "bool_masked_patches": ("mpp",),
    "masked_regions": ("mrfr", "smooth", "mrc_kl"),
}


def pretraining_items(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """How many items each task of a pre-training batch has, for `MultitaskTrainer`.

    Args:
        batch: Of `ViltPretrainingCollator` or `RegionPretrainingCollator`.

    Returns:
        "mlm" hidden tokens; "itm" pairs, and as many "wpa" of patches or "wra" of regions; "mpp" hidden
        patches; "mrfr", "smooth" and "mrc_kl" hidden regions; "mrc", "object" and "attribute" those that have
        such a label; "tags" and "answer" texts; "caption" words to write. Of tasks that are there: those
        whose columns are, or, in a batch that names its `tasks`, these. An answer about the picture of
        another row counts for nothing.
    """
    items: dict[str, Tensor] = {}
    for column, tasks in LABELS_OF_TASKS.items():
        if column in batch:
            counted = batch[column] != -100
            if column == "answer_labels" and "itm_labels" in batch:
                counted = counted & (batch["itm_labels"] != 0)
            items |= dict.fromkeys(tasks, counted.sum())
    for column, tasks in HIDDEN_OF_TASKS.items():
        if column in batch:
            items |= dict.fromkeys(tasks, batch[column].sum())
    if "itm" in items:
        items["wra" if "region_features" in batch else "wpa"] = items["itm"]
    wanted = batch.get("tasks")
    return items if wanted is None else {task: items[task] for task in wanted}
