"""The columns of a pre-training batch of a vision-language BERT on regions, and which tasks they are for.

Shapes: B rows, L places of a text, R places for regions, C classes.
"""

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from .configuration_region_bert import MMRegionBertConfig

__all__ = ["RegionPretrainingColumns"]

# task: the columns that it needs beside text and regions
COLUMNS_OF_TASKS = {
    "mlm": ("mlm_input_ids", "mlm_labels"),
    "itm": ("itm_labels",),
    "wra": ("itm_labels",),
    "mrfr": ("masked_regions",),
    "smooth": ("masked_regions",),
    "mrc": ("masked_regions", "region_class_labels"),
    "mrc_kl": ("masked_regions", "region_class_scores"),
    "object": ("masked_regions", "object_labels"),
    "attribute": ("masked_regions", "attribute_labels"),
    "tags": ("tag_input_ids", "tag_labels"),
    "answer": ("answer_labels",),
    "caption": ("caption_labels",),
}
# column: another without which it means nothing
COMPANIONS = {
    "mlm_input_ids": "mlm_labels",
    "mlm_labels": "mlm_input_ids",
    "itm_region_index": "itm_labels",
    "region_class_labels": "masked_regions",
    "region_class_scores": "masked_regions",
    "object_labels": "masked_regions",
    "attribute_labels": "masked_regions",
    "tag_input_ids": "tag_labels",
    "tag_attention_mask": "tag_input_ids",
    "tag_token_type_ids": "tag_input_ids",
    "tag_labels": "tag_input_ids",
}


@dataclass(frozen=True)
class RegionPretrainingColumns:
    """What a batch asks of `MMRegionBertForPreTraining`, beside its texts and regions.

    Attributes:
        mlm_input_ids: (B, L), the texts with words hidden.
        mlm_labels: (B, L), the words at hidden places, -100 at all others.
        masked_regions: (B, R) bool, true where a region is hidden.
        region_class_labels: (B, R), the detector's class of each region ("mrc"), -100 where there is none.
            Regions that are not hidden do not count, here and in what follows.
        region_class_scores: (B, R, C), its probabilities of all classes ("mrc_kl").
        object_labels: (B, R), the object that a region shows, -100 where there is none.
        attribute_labels: (B, R), its attribute, -100 where there is none.
        itm_region_index: (B,), the row whose regions each text is shown with; its own by default.
        itm_labels: (B,), 1 where these belong to the text, 0 where not, -100 where it is not asked. Words are
            moved onto regions ("wra") in these pairs.
        tag_input_ids: (B, L'), texts with object tags behind them, some of them those of another image.
        tag_attention_mask: (B, L').
        tag_token_type_ids: (B, L').
        tag_labels: (B,), 0 where all is of this image, 1 where the tags are not, 2 where the text is not
            (with `num_tag_classes` 3); -100 where it is not asked.
        answer_labels: (B,), the right one of the answers `id2label` where the text is a question, else -100.
            Where `itm_labels` say that regions and text do not belong together it does not count.
        caption_labels: (B, L), the words of `input_ids` that are to be written, each from what stands before
            it, -100 at all others: these see each other, and every word sees them.
        tasks: Names of the tasks to do; all whose columns are there when `None`.
    """

    mlm_input_ids: Tensor | None = None
    mlm_labels: Tensor | None = None
    masked_regions: Tensor | None = None
    region_class_labels: Tensor | None = None
    region_class_scores: Tensor | None = None
    object_labels: Tensor | None = None
    attribute_labels: Tensor | None = None
    itm_region_index: Tensor | None = None
    itm_labels: Tensor | None = None
    tag_input_ids: Tensor | None = None
    tag_attention_mask: Tensor | None = None
    tag_token_type_ids: Tensor | None = None
    tag_labels: Tensor | None = None
    answer_labels: Tensor | None = None
    caption_labels: Tensor | None = None
    tasks: Collection[str] | None = None

    def of(self, config: MMRegionBertConfig) -> list[str]:
        """The tasks to do.

        Raises:
            ValueError: A task's columns are not complete, or the model has no head for it.
        """
        named = config.task_weights
        for column, other in COMPANIONS.items():
            if self._has(column) and not self._has(other):
                raise ValueError(f"`{column}` needs `{other}` beside it; give both or neither.")
        for column in sorted({column for columns in COLUMNS_OF_TASKS.values() for column in columns}):
            tasks = [task for task, columns in COLUMNS_OF_TASKS.items() if column in columns]
            if self._has(column) and not set(tasks) & set(named):
                raise ValueError(
                    f"The batch has `{column}`, a column of {tasks}; the model has no head for it "
                    f"(`task_weights`={named}); name a task there, or leave the column out."
                )
        there = [task for task, columns in COLUMNS_OF_TASKS.items() if all(map(self._has, columns))]
        for task in self.tasks or ():
            if task not in there or task not in named:
                raise ValueError(
                    f"`tasks` names {task!r}, but the batch has columns for {there} and the model heads for "
                    f"{list(named)}."
                )
        return [task for task in there if task in named and (self.tasks is None or task in self.tasks)]

    def _has(self, column: str) -> bool:
        return getattr(self, column) is not None
