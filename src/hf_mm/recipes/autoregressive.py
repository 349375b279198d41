"""Train a small Llama to write pictures code by code, or a bidirectional model to write them in a few rounds.

    hf-mm train autoregressive --tokenizer out/vq --dataset fashion-mnist --output_dir out/ar
    hf-mm train autoregressive --tokenizer out/vq --dataset fashion-mnist --output_dir out/m --decoding masked
    hf-mm train autoregressive --tokenizer out/vq --dataset openmoji --condition text --output_dir out/emoji

`--tokenizer` is the folder of an `MMVQAutoencoder` or diffusers' `VQModel`, or of the pipeline around it that
`hf-mm train autoencoder` saves.
Pictures are encoded once, into `output_dir`/codes or `--codes_folder`. Left in the output folder: a pipeline
that `DiffusionPipeline.from_pretrained` opens, `results.json` with the likelihood of held-out codes and, with
`--net`, the distances to the test split in the features of that net, and `grid.png`; with `--measure_steps`
also `measures.jsonl`, how the distance fell with the seconds of training. Any flag of
`transformers.TrainingArguments` works.

Sun et al. 2024, "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation"
(https://arxiv.org/abs/2406.06525); Chang et al. 2022, "MaskGIT: Masked Generative Image Transformer"
(https://arxiv.org/abs/2202.04200).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForMaskedLM,
    HfArgumentParser,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)

from hf_mm import (
    AutoregressiveObjective,
    CodeCollator,
    CodeRows,
    CodeVocabulary,
    FeatureNet,
    GeneratorCard,
    ImageCodes,
    MaskedCodesObjective,
    PhasedTrainer,
    PixelRows,
    VQAutoregressivePipeline,
    VQMaskedPipeline,
    code_likelihood,
    extract_codes,
    feature_net,
    generation_report,
    generation_rows,
    generation_table,
    load_autoencoder,
    picture_views,
    running_measure,
    sample_grid,
    train_bert_tokenizer,
)
from hf_mm.evaluation.report import environment, markdown_table, write_results
from hf_mm.generators.autoregressive.code_likelihood import frequency_nats
from hf_mm.generators.autoregressive.picture_codes import codebook_size

__all__ = ["DEFAULTS", "PRESETS", "Recipe", "main", "run"]


@dataclass
class Recipe:
    """What this script decides; everything else is `TrainingArguments`."""

    tokenizer: str = field(
        default="out/vq",
        metadata={"help": "Folder or Hub id of a model with a codebook, or of its pipeline."},
    )
    dataset: str = field(
        default="digits", metadata={"help": "digits, fashion-mnist, openmoji, a folder or a Hub id."}
    )
    data_folder: str | None = field(
        default=None, metadata={"help": "Files of Fashion-MNIST, or the unpacked package of OpenMoji."}
    )
    condition: str = field(default="class", metadata={"help": "class, text or none."})
    decoding: str = field(default="raster", metadata={"help": "raster (Llama) or masked (MaskGIT)."})
    rows: int | None = field(default=None, metadata={"help": "Pictures to learn from; by default all."})
    codes_folder: str | None = field(
        default=None, metadata={"help": "Where codes are kept, for several runs; else in the output folder."}
    )
    views: int = field(
        default=1, metadata={"help": "Of each picture: 1, 2 with mirrored, 5 with moved ones, 10 with both."}
    )
    net: str | None = field(
        default=None, metadata={"help": "Features to measure in: efficientnet-lite0, inception, a folder."}
    )
    measure_steps: int = field(
        default=0, metadata={"help": "Also measure every so many steps of training, into measures.jsonl."}
    )


# The numbers of the recipe, in one place; a flag of the same name overrides each.
DEFAULTS = {
    "max_steps": 1000,
    "per_device_train_batch_size": 64,
    "per_device_eval_batch_size": 128,
    "learning_rate": 2e-3,
    "adam_beta2": 0.95,
    "weight_decay": 0.05,
    "max_grad_norm": 1.0,
    "warmup_steps": 0.05,  # below 1: the share of all steps
    "lr_scheduler_type": "cosine",
    "logging_steps": 50,
    "save_steps": 500,
    "save_total_limit": 1,
    "report_to": "none",
}
PRESETS: dict[str, dict[str, Any]] = {
    "fashion-mnist": {"max_steps": 2000},
    "openmoji": {"max_steps": 2000, "views": 10, "weight_decay": 0.1},
}
# The models that are trained from nothing, for 64 codes of 512.
SMALL: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "initializer_range": 0.05,
}
DROPOUT = {"openmoji": 0.1}  # of attention, where pictures are few; it slows a step down
PROMPT_LENGTH = 24  # tokens of a text
WORDS = 1024  # of the tokenizer of texts
EMA_DECAY = 0.995
CONDITION_DROPOUT = 0.1
GUIDANCE_SCALE = 1.5
VIEWS = {1: (False, 0), 2: (True, 0), 5: (False, 2), 10: (True, 2)}  # mirrored, moved by pixels
AT_ONCE = 250  # pictures that are drawn together
MEASURED = 2000  # pictures at a time during a run
COLUMNS = 8  # of the grid of samples
PROMPTS = (
    "red apple",
    "green apple",
    "red heart",
    "blue heart",
    "yellow circle",
    "smiling face",
    "cat",
    "house",
)


def load_rows(recipe: Recipe, vqvae: Any) -> tuple[PixelRows, PixelRows]:
    """Pictures to learn from, and held-out ones, of the size that the tokenizer was trained on."""
    options = {"image_size": vqvae.config.sample_size, "channels": vqvae.config.in_channels}
    train, test = (
        generation_rows(recipe.dataset, split, folder=recipe.data_folder, **options)
        for split in ("train", "test")
    )
    if recipe.rows is not None:
        generator = torch.Generator().manual_seed(0)
        train, test = (
            rows[torch.randperm(len(rows), generator=generator)[: recipe.rows]] for rows in (train, test)
        )
    return train, test


def build_tokenizer(train: PixelRows) -> PreTrainedTokenizerBase:
    """Pieces of the words of all texts."""
    assert train.texts is not None
    return train_bert_tokenizer([text for texts in train.texts for text in texts], WORDS, PROMPT_LENGTH)


def with_texts(rows: PixelRows, tokenizer: PreTrainedTokenizerBase | None = None) -> PixelRows:
    """The same pictures with texts: their own that are short enough, or the names of their classes."""
    texts = rows.texts
    if texts is None:
        if rows.labels is None:
            raise ValueError("`condition`='text' needs texts or classes, and the data set has neither.")
        texts = tuple((rows.class_names[label],) for label in rows.labels.tolist())
    if tokenizer is not None:
        quiet = {"add_special_tokens": False, "verbose": False}
        lengths = [tokenizer(list(some), **quiet)["input_ids"] for some in texts]
        texts = tuple(
            tuple(text for text, ids in zip(some, found, strict=True) if len(ids) <= PROMPT_LENGTH) or some
            for some, found in zip(texts, lengths, strict=True)
        )
    return PixelRows(rows.pixels, rows.labels, rows.class_names, texts)


def build_pipeline(
    recipe: Recipe, vqvae: Any, train: PixelRows, code_size: tuple[int, int]
) -> VQAutoregressivePipeline | VQMaskedPipeline:
    """A model that has learnt nothing yet, and all that it needs to make pictures."""
    words = build_tokenizer(train) if recipe.condition == "text" else None
    classes = dict(enumerate(train.class_names)) if recipe.condition == "class" else {}
    if recipe.condition == "class" and not classes:
        raise ValueError(f"`condition`='class' needs classes, which {recipe.dataset!r} does not have.")
    length = 1 if words is None else PROMPT_LENGTH
    vocabulary = CodeVocabulary(
        codebook_size(vqvae), len(classes), 0 if words is None else len(words), length
    )
    sizes = {"max_position_embeddings": length + code_size[0] * code_size[1], **SMALL}
    transformer: Any
    if recipe.decoding == "raster":
        no_ends: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}
        config = LlamaConfig(
            vocab_size=vocabulary.size,
            attention_dropout=DROPOUT.get(recipe.dataset, 0.0),
            tie_word_embeddings=False,
            **no_ends,
            **sizes,
        )
        transformer = LlamaForCausalLM(config)
    else:
        transformer = BertForMaskedLM(BertConfig(vocab_size=vocabulary.size + 1, pad_token_id=None, **sizes))
    pipeline_class = VQAutoregressivePipeline if recipe.decoding == "raster" else VQMaskedPipeline
    return pipeline_class(vqvae, transformer, words, classes, *code_size, prompt_length=length)


def measure(
    recipe: Recipe, pipe: Any, args: TrainingArguments, train: ImageCodes, test: CodeRows, objective: Any
) -> dict[str, float]:
    """What the model expects of held-out codes, always the same views and texts of them."""
    collator = CodeCollator(pipe.vocabulary, recipe.condition, pipe.tokenizer, draw=False)
    batches = DataLoader(test, args.per_device_eval_batch_size, collate_fn=collator)
    config = pipe.vqvae.config
    baseline = frequency_nats(train[:], test.codes[:], pipe.vocabulary.num_codes)
    results = {"frequency_nats_per_code": baseline}
    if recipe.decoding == "raster":
        return results | code_likelihood(pipe, batches, config.in_channels * config.sample_size**2)
    torch.manual_seed(0)  # the same masks each time
    device = pipe.transformer.device
    with torch.no_grad():
        found = [
            objective.loss({name: value.to(device) for name, value in batch.items()}, "transformer")[1]
            for batch in batches
        ]
    return results | {
        "masked_nats_per_code": float(torch.stack([one["masked_nats"] for one in found]).mean())
    }


def draw_grid(recipe: Recipe, pipe: Any, folder: Path, seed: int) -> None:
    """A page of samples: a row for each class or prompt."""
    pipe.set_progress_bar_config(disable=True)
    if recipe.condition == "class":
        asked, names = {"class_labels": list(range(len(pipe.classes)))}, pipe.classes
    else:
        names = list(PROMPTS) if recipe.condition == "text" else [""]
        asked = {"prompt": names} if recipe.condition == "text" else {}
    drawn = pipe(**asked, num_images_per_prompt=COLUMNS, guidance_scale=GUIDANCE_SCALE, seed=seed).images
    sample_grid(drawn, COLUMNS, row_labels=names).save(folder / "grid.png")


def samples_like(recipe: Recipe, pipe: Any, rows: PixelRows, seed: int) -> Tensor:
    """As many pictures (N, C, H, W) in [-1, 1] as there are rows, of the same classes or texts."""
    pipe.set_progress_bar_config(disable=True)
    drawn = []
    for start in range(0, len(rows), AT_ONCE):
        part = rows[start : start + AT_ONCE]
        asked: dict[str, Any] = {"num_images_per_prompt": len(part)}
        if recipe.condition == "class":
            asked = {"class_labels": part.labels}
        elif recipe.condition == "text":
            assert part.texts is not None
            asked = {"prompt": [texts[0] for texts in part.texts]}
        options = {"guidance_scale": GUIDANCE_SCALE, "seed": seed + start, "output_type": "pt"}
        drawn.append(pipe(**asked, **options).images.float().cpu() * 2 - 1)
    return torch.cat(drawn)


def report(
    recipe: Recipe, pipe: Any, train: PixelRows, test: PixelRows, net: FeatureNet, seed: int
) -> dict[str, Any]:
    """As many pictures as the test split has, compared with it."""
    labels: dict[str, Any] = {}
    if recipe.condition == "class" and net(test.pixels[:1]).logits is not None:
        labels = {"labels": test.labels, "test_labels": test.labels}
    drawn = samples_like(recipe, pipe, test, seed)
    return generation_report(drawn, test=test.pixel_values(), train=train.pixel_values(), net=net, **labels)


def main(recipe: Recipe, args: TrainingArguments) -> dict[str, Any]:
    """Encode, train, measure, draw, save; returns what was measured."""
    for name, value, known in (
        ("condition", recipe.condition, ("class", "text", "none")),
        ("decoding", recipe.decoding, ("raster", "masked")),
        ("views", recipe.views, tuple(VIEWS)),
    ):
        if value not in known:
            raise ValueError(f"`{name}`={value!r} is none of {', '.join(map(str, known))}.")
    set_seed(args.seed)
    vqvae = load_autoencoder(recipe.tokenizer, codes=True).to(args.device)
    train, test = load_rows(recipe, vqvae)
    if recipe.condition == "text":
        train, test = with_texts(train), with_texts(test)
    folder = Path(args.output_dir)
    home = Path(recipe.codes_folder) if recipe.codes_folder else folder / "codes"
    views = picture_views(*VIEWS[recipe.views])
    learnt = extract_codes(vqvae, train, home / "train", views, progress=not args.disable_tqdm)
    unseen = extract_codes(vqvae, test, home / "test", progress=not args.disable_tqdm)
    pipe = build_pipeline(recipe, vqvae, train, learnt.code_size)
    if recipe.condition == "text":
        train, test = with_texts(train, pipe.tokenizer), with_texts(test, pipe.tokenizer)
    objective_class: Any = AutoregressiveObjective if recipe.decoding == "raster" else MaskedCodesObjective
    prompts = PROMPTS if recipe.condition == "text" else ()
    objective = objective_class(pipe, CONDITION_DROPOUT, prompts)
    net = None if recipe.net is None else feature_net(recipe.net)
    trainer = PhasedTrainer(
        objective,
        args,
        CodeRows(learnt, train),
        CodeCollator(pipe.vocabulary, recipe.condition, pipe.tokenizer, seed=args.seed),
        ema_decay=EMA_DECAY,
        measure=running_measure(
            recipe.measure_steps,
            net,
            test.pixels,
            train.pixels,
            MEASURED,
            lambda pipe, rows: samples_like(recipe, pipe, test[rows], args.seed),
            args.seed,
        ),
        measure_steps=recipe.measure_steps,
        card=GeneratorCard(folder.name, dataset=recipe.dataset),
    )
    trained = trainer.train()
    weights = sum(weight.numel() for weight in pipe.transformer.parameters())
    results: dict[str, Any] = {"train_seconds": trained["train_seconds"], "steps": trainer.state.global_step}
    with trainer.averages_applied():
        pipe = objective.pipeline()
        results |= measure(recipe, pipe, args, learnt, CodeRows(unseen, test), objective)
        draw_grid(recipe, pipe, folder, args.seed)
        if net is not None:
            results["report"] = report(recipe, pipe, train, test, net, args.seed)
    metrics = {name: value for name, value in results.items() if "_per_" in name}
    results |= {"weights": weights, "pictures": len(train), "held_out_pictures": len(test), "seed": args.seed}
    results |= {name: getattr(recipe, name) for name in ("dataset", "condition", "decoding")}
    results["environment"] = environment()
    write_results(folder / "results.json", results)
    trainer.save_model(metrics=metrics)
    return results


def run(argv: Sequence[str] | None = None) -> int:
    """Parse flags, run `main`, print the result; returns the exit status."""
    flags = {"prog": "hf-mm train autoregressive", "allow_abbrev": False}  # a typo is no abbreviation
    parser = HfArgumentParser((Recipe, TrainingArguments), **flags)
    parser.set_defaults(**DEFAULTS)
    parser.set_defaults(**PRESETS.get(parser.parse_known_args(argv)[0].dataset, {}))
    results = main(*parser.parse_args_into_dataclasses(argv))
    numbers = {name: value for name, value in results.items() if isinstance(value, float)}
    print(markdown_table([{"measure": name, "value": value} for name, value in numbers.items()]))
    if "report" in results:
        print(generation_table(results["report"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(run())
