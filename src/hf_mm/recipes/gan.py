"""Train a GAN on small pictures, by class or by text, from nothing, on a CPU.

    hf-mm train gan --output_dir out/digits
    hf-mm train gan --dataset fashion-mnist --output_dir out/clothes --net out/vit-fashion
    hf-mm train gan --dataset openmoji --data_folder package --output_dir out/emoji

`--dataset` is `digits`, `fashion-mnist`, `openmoji`, a folder or a Hub id with the splits train and test.
Written to the output folder: a pipeline that `DiffusionPipeline.from_pretrained` opens, `previews` of the
same noise every few steps, `grid.png` with a row for each class or text, `film.png` with ways between
pictures, and `results.json`; with `--net` also the distances to the test split in the features of that net,
see `feature_net`, and with `--measure_steps` also `measures.jsonl`, how the distance fell with the seconds of
training. Any flag of `transformers.TrainingArguments` works.

A step of 32 pictures of 32 px takes a quarter of a second on one CPU core, most of it for the penalties on
the discriminator's gradients.

Huang et al. 2024, "The GAN is dead; long live the GAN! A Modern GAN Baseline"
(https://arxiv.org/abs/2501.05441).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import HfArgumentParser, PreTrainedTokenizerBase, TrainingArguments, set_seed

from hf_mm import (
    FeatureNet,
    GANObjective,
    GANPipeline,
    GeneratorCard,
    MMGANDiscriminator,
    MMGANGenerator,
    PhasedTrainer,
    PixelCollator,
    PixelRows,
    atomic_write,
    environment,
    feature_net,
    film_strip,
    generation_report,
    generation_rows,
    generation_table,
    running_measure,
    sample_grid,
    train_word_tokenizer,
    write_results,
)

__all__ = ["DEFAULTS", "PRESETS", "Recipe", "main", "run"]


@dataclass
class Recipe:
    """What this script decides; everything else is `TrainingArguments`."""

    dataset: str = field(
        default="digits", metadata={"help": "digits, fashion-mnist, openmoji, a folder or a Hub id."}
    )
    data_folder: str | None = field(
        default=None, metadata={"help": "Files of Fashion-MNIST, or the unpacked package of OpenMoji."}
    )
    image_size: int | None = field(default=None, metadata={"help": "In px; by default that of the data set."})
    condition: str = field(default="class", metadata={"help": "class, text or none."})
    adversarial_loss: str = field(
        default="relativistic", metadata={"help": "relativistic, non_saturating or hinge."}
    )
    gamma: float = field(default=1.0, metadata={"help": "Half of it is the weight of the penalties."})
    gamma_end: float | None = field(default=0.1, metadata={"help": "To which it falls along half a cosine."})
    rows: int | None = field(
        default=None, metadata={"help": "Pictures to learn from, and to be measured on; by default all."}
    )
    net: str | None = field(
        default=None, metadata={"help": "Features to measure in: efficientnet-lite0, inception, a folder."}
    )
    measure_steps: int = field(
        default=0, metadata={"help": "Also measure every so many steps of training, into measures.jsonl."}
    )


# The numbers of the recipe, in one place; a flag of the same name overrides each.
DEFAULTS: dict[str, Any] = {
    "max_steps": 6000,
    "per_device_train_batch_size": 32,
    "learning_rate": 1e-3,
    "adam_beta1": 0.0,  # no momentum: the other player moves too
    "adam_beta2": 0.99,
    "weight_decay": 0.0,
    "max_grad_norm": 0.0,
    "warmup_steps": 0.02,  # below 1: the share of all steps
    "lr_scheduler_type": "cosine",
    "logging_steps": 50,
    "save_steps": 1000,
    "save_total_limit": 1,
    "report_to": "none",
}
PRESETS: dict[str, dict[str, Any]] = {
    "digits": {"max_steps": 1500, "gamma": 0.3, "gamma_end": None, "save_steps": 500},
    "openmoji": {"condition": "text"},
}
# Channels of the stages, the finest first, and pixels that the finest sees as one.
WIDTHS, WIDEST = (32, 64), 128
PATCHED_FROM_PX = 24
SMALLEST_STAGE_PX = 8  # a stage below is not halved again
VIEWS: dict[str, dict[str, Any]] = {"openmoji": {"flip": True}}
EMA_DECAY = 0.995
PREVIEWS = 20  # of a run
MEASURED = 2000  # pictures at a time during a run
WORDS = 2000
COLUMNS = 10  # of the pages
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


def sizes_of(image_size: int) -> dict[str, Any]:
    """Sizes of both nets for pictures of so many pixels a side."""
    patch = 2 if image_size >= PATCHED_FROM_PX and image_size % 2 == 0 else 1
    base, widths = image_size // patch, [WIDTHS[0]]
    while base % 2 == 0 and base >= SMALLEST_STAGE_PX:
        base //= 2
        widths.append(WIDTHS[len(widths)] if len(widths) < len(WIDTHS) else WIDEST)
    return {
        "sample_size": image_size,
        "base_size": base,
        "patch_size": patch,
        "block_out_channels": tuple(reversed(widths)),
        "layers_per_block": (1,) * len(widths),
    }


def build_objective(recipe: Recipe, train: PixelRows) -> GANObjective:
    """Both nets, which have learnt nothing yet, and what they learn by.

    Raises:
        ValueError: The pictures have no classes, or no texts, to be asked by.
    """
    conditions: dict[str, Any] = {}
    names: dict[str, Any] = {}
    words: PreTrainedTokenizerBase | None = None
    if recipe.condition == "class":
        if not train.class_names:
            raise ValueError(f"`condition`='class' needs classes, which {recipe.dataset!r} does not have.")
        conditions, names = {"num_classes": len(train.class_names)}, {"class_names": train.class_names}
    elif recipe.condition == "text":
        if train.texts is None:
            raise ValueError(f"`condition`='text' needs texts, which {recipe.dataset!r} does not have.")
        words = train_word_tokenizer([text for texts in train.texts for text in texts], WORDS)
        conditions = {"vocab_size": len(words)}
    elif recipe.condition != "none":
        raise ValueError(f"`condition`={recipe.condition!r} is none of class, text, none.")
    sizes = sizes_of(train.image_size) | conditions
    return GANObjective(
        MMGANGenerator(out_channels=train.channels, **sizes, **names),
        MMGANDiscriminator(in_channels=train.channels, **sizes),
        recipe.adversarial_loss,
        gamma=recipe.gamma,
        gamma_end=recipe.gamma_end,
        gamma_steps=1,  # set when the steps of the run are known
        tokenizer=words,
        preview_prompts=PROMPTS,
    )


def draw(pipe: GANPipeline, folder: Path, seed: int) -> None:
    """A page of samples, a row for each class or text, and one of films."""
    names, asked = [""], {}
    if pipe.tokenizer is not None:
        names = list(PROMPTS)
        asked = {"prompt": names}
    elif pipe.generator.config["num_classes"] is not None:
        names = list(pipe.generator.config["class_names"])
        asked = {"class_labels": list(range(len(names)))}
    rows = COLUMNS if len(names) == 1 else 1
    count = rows * COLUMNS
    drawn = pipe(**asked, num_images_per_prompt=count, seed=seed).images
    pages = {"grid": sample_grid(drawn, COLUMNS, row_labels=[n for n in names for _ in range(rows)])}
    films = [
        pipe.interpolate((seed, seed + 1), COLUMNS - 1, **{name: values[n] for name, values in asked.items()})
        for n in range(len(names))
    ]
    pages["film"] = film_strip([film.images for film in films], labels=names)
    for name, page in pages.items():
        with atomic_write(folder / f"{name}.png") as temporary:
            page.save(temporary)


def samples_like(pipe: GANPipeline, rows: PixelRows, seed: int) -> Tensor:
    """As many pictures (N, C, H, W) in [-1, 1] as there are rows, of the same classes or texts."""
    asked: dict[str, Any] = {"num_images_per_prompt": len(rows)}
    if pipe.tokenizer is not None:
        assert rows.texts is not None
        asked = {"prompt": [texts[0] for texts in rows.texts]}
    elif pipe.generator.config["num_classes"] is not None:
        assert rows.labels is not None
        asked = {"class_labels": rows.labels.tolist()}
    pipe.set_progress_bar_config(disable=True)
    samples = pipe(**asked, seed=seed, chunk_size=64, output_type="pt").images * 2 - 1
    return samples.float().cpu()


def measure(
    pipe: GANPipeline, train: PixelRows, test: PixelRows, net: FeatureNet, seed: int
) -> dict[str, Any]:
    """As many pictures as the test split has, compared with it."""
    labels: dict[str, Any] = {}
    if pipe.generator.config["num_classes"] is not None and net(test.pixels[:1]).logits is not None:
        labels = {"labels": test.labels, "test_labels": test.labels}
    samples = samples_like(pipe, test, seed)
    return generation_report(samples, test=test.pixel_values(), train=train.pixel_values(), net=net, **labels)


def main(recipe: Recipe, args: TrainingArguments) -> dict[str, Any]:
    """Train, draw, measure, save; returns the results."""
    set_seed(args.seed)
    train, test = (
        generation_rows(recipe.dataset, split, recipe.image_size, recipe.data_folder)[: recipe.rows]
        for split in ("train", "test")
    )
    folder = Path(str(args.output_dir))
    objective = build_objective(recipe, train)
    net = None if recipe.net is None else feature_net(recipe.net)
    trainer = PhasedTrainer(
        objective,
        args,
        train,
        PixelCollator(**VIEWS.get(recipe.dataset, {}), seed=args.seed, tokenizer=objective.tokenizer),
        ema_decay=EMA_DECAY,
        measure=running_measure(
            recipe.measure_steps,
            net,
            test.pixels,
            train.pixels,
            MEASURED,
            lambda pipe, rows: samples_like(pipe, test[rows], args.seed),
            args.seed,
        ),
        measure_steps=recipe.measure_steps,
        card=GeneratorCard(folder.name, f"A GAN of {recipe.dataset}, asked by {recipe.condition}."),
    )
    objective.gamma_steps = trainer.max_steps
    trainer.preview_steps = max(trainer.max_steps // PREVIEWS, 1)
    trained = trainer.train()
    results: dict[str, Any] = {name: getattr(recipe, name) for name in ("dataset", "condition", "gamma")}
    results |= {"adversarial_loss": recipe.adversarial_loss, "seed": args.seed, "train_rows": len(train)}
    results |= {"steps": trainer.state.global_step, "train_seconds": trained["train_seconds"]}
    results |= {"images_per_second": trained["train_images_per_second"]}
    for part in ("generator", "discriminator"):
        weights = objective.get_submodule(part).parameters()
        results[f"{part}_weights"] = sum(weight.numel() for weight in weights)
    measured: dict[str, float] = {}
    with trainer.averages_applied():
        pipe = objective.pipeline()
        pipe.set_progress_bar_config(disable=True)
        draw(pipe, folder, args.seed)
        if net is not None:
            results["report"] = measure(pipe, train, test, net, args.seed)
            found = results["report"]["measures"].items()
            measured = {f"{name} ({recipe.net})": entry["value"] for name, entry in found}
    results["environment"] = environment()
    write_results(folder / "results.json", results)
    trainer.save_model(metrics=measured)
    return results


def run(argv: Sequence[str] | None = None) -> int:
    """Parse flags, run `main`, print the result; returns the exit status."""
    flags = {"prog": "hf-mm train gan", "allow_abbrev": False}  # a typo is no abbreviation
    parser = HfArgumentParser((Recipe, TrainingArguments), **flags)
    parser.set_defaults(**DEFAULTS)
    parser.set_defaults(**PRESETS.get(parser.parse_known_args(argv)[0].dataset, {}))
    results = main(*parser.parse_args_into_dataclasses(argv))
    print(f"{results['steps']} steps in {results['train_seconds']:.0f} s")
    if "report" in results:
        print(generation_table(results["report"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(run())
