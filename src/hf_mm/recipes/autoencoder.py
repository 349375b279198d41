"""Train an autoencoder of small pictures: a VAE, one with a codebook, or a VQGAN, from nothing, on a CPU.

    hf-mm train autoencoder --model vae --dataset fashion-mnist --output_dir out/vae
    hf-mm train autoencoder --model vq --dataset fashion-mnist --output_dir out/vq

`--model` is `vae` (diffusers' AutoencoderKL; the latents of a whole picture are one vector, so that the prior
can be sampled; `--downscale 4` gives a map for latent diffusion), `vq` (a codebook of moving averages), `fsq`
(rounded numbers), `vqgan` (vq with a perceptual term and a discriminator), `vq-plain` (a codebook that learns
by gradients) or `diffusers-vq` (the library's own VQModel, trained the same way). `--dataset` is `digits`,
`fashion-mnist`, `openmoji`, `easy-vqa`, a folder or a Hub id with the splits train and test. Any flag of
`transformers.TrainingArguments` works.

Written beside the pipeline: `results.json` with the errors on the test split, `reconstructions.png` with
originals above their reconstructions, and for a VAE `prior.png` with pictures drawn from the prior and
`between.png` with the ways from one test picture to another.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModel, HfArgumentParser, TrainingArguments, set_seed

from hf_mm import (
    AutoencoderObjective,
    AutoencoderPipeline,
    MMPatchDiscriminator,
    MMVQAutoencoder,
    PerceptualLoss,
    PhasedTrainer,
    PixelCollator,
    PixelRows,
    atomic_write,
    codebook_usage,
    distance_measure,
    efficientnet_lite0,
    environment,
    evidence_bound,
    feature_net,
    film_strip,
    generation_rows,
    markdown_table,
    measure_scaling_factor,
    psnr,
    reconstruction_report,
    sample_grid,
    write_results,
)
from hf_mm.evaluation.generation_bound import OUTPUT_DISTRIBUTIONS
from hf_mm.training.phased_card import GeneratorCard

__all__ = ["DEFAULTS", "MODELS", "PRESETS", "Recipe", "main", "run"]


@dataclass
class Recipe:
    """What this script decides; everything else is `TrainingArguments`."""

    model: str = field(default="vq", metadata={"help": "vae, vq, vq-plain, fsq, vqgan or diffusers-vq."})
    dataset: str = field(
        default="digits",
        metadata={"help": "digits, fashion-mnist, openmoji, easy-vqa, a folder or a Hub id."},
    )
    data_folder: str | None = field(
        default=None, metadata={"help": "Where the files of fashion-mnist or openmoji are."}
    )
    image_size: int | None = field(default=None, metadata={"help": "In px; by default that of the data set."})
    downscale: int | None = field(
        default=None,
        metadata={
            "help": "Pixels of one latent; by default the whole picture for vae, else 4, or more for at most "
            "64 codes."
        },
    )
    perceptual: str | None = field(
        default=None,
        metadata={
            "help": "Network of the perceptual term: none, efficientnet-lite0 (by default of vqgan), or a "
            "model of transformers, such as `hf-mm train vit_classifier` writes."
        },
    )
    ema_decay: float = field(default=0.995, metadata={"help": "Of the averaged weights, which are saved."})
    feature_net: str = field(
        default="efficientnet-lite0@64",
        metadata={
            "help": "Network of the Frechet distance of reconstructions: none, efficientnet-lite0@PX, or a "
            "classifier."
        },
    )
    rows: int | None = field(
        default=None, metadata={"help": "Pictures to learn from, and to be measured on; by default all."}
    )
    measure_steps: int = field(
        default=0,
        metadata={
            "help": "Measure pictures from the prior of a vae every so many steps, into measures.jsonl."
        },
    )


# The numbers of the recipe, in one place; a flag of the same name overrides each.
DEFAULTS: dict[str, Any] = {
    "max_steps": 4000,
    "per_device_train_batch_size": 32,
    "learning_rate": 1e-3,
    "warmup_steps": 0.02,  # below 1: the share of all steps
    "lr_scheduler_type": "cosine",
    "adam_beta2": 0.99,
    "weight_decay": 0.0,
    "save_strategy": "no",
    "logging_steps": 50,
    "report_to": "none",
}
# What learns how, and in how many steps.
MODELS: dict[str, dict[str, Any]] = {
    "vae": {"reconstruction": "gaussian", "kl_weight": 1.0},
    "vq": {"reconstruction": "l2"},
    "fsq": {"reconstruction": "l2"},
    "vq-plain": {"reconstruction": "l2"},
    # Distances of three maps without learnt weights are some ten times those of the paper's network.
    "vqgan": {"reconstruction": "l1", "perceptual_weight": 0.1, "adversarial_weight": 0.5},
    "diffusers-vq": {"reconstruction": "l2"},
}
STEPS = {"vqgan": 2400}  # a step with a discriminator takes longer
# Pictures of 64 px take longer too.
PRESETS: dict[str, dict[str, Any]] = {"easy-vqa": {"max_steps": 1500, "per_device_train_batch_size": 16}}
ADVERSARIAL_SHARE = 0.5  # of the steps are done when the discriminator of a vqgan begins
DISCRIMINATOR_RATE = 4e-4
WIDTHS = (16, 32, 64, 64, 64, 64, 64)  # of blocks, each at half the size of the one before
GROUPS = 8
MAP_CHANNELS, VECTOR_CHANNELS = 4, 32  # of a VAE's latents: of a place of a map, and of a whole picture
CODES, CODE_WIDTH, FEATURES = 512, 8, 64
# A code that fewer than a tenth of its share of vectors choose starts again after some hundred steps.
MOVING = {"quantizer": "ema", "ema_decay": 0.98, "restart_threshold": 0.1}
FSQ_LEVELS = [8, 8, 8]  # as many codes
MOST_CODES_A_SIDE = 8
VIEWS = {
    "openmoji": {"flip": True, "pad_crop_px": 2}
}  # few pictures; a tokenizer need not know left from right
# Strides 2, 4 and 8 of a network for pictures of 224 px; small ones are enlarged so that it sees anything.
LITE_LAYERS, LITE_PX = ("blocks.0", "blocks.2", "blocks.4"), 64
SCALED_ROWS = 10_000  # whose latents are measured
FITTED_ROWS = 1000  # whose errors say how wide the distribution of levels is
BATCH = 250  # of measuring
MEASURED = 2000  # pictures from the prior, while a VAE learns
PREVIEW_STEPS = 500
SHOWN = 10  # columns of the pictures
WAYS = 4  # between two pictures


def downscale_of(recipe: Recipe, image_size: int) -> int:
    """Pixels of one latent, in each direction.

    Raises:
        ValueError: It is no power of 2, too large, or does not divide the pictures.
    """
    if recipe.downscale is None and recipe.model == "vae":
        downscale = image_size & -image_size  # the largest power of 2 that divides it
    elif recipe.downscale is None:
        downscale = max(4, image_size // MOST_CODES_A_SIDE)
    else:
        downscale = recipe.downscale
    levels = downscale.bit_length()
    if downscale < 1 or downscale & (downscale - 1) or image_size % downscale or levels > len(WIDTHS):
        raise ValueError(
            f"`downscale`={downscale} must be a power of 2 up to {2 ** (len(WIDTHS) - 1)} that divides the "
            f"{image_size} px of the pictures."
        )
    return downscale


def build_model(recipe: Recipe, image_size: int, channels: int) -> Any:
    """The autoencoder to train.

    Raises:
        ValueError: There is no such model.
    """
    if recipe.model not in MODELS:
        raise ValueError(f"`model`={recipe.model!r} must be one of {', '.join(MODELS)}.")
    downscale = downscale_of(recipe, image_size)
    levels = downscale.bit_length()
    sizes: dict[str, Any] = {
        "in_channels": channels,
        "out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": WIDTHS[:levels],
        "layers_per_block": 1,
        "norm_num_groups": GROUPS,
        "sample_size": image_size,
    }
    if recipe.model == "vae":
        width = VECTOR_CHANNELS if downscale == image_size else MAP_CHANNELS
        return AutoencoderKL(**sizes, latent_channels=width, force_upcast=False)
    if recipe.model == "fsq":
        return MMVQAutoencoder(**sizes, latent_channels=FEATURES, quantizer="fsq", fsq_levels=FSQ_LEVELS)
    codes = {"latent_channels": FEATURES, "num_vq_embeddings": CODES, "vq_embed_dim": CODE_WIDTH}
    if recipe.model == "diffusers-vq":
        return VQModel(**sizes, **codes)
    learnt = {"quantizer": "plain"} if recipe.model == "vq-plain" else MOVING
    return MMVQAutoencoder(**sizes, **codes, **learnt)


def build_perceptual(recipe: Recipe) -> nn.Module | None:
    """The perceptual term: by default of VQGANs only."""
    name = recipe.perceptual or ("efficientnet-lite0" if recipe.model == "vqgan" else "none")
    if name == "none":
        return None
    if name == "efficientnet-lite0":
        return PerceptualLoss(efficientnet_lite0(8), LITE_LAYERS, size_px=LITE_PX)
    model = AutoModel.from_pretrained(name)
    return PerceptualLoss(model, size_px=model.config.image_size, in_channels=model.config.num_channels)


def build_objective(recipe: Recipe, model: Any, preview_images: Tensor) -> AutoencoderObjective:
    """What the model learns by."""
    options: dict[str, Any] = {"perceptual": build_perceptual(recipe), "preview_images": preview_images}
    if recipe.model == "vqgan":
        side = preview_images.shape[-1]
        layers = 1 if side < 24 else 2 if side < 64 else 3
        options["discriminator"] = MMPatchDiscriminator(preview_images.shape[1], 32, layers)
    return AutoencoderObjective(model, **MODELS[recipe.model], **options)


@torch.no_grad()
def reconstructions(model: Any, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures (N, C, S, S) in [-1, 1] as they come back; their codes; the nats of their latents (N,)."""
    samples, codes, nats = [], [torch.empty(0, dtype=torch.long)], [torch.empty(0)]
    for part in pixels.split(BATCH):
        part = part.to(model.device)
        if isinstance(model, AutoencoderKL):
            posterior = model.encode(part).latent_dist
            sample = model.decode(posterior.mode()).sample
            nats.append(posterior.kl().cpu())
        elif isinstance(model, VQModel):
            latents, _, (_, _, indices) = model.quantize(model.encode(part).latents)
            sample = model.decode(latents, force_not_quantize=True).sample
            codes.append(indices.cpu())
        else:
            out = model(part)
            sample = out.sample
            codes.append(out.indices.flatten().cpu())
        samples.append(sample.clamp(-1, 1).cpu())
    return torch.cat(samples), torch.cat(codes), torch.cat(nats)


def measure(model: Any, train: PixelRows, test: PixelRows, net: str, seed: int) -> dict[str, Any]:
    """Errors on pictures that were not learnt from; pixels are in [-1, 1].

    The bits of a VAE bound those of the levels, see `evidence_bound`, under a distribution that is named.
    `rFD_of_real_pictures` is what as many training pictures score: the distance of a perfect generator.
    """
    pixels = test.pixel_values()
    samples, codes, nats = reconstructions(model, pixels)
    mean = train[:: max(1, len(train) // SCALED_ROWS)].pixel_values().mean(0)
    found: dict[str, Any] = {
        "mse": (samples - pixels).square().mean().item(),
        "mae": (samples - pixels).abs().mean().item(),
        "psnr": psnr(samples, pixels).mean().item(),
        "mse_of_the_mean_picture": (pixels - mean).square().mean().item(),
    }
    if len(nats):
        found["kl_nats"] = nats.mean().item()
        known = train[:: max(1, len(train) // FITTED_ROWS)].pixels
        for kind in OUTPUT_DISTRIBUTIONS:
            bound = evidence_bound(model, test.pixels, known, kind, batch_size=BATCH, seed=seed)
            found[f"bits_per_dimension_{kind}"] = bound.bits_per_dimension
            found[f"{kind}_scale"] = bound.scale
    if len(codes):
        size = model.config["num_vq_embeddings"] if isinstance(model, VQModel) else model.num_codes
        usage = codebook_usage(codes, size)
        found |= {"perplexity": usage.perplexity, "used_codes": usage.used_codes, "codes": size}
    if net == "none":
        return found
    draw = torch.Generator().manual_seed(seed)
    stand_ins = train[torch.randperm(len(train), generator=draw)[: len(test)]].pixels
    count = len(stand_ins)  # of each
    report = reconstruction_report(
        samples[:count], originals=pixels[:count], train=stand_ins, net=feature_net(net), seed=seed
    )
    for name in report["measures"].keys() & {"rFD", "rFID"}:  # none where there are too few pictures
        entry = report["measures"][name]
        found |= {name: entry["value"], f"{name}_std": entry["std"]}
        found[f"{name}_of_real_pictures"] = entry["floor"]
    return found | {"feature_net": net, "rFD_pictures": count}


def running_measure(
    recipe: Recipe, train: PixelRows, test: PixelRows, seed: int
) -> Callable[[AutoencoderPipeline], dict[str, float]] | None:
    """What is measured while a VAE learns, if anything: how near its prior comes to the test pictures.

    Raises:
        ValueError: The model has no prior, or there is no net to measure in.
    """
    if not recipe.measure_steps:
        return None
    if recipe.model != "vae" or recipe.feature_net == "none":
        raise ValueError(
            f"`measure_steps`={recipe.measure_steps} needs `model`='vae', whose prior draws pictures, and a "
            f"`feature_net`; they are {recipe.model!r} and {recipe.feature_net!r}."
        )

    def drawn(pipeline: AutoencoderPipeline, rows: Tensor) -> Tensor:
        pipeline.set_progress_bar_config(disable=True)
        noise = torch.Generator().manual_seed(seed)
        parts = [
            pipeline(len(part), generator=noise, output_type="pt").images.cpu() for part in rows.split(BATCH)
        ]
        return torch.cat(parts) * 2 - 1

    return distance_measure(
        test.pixels, train.pixels, feature_net(recipe.feature_net), MEASURED, drawn, seed=seed
    )


def draw(pipeline: AutoencoderPipeline, test: PixelRows, folder: Path, seed: int) -> None:
    """The pictures that go beside the results."""
    count = min(3 * SHOWN, len(test))
    originals = test[:count].pixel_values()
    samples = reconstructions(pipeline.vae, originals)[0]
    pairs = zip(originals.split(SHOWN), samples.split(SHOWN), strict=True)
    whole = [row for pair in pairs for row in pair if len(row) == SHOWN or count < SHOWN]
    labels = ["original", "reconstructed"] * (len(whole) // 2)
    pages = {"reconstructions": sample_grid(torch.cat(whole), len(whole[0]), row_labels=labels)}
    if isinstance(pipeline.vae, AutoencoderKL):
        noise = torch.Generator().manual_seed(seed)
        drawn = pipeline(6 * SHOWN, generator=noise, output_type="pt").images
        pages["prior"] = sample_grid(drawn * 2 - 1, SHOWN)
        ends = [(test[n : n + 1], test[n + 1 : n + 2]) for n in range(0, min(2 * WAYS, len(test) - 1), 2)]
        ways = [
            pipeline.interpolate(*((rows.pixel_values() + 1) / 2 for rows in pair), SHOWN, "pt").images * 2
            - 1
            for pair in ends
        ]
        pages["between"] = film_strip(ways)
    for name, page in pages.items():
        with atomic_write(folder / f"{name}.png") as temporary:
            page.save(temporary)


def main(recipe: Recipe, args: TrainingArguments) -> dict[str, Any]:
    """Train, measure the latents' scale and the errors, save; returns the results."""
    set_seed(args.seed)
    train, test = (
        generation_rows(recipe.dataset, split, recipe.image_size, recipe.data_folder)[: recipe.rows]
        for split in ("train", "test")
    )
    model = build_model(recipe, train.image_size, train.channels)
    objective = build_objective(recipe, model, test[:32].pixel_values())
    name = Path(str(args.output_dir)).name
    trainer = PhasedTrainer(
        objective,
        args,
        train,
        PixelCollator(**VIEWS.get(recipe.dataset, {}), seed=args.seed),
        learning_rates={"discriminator": DISCRIMINATOR_RATE} if objective.discriminator is not None else None,
        ema_decay=recipe.ema_decay or None,
        preview_steps=PREVIEW_STEPS,
        measure=running_measure(recipe, train, test, args.seed),
        measure_steps=recipe.measure_steps,
        card=GeneratorCard(name, f"An autoencoder (`{recipe.model}`) of {recipe.dataset}.", recipe.dataset),
    )
    objective.adversarial_start = round(ADVERSARIAL_SHARE * trainer.max_steps)
    trained = trainer.train()
    folder = Path(str(args.output_dir))
    results: dict[str, Any] = {"model": recipe.model, "dataset": recipe.dataset, "seed": args.seed}
    results |= {"steps": trainer.state.global_step, "train_seconds": trained["train_seconds"]}
    results |= {"images_per_second": trained["train_images_per_second"], "train_rows": len(train)}
    results |= {"weights": sum(weight.numel() for weight in model.parameters()), "test_rows": len(test)}
    with trainer.averages_applied():
        chosen = train[:: max(1, len(train) // SCALED_ROWS)]
        results["scaling_factor"] = measure_scaling_factor(
            model, DataLoader(chosen, BATCH, collate_fn=PixelCollator())
        )
        measured = measure(model, train, test, recipe.feature_net, args.seed)
        draw(objective.pipeline(), test, folder, args.seed)
    results |= measured | {"environment": environment()}
    write_results(folder / "results.json", results)
    trainer.save_model(metrics=measured)
    return results


def run(argv: Sequence[str] | None = None) -> int:
    """Parse flags, run `main`, print the result; returns the exit status."""
    flags = {"prog": "hf-mm train autoencoder", "allow_abbrev": False}  # a typo is no abbreviation
    parser = HfArgumentParser((Recipe, TrainingArguments), **flags)
    parser.set_defaults(**DEFAULTS)
    known = parser.parse_known_args(argv)[0]
    steps = STEPS.get(known.model, DEFAULTS["max_steps"])
    parser.set_defaults(**{"max_steps": steps} | PRESETS.get(known.dataset, {}))
    results = main(*parser.parse_args_into_dataclasses(argv))
    numbers = {name: value for name, value in results.items() if isinstance(value, int | float)}
    print(markdown_table([{"measure": name, "value": value} for name, value in numbers.items()]))
    return 0


if __name__ == "__main__":
    raise SystemExit(run())
