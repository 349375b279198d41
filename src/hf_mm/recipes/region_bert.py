"""Pre-train a vision-language BERT on image regions, fine-tune it, or compare all of them.

    hf-mm train region_bert --preset uniter --output_dir out/uniter
    hf-mm train region_bert --preset uniter --task vqa --checkpoint out/uniter --output_dir out/uniter-vqa
    hf-mm train region_bert --preset uniter --task select --output_dir out/uniter-select
    hf-mm train region_bert --compare lxmert,vilbert,vl-bert,uniter,oscar,visualbert --output_dir out/all

All on easy-VQA, whose official training images alone are learnt from. Its regions are what stands out of the
ground, the whole picture and its quarters; features are those of an EfficientNet-Lite0 that ImageNet has
taught (`easy_vqa_regions`, computed once). Models are small and learnt from nothing. `--compare` trains each
preset with its own objectives on the same captions, then on the same questions, in as many steps, once for
each of `--seeds`; `--lora_rank 8` trains adapters and a new head only. `select` finds the object that "the
red triangle" means, among four to nine. Any flag of `transformers.TrainingArguments` works.

Bugliarello et al. 2021, "Multimodal Pretraining Unmasked: A Meta-Analysis and a Unified Framework of
Vision-and-Language BERTs" (https://arxiv.org/abs/2011.15124).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import (
    AutoModel,
    AutoProcessor,
    HfArgumentParser,
    PreTrainedModel,
    TrainingArguments,
    set_seed,
)

from hf_mm import (
    EasyVQARegions,
    LateFusion,
    MeasuringTrainer,
    MMRegionBertConfig,
    MMRegionBertForPreTraining,
    MMRegionBertForQuestionAnswering,
    MMRegionBertForRegionSelection,
    MMRegionProcessor,
    MultitaskTrainer,
    RegionPretrainingCollator,
    RegionQuestionCollator,
    RegionSelectionCollator,
    RegionStore,
    add_lora,
    answer_vocabulary,
    easy_vqa,
    easy_vqa_captions,
    easy_vqa_referring,
    easy_vqa_regions,
    encode_images,
    encode_texts,
    exact_match,
    last_checkpoint,
    question_prior,
    train_bert_tokenizer,
    write_results,
)
from hf_mm.evaluation.report import environment, markdown_table
from hf_mm.evaluation.vqa import accuracy_by_type

__all__ = ["DEFAULTS", "TASKS", "Recipe", "main", "run"]


@dataclass
class Recipe:
    """What this script decides; everything else is `TrainingArguments`."""

    task: str = field(default="pretrain", metadata={"help": "pretrain, vqa or select."})
    preset: str = field(
        default="uniter", metadata={"help": "lxmert, vilbert, vl-bert, uniter, oscar or visualbert."}
    )
    checkpoint: str | None = field(
        default=None, metadata={"help": "Start from this model, not from nothing; its head may be another."}
    )
    compare: str | None = field(
        default=None, metadata={"help": "Presets to pre-train and to ask, separated by commas."}
    )
    seeds: str = field(default="42,1", metadata={"help": "Of a comparison, separated by commas."})
    rows: int | None = field(
        default=None, metadata={"help": "Rows to learn from, and as many to be asked; by default all."}
    )
    cache_folder: str | None = field(
        default=None,
        metadata={"help": "Where regions are kept; by default beside other data sets."},
    )
    lora_rank: int = field(default=0, metadata={"help": "Rank of the adapters; 0 trains every weight."})
    clip: str | None = field(
        default=None, metadata={"help": "A CLIP whose vectors, joined late, are a row of the comparison."}
    )


# The numbers of the recipe, in one place; a flag of the same name overrides each.
DEFAULTS = {
    "per_device_train_batch_size": 64,
    "per_device_eval_batch_size": 256,
    "learning_rate": 5e-4,
    "weight_decay": 0.01,
    "warmup_steps": 0.1,  # below 1: the share of all steps
    "lr_scheduler_type": "cosine",
    "save_strategy": "no",
    "logging_steps": 50,
    "remove_unused_columns": False,  # the collators read texts and ids of pictures
    "report_to": "none",
}
TASKS: dict[str, dict[str, Any]] = {
    "pretrain": {"max_steps": 400},
    "vqa": {"max_steps": 1000},
    "select": {"max_steps": 1000},
}
MODELS: dict[str, type[PreTrainedModel]] = {
    "pretrain": MMRegionBertForPreTraining,
    "vqa": MMRegionBertForQuestionAnswering,
    "select": MMRegionBertForRegionSelection,
}
# The models that are trained from nothing, whatever the preset.
DEPTH = 4
SMALL: dict[str, Any] = {
    "hidden_size": 128,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "initializer_range": 0.05,
    "max_position_embeddings": 24,
    "region_sinusoids": 16,
}
TAGS = {"oscar": 4}  # words of the detector that are read behind the text
REFERRING = {"train": 3000, "test": 600}  # composed pictures


@dataclass
class Work:
    """A task: what is learnt from, what makes its batches, and how what was learnt is measured."""

    train: Dataset | list[dict]
    collator: Callable[[Sequence[dict]], dict[str, Any]]
    fields: dict[str, Any]
    measure: Callable[[Any], dict[str, Any]]


def build_processor(recipe: Recipe) -> MMRegionProcessor:
    """That of the checkpoint, or one for the words of easy-VQA."""
    if recipe.checkpoint:
        return MMRegionProcessor.from_pretrained(recipe.checkpoint)
    texts = [*easy_vqa("train")["question"], *easy_vqa_captions("train")["caption"]]
    texts += ["the", *EasyVQARegions.attribute_names]  # of expressions, and tags
    length = SMALL["max_position_embeddings"]
    tokenizer = train_bert_tokenizer(sorted(set(texts)), max_length=length)
    tags = TAGS.get(recipe.preset, 0)
    return MMRegionProcessor(tokenizer, length, tags, EasyVQARegions.feature_size, EasyVQARegions.detector)


def build_model(recipe: Recipe, processor: MMRegionProcessor, fields: dict[str, Any]) -> Any:
    """The head of the task on a new small model, or on what a checkpoint has learnt."""
    model_class = MODELS[recipe.task]
    if recipe.checkpoint:
        model = model_class.from_pretrained(recipe.checkpoint, ignore_mismatched_sizes=True, **fields)
    else:
        model = model_class(small_config(recipe.preset, processor, **fields))
    return add_lora(model, recipe.lora_rank, towers=["encoder"]) if recipe.lora_rank else model


def small_config(preset: str, processor: MMRegionProcessor, **fields: Any) -> MMRegionBertConfig:
    """A preset of the sizes of this recipe, for the words of a tokenizer and the regions of easy-VQA."""
    tokenizer = processor.tokenizer
    ids = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "mask_token_id": tokenizer.mask_token_id,
    }
    return MMRegionBertConfig.preset(
        preset, depth=DEPTH, region_feature_size=EasyVQARegions.feature_size, **SMALL, **ids, **fields
    )


def pretraining(recipe: Recipe, args: TrainingArguments, processor: MMRegionProcessor) -> Work:
    """The objectives of the preset on captions; measured by the mean loss on held-out captions."""
    stores = _stores(recipe)
    classes = len(next(iter(stores["test"].values()))["class_scores"][0])
    fields: dict[str, Any] = {"num_region_classes": classes, "num_object_classes": classes}
    fields |= {"num_attribute_classes": len(EasyVQARegions.attribute_names)}
    config = small_config(recipe.preset, processor, **fields)
    # Questions are kept for fine-tuning: all presets see captions alone.
    weights = {task: weight for task, weight in config.task_weights.items() if task != "answer"}
    fields["task_weights"] = weights
    train, test = (_rows(recipe, easy_vqa_captions(split), store) for split, store in stores.items())

    def collator(split: str, seed: int) -> RegionPretrainingCollator:
        return RegionPretrainingCollator(
            processor,
            weights,
            config.task_schedule,
            config.task_rates,
            regions_column="image_id",
            store=stores[split],
            num_tag_classes=config.num_tag_classes,
            seed=seed,
        )

    again = collator("test", 0)

    def measure(model: Any) -> dict[str, Any]:
        losses = []
        for batch in DataLoader(list(test), args.per_device_eval_batch_size, collate_fn=again):
            with torch.no_grad():
                losses.append(model(**_on(batch, model)).loss)
        return {"held_out_loss": float(torch.stack(losses).mean())}

    return Work(train, collator("train", args.seed), fields, measure)


def answering(recipe: Recipe, args: TrainingArguments, processor: MMRegionProcessor) -> Work:
    """The official questions; measured by exact match on those of the test split."""
    stores = _stores(recipe)
    train, test = (_rows(recipe, easy_vqa(split), store) for split, store in stores.items())
    label2id = answer_vocabulary(easy_vqa("train")["answer"])
    config = small_config(recipe.preset, processor)

    def collator(split: str) -> RegionQuestionCollator:
        return RegionQuestionCollator(
            processor,
            label2id,
            regions_column="image_id",
            store=stores[split],
            soft=False,
            masked_answer=config.answer_state == "before_end",
        )

    asked = collator("test")

    def measure(model: Any) -> dict[str, Any]:
        said = [model.config.id2label[number] for number in _chosen(model, list(test), asked, args)]
        right = test["answer"]
        return {
            "exact_match": exact_match(said, right),
            "questions": len(right),
            "by_type": accuracy_by_type(said, right, test["question_type"]),
            "question_prior": exact_match(question_prior(train, test), right),
        }

    labels = {"label2id": label2id, "id2label": {number: label for label, number in label2id.items()}}
    return Work(train, collator("train"), labels, measure)


def selecting(recipe: Recipe, args: TrainingArguments, processor: MMRegionProcessor) -> Work:
    """Expressions that mean one of several objects; measured by how often it is found, by their number."""
    train, test = (_referring(split, recipe.rows) for split in ("train", "test"))
    collator = RegionSelectionCollator(processor)

    def measure(model: Any) -> dict[str, Any]:
        right = torch.tensor(_chosen(model, test, collator, args)) == torch.tensor(
            [row["label"] for row in test]
        )
        counts = torch.tensor([len(row["regions"]["boxes"]) for row in test])
        shares = {str(int(count)): float(right[counts == count].float().mean()) for count in counts.unique()}
        chance = float((1 / counts).mean())
        return {"accuracy": float(right.float().mean()), "by_objects": shares, "chance": chance}

    return Work(train, collator, {}, measure)


WORKS = {"pretrain": pretraining, "vqa": answering, "select": selecting}


def main(recipe: Recipe, args: TrainingArguments) -> dict[str, Any]:
    """Train one task, measure it, save; returns what was measured. With `compare`, all presets' tasks."""
    if recipe.compare is not None:
        return compare(recipe, args)
    if recipe.task not in WORKS:
        raise ValueError(f"`task`={recipe.task!r} is none of {', '.join(WORKS)}.")
    set_seed(args.seed)
    processor = build_processor(recipe)
    work = WORKS[recipe.task](recipe, args, processor)
    model = build_model(recipe, processor, dict(work.fields))
    counted = getattr(work.collator, "count_items", None)
    several = {} if counted is None else {"count_items": counted}
    trainer_class = MultitaskTrainer if several else MeasuringTrainer
    trainer = trainer_class(
        model,
        args,
        data_collator=work.collator,
        train_dataset=work.train,
        processing_class=processor,
        **several,
    )
    resumed = args.resume_from_checkpoint
    trained = trainer.train(
        resume_from_checkpoint=last_checkpoint(args.output_dir) if resumed == "last" else resumed
    )
    trainer.save_model()
    processor.save_pretrained(args.output_dir)
    model.eval()
    results = {"task": recipe.task, "preset": recipe.preset, "seed": args.seed}
    results |= {"train_seconds": trained.metrics["train_runtime"], "steps": trainer.state.global_step}
    results |= {"parameters": sum(weight.numel() for weight in model.base_model.parameters())}
    results |= {"checkpoint": recipe.checkpoint is not None, **work.measure(model)}
    results["environment"] = environment()
    write_results(Path(args.output_dir) / "results.json", results)
    return results


def compare(recipe: Recipe, args: TrainingArguments) -> dict[str, Any]:
    """Pre-train and ask each preset with each seed; write `comparison.json`, a table and a plot."""
    presets, seeds = str(recipe.compare).split(","), [int(seed) for seed in recipe.seeds.split(",")]
    folder = Path(args.output_dir)
    rows = [] if recipe.clip is None else [_late_fusion(recipe, recipe.clip, seeds)]
    for preset in presets:
        done = [_pretrained_and_asked(recipe, args, preset, seed) for seed in seeds]
        row = _summed_up(preset, seeds, [results["exact_match"] for _, results in done])
        row |= {"parameters": done[0][1]["parameters"]}
        row |= {"pretrain_seconds": sum(first["train_seconds"] for first, _ in done) / len(seeds)}
        row |= {"vqa_seconds": sum(second["train_seconds"] for _, second in done) / len(seeds)}
        rows.append(row)
        results = {"comparison": rows, "environment": environment()}
        write_results(folder / "comparison.json", results)  # what is done is kept if the next one stops
    names = ("preset", "exact_match", "spread", "parameters")
    shown = [{name: row.get(name, "") for name in names} for row in rows]
    (folder / "comparison.md").write_text(markdown_table(shown) + "\n")
    plot(rows, folder / "comparison.png")
    return results


def _summed_up(name: str, seeds: list[int], values: list[float]) -> dict[str, Any]:
    scores = torch.tensor(values, dtype=torch.float64)
    spread = float(scores.std()) if len(values) > 1 else 0.0
    mean = float(scores.mean())
    return {"preset": name, "exact_match": mean, "spread": spread, "values": values, "seeds": seeds}


def _late_fusion(recipe: Recipe, folder: str, seeds: list[int]) -> dict[str, Any]:
    """A frozen CLIP's vectors of picture and question, joined by one hidden layer."""
    clip = AutoModel.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    vectors, answers = {}, {}
    for split in ("train", "test"):
        rows = easy_vqa(split) if recipe.rows is None else easy_vqa(split).select(range(recipe.rows))
        first = {image_id: row for row, image_id in reversed(list(enumerate(rows["image_id"])))}
        images = encode_images(clip, processor, [rows[row]["image"] for row in first.values()])
        questions = {question: number for number, question in enumerate(dict.fromkeys(rows["question"]))}
        texts = encode_texts(clip, processor, list(questions))
        place = {image_id: number for number, image_id in enumerate(first)}
        vectors[split] = (
            images[[place[image_id] for image_id in rows["image_id"]]],
            texts[[questions[question] for question in rows["question"]]],
        )
        answers[split] = rows["answer"]
    values = []
    for seed in seeds:
        fitted = LateFusion(seed=seed).fit(*vectors["train"], answers["train"])
        values.append(exact_match(fitted.predict(*vectors["test"]), answers["test"]))
    return _summed_up("late fusion of CLIP", seeds, values)


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A point for each seed and a line at the mean of each preset."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for number, row in enumerate(rows):
        axes.plot(100 * row["exact_match"], number, "|", color="steelblue", markersize=20)
        axes.plot([100 * value for value in row["values"]], [number] * len(row["values"]), "k.")
    axes.set_yticks(range(len(rows)), [row["preset"] for row in rows])
    axes.grid(axis="x", alpha=0.4)
    axes.invert_yaxis()
    axes.set_xlabel("exact match on the official test questions, %; points: seeds, lines: means")
    figure.savefig(path, dpi=150)


def _pretrained_and_asked(
    recipe: Recipe, args: TrainingArguments, preset: str, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a preset measured in pre-training and in answering; each with the steps of `TASKS`."""
    results = []
    checkpoint = None
    for task in ("pretrain", "vqa"):
        folder = Path(args.output_dir) / f"{preset}-{task}-{seed}"
        steps = TASKS[task]["max_steps"] if args.max_steps <= 0 else args.max_steps
        settings = replace(args, output_dir=str(folder), seed=seed, max_steps=steps)
        alone = replace(recipe, compare=None, task=task, preset=preset, checkpoint=checkpoint)
        results.append(main(alone, settings))
        checkpoint = str(folder)
    return results[0], results[1]


def _referring(split: str, rows: int | None) -> list[dict]:
    """Composed pictures as regions: the boxes of their objects, with features."""
    made = easy_vqa_referring(split, REFERRING[split] if rows is None else rows)
    regions = EasyVQARegions()(made["image"], made["boxes"], "pixels")
    columns = (made["expression"], made["label"])
    return [
        {"regions": found, "expression": expression, "label": label}
        for found, expression, label in zip(regions, *columns, strict=True)
    ]


def _chosen(
    model: Any, rows: list[dict], collator: Callable[[Sequence[dict]], dict], args: TrainingArguments
) -> list[int]:
    """The likeliest class or region of each row."""
    chosen = []
    for batch in DataLoader(rows, args.per_device_eval_batch_size, collate_fn=collator):
        batch.pop("labels")
        with torch.no_grad():
            chosen += model(**_on(batch, model)).logits.argmax(-1).tolist()
    return chosen


def _on(batch: Mapping[str, Any], model: Any) -> dict[str, Any]:
    tensors = ((name, value) for name, value in batch.items() if isinstance(value, torch.Tensor))
    return {name: value.to(model.device) for name, value in tensors}


def _stores(recipe: Recipe) -> dict[str, RegionStore]:
    """The regions of each split; of as many pictures as rows are asked for."""
    place = {"cache_folder": recipe.cache_folder, "max_images": recipe.rows}
    return {split: easy_vqa_regions(split, **place) for split in ("train", "test")}


def _rows(recipe: Recipe, rows: Dataset, store: RegionStore) -> Dataset:
    """As many rows as asked for, of pictures whose regions are known; without the pictures."""
    known = [row for row, image_id in enumerate(rows["image_id"]) if image_id in store]
    return rows.remove_columns("image").select(known[: recipe.rows])


def run(argv: Sequence[str] | None = None) -> int:
    """Parse flags, run `main`, print the result; returns the exit status."""
    flags = {"prog": "hf-mm train region_bert", "allow_abbrev": False}  # a typo is no abbreviation
    parser = HfArgumentParser((Recipe, TrainingArguments), **flags)
    parser.set_defaults(**DEFAULTS)
    given = parser.parse_known_args(argv)[0]
    if given.compare is None:
        parser.set_defaults(**TASKS.get(given.task, {}))
    results = main(*parser.parse_args_into_dataclasses(argv))
    numbers = {name: value for name, value in results.items() if isinstance(value, float)}
    rows = results.get("comparison") or [{"measure": name, "value": value} for name, value in numbers.items()]
    print(markdown_table([{k: v for k, v in row.items() if not isinstance(v, list)} for row in rows]))
    return 0


if __name__ == "__main__":
    raise SystemExit(run())
