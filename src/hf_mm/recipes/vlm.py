"""Train a vision-language model as LLaVA and Molmo are: align the connector, then learn to answer.

    hf-mm train vlm --output_dir out/demo                        # easy-VQA, from nothing, on a CPU
    hf-mm train vlm --output_dir out/accurate --preset accurate

Measured on 2 CPU cores (torch 2.13, transformers 5.23, float32), seed 42, exact match on all 9,673 questions
of the official test split: demo 100.00 % after 273 s of training, accurate 99.93 % after 457 s and nearly all
points in place; answering from the question alone gives 67.00 %.

Any flag of `transformers.TrainingArguments` works. With `--save_strategy steps`, a run that was stopped goes
on by `--resume_from_checkpoint last` and ends with the same weights. Around pretrained parts, on data of your
own (a Hub id, a file or folder, or JSON in LLaVA's format):

    hf-mm train vlm --output_dir out/mine --preset llava --dataset me/cats --columns image,question,answer \
        --vision_model openai/clip-vit-large-patch14-336 --text_model HuggingFaceTB/SmolLM2-135M-Instruct \
        --align_steps 500 --tower_rates connector=1e-4 --lora_rank 64

Liu et al. 2023, "Improved Baselines with Visual Instruction Tuning" (https://arxiv.org/abs/2310.03744) and
Deitke et al. 2024, "Molmo and PixMo" (https://arxiv.org/abs/2409.17146).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoProcessor,
    HfArgumentParser,
    TrainingArguments,
    set_seed,
)

from hf_mm import (
    AnsweringTrainer,
    Curriculum,
    MMVLMForConditionalGeneration,
    MMVLMProcessor,
    RandomViews,
    VLMCollator,
    WordAlignment,
    add_lora,
    build_optimizer,
    curriculum,
    easy_vqa,
    encode_rows,
    exact_match,
    generate_answers,
    last_checkpoint,
    question_prior,
    read_rates,
    read_stages,
    read_warmups,
    rehearsal_rows,
    train_only,
    train_tokenizer,
    user_message,
    vlm_from_parts,
)
from hf_mm.data.chat_templates import PLAIN_CHAT_TEMPLATE, read_chat_template
from hf_mm.data.curricula import questions_of
from hf_mm.data.viewed import ViewedCollator
from hf_mm.evaluation.answer_results import answer_results, answer_samples, answer_table
from hf_mm.evaluation.perplexity import documentation_sample, perplexity
from hf_mm.evaluation.pointing import pointing_results
from hf_mm.evaluation.report import markdown_table
from hf_mm.evaluation.vqa_report import write_vqa_report
from hf_mm.models.vlm.small_vlm import small_vlm

__all__ = ["DEFAULTS", "PRESETS", "Recipe", "main", "run"]


@dataclass
class Recipe:
    """What this script decides; everything else is `TrainingArguments`."""

    preset: str = field(default="demo", metadata={"help": "demo, accurate, pointing, emoji, llava or molmo."})
    dataset: str = field(
        default="easy-vqa",
        metadata={
            "help": "'easy-vqa', 'easy-vqa-points', 'openmoji', a Hub id, a file, a folder or LLaVA's JSON."
        },
    )
    data_folder: str = field(
        default="package", metadata={"help": "Where the npm package openmoji is unpacked."}
    )
    columns: str = field(
        default="image,question,answer", metadata={"help": "Columns of image, question and answer."}
    )
    checkpoint: str | None = field(
        default=None, metadata={"help": "Start from this vision-language model, not from nothing."}
    )
    vision_model: str | None = field(default=None, metadata={"help": "Vision tower to start from."})
    text_model: str | None = field(
        default=None, metadata={"help": "Language model to start from; a GGUF file will do."}
    )
    chat_template: str | None = field(
        default=None,
        metadata={"help": "'chatml' (no system prompt) or a Jinja file, for the language model's."},
    )
    word_steps: int = field(
        default=0, metadata={"help": "Steps that bring images near the words of captions, before all else."}
    )
    align_steps: int = field(default=0, metadata={"help": "Steps of the first stage; 0 leaves it out."})
    align_towers: str = field(
        default="connector", metadata={"help": "What the first stage trains of pretrained parts."}
    )
    lora_rank: int = field(
        default=0, metadata={"help": "Rank of adapters on the language model; 0 trains every weight."}
    )
    lora_towers: str = field(default="language", metadata={"help": "What gets adapters."})
    lora_targets: str | None = field(
        default=None, metadata={"help": "Layers of these that get them, as 'q_proj,v_proj'; by default all."}
    )
    tower_rates: str | None = field(
        default=None, metadata={"help": "Learning rates by tower, as 'vision=6e-6,connector=2e-4'."}
    )
    tower_warmups: str | None = field(
        default=None, metadata={"help": "Warm-up steps by tower, as 'connector=200,vision=2000'."}
    )
    stages: str | None = field(
        default=None, metadata={"help": "What learns up to which step, as 'connector=200,all'."}
    )
    rehearsal_texts: int = field(
        default=0,
        metadata={"help": "Texts of the language model's own to go on learning, so that it keeps them."},
    )
    ask_before: bool = field(
        default=False,
        metadata={"help": "Ask some of the questions, and read plain text, before training too."},
    )


# The numbers of the recipe, in one place; a flag of the same name overrides each.
DEFAULTS = {
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "weight_decay": 0.01,
    "warmup_steps": 0.1,  # below 1: the share of all steps
    "lr_scheduler_type": "cosine",
    "train_sampling_strategy": "group_by_length",  # packed rows differ in length: pad little
    "save_strategy": "no",
    "logging_steps": 50,
    "prediction_loss_only": True,
    "remove_unused_columns": False,  # the collator reads `images`, which the model does not take
    "report_to": "none",
}
PRESETS: dict[str, dict[str, Any]] = {
    "demo": {"align_steps": 400, "max_steps": 600, "learning_rate": 1e-3},
    "accurate": {"align_steps": 600, "max_steps": 1000, "learning_rate": 1e-3},
    "pointing": {
        "dataset": "easy-vqa-points",
        "align_steps": 400,
        "max_steps": 1600,
        "learning_rate": 1e-3,
    },
    "emoji": {
        "dataset": "openmoji",
        "chat_template": "chatml",
        "ask_before": True,
        "rehearsal_texts": 240,
        "word_steps": 1500,
        "align_towers": "vision,connector",
        "lora_rank": 32,
        "lora_towers": "language,vision",
        "per_device_train_batch_size": 16,
        "max_steps": 300,
        "learning_rate": 1e-3,
        "tower_rates": "connector=2e-4",
        "weight_decay": 0.0,
        "warmup_steps": 0.03,
    },
    "llava": {"num_train_epochs": 1, "learning_rate": 2e-5, "weight_decay": 0.0, "warmup_steps": 0.03},
    "molmo": {
        "num_train_epochs": 1,
        "learning_rate": 2e-5,
        "weight_decay": 0.0,
        "tower_warmups": "connector=200,vision=2000,language=2000",
        "adam_beta2": 0.95,
        "adam_epsilon": 1e-6,
        "tower_rates": "connector=2e-4,vision=6e-6",
    },
}
ALL = ("vision", "connector", "language")
# How images are brought near words; no language model runs, so batches are large and steps many.
WORDS: dict[str, Any] = {
    "per_device_train_batch_size": 64,
    "learning_rate": 2e-3,
    "eval_strategy": "no",
    "save_strategy": "no",
    "train_sampling_strategy": "random",
}
WORDS_VISION_RATE = 2e-4  # a tower that has learnt to see keeps what it sees of new images
# What the first stage does differently.
ALIGN = {
    "demo": {"per_device_train_batch_size": 32, "learning_rate": 1e-3},
    "accurate": {"per_device_train_batch_size": 32, "learning_rate": 1e-3},
    "pointing": {"per_device_train_batch_size": 32, "learning_rate": 1e-3},
    "emoji": {"per_device_train_batch_size": 16, "learning_rate": 1e-3},
    "llava": {"learning_rate": 1e-3},
    "molmo": {"learning_rate": 2e-4},
}
LLAVA_CONNECTOR = {"vision_feature_layer": -2, "connector": "mlp", "connector_hidden_act": "gelu"}
MOLMO_CONNECTOR = {
    "vision_feature_layer": [-2, -9],
    "connector": "attention_pool",
    "connector_hidden_act": "silu",
    "pooling_size": 2,
    "padding_embedding": True,
}
SMALL_TOWER_CONNECTOR = {"vision_feature_layer": None, "connector": "mlp", "connector_hidden_act": "gelu"}
# Crops and connector of pretrained parts, where they are not LLaVA's.
JOINED: dict[str, tuple[int, dict[str, Any]]] = {
    "molmo": (12, MOLMO_CONNECTOR),
    "emoji": (0, SMALL_TOWER_CONNECTOR),
}
# Most new tokens of an answer, without points and with them.
LONGEST_ANSWER = {False: 24, True: 64}


def build(recipe: Recipe, rows: Curriculum) -> tuple[MMVLMForConditionalGeneration, MMVLMProcessor]:
    """A model and its processor: a checkpoint, pretrained parts joined, or small and from nothing.

    Raises:
        ValueError: Only one of the two parts is named, or the vocabulary does not fit the model.
    """
    if recipe.checkpoint:
        model = MMVLMForConditionalGeneration.from_pretrained(recipe.checkpoint, dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(recipe.checkpoint)
    elif recipe.vision_model and recipe.text_model:
        crops, connector = JOINED.get(recipe.preset, (0, LLAVA_CONNECTOR))
        model, processor = vlm_from_parts(recipe.vision_model, recipe.text_model, crops, **connector)
        if recipe.chat_template:
            template = read_chat_template(recipe.chat_template)
            processor = MMVLMProcessor(processor.image_processor, processor.tokenizer, template)
    elif recipe.vision_model or recipe.text_model:
        raise ValueError("Give both `vision_model` and `text_model`, or none of them to train from nothing.")
    else:
        tokenizer = train_tokenizer(rows.texts(), vocab_size=512, special_tokens=["<image>"])
        model, processor = small_vlm(tokenizer)
    words, known = len(processor.tokenizer), model.config.text_config.vocab_size
    if words > known:
        raise ValueError(
            f"The tokenizer has {words} tokens but the model knows {known}; load the two from one place, or "
            "resize the model's embeddings."
        )
    return model, processor


def align(
    recipe: Recipe, args: TrainingArguments, model: Any, processor: MMVLMProcessor, rows: Curriculum
) -> float:
    """Before the questions: words, then captions, to the parts that join. Returns seconds."""
    stage = copy.deepcopy(args)
    stage.output_dir = str(Path(args.output_dir) / "align")
    stage.max_steps, stage.eval_strategy = recipe.align_steps, "no"
    for name, value in ALIGN[recipe.preset].items():
        setattr(stage, name, value)
    done = Path(stage.output_dir) / "model.safetensors"
    resume = args.resume_from_checkpoint is not None
    if resume and done.is_file():
        trained = MMVLMForConditionalGeneration.from_pretrained(stage.output_dir)
        model.load_state_dict(trained.state_dict())
        return 0.0
    checkpoint = last_checkpoint(stage.output_dir) if resume else None
    seconds = 0.0
    if recipe.word_steps and not checkpoint:
        seconds += align_words(recipe, args, model, processor, rows)
    if not recipe.align_steps:
        return seconds
    if recipe.checkpoint or recipe.vision_model:
        # What a frozen language model has learnt to read: outside its turns it heeds hardly anything.
        train_only(model, recipe.align_towers.split(","))
    else:
        train_only(model, ALL)
        processor = MMVLMProcessor(processor.image_processor, processor.tokenizer, PLAIN_CHAT_TEMPLATE)
    trainer = _trainer(model, stage, processor, rows.align, None, rows.views)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    return seconds + result.metrics["train_runtime"]


def check_word_steps(recipe: Recipe) -> None:
    if recipe.word_steps and not (recipe.checkpoint or recipe.text_model):
        raise ValueError(
            f"`word_steps`={recipe.word_steps} teach a connector the words of a language model that knows "
            "some; give `text_model` or `checkpoint`."
        )


def align_words(
    recipe: Recipe, args: TrainingArguments, model: Any, processor: MMVLMProcessor, rows: Curriculum
) -> float:
    """Before the first stage: the tower and the connector learn the words of captions. Returns seconds."""
    stage = copy.deepcopy(args)
    stage.max_steps = recipe.word_steps
    for name, value in WORDS.items():
        setattr(stage, name, value)
    train_only(model, recipe.align_towers.split(","))
    aligner = WordAlignment(model, processor.tokenizer.all_special_ids)
    rates = {"vision": WORDS_VISION_RATE} if "vision" in recipe.align_towers.split(",") else None
    trainer = _trainer(aligner, stage, processor, rows.align, rates, rows.views)
    return trainer.train().metrics["train_runtime"]


def _trainer(
    model: Any,
    args: TrainingArguments,
    processor: MMVLMProcessor,
    rows: list[dict],
    rates: dict[str, float] | None,
    views: bool = False,
    held_out: list[dict] | None = None,
    encoded: Sequence[dict] = (),
    **schedule: Any,
) -> AnsweringTrainer:
    collator = VLMCollator(processor, packed=True, labelled_logits=True)

    def answer(asked: Any) -> dict[str, float]:
        questions = questions_of(held_out or [])
        said = generate_answers(asked, processor, questions, args.per_device_eval_batch_size)
        return {"exact_match": exact_match(said, [row["answer"] for row in questions])}

    return AnsweringTrainer(
        model,
        args,
        data_collator=ViewedCollator(collator, RandomViews(), args.seed) if views else collator,
        train_dataset=[*encode_rows(processor, rows), *encoded],
        eval_dataset=encode_rows(processor, held_out) if held_out else None,
        processing_class=processor,
        optimizers=(build_optimizer(model, args, rates), None),
        answer_metrics=answer if held_out else None,
        **schedule,
    )


def main(recipe: Recipe, args: TrainingArguments) -> dict[str, Any]:
    """Train in two stages, ask the test questions, save; returns the metrics."""
    if recipe.preset not in PRESETS:
        raise ValueError(f"`preset`={recipe.preset!r} is none of {', '.join(PRESETS)}.")
    check_word_steps(recipe)
    set_seed(args.seed)
    rates = read_rates(recipe.tower_rates)
    schedule = {"warmups": read_warmups(recipe.tower_warmups), "stages": read_stages(recipe.stages)}
    rows = curriculum(recipe.dataset, recipe.columns, recipe.data_folder)
    model, processor = build(recipe, rows)
    before = facts_before(args, model, processor, rows) if recipe.ask_before else {}
    own = own_texts(recipe, args, model, processor)
    out = Path(args.output_dir)
    resumed = last_checkpoint(out) if args.resume_from_checkpoint == "last" else args.resume_from_checkpoint
    seconds = 0.0
    base = out / "base"
    if not resumed:
        seconds += align(recipe, args, model, processor, rows)
    elif recipe.lora_rank and not recipe.checkpoint:
        model.load_state_dict(MMVLMForConditionalGeneration.from_pretrained(base).state_dict())
    train_only(model, ALL)
    if recipe.lora_rank:
        if not recipe.checkpoint:  # what the adapters stand on must be somewhere
            model.save_pretrained(base)
            model.name_or_path = str(base)
        towers = recipe.lora_towers.split(",")
        model = add_lora(model, recipe.lora_rank, towers=towers, targets=recipe.lora_targets)
    held_out = rows.train[:100] if args.eval_strategy != "no" else []
    taught = rows.train[len(held_out) :]
    trainer = _trainer(model, args, processor, taught, rates, rows.views, held_out, own, **schedule)
    result = trainer.train(resume_from_checkpoint=resumed)
    trainer.save_model()
    processor.save_pretrained(out)
    seconds += result.metrics["train_runtime"]
    facts = {"train_seconds": seconds, "steps": trainer.state.global_step, "seed": args.seed}
    facts |= {"word_steps": recipe.word_steps, "align_steps": recipe.align_steps}
    return report(recipe, args, model, processor, rows, facts | before)


def own_texts(recipe: Recipe, args: TrainingArguments, model: Any, processor: MMVLMProcessor) -> list[dict]:
    """What the language model writes before it learns anything else."""
    if not recipe.rehearsal_texts:
        return []
    mark = "@"
    opening = processor.apply_chat_template([user_message(mark, images=0)]).split(mark)[0]
    set_seed(args.seed)
    model.to(args.device)
    return rehearsal_rows(model, processor.tokenizer, recipe.rehearsal_texts, opening)


def facts_before(
    args: TrainingArguments, model: Any, processor: MMVLMProcessor, rows: Curriculum
) -> dict[str, Any]:
    """What pretrained parts do before they have learnt to work together, on every seventeenth question."""
    asked = rows.test[::17]  # odd: of each kind of question
    said = generate_answers(model, processor, asked, args.per_device_eval_batch_size)
    plain = perplexity(model, processor.tokenizer, documentation_sample())
    return {"before": answer_results(asked, said) | {"plain_text_perplexity": plain}}


def report(
    recipe: Recipe,
    args: TrainingArguments,
    model: Any,
    processor: MMVLMProcessor,
    rows: Curriculum,
    facts: dict,
) -> dict[str, Any]:
    """Ask the test questions; write `results.json`, `answers.png` and the model card; return the results."""
    batch = args.per_device_eval_batch_size
    said = generate_answers(model, processor, rows.test, batch, LONGEST_ANSWER[rows.pointing])
    results = facts | answer_results(rows.test, said) | {"samples": answer_samples(rows.test, said)}
    if "before" in facts:
        plain = perplexity(model, processor.tokenizer, documentation_sample())
        results["plain_text_perplexity"] = plain
    examples = list(zip(rows.test, said, strict=True))[:: len(said) // 6 | 1][:6]  # odd: of each kind of pair
    if rows.places and recipe.dataset == "easy-vqa":
        pointed = generate_answers(model, processor, rows.places, batch, LONGEST_ANSWER[True])
        results["pointing"] = pointing_results(rows.places, pointed, radius_px=5)
        examples += list(zip(rows.places, pointed, strict=True))[:: len(pointed) // 6][:6]
        prior = question_prior(easy_vqa("train"), rows.test)
        results["question_prior"] = exact_match(prior, [row["answer"] for row in rows.test])
    elif not rows.pointing:
        results["question_alone"] = answer_results(rows.test, question_prior(rows.taught(), rows.test))
    table = answer_table(results)
    print("\n" + markdown_table(table, shares=list(table[0])[1:]))
    training = (
        f"{facts['word_steps']} steps on words, {facts['align_steps']} on captions and {facts['steps']} on "
        f"packed questions in {facts['train_seconds']:.0f} s, seed {args.seed}: "
        f"`hf-mm train vlm --preset {recipe.preset}`."
    )
    weights = sum(weight.numel() for weight in model.parameters())
    return write_vqa_report(args.output_dir, results, examples, table, recipe.dataset, training, weights)


def run(argv: Sequence[str] | None = None) -> int:
    """Parse flags, run `main`, print the result; returns the exit status."""
    flags = {"prog": "hf-mm train vlm", "allow_abbrev": False}  # a typo is no abbreviation
    parser = HfArgumentParser((Recipe, TrainingArguments), **flags)
    parser.set_defaults(**DEFAULTS)
    preset = parser.parse_known_args(argv)[0].preset
    bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    parser.set_defaults(bf16=bf16, **PRESETS.get(preset, {}))
    results = main(*parser.parse_args_into_dataclasses(argv))
    print(f"exact match {results['exact_match']:.4f} on {results['questions']} test questions")
    return 0


if __name__ == "__main__":
    raise SystemExit(run())
