"""Train a small diffusion or flow model of pictures, in pixels or in latents, from nothing, on a CPU.

    hf-mm train diffusion --system flow-unet --output_dir out/digits
    hf-mm train diffusion --system ddpm --dataset fashion-mnist --output_dir out/ddpm --bf16 --use_cpu
    hf-mm train autoencoder --model vae --downscale 4 --dataset fashion-mnist --output_dir out/vae
    hf-mm train diffusion --system latent-flow --vae out/vae --dataset fashion-mnist --output_dir out/latent

`--system` is `ddpm` (a UNet that finds the noise), `flow-unet` (a UNet that finds the velocity), `flow-dit`
(a transformer), `latent-flow` (a transformer on the latents of `--vae`, which are made once and kept in
`output_dir`/latents) or `mean-flow` (a transformer that draws in one or two steps; in latents with `--vae`).
`--dataset` is `digits`, `fashion-mnist`, `openmoji`, `easy-vqa`, a folder or a Hub id with the splits train
and test; pictures are asked for by their classes, if they have any. Any flag of
`transformers.TrainingArguments` works; `--bf16 --use_cpu` pays on processors that compute in bfloat16.

Written to the output folder: a pipeline that `DiffusionPipeline.from_pretrained` opens, `previews` of the
same noise every few steps, `grid.png` with a row for each class, `strip.png` with the ways from noise to
picture, and `results.json`; with `--net` also the distances to the test split in the features of that net,
see `feature_net`, and with `--measure_steps` also `measures.jsonl`, how the distance fell with the seconds of
training.

Ho et al. 2020, "Denoising Diffusion Probabilistic Models" (https://arxiv.org/abs/2006.11239); Lipman et al.
2023, "Flow Matching for Generative Modeling" (https://arxiv.org/abs/2210.02747); Peebles and Xie 2023,
"Scalable Diffusion Models with Transformers" (https://arxiv.org/abs/2212.09748); Rombach et al. 2022,
"High-Resolution Image Synthesis with Latent Diffusion Models" (https://arxiv.org/abs/2112.10752).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from torch import Tensor
from transformers import HfArgumentParser, TrainingArguments, set_seed

from hf_mm import (
    DiffusionObjective,
    FeatureNet,
    GeneratorCard,
    ImageDiffusionPipeline,
    LatentCollator,
    LatentRows,
    MeanFlowObjective,
    MMDiTModel,
    PhasedTrainer,
    PixelCollator,
    PixelRows,
    atomic_write,
    denoising_strip,
    environment,
    extract_latents,
    feature_net,
    generation_report,
    generation_rows,
    generation_table,
    load_autoencoder,
    picture_views,
    record_denoising,
    running_measure,
    sample_grid,
    write_results,
)
from hf_mm.generators.diffusion.image_inputs import downscale_of, patch_size_of

__all__ = ["DEFAULTS", "PRESETS", "SYSTEMS", "Recipe", "main", "run"]


@dataclass
class Recipe:
    """What this script decides; everything else is `TrainingArguments`."""

    system: str = field(
        default="flow-unet", metadata={"help": "ddpm, flow-unet, flow-dit, latent-flow or mean-flow."}
    )
    dataset: str = field(
        default="digits",
        metadata={"help": "digits, fashion-mnist, openmoji, easy-vqa, a folder or a Hub id."},
    )
    data_folder: str | None = field(
        default=None, metadata={"help": "Files of Fashion-MNIST, or the unpacked package of OpenMoji."}
    )
    image_size: int | None = field(default=None, metadata={"help": "In px; by default that of the data set."})
    vae: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of an autoencoder, or of its pipeline."}
    )
    inference_steps: int | None = field(
        default=None, metadata={"help": "Steps of what is drawn and measured; 20, of mean-flow 2."}
    )
    guidance_scale: float = field(
        default=1.5, metadata={"help": "Of what is drawn, or learnt by mean-flow; 1 is none."}
    )
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
    "max_steps": 2400,
    "per_device_train_batch_size": 64,
    "learning_rate": 1e-3,
    "adam_beta2": 0.99,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "warmup_steps": 0.05,  # below 1: the share of all steps
    "lr_scheduler_type": "cosine",
    "logging_steps": 50,
    "save_steps": 1000,
    "save_total_limit": 1,
    "report_to": "none",
}
PRESETS: dict[str, dict[str, Any]] = {"digits": {"max_steps": 1500, "save_steps": 500}}
# What learns what, and in how many steps: a step of a transformer takes longer.
SYSTEMS: dict[str, dict[str, Any]] = {
    "ddpm": {"denoiser": "unet", "prediction_type": "epsilon"},
    "flow-unet": {"denoiser": "unet", "prediction_type": "flow_velocity"},
    "flow-dit": {"denoiser": "dit", "prediction_type": "flow_velocity", "max_steps": 1600},
    "latent-flow": {"denoiser": "dit", "prediction_type": "flow_velocity", "max_steps": 3000},
    "mean-flow": {"denoiser": "dit", "prediction_type": "mean_flow", "max_steps": 1900},
}
TIMES, BETAS = "logit_normal", "squaredcos_cap_v2"  # of flows; of noise schedules
# Where noise is nearly all, the noise that a net finds says little of the picture. Drawing begins there
# nonetheless: fresh noise in each step washes out the speckles that DDIM would keep.
SPACING = "trailing"
# Channels of a UNet where a picture has at least so many pixels a side; attention where it has few.
WIDTHS = {24: 16, 12: 32, 0: 64}
LEAST_STAGE_PX = 4  # a stage of so many is not halved again
ATTENTION_PX = 8
GROUPS, HEAD_WIDTH = 8, 16
DIT: dict[str, Any] = {"num_layers": 6, "num_heads": 4}
PIXEL_WIDTH, LATENT_WIDTH = 192, 256  # of a transformer, the second for fewer tokens
PATCHES = {"pixels": (4, 8, 2), "latents": (3, 4, 1)}  # a side at least and most, and the least patch
VIEWS: dict[str, dict[str, Any]] = {"openmoji": {"flip": True}}
CONDITION_DROPOUT = 0.1
EMA_DECAY = 0.995
INFERENCE_STEPS = (20, 2)  # the second of mean-flow
PREVIEWS = 8  # of a run
MEASURED = 2000  # pictures at a time during a run
AT_ONCE = 32  # pictures that are drawn together; what leaves the caches of a core takes twice the time
COLUMNS = 10  # of the pages


def load_vae(recipe: Recipe) -> Any:
    """The autoencoder whose latents are learnt, if any.

    Raises:
        FileNotFoundError: There is none in the folder.
        ValueError: It is missing, pixels are learnt, or its latents are no maps.
    """
    if (recipe.system == "latent-flow") != (recipe.vae is not None) and recipe.system != "mean-flow":
        raise ValueError(
            f"`system`={recipe.system!r} learns pixels; leave `vae` out, or take latent-flow."
            if recipe.vae
            else "`system`='latent-flow' needs `vae`; train one by `hf-mm train autoencoder --model vae "
            "--downscale 4`."
        )
    if recipe.vae is None:
        return None
    vae = load_autoencoder(recipe.vae)
    if vae.config.sample_size // downscale_of(vae) < 2:
        raise ValueError(
            f"`vae`={recipe.vae!r} makes one vector of a picture, and a denoiser needs a map; train it with "
            "`--downscale 4`."
        )
    return vae


def load_rows(recipe: Recipe, vae: Any) -> tuple[PixelRows, PixelRows]:
    """Pictures to learn from and held-out ones, of the size that the autoencoder was trained on."""
    options: dict[str, Any] = {"image_size": recipe.image_size, "folder": recipe.data_folder}
    if vae is not None:
        options |= {"image_size": vae.config.sample_size, "channels": vae.config.in_channels}
    train, test = (
        generation_rows(recipe.dataset, split, **options)[: recipe.rows] for split in ("train", "test")
    )
    return train, test


def learnt_rows(
    recipe: Recipe, args: TrainingArguments, vae: Any, train: PixelRows
) -> tuple[PixelRows | LatentRows, PixelCollator | LatentCollator, tuple[int, int, int]]:
    """What the denoiser is trained on, how it is put into batches, and its channels, height and width."""
    views = VIEWS.get(recipe.dataset, {})
    if vae is None:
        return train, PixelCollator(**views, seed=args.seed), tuple(train.pixels.shape[1:])
    folder = Path(str(args.output_dir)) / "latents"
    options = {"dtype": "float16", "progress": not args.disable_tqdm}
    latents = extract_latents(vae.to(args.device), train, folder, picture_views(**views), **options)
    return LatentRows(latents, train), LatentCollator(seed=args.seed), latents.latent_size


def build_unet(channels: int, size: int, classes: int | None) -> UNet2DModel:
    """A UNet whose stages are halved down to some pixels; the coarse ones are wide."""
    sides = [size]
    while sides[-1] % 2 == 0 and sides[-1] > LEAST_STAGE_PX:
        sides.append(sides[-1] // 2)
    attends = [LEAST_STAGE_PX < side <= ATTENTION_PX for side in sides]
    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(
            next(width for least, width in WIDTHS.items() if side >= least) for side in sides
        ),
        down_block_types=tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attends),
        up_block_types=tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)),
        layers_per_block=1,
        norm_num_groups=GROUPS,
        attention_head_dim=HEAD_WIDTH,
        num_class_embeds=None if classes is None else classes + 1,
    )


def build_dit(channels: int, size: int, classes: int | None, latent: bool, **options: Any) -> MMDiTModel:
    """A transformer of few patches."""
    return MMDiTModel(
        sample_size=size,
        in_channels=channels,
        patch_size=patch_size_of(size, *PATCHES["latents" if latent else "pixels"]),
        hidden_size=LATENT_WIDTH if latent else PIXEL_WIDTH,
        num_classes=classes,
        **DIT,
        **options,
    )


def build_objective(
    recipe: Recipe, shape: tuple[int, int, int], train: PixelRows, vae: Any
) -> DiffusionObjective:
    """A denoiser that has learnt nothing yet, and what it learns by."""
    system = SYSTEMS[recipe.system]
    names = dict(enumerate(train.class_names)) or None
    sizes = (shape[0], shape[-1], None if names is None else len(names))
    options: dict[str, Any] = {
        "vae": vae,
        "condition_dropout": 0.0 if names is None else CONDITION_DROPOUT,
        "id2label": names,
        "preview_steps": steps_of(recipe),
    }
    latent, kind = vae is not None, system["prediction_type"]
    if kind == "mean_flow":  # learns its guidance
        options["guidance_scale"] = recipe.guidance_scale if names else 1.0
        return MeanFlowObjective(build_dit(*sizes, latent, second_time=True), **options)
    options["preview_guidance"] = guidance_of(recipe, names)
    denoiser = build_unet(*sizes) if system["denoiser"] == "unet" else build_dit(*sizes, latent)
    if kind == "epsilon":
        scheduler = DDPMScheduler(beta_schedule=BETAS, timestep_spacing=SPACING)
        return DiffusionObjective(denoiser, scheduler, kind, **options)
    return DiffusionObjective(denoiser, FlowMatchEulerDiscreteScheduler(), kind, times=TIMES, **options)


def steps_of(recipe: Recipe) -> int:
    """Steps of drawing."""
    return recipe.inference_steps or INFERENCE_STEPS[recipe.system == "mean-flow"]


def guidance_of(recipe: Recipe, classes: object) -> float:
    """Guidance of drawing: none without classes, or where it was learnt."""
    return recipe.guidance_scale if classes and recipe.system != "mean-flow" else 1.0


def samples_like(recipe: Recipe, pipe: ImageDiffusionPipeline, rows: PixelRows, seed: int) -> Tensor:
    """As many pictures (N, C, H, W) in [-1, 1] as there are rows, of the same classes."""
    asked: dict[str, Any] = {"num_images_per_prompt": len(rows)}
    if pipe.classes:
        assert rows.labels is not None
        asked = {"class_labels": rows.labels.tolist()}
    options = {"num_inference_steps": steps_of(recipe), "guidance_scale": guidance_of(recipe, pipe.classes)}
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe(**asked, **options, seed=seed, chunk_size=AT_ONCE, output_type="pt").images
    return drawn.float().cpu() * 2 - 1


def draw(recipe: Recipe, pipe: ImageDiffusionPipeline, folder: Path, seed: int) -> None:
    """A page of samples, a row for each class, and one of the ways from noise to the first of them."""
    names = pipe.classes or [""]
    count = COLUMNS if pipe.classes else COLUMNS**2
    asked = {"class_labels": list(range(len(names)))} if pipe.classes else {}
    options = {"num_inference_steps": steps_of(recipe), "guidance_scale": guidance_of(recipe, pipe.classes)}
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe(**asked, **options, num_images_per_prompt=count, seed=seed, chunk_size=AT_ONCE).images
    rows = len(drawn) // COLUMNS
    pages = {"grid": sample_grid(drawn, COLUMNS, row_labels=names if pipe.classes else [""] * rows)}
    film = record_denoising(pipe, **asked, **options, seed=seed)
    labels = names if pipe.classes else None
    pages["strip"] = denoising_strip(pipe, film, COLUMNS - 1, "noisy", labels)
    for name, page in pages.items():
        with atomic_write(folder / f"{name}.png") as temporary:
            page.save(temporary)


def measure(
    recipe: Recipe,
    pipe: ImageDiffusionPipeline,
    train: PixelRows,
    test: PixelRows,
    net: FeatureNet,
    seed: int,
) -> dict[str, Any]:
    """As many pictures as the test split has, of the same classes, compared with it."""
    labels: dict[str, Any] = {}
    if pipe.classes and net(test.pixels[:1]).logits is not None:
        labels = {"labels": test.labels, "test_labels": test.labels}
    begun = time.perf_counter()
    samples = samples_like(recipe, pipe, test, seed)
    seconds = time.perf_counter() - begun
    report = generation_report(
        samples, test=test.pixel_values(), train=train.pixel_values(), net=net, **labels
    )
    return {"report": report, "drawing_seconds": round(seconds, 1)}


def main(recipe: Recipe, args: TrainingArguments) -> dict[str, Any]:
    """Encode where there is an autoencoder, train, draw, measure, save; returns the results."""
    if recipe.system not in SYSTEMS:
        raise ValueError(f"`system`={recipe.system!r} is none of {', '.join(SYSTEMS)}.")
    set_seed(args.seed)
    vae = load_vae(recipe)
    train, test = load_rows(recipe, vae)
    folder = Path(str(args.output_dir))
    begun = time.perf_counter()
    learnt, collator, shape = learnt_rows(recipe, args, vae, train)
    encoding_seconds = time.perf_counter() - begun
    objective = build_objective(recipe, shape, train, vae)
    net = None if recipe.net is None else feature_net(recipe.net)
    trainer = PhasedTrainer(
        objective,
        args,
        learnt,
        collator,
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
        card=GeneratorCard(folder.name, f"{recipe.system} of {recipe.dataset}.", recipe.dataset),
    )
    trainer.preview_steps = max(trainer.max_steps // PREVIEWS, 1)
    trained = trainer.train()
    results: dict[str, Any] = {"system": recipe.system, "dataset": recipe.dataset, "seed": args.seed}
    results |= {"steps": trainer.state.global_step, "train_seconds": trained["train_seconds"]}
    results |= {"images_per_second": trained["train_images_per_second"], "train_rows": len(train)}
    results |= {"encoding_seconds": round(encoding_seconds, 1)} if vae is not None else {}
    results["weights"] = sum(weight.numel() for weight in objective.denoiser.parameters())
    results |= {"inference_steps": steps_of(recipe)}
    results["guidance_scale"] = recipe.guidance_scale if train.class_names else 1.0
    measured: dict[str, float] = {}
    with trainer.averages_applied():
        pipe = objective.pipeline()
        draw(recipe, pipe, folder, args.seed)
        if net is not None:
            results |= measure(recipe, pipe, train, test, net, args.seed)
            found = results["report"]["measures"].items()
            measured = {f"{name} ({recipe.net})": entry["value"] for name, entry in found}
    results["environment"] = environment()
    write_results(folder / "results.json", results)
    trainer.save_model(metrics=measured)
    return results


def run(argv: Sequence[str] | None = None) -> int:
    """Parse flags, run `main`, print the result; returns the exit status."""
    flags = {"prog": "hf-mm train diffusion", "allow_abbrev": False}  # a typo is no abbreviation
    parser = HfArgumentParser((Recipe, TrainingArguments), **flags)
    parser.set_defaults(**DEFAULTS)
    known = parser.parse_known_args(argv)[0]
    steps = SYSTEMS.get(known.system, {}).get("max_steps", DEFAULTS["max_steps"])
    parser.set_defaults(**{"max_steps": steps} | PRESETS.get(known.dataset, {}))
    results = main(*parser.parse_args_into_dataclasses(argv))
    print(f"{results['steps']} steps in {results['train_seconds']:.0f} s")
    if "report" in results:
        print(generation_table(results["report"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(run())
