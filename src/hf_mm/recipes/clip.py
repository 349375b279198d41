"""Train an image tower and a text tower to meet in one space, as CLIP, on pairs of pictures and captions.

    npm pack openmoji && tar xf openmoji-*.tgz                 # 2,465 emoji into the folder `package`
    hf-mm train clip --output_dir out/clip-emoji               # from nothing, on a CPU
    hf-mm train clip --output_dir out/clip-shapes --dataset easy-vqa

Measured on one CPU thread (torch 2.13, transformers 5.23, float32), seed 42. OpenMoji: 600 steps in 273 s; of
493 held-out emoji 23 % find their text and 26 % of texts their emoji among the first ten, chance is 2 %; with
`--text_model transformer` 13 % and 13 %, `transformers.CLIPModel` trained alike 14 % and 12 %. easy-VQA:
99.8 % of 888 test pictures get the right one of 24 names, chance is 4 %.

Any flag of `transformers.TrainingArguments` works. `--gradient_accumulation_steps` makes the contrastive
batch larger in the same memory, with the gradient of the large batch. With `--save_strategy steps` a run that
was stopped goes on by `--resume_from_checkpoint last`. On pairs of your own, around pretrained towers, only
the text tower trained (LiT):

    hf-mm train clip --output_dir out/mine --dataset me/pictures --columns image,caption \
        --vision_model google/vit-base-patch16-224 --text_model google-bert/bert-base-uncased \
        --train_towers text,temperature

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision"
(https://arxiv.org/abs/2103.00020); Zhai et al. 2022, "LiT: Zero-Shot Transfer with Locked-image text Tuning"
(https://arxiv.org/abs/2111.07991).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from transformers import (
    AutoModel,
    AutoTokenizer,
    HfArgumentParser,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    ResNetConfig,
    TrainingArguments,
    set_seed,
)

from hf_mm import (
    ContrastiveTrainer,
    MMBagOfWordsConfig,
    MMCLIPConfig,
    MMCLIPImageProcessor,
    MMCLIPModel,
    MMCLIPProcessor,
    MMCLIPTextConfig,
    MMViTConfig,
    PairCollator,
    RandomViews,
    ZeroShotClassifier,
    add_lora,
    build_optimizer,
    clip_vqa,
    clip_vqa_results,
    easy_vqa,
    easy_vqa_classes,
    encode_images,
    encode_texts,
    few_shot_curve,
    image_text_pairs,
    image_text_retrieval,
    last_checkpoint,
    linear_probe,
    markdown_table,
    openmoji,
    read_rates,
    retrieval_chance,
    robustness_table,
    train_caption_tokenizer,
    train_only,
    train_word_tokenizer,
    vision_features,
)
from hf_mm.data.easy_vqa import ANSWERS
from hf_mm.evaluation.alignment_report import matches, write_alignment_report
from hf_mm.evaluation.features import compare

__all__ = ["DEFAULTS", "PRESETS", "Recipe", "main", "run"]


@dataclass
class Recipe:
    """What this script decides; everything else is `TrainingArguments`."""

    dataset: str = field(
        default="openmoji", metadata={"help": "'openmoji', 'easy-vqa', a Hub id, a file or a folder."}
    )
    data_folder: str = field(
        default="package", metadata={"help": "Where the npm package openmoji is unpacked."}
    )
    columns: str = field(default="image,caption", metadata={"help": "Columns of image and caption."})
    checkpoint: str | None = field(
        default=None, metadata={"help": "Start from this model (also transformers' CLIP), not from nothing."}
    )
    vision_model: str = field(
        default="vit", metadata={"help": "Image tower: 'vit', 'resnet', or a pretrained one's id."}
    )
    text_model: str = field(
        default="transformer",
        metadata={"help": "Text tower: 'transformer', 'bag_of_words', or a pretrained one's id."},
    )
    train_towers: str = field(
        default="vision,text,temperature", metadata={"help": "Parts to train; 'text,temperature' is LiT."}
    )
    tower_rates: str | None = field(
        default=None, metadata={"help": "Learning rates by part, as 'vision=1e-5,text=1e-4'."}
    )
    lora_rank: int = field(
        default=0, metadata={"help": "Rank of adapters on the towers to train; 0 trains them whole."}
    )


# The numbers of the recipe, in one place; a flag of the same name overrides each.
DEFAULTS = {
    "per_device_train_batch_size": 128,
    "per_device_eval_batch_size": 256,
    "learning_rate": 1e-3,
    "weight_decay": 0.2,
    "adam_beta2": 0.98,
    "adam_epsilon": 1e-6,
    "warmup_steps": 0.1,  # below 1: the share of all steps
    "lr_scheduler_type": "cosine",
    "dataloader_drop_last": True,  # every step compares as many pairs
    "save_strategy": "no",
    "logging_steps": 50,
    "remove_unused_columns": False,  # the collator reads `image` and `caption`, which the model does not take
    "report_to": "none",
}
# By data set. From 2,000 pictures a bag of words learns what carries over to others, a transformer far less.
PRESETS: dict[str, dict[str, Any]] = {
    "openmoji": {"max_steps": 600, "text_model": "bag_of_words"},
    "easy-vqa": {"max_steps": 300},
}
# The model that is trained from nothing: 64 px behind a stem of four stages are 4x4 patches, 16 tokens.
WIDTH = 128
SMALL_VIT = {
    "image_size": 64,
    "patch_size": 16,
    "stem_channels": [16, 32, 64, WIDTH],
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 4 * WIDTH,
    "hidden_dropout": 0.1,
    "pooling": "mean",
}
SMALL_RESNET = {"embedding_size": 32, "hidden_sizes": [32, 64, 128, 256], "depths": [1, 1, 1, 1]}
SMALL_TEXT = {
    "max_position_embeddings": 64,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 4 * WIDTH,
    "hidden_act": "gelu",
}
EMOJI_LICENCE = (
    "The emoji are by OpenMoji, the open-source emoji and icon project (https://openmoji.org), "
    "licence CC BY-SA 4.0."
)


class Rows(NamedTuple):
    """Pairs to train on, pairs held out, and the class names if the data has classes."""

    train: Dataset
    test: Dataset
    classes: list[str]


def load(recipe: Recipe) -> Rows:
    """The rows, with `image` and `caption` (one or several), and `label` where there are classes."""
    if recipe.dataset == "openmoji":
        train, test = (openmoji(recipe.data_folder, split=split) for split in ("train", "test"))
        return Rows(train.map(_more_captions, with_indices=True), test, [])
    if recipe.dataset == "easy-vqa":
        train, test = easy_vqa_classes("train"), easy_vqa_classes("test")
        return Rows(train, test, train.features["label"].names)
    image, _, caption = recipe.columns.partition(",")
    pairs = image_text_pairs(recipe.dataset, image=image, caption=caption)
    if not isinstance(pairs, Dataset) or len(pairs) < 20:
        raise ValueError(
            f"`dataset`={recipe.dataset!r} has too few rows to hold a tenth out, or streams; give at least "
            "20 rows that `load_dataset` reads whole."
        )
    halves = pairs.train_test_split(test_size=0.1, seed=0)
    return Rows(halves["train"], halves["test"], [])


def build(recipe: Recipe, rows: Rows) -> tuple[MMCLIPModel, MMCLIPProcessor]:
    """A new small model, one around pretrained towers, or a checkpoint; and its processor."""
    if recipe.checkpoint:
        model = MMCLIPModel.from_pretrained(recipe.checkpoint)
        return model, MMCLIPProcessor.from_pretrained(recipe.checkpoint)
    vision, pictures = vision_tower(recipe.vision_model)
    text, tokenizer = text_tower(recipe.text_model, _captions(rows.train))
    config = MMCLIPConfig(vision_config=vision.config, text_config=text.config, projection_dim=WIDTH)
    return MMCLIPModel(config, vision, text), MMCLIPProcessor(pictures, tokenizer)


def vision_tower(name: str) -> tuple[Any, MMCLIPImageProcessor]:
    """The image tower and what prepares its pictures."""
    small: dict[str, PreTrainedConfig] = {
        "vit": MMViTConfig(**SMALL_VIT),
        "resnet": ResNetConfig(**SMALL_RESNET),
    }
    if name not in small:
        return AutoModel.from_pretrained(name), MMCLIPImageProcessor.from_pretrained(name)
    size = {"height": SMALL_VIT["image_size"], "width": SMALL_VIT["image_size"]}
    processor = MMCLIPImageProcessor(size=size, exact=False, image_mean=0.5, image_std=0.5)
    return AutoModel.from_config(small[name]), processor


def text_tower(name: str, captions: list[str]) -> tuple[Any, PreTrainedTokenizerBase]:
    """The text tower and its tokenizer; for a new tower that learns its words from the captions."""
    if name == "transformer":
        tokenizer = train_caption_tokenizer(captions, 4000, SMALL_TEXT["max_position_embeddings"])
        ids = {f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("bos", "eos", "pad")}
        config: PreTrainedConfig = MMCLIPTextConfig(vocab_size=len(tokenizer), **SMALL_TEXT, **ids)
    elif name == "bag_of_words":
        tokenizer = train_word_tokenizer(captions, vocab_size=10000)
        config = MMBagOfWordsConfig(
            vocab_size=len(tokenizer), hidden_size=WIDTH, pad_token_id=tokenizer.pad_token_id
        )
    else:
        return AutoModel.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    return AutoModel.from_config(config), tokenizer


def main(recipe: Recipe, args: TrainingArguments) -> dict[str, Any]:
    """Train, measure on what was held out, save; returns the results."""
    set_seed(args.seed)
    rates = read_rates(recipe.tower_rates)
    rows = load(recipe)
    model, processor = build(recipe, rows)
    parts = tuple(recipe.train_towers.split(","))
    train_only(model, parts)
    out = Path(args.output_dir)
    if recipe.lora_rank:
        if not recipe.checkpoint:  # what the adapters stand on must be somewhere
            model.save_pretrained(out / "base")
            model.name_or_path = str(out / "base")
        model = add_lora(model, recipe.lora_rank, towers=[part for part in parts if part != "temperature"])
    resumed = last_checkpoint(out) if args.resume_from_checkpoint == "last" else args.resume_from_checkpoint

    def measure(trained: Any) -> dict[str, float]:
        return alignment(trained, processor, rows, args.per_device_eval_batch_size)

    trainer = ContrastiveTrainer(
        model,
        args,
        data_collator=PairCollator(processor, augment=RandomViews(mirror=0.0)),
        train_dataset=rows.train,
        eval_dataset=rows.test if args.eval_strategy != "no" else None,
        processing_class=processor,
        optimizers=(build_optimizer(model, args, rates), None),
        alignment_metrics=measure,
    )
    result = trainer.train(resume_from_checkpoint=resumed)
    trainer.save_model()
    processor.save_pretrained(out)
    facts = {"train_seconds": result.metrics["train_runtime"], "steps": trainer.state.global_step}
    facts |= {"pairs": len(rows.train), "seed": args.seed}
    return report(recipe, args, model, processor, rows, facts)


def alignment(model: Any, processor: Any, rows: Rows, batch_size: int) -> dict[str, float]:
    """Retrieval among the held-out pairs, or the accuracy over the classes."""
    if rows.classes:
        classifier = ZeroShotClassifier(model, processor, rows.classes, ["{}"], batch_size, progress=False)
        return {"zero_shot_accuracy": classifier.accuracy(rows.test["image"], rows.test["label"])}
    captions = _captions(rows.test)
    return image_text_retrieval(model, processor, rows.test["image"], captions, batch_size, progress=False)


def report(
    recipe: Recipe, args: TrainingArguments, model: Any, processor: Any, rows: Rows, facts: dict
) -> dict[str, Any]:
    """Measure on what was held out; write `results.json`, `matches.png` and the model card."""
    measured = alignment(model, processor, rows, args.per_device_eval_batch_size)
    texts, right = (
        rows.classes or _captions(rows.test),
        rows.test["label"] if rows.classes else range(len(rows.test)),
    )
    if rows.classes:
        more, table = class_results(model, processor, rows, measured)
    else:
        more, table = retrieval_results(measured, len(rows.test))
    shown = range(0, len(rows.test), max(1, len(rows.test) // 12))[:12]
    pictures = [rows.test[i]["image"] for i in shown]
    similarities = compare(
        model,
        encode_images(model, processor, pictures, progress=False),
        encode_texts(model, processor, texts, progress=False),
    )
    print("\n" + markdown_table(table, shares=list(table[0])[1:]))
    weights = sum(weight.numel() for weight in model.parameters())
    batch = args.train_batch_size * args.gradient_accumulation_steps
    training = (
        f"{facts['steps']} steps of {batch} pairs out of {facts['pairs']:,} in "
        f"{facts['train_seconds']:.0f} s, seed {args.seed}: `hf-mm train clip --dataset {recipe.dataset} "
        f"--text_model {recipe.text_model}`."
    )
    return write_alignment_report(
        args.output_dir,
        facts | measured | more | {"weights": weights},
        {name: value for name, value in measured.items() if not name.endswith("rank")},
        matches(pictures, texts, similarities, [right[i] for i in shown], within=1 if rows.classes else 10),
        table,
        {
            "dataset": recipe.dataset,
            "weights": f"{weights / 1e6:.2f} M",
            "measured": f"{len(rows.test):,} pictures that training never saw.",
            "training": training,
            "licence": EMOJI_LICENCE if recipe.dataset == "openmoji" else "",
        },
    )


def retrieval_results(measured: dict[str, float], pairs: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Chance, and the table of recalls both ways."""
    chance = retrieval_chance(pairs)
    ways = [name for name in measured if "_R@" in name]
    return {"chance": chance, "candidates": pairs}, [
        {"model": name} | {way.replace("_", " "): values[way] for way in ways}
        for name, values in (("this one", measured), ("chance", chance))
    ]


def class_results(
    model: Any, processor: Any, rows: Rows, measured: dict[str, float]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Probes of the image tower, robustness, and questions answered by comparing; with a table."""
    tower = model.get_base_model().vision_model if hasattr(model, "peft_config") else model.vision_model
    seen, new = (
        vision_features(tower, processor, part["image"], progress=False) for part in (rows.train, rows.test)
    )
    labels = rows.train["label"], rows.test["label"]
    probe = linear_probe(seen, labels[0], new, labels[1])
    few = few_shot_curve(seen, labels[0], new, labels[1])
    classifier = ZeroShotClassifier(model, processor, rows.classes, ["{}"], progress=False)
    corrupted = robustness_table(classifier.predict, rows.test["image"], labels[1])
    questions = easy_vqa("test")
    answers = clip_vqa(model, processor, questions, list(ANSWERS), progress=False)
    vqa = clip_vqa_results(questions, answers, list(ANSWERS), easy_vqa("train"))
    chance = 1 / len(rows.classes)
    table = [
        (f"{len(rows.classes)} classes by their names", measured["zero_shot_accuracy"], chance),
        ("the same, pictures corrupted", corrupted[-1]["mean"], chance),
        ("the same, linear probe", probe["accuracy"], chance),
        *((f"the same, probe of {row['shots']} per class", row["accuracy"], chance) for row in few),
        ("questions, by comparing texts", vqa["exact_match"], vqa["chance"]),
        ("questions, without looking", vqa["prior"], vqa["chance"]),
    ]
    more = {"linear_probe": probe, "few_shot": few, "robustness": corrupted, "clip_vqa": vqa}
    return more, [dict(zip(("task", "accuracy", "chance"), row, strict=True)) for row in table]


def _captions(rows: Dataset) -> list[str]:
    """The fullest caption of each row: the longest."""
    return [caption if isinstance(caption, str) else max(caption, key=len) for caption in rows["caption"]]


def _more_captions(row: dict, number: int) -> dict[str, list[str]]:
    """An emoji's captions and more, each with another part of its tags, so that less is learnt by heart."""
    draw = random.Random(number)
    parts = (draw.sample(row["tags"], draw.randint(0, len(row["tags"]))) for _ in range(16))
    return {"caption": row["caption"] + [f"{row['annotation']}: {', '.join(part)}" for part in parts if part]}


def run(argv: Sequence[str] | None = None) -> int:
    """Parse flags, run `main`, print the result; returns the exit status."""
    flags = {"prog": "hf-mm train clip", "allow_abbrev": False}  # a typo is no abbreviation
    parser = HfArgumentParser((Recipe, TrainingArguments), **flags)
    parser.set_defaults(**DEFAULTS)
    dataset = parser.parse_known_args(argv)[0].dataset
    bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    pin = torch.cuda.is_available()
    parser.set_defaults(bf16=bf16, dataloader_pin_memory=pin, **PRESETS.get(dataset, {}))
    main(*parser.parse_args_into_dataclasses(argv))
    return 0


if __name__ == "__main__":
    raise SystemExit(run())
