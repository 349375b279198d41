"""Training of diffusion: `PhasedTrainer` against diffusers' example loop, and caches against none.

    python benchmarks/diffusion_training.py --out diffusion_training.json
    python benchmarks/diffusion_training.py --works unet dit --bf16

"unet", "dit": pictures a second by `DiffusionObjective` in `PhasedTrainer`, and by the loop of diffusers'
example `train_unconditional.py`: Accelerate, `add_noise` of DDPMScheduler, AdamW, clipped gradients,
`EMAModel`, a schedule of the rate. Both train the same model on the same batches. "dit, diffusers' own": the
peer trains `DiTTransformer2DModel` of the same sizes, which has embedders of its own in each block.

"cache, Stable Diffusion": a step of text to image with latents and text states from the disk, against one
that encodes pictures and texts. The parts are those of Stable Diffusion 1.5, each a quarter as wide, at 128
px; a table says how many operations of a step each part has, there and in the original at 512 px, and so what
a cache can save. "cache, DiT-B/2": the same for a transformer of that size at 256 px, which reads the texts.

Rivals take turns; columns are medians over the rounds of the median step of each turn, without the first few,
which fill fresh memory, in wall time or, with `--cpu`, in time of the process; the ratio is the median of the
rounds' ratios. Above 1 says that hf_mm, or the cache, is faster.
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DiTTransformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.nn.functional import mse_loss, pad
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, TrainerCallback, TrainingArguments

from hf_mm import (
    DiffusionObjective,
    LatentCollator,
    LatentRows,
    MMDiTModel,
    PhasedTrainer,
    PixelCollator,
    PixelRows,
    environment,
    extract_latents,
    extract_text_states,
    markdown_table,
    train_bert_tokenizer,
    write_results,
)

CLASSES, CAPTIONS = 10, 500
WORKS = ("unet", "dit", "dit, diffusers' own", "cache, Stable Diffusion", "cache, DiT-B/2")
UNET: dict[str, Any] = {
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "num_class_embeds": CLASSES + 1,
}
DIT: dict[str, Any] = {"patch_size": 4, "num_layers": 6}
HEADS, HEAD_WIDTH = 4, 48
WIDER = 4  # the originals than what is timed here
ORIGINAL_PX = {"cache, Stable Diffusion": 512, "cache, DiT-B/2": 256}
SMALL_PX, TOKENS = 128, 77
WARM_UP = 5  # steps of a turn
Step = Callable[[int], list[float]]


class Clock(TrainerCallback):
    """The time at which each step of a run ended."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.times: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.times.append(self.now())


def durations(times: list[float]) -> list[float]:
    """Seconds of all steps but the first few, which fill fresh memory."""
    return [end - begun for begun, end in pairwise(times[min(WARM_UP, len(times) - 2) :])]


def own_steps(objective: DiffusionObjective, rows: Any, collator: Any, args: argparse.Namespace) -> Step:
    """Turns of `PhasedTrainer`."""

    def turn(steps: int) -> list[float]:
        clock = Clock(args.now)
        with tempfile.TemporaryDirectory() as folder:
            options = TrainingArguments(
                folder,
                max_steps=steps,
                per_device_train_batch_size=args.batch_size,
                bf16=args.bf16,
                use_cpu=True,
                disable_tqdm=True,
                save_strategy="no",
                logging_steps=10**6,
                learning_rate=1e-4,
                adam_beta1=0.95,
                weight_decay=1e-6,
                warmup_steps=500,
                lr_scheduler_type="cosine",
            )
            trainer = PhasedTrainer(objective, options, rows, collator, preview_count=0, callbacks=[clock])
            with redirect_stdout(io.StringIO()):  # its log
                trainer.train()
        return durations(clock.times)

    return turn


def example_steps(model: Any, rows: Any, args: argparse.Namespace) -> Step:
    """Turns of the published example, for a model of classes."""
    accelerator = Accelerator(mixed_precision="bf16" if args.bf16 else "no", cpu=True)
    ema_options: Any = {"model_cls": type(model), "model_config": model.config}
    ema = EMAModel(
        model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75, **ema_options
    )
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
    )
    collator = PixelCollator()
    loader = DataLoader(rows, args.batch_size, shuffle=True, collate_fn=collator, drop_last=True)
    rate = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=10_000)
    model, optimizer, loader, rate = accelerator.prepare(model, optimizer, loader, rate)

    def batches() -> Any:
        while True:
            yield from loader

    source = batches()

    def turn(steps: int) -> list[float]:
        times = []
        model.train()
        bar = tqdm(total=steps, disable=True)
        for _ in range(steps):
            batch = next(source)
            clean = batch["pixel_values"]
            noise = torch.randn(clean.shape, dtype=clean.dtype, device=clean.device)
            count = scheduler.config.num_train_timesteps
            timesteps = torch.randint(0, count, (len(clean),), device=clean.device).long()
            noisy = scheduler.add_noise(clean, noise, timesteps)
            with accelerator.accumulate(model):
                output = model(noisy, timesteps, class_labels=batch["class_labels"]).sample
                loss = mse_loss(output.float(), noise.float())
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                rate.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                ema.step(model.parameters())
                bar.update(1)
            bar.set_postfix(loss=loss.detach().item(), lr=rate.get_last_lr()[0], ema=ema.cur_decay_value)
            times.append(args.now())
        return durations(times)

    return turn


def some_rows(count: int, channels: int, size: int, seed: int = 0) -> PixelRows:
    """Pictures of noise with classes and texts."""
    chance = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, channels, size, size), generator=chance, dtype=torch.uint8)
    texts = tuple((f"a picture of {number % CAPTIONS} small red things",) for number in range(count))
    names = tuple(map(str, range(CLASSES)))
    return PixelRows(pixels, torch.arange(count) % CLASSES, names, texts)


def loops(work: str, args: argparse.Namespace) -> dict[str, Step]:
    """The example and ours, each with a model of its own."""
    torch.manual_seed(0)
    rows = some_rows(20 * args.batch_size, 1, 32)
    sizes: dict[str, Any] = {"sample_size": 32, "in_channels": 1, "out_channels": 1}
    width = HEADS * HEAD_WIDTH
    own_dit = {**sizes, **DIT, "num_classes": CLASSES, "hidden_size": width, "num_heads": HEADS}
    if work == "unet":
        peer, own = UNet2DModel(**sizes, **UNET), UNet2DModel(**sizes, **UNET)
    elif work == "dit":
        peer, own = MMDiTModel(**own_dit), MMDiTModel(**own_dit)
    else:
        heads = {"num_attention_heads": HEADS, "attention_head_dim": HEAD_WIDTH}
        peer = DiTTransformer2DModel(**sizes, **DIT, **heads, num_embeds_ada_norm=CLASSES)
        own = MMDiTModel(**own_dit)
    objective = DiffusionObjective(own, DDPMScheduler(beta_schedule="linear"))
    return {
        "diffusers' example": example_steps(peer, rows, args),
        "hf_mm": own_steps(objective, rows, PixelCollator(), args),
    }


def text_to_image(work: str, share: int, size: int) -> tuple[Any, AutoencoderKL, CLIPTextModel]:
    """A denoiser with autoencoder and texts of Stable Diffusion 1.5, at 1 / `share` of their widths."""
    width = 768 // share
    if work == "cache, DiT-B/2":
        denoiser: Any = MMDiTModel(
            size // 8, 4, hidden_size=width, num_layers=12, num_heads=12, text_dim=width
        )
    else:
        denoiser = UNet2DConditionModel(
            sample_size=size // 8,
            block_out_channels=tuple(channels // share for channels in (320, 640, 1280, 1280)),
            cross_attention_dim=width,
            attention_head_dim=8,
            norm_num_groups=8,
        )
    vae = AutoencoderKL(
        block_out_channels=tuple(channels // share for channels in (128, 256, 512, 512)),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=8,
    )
    config = CLIPTextConfig(hidden_size=width, intermediate_size=4 * width, num_attention_heads=12)
    return denoiser, vae, CLIPTextModel(config)


def operations(work: str, share: int, size: int) -> dict[str, float]:
    """Billions of operations (additions and multiplications) of a step for one picture, by part."""
    with torch.device("meta"):
        denoiser, vae, text = text_to_image(work, share, size)
        pixels, latents = torch.zeros(1, 3, size, size), torch.zeros(1, 4, size // 8, size // 8)
        states, ids = torch.zeros(1, TOKENS, 768 // share), torch.zeros(1, TOKENS).long()
        asked: dict[str, Any] = {"encoder_hidden_states": states}
        calls: dict[str, Callable[[], Any]] = {
            "autoencoder": lambda: vae.encode(pixels),
            "texts": lambda: text(ids),
            "denoiser": lambda: denoiser(latents, torch.zeros(1), **asked),
        }
        found = {}
        for name, call in calls.items():
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                call()
            found[name] = counter.get_total_flops() / 1e9
    found["denoiser"] *= 3  # there and back
    return {**found, "most that a cache saves": sum(found.values()) / found["denoiser"]}


def caches(work: str, args: argparse.Namespace, folder: Path) -> dict[str, Step]:
    """Steps that encode, and steps that read what was encoded."""
    torch.manual_seed(0)
    denoiser, vae, text_encoder = text_to_image(work, WIDER, SMALL_PX)
    rows = some_rows(4 * args.batch_size, 3, SMALL_PX)
    captions = [text for texts in rows.texts or () for text in texts]
    tokenizer = train_bert_tokenizer(captions)
    tokenizer.model_max_length = TOKENS
    parts: dict[str, Any] = {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer}
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", clip_sample=False)
    objective = DiffusionObjective(denoiser, scheduler, **parts)
    latents = extract_latents(vae, rows, folder / "latents", progress=False)
    full_length = isinstance(denoiser, UNet2DConditionModel)
    states = extract_text_states(
        text_encoder, tokenizer, captions, folder / "states", full_length, progress=False
    )
    encoding = PixelCollator(tokenizer=tokenizer)
    if full_length:  # as the denoiser reads them
        encoding = partial(padded, encoding, tokenizer.pad_token_id)
    return {
        "encodes": own_steps(objective, rows, encoding, args),
        "cached": own_steps(objective, LatentRows(latents, rows), LatentCollator(states), args),
    }


def padded(collator: PixelCollator, padding: int, rows: PixelRows) -> dict[str, torch.Tensor]:
    """A batch whose texts are as long as the context."""
    batch = collator(rows)
    missing = TOKENS - batch["input_ids"].shape[1]
    for name, value in (("input_ids", padding), ("attention_mask", 0)):
        batch[name] = pad(batch[name], (0, missing), value=value)
    return batch


def measure(rivals: dict[str, Step], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Let rivals train in turns, the first of which warms up; who begins changes with each round.

    Machines become slower and faster by the minute: a ratio is the median of those within the rounds.
    """
    medians: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(args.rounds + 1):
        for name in list(rivals)[:: 1 if turn % 2 else -1]:
            found = statistics.median(rivals[name](args.steps))
            medians[name] += [found] if turn else []
    peer = next(iter(medians.values()))
    return [
        {
            "rival": name,
            "milliseconds a step": 1000 * statistics.median(found),
            "pictures a second": args.batch_size / statistics.median(found),
            "ratio": statistics.median(theirs / ours for theirs, ours in zip(peer, found, strict=True)),
        }
        for name, found in medians.items()
    ]


def main() -> None:
    """Run all works, print a table of each and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=10, help="of a turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="mixed precision for all")
    parser.add_argument("--cpu", action="store_true", help="time of the process, not wall time")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.now = time.process_time if args.cpu else time.perf_counter
    torch.set_num_threads(args.threads)
    results: dict[str, Any] = {"batch_size": args.batch_size, "threads": args.threads, "bf16": args.bf16}
    for work in [work for work in args.works if work in ORIGINAL_PX]:
        found = {"original": operations(work, 1, ORIGINAL_PX[work])}
        results[f"operations of {work}"] = found | {"timed": operations(work, WIDER, SMALL_PX)}
        table = [{"billions": name, **row} for name, row in results[f"operations of {work}"].items()]
        print(f"operations of {work}\n\n{markdown_table(table)}\n")
    for work in args.works:
        with tempfile.TemporaryDirectory() as folder:
            rivals = caches(work, args, Path(folder)) if work in ORIGINAL_PX else loops(work, args)
            results[work] = measure(rivals, args)
        print(f"{work}\n\n{markdown_table(results[work])}\n", flush=True)
    if args.out is not None:
        write_results(args.out, {**results, "environment": environment()})


if __name__ == "__main__":
    main()
