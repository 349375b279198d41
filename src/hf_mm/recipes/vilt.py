"""Pre-train ViLT on captions, and fine-tune it to answer, to retrieve, and to judge statements about pairs.

    hf-mm train vilt --task pretrain --output_dir out/vilt
    hf-mm train vilt --task vqa --checkpoint out/vilt --output_dir out/vilt-vqa
    hf-mm train vilt --task retrieval --checkpoint out/vilt --output_dir out/vilt-retrieval
    hf-mm train vilt --task nlvr --checkpoint out/vilt-vqa --output_dir out/vilt-nlvr

All on easy-VQA, whose official training images alone are learnt from; without `--checkpoint` a small model
starts from nothing, with one of `dandelin/vilt-b32-*` from what is published. `--objectives mlm,itm` leaves
the alignment of words and patches out of pre-training; `--lora_rank 8` trains adapters and a new head only.
Any flag of `transformers.TrainingArguments` works.

Kim et al. 2021, "ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision"
(https://arxiv.org/abs/2102.03334).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Image
from torch.utils.data import DataLoader
from transformers import HfArgumentParser, PreTrainedModel, TrainingArguments, set_seed

from hf_mm import (
    MeasuringTrainer,
    MMViltConfig,
    MMViltForImageAndTextRetrieval,
    MMViltForImagesAndTextClassification,
    MMViltForPreTraining,
    MMViltForQuestionAnswering,
    MMViltImageProcessor,
    MMViltProcessor,
    MultitaskTrainer,
    RandomViews,
    ViltPairsOfImagesCollator,
    ViltPretrainingCollator,
    ViltQuestionCollator,
    ViltRetrievalCollator,
    add_lora,
    answer_vocabulary,
    easy_vqa,
    easy_vqa_captions,
    easy_vqa_statements,
    exact_match,
    last_checkpoint,
    pair_retrieval,
    pretraining_items,
    question_prior,
    sine_positions,
    train_bert_tokenizer,
)
from hf_mm.data.viewed import ViewedCollator
from hf_mm.evaluation.report import environment, markdown_table, write_results
from hf_mm.evaluation.vqa import accuracy_by_type

__all__ = ["DEFAULTS", "TASKS", "Recipe", "main", "run"]


@dataclass
class Recipe:
    """What this script decides; everything else is `TrainingArguments`."""

    task: str = field(default="vqa", metadata={"help": "pretrain, vqa, retrieval or nlvr."})
    checkpoint: str | None = field(
        default=None, metadata={"help": "Start from this ViLT, not from nothing; its head may be another."}
    )
    objectives: str = field(
        default="mlm,itm,wpa", metadata={"help": "Of pre-training: some of mlm, itm, wpa and mpp."}
    )
    rows: int | None = field(
        default=None, metadata={"help": "Rows to learn from, and as many to be asked; by default all."}
    )
    lora_rank: int = field(default=0, metadata={"help": "Rank of the adapters; 0 trains every weight."})
    views: bool = field(
        default=True, metadata={"help": "Move, resize and mirror the pictures of training at random."}
    )


# The numbers of the recipe, in one place; a flag of the same name overrides each.
DEFAULTS = {
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 128,
    "learning_rate": 1e-3,
    "weight_decay": 0.01,
    "warmup_steps": 0.1,  # below 1: the share of all steps
    "lr_scheduler_type": "cosine",
    "save_strategy": "no",
    "logging_steps": 50,
    "remove_unused_columns": False,  # the collators read pictures and texts
    "report_to": "none",
}
TASKS: dict[str, dict[str, Any]] = {
    "pretrain": {"max_steps": 800},
    "vqa": {"max_steps": 8000, "per_device_train_batch_size": 16, "learning_rate": 5e-4},
    "retrieval": {"max_steps": 400, "per_device_train_batch_size": 4, "learning_rate": 5e-4},
    "nlvr": {"max_steps": 2500, "per_device_train_batch_size": 16, "learning_rate": 5e-4},
}
MODELS: dict[str, type[PreTrainedModel]] = {
    "pretrain": MMViltForPreTraining,
    "vqa": MMViltForQuestionAnswering,
    "retrieval": MMViltForImageAndTextRetrieval,
    "nlvr": MMViltForImagesAndTextClassification,
}
# The model that is trained from nothing: 64 patches of 8 px.
SIDE = 64
# Mean and deviation of easy-VQA's pixels, most of which are a light ground: with 0.5 and 0.5 patches hardly
# differ, and shapes are learnt in twice as many steps.
MEAN, STD = [0.9, 0.9, 0.9], [0.19, 0.19, 0.19]
SMALL: dict[str, Any] = {
    "image_size": SIDE,
    "patch_size": 8,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 24,
    "initializer_range": 0.05,
    "image_mean": MEAN,
    "image_std": STD,
}
POSITION_SCALE = 0.7  # of the first positions, near the size of the patches' vectors
VIEWS = RandomViews(shift=0.1, degrees=0.0, contrast=0.0, brightness=0.0, saturation=0.0)
CANDIDATES = 8  # texts of a picture in retrieval: one is true
ROUNDS = 20  # of retrieval, each among one picture of every caption
OBJECTIVES = ("mlm", "itm", "wpa", "mpp")


@dataclass
class Work:
    """A task: what is learnt from, what makes its batches, and how what was learnt is measured."""

    train: Dataset
    collator: Callable[[list[dict]], dict[str, torch.Tensor]]
    fields: dict[str, Any]
    measure: Callable[[Any], dict[str, Any]]


def build_processor(recipe: Recipe) -> MMViltProcessor:
    """That of the checkpoint, or one for small pictures and the words of easy-VQA."""
    if recipe.checkpoint:
        return MMViltProcessor.from_pretrained(recipe.checkpoint)
    texts = [*easy_vqa("train")["question"], *easy_vqa_captions("train")["caption"]]
    texts += easy_vqa_statements("train", 400)["statement"]
    tokenizer = train_bert_tokenizer(texts, max_length=SMALL["max_position_embeddings"])
    images = MMViltImageProcessor(
        size={"shortest_edge": SIDE},
        size_divisor=SMALL["patch_size"],
        image_mean=MEAN,
        image_std=STD,
        exact=False,
    )
    return MMViltProcessor(images, tokenizer, max_length=SMALL["max_position_embeddings"])


def build_model(recipe: Recipe, processor: MMViltProcessor, fields: dict[str, Any]) -> Any:
    """The head of the task on a new small model, or on what a checkpoint has learnt."""
    model_class = MODELS[recipe.task]
    if recipe.checkpoint:
        kinds = fields.pop("modality_type_vocab_size", 2)
        model = model_class.from_pretrained(recipe.checkpoint, ignore_mismatched_sizes=True, **fields)
        if model.config.modality_type_vocab_size < kinds:
            model.resize_modality_types(kinds)
    else:
        tokenizer = processor.tokenizer
        ids = {
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.cls_token_id,
            "eos_token_id": tokenizer.sep_token_id,
            "mask_token_id": tokenizer.mask_token_id,
        }
        model = start_positions(model_class(MMViltConfig(**SMALL, **ids, **fields)))
    return add_lora(model, recipe.lora_rank, towers=["encoder"]) if recipe.lora_rank else model


@torch.no_grad()
def start_positions(model: Any) -> Any:
    """Let the table of patch positions begin with sines: shapes are then learnt in fewer steps."""
    config, table = model.config, model.base_model.embeddings.positions  # table (1, 1 + g * g, D)
    table[0, 1:] = POSITION_SCALE * sine_positions(config.grid_size, config.grid_size, config.hidden_size)
    return model


def pretraining(recipe: Recipe, args: TrainingArguments, processor: MMViltProcessor) -> Work:
    """Masked words, matching and alignment on captions; measured by the mean loss on held-out captions."""
    chosen = recipe.objectives.split(",")
    unknown = sorted(set(chosen) - set(OBJECTIVES))
    if unknown or not chosen:
        raise ValueError(
            f"`objectives`={recipe.objectives!r} names {unknown}; give some of {list(OBJECTIVES)}."
        )
    shares = {
        "word_share": 0.15 if "mlm" in chosen else 0.0,
        "mismatch_share": 0.5 if {"itm", "wpa"} & set(chosen) else 0.0,
        "patch_share": 0.15 if "mpp" in chosen else 0.0,
    }
    patch = processor.image_processor.size_divisor
    weights = {"mlm": 1.0, "itm": 1.0, "wpa": 0.1, "mpp": 1.0}
    fields = {"task_weights": {name: weights[name] for name in chosen}}
    train, test = (_rows(recipe, easy_vqa_captions(split)) for split in ("train", "test"))
    again = ViltPretrainingCollator(processor, patch_size=patch, seed=0, **shares)

    def measure(model: Any) -> dict[str, Any]:
        losses = []
        for batch in DataLoader(list(test), args.per_device_eval_batch_size, collate_fn=again):
            with torch.no_grad():
                losses.append(model(**_on(batch, model)).loss)
        return {"held_out_loss": float(torch.stack(losses).mean())}

    collator = ViltPretrainingCollator(processor, patch_size=patch, seed=args.seed, **shares)
    return Work(train, collator, fields, measure)


def answering(recipe: Recipe, args: TrainingArguments, processor: MMViltProcessor) -> Work:
    """The official questions; measured by exact match on those of the test split."""
    train, test = (_rows(recipe, easy_vqa(split)) for split in ("train", "test"))
    label2id = answer_vocabulary(easy_vqa("train")["answer"])
    collator = ViltQuestionCollator(processor, label2id, soft=False)

    def measure(model: Any) -> dict[str, Any]:
        chosen = _classes(model, list(test), collator, args)
        said = [model.config.id2label[number] for number in chosen]
        right = test["answer"]
        prior = question_prior(train.remove_columns("image"), test.remove_columns("image"))
        return {
            "exact_match": exact_match(said, right),
            "questions": len(right),
            "by_type": accuracy_by_type(said, right, test["question_type"]),
            "question_prior": exact_match(prior, right),
        }

    return Work(train, collator, _labels(label2id), measure)


def judging(recipe: Recipe, args: TrainingArguments, processor: MMViltProcessor) -> Work:
    """Statements about pairs; measured by the share of those about test images that are judged right."""
    made = (easy_vqa_statements(split, recipe.rows) for split in ("train", "test"))
    train, test = (rows.cast_column("images", [Image(decode=False)]) for rows in made)
    collator = ViltPairsOfImagesCollator(processor)

    def measure(model: Any) -> dict[str, Any]:
        right = torch.tensor(_classes(model, list(test), collator, args)) == torch.tensor(test["label"])
        kinds = test["kind"]
        shares = {
            kind: float(right[torch.tensor([k == kind for k in kinds])].float().mean())
            for kind in dict.fromkeys(kinds)
        }
        return {"accuracy": float(right.float().mean()), "statements": len(right), "by_kind": shares}

    fields = {"num_images": 2, "modality_type_vocab_size": 3}
    return Work(train, collator, _labels({"false": 0, "true": 1}) | fields, measure)


def retrieving(recipe: Recipe, args: TrainingArguments, processor: MMViltProcessor) -> Work:
    """One true caption among false ones; measured in rounds, each of one test image of every caption."""
    train, test = (_rows(recipe, easy_vqa_captions(split)) for split in ("train", "test"))
    texts = easy_vqa_captions("train")["caption"]
    collator = ViltRetrievalCollator(processor, texts, CANDIDATES, seed=args.seed)

    def measure(model: Any) -> dict[str, Any]:
        rows_of: dict[str, list[int]] = {}
        for row, caption in enumerate(test["caption"]):
            rows_of.setdefault(caption, []).append(row)
        rounds = min(ROUNDS, min(map(len, rows_of.values())))
        found = []
        for number in range(rounds):
            chosen = [test[rows[number]] for rows in rows_of.values()]
            images, captions = ([row[column] for row in chosen] for column in ("image", "caption"))
            size = args.per_device_eval_batch_size
            found.append(pair_retrieval(model, processor, images, captions, size, progress=False))
        means = {name: sum(of[name] for of in found) / rounds for name in found[0]}
        return means | {"pictures": len(rows_of), "rounds": rounds}

    return Work(train, collator, {}, measure)


WORKS = {"pretrain": pretraining, "vqa": answering, "retrieval": retrieving, "nlvr": judging}


def main(recipe: Recipe, args: TrainingArguments) -> dict[str, Any]:
    """Train one task, measure it, save; returns what was measured."""
    if recipe.task not in WORKS:
        raise ValueError(f"`task`={recipe.task!r} is none of {', '.join(WORKS)}.")
    set_seed(args.seed)
    processor = build_processor(recipe)
    work = WORKS[recipe.task](recipe, args, processor)
    model = build_model(recipe, processor, dict(work.fields))
    collator = ViewedCollator(work.collator, VIEWS, args.seed) if recipe.views else work.collator
    several = {"count_items": pretraining_items} if recipe.task == "pretrain" else {}
    trainer_class = MultitaskTrainer if several else MeasuringTrainer
    trainer = trainer_class(
        model,
        args,
        data_collator=collator,
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
    results = {"task": recipe.task, "train_seconds": trained.metrics["train_runtime"], "seed": args.seed}
    results |= {"steps": trainer.state.global_step, "checkpoint": recipe.checkpoint is not None}
    results |= {"objectives": recipe.objectives} if recipe.task == "pretrain" else {}
    results |= work.measure(model)
    results["environment"] = environment()
    write_results(Path(args.output_dir) / "results.json", results)
    return results


def _classes(
    model: Any, rows: list[dict], collator: Callable[[list[dict]], dict], args: TrainingArguments
) -> list[int]:
    """The likeliest class of each row."""
    chosen = []
    for batch in DataLoader(rows, args.per_device_eval_batch_size, collate_fn=collator):
        batch.pop("labels")
        with torch.no_grad():
            chosen += model(**_on(batch, model)).logits.argmax(-1).tolist()
    return chosen


def _on(batch: dict[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    return {name: value.to(model.device) for name, value in batch.items()}


def _labels(label2id: dict[str, int]) -> dict[str, dict]:
    return {"label2id": label2id, "id2label": {number: label for label, number in label2id.items()}}


def _rows(recipe: Recipe, rows: Dataset) -> Dataset:
    """As many rows as asked for; pictures as bytes and paths, read by us, so that errors name the file."""
    rows = rows if recipe.rows is None else rows.shuffle(seed=0).select(range(min(recipe.rows, len(rows))))
    return rows.cast_column("image", Image(decode=False))


def run(argv: Sequence[str] | None = None) -> int:
    """Parse flags, run `main`, print the result; returns the exit status."""
    flags = {"prog": "hf-mm train vilt", "allow_abbrev": False}  # a typo is no abbreviation
    parser = HfArgumentParser((Recipe, TrainingArguments), **flags)
    parser.set_defaults(**DEFAULTS)
    parser.set_defaults(**TASKS.get(parser.parse_known_args(argv)[0].task, {}))
    results = main(*parser.parse_args_into_dataclasses(argv))
    numbers = {name: value for name, value in results.items() if isinstance(value, float)}
    print(markdown_table([{"measure": name, "value": value} for name, value in numbers.items()]))
    return 0


if __name__ == "__main__":
    raise SystemExit(run())
