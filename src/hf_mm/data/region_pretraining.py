"""Captions and regions to the batches of the pre-training of region BERTs.

Words, regions, pairs, one task for each batch: Chen et al. 2020, "UNITER" (https://arxiv.org/abs/1909.11740).
Objects, attributes, features and answers, all at once: Tan and Bansal 2019, "LXMERT"
(https://arxiv.org/abs/1908.07490). Tags replaced: Li et al. 2020, "Oscar" (https://arxiv.org/abs/2004.06165);
tags or text replaced: Zhang et al. 2021, "VinVL" (https://arxiv.org/abs/2101.00529).

Shapes: B rows, L tokens, R regions of the picture with most, F width of a region's feature, C classes.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import BatchEncoding

from ..models.region_bert.processing_region_bert import MMRegionProcessor
from .mismatches import random_mismatches, untrue_pairs
from .region_masking import mask_regions
from .region_rows import RegionRows, region_values
from .row_columns import batch_generator, caption_texts, draw_below, need_columns
from .task_items import pretraining_items
from .word_masking import mask_whole_words, ordinary_ids, word_numbers

__all__ = ["RegionPretrainingCollator"]

# task on hidden regions: its column, and what the detector must have said
TARGETS = {
    "mrc": ("region_class_labels", "labels"),
    "mrc_kl": ("region_class_scores", "class_scores"),
    "object": ("object_labels", "labels"),
    "attribute": ("attribute_labels", "attributes"),
}
ON_REGIONS = ("mrfr", "smooth", *TARGETS)
TASKS = ("mlm", "itm", "wra", *ON_REGIONS, "tags", "answer", "caption")


@dataclass(frozen=True)
class DrawnBatch:
    """Rows with one text drawn for each, and the source of chance for what is drawn behind it.

    Attributes:
        texts: One of each row.
        captions: All of each row.
        pictures: What tells the picture of each row from others.
        regions: Of each row.
        generator: Source of chance.
    """

    texts: list[str]
    captions: list[list[str]]
    pictures: list[object]
    regions: list[Mapping[str, Any]]
    generator: torch.Generator | None

    def untrue(self) -> Tensor:
        """(B, B) bool: the text of a row is not true of the picture of another."""
        return untrue_pairs(self.texts, self.captions, self.different)

    def different(self, one: int, other: int) -> bool:
        """Whether two rows have different pictures."""
        return self.pictures[one] != self.pictures[other]


class RegionPretrainingCollator:
    """Makes a batch of pairs with what `MMRegionBertForPreTraining` is asked about them.

        collate = RegionPretrainingCollator(
            processor, config.task_weights, config.task_schedule, config.task_rates, store=store
        )

    A picture has one caption or several, of which one is drawn. A text is only ever paired with the regions
    of another row if it is none of the captions of that row and the pictures differ: give all captions that
    are true of a picture, and mismatched pairs are never true ones.

    Where tasks are drawn, every process and every accumulated batch draws its own, which the batch names in
    `tasks`: give Trainer `ddp_find_unused_parameters=True` with several processes, and `MultitaskTrainer`
    this collator's `count_items`, by which all of them count the same tasks.

    Args:
        processor: Of the model. Its tokenizer must be fast and have a `mask_token` if words are hidden; with
            `max_tags` texts have tags behind them.
        tasks: Names of the tasks, of `config.task_weights`: "mlm", "itm" and with it "wra"; on hidden regions
            "mrfr", "smooth", "mrc", "mrc_kl", "object", "attribute"; "tags", "answer", "caption".
        schedule: "sum": all of them in every batch. "draw": one for each.
        rates: How often each task is drawn; all equally often when it is empty.
        regions_column: Regions as the processor takes them, or the id of the picture in `store`. "mrc" and
            "object" need their `labels` (or "mrc" their `class_scores`, of which the highest counts),
            "mrc_kl" their `class_scores`, "attribute" their `attributes`.
        caption_column: A text, or a list of texts.
        answer_column: The right answer where the text is a question, `None` where not; for "answer".
        label2id: Number of each answer, of the model's config.
        store: Regions by the id of the picture.
        box_format: Boxes are "shares" of the image, or "pixels".
        word_share: Share of the tokens hidden, in whole words.
        region_share: Share of the regions hidden.
        overlap: Regions that overlap by more are hidden together.
        mismatch_share: Share of the texts that get the regions of another row.
        tag_share: Share of the rows in which the tags, or with three classes as often the text, are those of
            another.
        num_tag_classes: 2, or 3 as in OSCAR+; of the model's config.
        truncation: Cut texts that are too long; otherwise they are an error.
        seed: Draw what follows from it and from the captions of the batch: the same batch gives the same
            draw, in any worker or resumed run, so that evaluations can be compared. `None` draws from torch's
            own generator.

    Raises:
        ValueError: A task is unknown or lacks what it needs, or a share is none.
    """

    def __init__(
        self,
        processor: MMRegionProcessor,
        tasks: Collection[str],
        schedule: str = "sum",
        rates: Mapping[str, float] | None = None,
        regions_column: str = "regions",
        caption_column: str = "caption",
        answer_column: str = "answer",
        label2id: Mapping[str, int] | None = None,
        store: Mapping[Any, Mapping[str, Any]] | None = None,
        box_format: str = "shares",
        word_share: float = 0.15,
        region_share: float = 0.15,
        overlap: float = 0.4,
        mismatch_share: float = 0.5,
        tag_share: float = 0.5,
        num_tag_classes: int = 2,
        truncation: bool = False,
        seed: int | None = None,
    ) -> None:
        shares = {"word_share": word_share, "region_share": region_share, "mismatch_share": mismatch_share}
        for name, share in {**shares, "tag_share": tag_share}.items():
            if not 0 < share < 1:
                raise ValueError(f"`{name}`={share} must be between 0 and 1; leave a task out by `tasks`.")
        if num_tag_classes not in (2, 3):
            raise ValueError(f"`num_tag_classes`={num_tag_classes} must be 2 or 3.")
        self.processor = processor
        self.tasks = tuple(tasks)
        self.label2id = dict(label2id or {})
        self._check_tasks()
        self.rates = _checked_rates(self.tasks, schedule, rates or {})
        self.regions = RegionRows(regions_column, store)
        self.caption_column = caption_column
        self.answer_column = answer_column
        self.box_format = box_format
        self.word_share = word_share
        self.region_share = region_share
        self.overlap = overlap
        self.mismatch_share = mismatch_share
        self.tag_share = tag_share
        self.num_tag_classes = num_tag_classes
        self.truncation = truncation
        self.seed = seed
        self.replacements = ordinary_ids(processor.tokenizer)

    def __call__(self, rows: Sequence[dict]) -> dict[str, Any]:
        """Inputs of the model.

        Returns:
            `input_ids`, `attention_mask` and `token_type_ids` (B, L), `region_features` (B, R, F),
            `region_boxes` (B, R, 4) and `region_mask` (B, R); `tasks`, the names of those that are asked; and
            their columns, see `RegionPretrainingColumns`.

        Raises:
            ValueError: A row lacks a column, a caption or regions, what a task needs of these is missing, a
                text is too long, or regions cannot be used.
        """
        columns = {"regions_column": self.regions.column, "caption_column": self.caption_column}
        if "answer" in self.tasks:
            columns["answer_column"] = self.answer_column
        need_columns(rows, **columns)
        drawn = self._draw(rows)
        tasks = self._draw_tasks(drawn.generator)
        encoded = self._encode(drawn.texts, drawn.regions)
        batch: dict[str, Any] = {**encoded, **self.processor.encode_regions(drawn.regions, self.box_format)}
        if "mlm" in tasks:
            batch["mlm_input_ids"], batch["mlm_labels"] = mask_whole_words(
                batch["input_ids"],
                word_numbers(encoded),
                self.processor.tokenizer.mask_token_id,
                self.replacements,
                self.word_share,
                generator=drawn.generator,
            )
        batch |= self._hide_regions([task for task in tasks if task in ON_REGIONS], batch, drawn)
        if "itm" in tasks:
            batch["itm_region_index"], batch["itm_labels"] = random_mismatches(
                drawn.untrue(), self.mismatch_share, drawn.generator
            )
        if "tags" in tasks:
            batch |= self._replace_tags(drawn)
        if "answer" in tasks:
            batch["answer_labels"] = torch.tensor([self._answer(row, n) for n, row in enumerate(rows)])
        if "caption" in tasks:
            batch["caption_labels"] = self._words_to_write(batch)
        return batch | {"tasks": tasks}

    def count_items(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """How many items each task of a batch has, as `pretraining_items`; 0 for those not drawn."""
        return dict.fromkeys(self.tasks, torch.tensor(0)) | pretraining_items(batch)

    def _draw(self, rows: Sequence[dict]) -> DrawnBatch:
        captions = [caption_texts(row, self.caption_column, number) for number, row in enumerate(rows)]
        generator = batch_generator(self.seed, captions)
        texts = [of_row[draw_below(len(of_row), generator)] for of_row in captions]
        regions = self.regions(rows)
        pictures = [self.regions.identity(row) for row in rows]
        return DrawnBatch(texts, captions, pictures, regions, generator)

    def _draw_tasks(self, generator: torch.Generator | None) -> list[str]:
        if self.rates is None:
            return list(self.tasks)
        place = torch.multinomial(torch.tensor(list(self.rates.values())), 1, generator=generator)
        task = list(self.rates)[int(place)]
        return ["itm", "wra"] if task == "itm" and "wra" in self.tasks else [task]

    def _encode(
        self, texts: list[str], regions: Sequence[Mapping[str, Any]], tags: Sequence[int] | None = None
    ) -> BatchEncoding:
        """Texts, for models that read them with the tags of their own picture or of that of another row."""
        words = None
        if self.processor.max_tags:
            words = self.processor.tags_of(regions)
            words = words if tags is None else [words[row] for row in tags]
        return self.processor.encode_texts(texts, words, truncation=self.truncation)

    def _hide_regions(self, tasks: list[str], batch: dict[str, Any], drawn: DrawnBatch) -> dict[str, Tensor]:
        """`masked_regions` (B, R) and what is to be guessed there, for tasks on regions."""
        if not tasks:
            return {}
        found = batch["region_boxes"], batch["region_mask"]
        masked = mask_regions(*found, self.region_share, self.overlap, drawn.generator)
        columns = {"masked_regions": masked}
        for task in tasks:
            if task in TARGETS:
                column, name = TARGETS[task]
                wanted = self._targets(task, name, drawn.regions)
                columns[column] = wanted if wanted.ndim == 3 else wanted.masked_fill(~masked, -100)
        return columns

    def _targets(self, task: str, name: str, regions: Sequence[Mapping[str, Any]]) -> Tensor:
        reason = f"The task {task!r}"
        if task == "mrc" and any(of_picture.get(name) is None for of_picture in regions):
            scores = region_values(regions, "class_scores", reason)  # (B, R, C)
            return scores.argmax(dim=2)
        return region_values(regions, name, reason)

    def _replace_tags(self, drawn: DrawnBatch) -> dict[str, Tensor]:
        """Texts with tags, some of them with those, or the text, of another row."""
        tags, rows = self.processor.tags_of(drawn.regions), range(len(drawn.texts))
        differ = torch.tensor(
            [
                [set(tags[row]) != set(tags[other]) and drawn.different(row, other) for other in rows]
                for row in rows
            ]
        )
        three = self.num_tag_classes == 3
        share = self.tag_share / 2 if three else self.tag_share
        whose_tags, own_tags = random_mismatches(differ, share, drawn.generator)
        labels = 1 - own_tags
        texts = list(drawn.texts)
        if three:
            untrue = (
                drawn.untrue().T & (own_tags == 1)[:, None]
            )  # (B, B) of the rows whose tags are their own
            whose_texts, own_texts = random_mismatches(untrue, share, drawn.generator)
            labels = torch.where(own_texts == 1, labels, 2)
            texts = [drawn.texts[row] for row in whose_texts.tolist()]
        encoded = self._encode(texts, drawn.regions, whose_tags.tolist())
        names = ("input_ids", "attention_mask", "token_type_ids")
        return {f"tag_{name}": encoded[name] for name in names} | {"tag_labels": labels}

    def _answer(self, row: dict, number: int) -> int:
        """The number of the right answer to a row's question, -100 if it is none."""
        answer = row[self.answer_column]
        if answer is None:
            return -100
        if not isinstance(answer, str) or answer not in self.label2id:
            raise ValueError(
                f"Row {number} of the batch has {answer!r:.80} in {self.answer_column!r}, which is not among "
                f"the {len(self.label2id)} answers of `label2id`; give one, or `None` for no question."
            )
        return self.label2id[answer]

    def _words_to_write(self, batch: dict[str, Any]) -> Tensor:
        """(B, L) the tokens of texts and of what ends them, -100 on what begins them, tags and padding."""
        before, _ = self.processor.tokens_around()
        mask = batch["attention_mask"]
        written = (mask.cumsum(dim=1) > len(before)) & (mask == 1) & (batch["token_type_ids"] == 0)
        return batch["input_ids"].masked_fill(~written, -100)

    def _check_tasks(self) -> None:
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or not self.tasks:
            raise ValueError(f"`tasks`={list(self.tasks)} must be some of {list(TASKS)}; {unknown} are none.")
        if "wra" in self.tasks and "itm" not in self.tasks:
            raise ValueError('`tasks` has "wra", which is done on the pairs of "itm"; name "itm", too.')
        if "mlm" in self.tasks and self.processor.tokenizer.mask_token_id is None:
            raise ValueError(
                'The tokenizer has no `mask_token` to hide words with; add one, or leave "mlm" out.'
            )
        if "tags" in self.tasks and not self.processor.max_tags:
            raise ValueError(
                '`tasks` has "tags" and the processor reads none, `max_tags`=0; build it with `max_tags`.'
            )
        if "answer" in self.tasks and not self.label2id:
            raise ValueError('`tasks` has "answer", which needs `label2id`, the numbers of the answers.')


def _checked_rates(
    tasks: tuple[str, ...], schedule: str, rates: Mapping[str, float]
) -> dict[str, float] | None:
    """How often each task is drawn; `None` where all are done."""
    if schedule not in ("sum", "draw"):
        raise ValueError(f"`schedule`={schedule!r} must be 'sum' of all tasks or 'draw' one of them.")
    if schedule == "sum":
        return None
    drawn = {task: 1.0 for task in tasks if task != "wra"}
    if rates and (set(rates) != set(drawn) or min(rates.values()) <= 0):
        raise ValueError(
            f"`rates`={dict(rates)} must have a positive number for each of the tasks {list(drawn)}, or be "
            'empty to draw all equally often ("wra" comes with "itm").'
        )
    return {task: float(rates[task]) for task in drawn} if rates else drawn
