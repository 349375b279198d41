"""Drawing by `ImageDiffusionPipeline` against diffusers' own pipelines: same parts, steps and pixels.

    python benchmarks/diffusion_sampling.py --out diffusion_sampling.json
    python benchmarks/diffusion_sampling.py --works ddim dit --rounds 9

Random weights, in float32, read by both rivals from one model; they draw in turns, and who begins changes
with each round. Columns: seconds of a call, medians over the rounds, in wall time or, with `--cpu`, in time
of the process; the ratio to the peer, the median of the rounds' ratios, above 1 is faster; the largest
difference of a pixel in [0, 1]. "interval" is not the same work: guidance in half of the steps only, beside
the whole, to show what that saves.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from hf_mm import ImageDiffusionPipeline, environment
from hf_mm.generators.diffusion.convert_dit_diffusers import from_dit_transformer

Draw = Callable[[], Tensor]
WORDS = ("<end>", "<start>", "a", "small", "red", "triangle", "large", "blue", "circle")
PROMPTS = ["a small red triangle", "a large blue circle"]
STABLE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def quiet(pipe: DiffusionPipeline) -> Any:
    """Without a progress bar."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


def chance() -> torch.Generator:
    """The same for both."""
    return torch.Generator().manual_seed(0)


def pixel_unet() -> UNet2DModel:
    """1.1 M weights for 28 px, three stages."""
    return UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    ).eval()


def autoencoder() -> AutoencoderKL:
    """A small one that halves the sides three times, as Stable Diffusion's."""
    return AutoencoderKL(
        block_out_channels=(16, 16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=0.18215,
    ).eval()


def text_unet() -> UNet2DConditionModel:
    """For 8 x 8 latents and texts."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=8,
    ).eval()


def text_parts() -> dict[str, Any]:
    """Autoencoder, text encoder and tokenizer, in the layout of Stable Diffusion."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    numbers = {"bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0, "vocab_size": len(WORDS)}
    words = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 0)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, model_max_length=77, pad_token="<end>", unk_token="<end>"
    )
    encoder = CLIPTextModel(CLIPTextConfig(**sizes, **numbers)).eval()
    return {"vae": autoencoder(), "text_encoder": encoder, "tokenizer": tokenizer}


def pixels(peer: Any, scheduler: Any, steps: int, count: int) -> tuple[Draw, Draw]:
    """Unconditional, of pixels."""
    model, options = pixel_unet(), {"num_inference_steps": steps, "output_type": "pt"}
    theirs, own = quiet(peer(model, scheduler())), quiet(ImageDiffusionPipeline(model, scheduler()))
    return (
        lambda: theirs(batch_size=count, generator=chance(), **options).images,
        lambda: own(num_images_per_prompt=count, generator=chance(), **options).images,
    )


def classes(steps: int, count: int) -> tuple[Draw, Draw]:
    """Guided classes by a DiT of 3 M weights."""
    sizes = {"num_attention_heads": 4, "attention_head_dim": 32, "num_layers": 8, "patch_size": 2}
    shapes = {"sample_size": 16, "in_channels": 4, "out_channels": 8, "num_embeds_ada_norm": 1000}
    model, vae = DiTTransformer2DModel(**sizes, **shapes).eval(), autoencoder()
    for block in model.transformer_blocks[1:]:  # as in published checkpoints
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    options = {"class_labels": list(range(count)), "num_inference_steps": steps, "guidance_scale": 4.0}
    theirs = quiet(DiTPipeline(model, vae, DDIMScheduler(clip_sample=False)))
    scheduler = DDIMScheduler(clip_sample=False)
    own = quiet(ImageDiffusionPipeline(from_dit_transformer(model), scheduler, vae=vae))
    return (
        lambda: theirs(**options, generator=chance(), output_type="pt").images,
        lambda: own(**options, generator=chance(), output_type="pt").images,
    )


def texts(peer: Any, steps: int, **options: Any) -> tuple[Draw, Draw]:
    """Guided texts, in the layout of Stable Diffusion."""
    parts, model = text_parts(), text_unet()
    rest = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    theirs = quiet(peer(unet=model, scheduler=DDIMScheduler(**STABLE), **parts, **rest))
    own = quiet(ImageDiffusionPipeline(model, DDIMScheduler(**STABLE), **parts))
    options |= {"prompt": PROMPTS, "num_inference_steps": steps, "guidance_scale": 5.0, "output_type": "pt"}
    return (
        lambda: theirs(**options, generator=chance()).images,
        lambda: own(**options, generator=chance()).images,
    )


def interval(steps: int) -> tuple[Draw, Draw]:
    """The same pipeline, guided in all steps and in half of them."""
    own = quiet(ImageDiffusionPipeline(text_unet(), DDIMScheduler(**STABLE), **text_parts()))
    options = {"prompt": PROMPTS, "num_inference_steps": steps, "guidance_scale": 5.0, "output_type": "pt"}
    return (
        lambda: own(**options, generator=chance()).images,
        lambda: own(**options, generator=chance(), guidance_interval=(0.25, 0.75)).images,
    )


PICTURES = [Image.effect_noise((64, 64), 60).convert("RGB") for _ in PROMPTS]
MASKS = [Image.linear_gradient("L").resize((64, 64)) for _ in PROMPTS]
WORKS: dict[str, Callable[[], tuple[Draw, Draw]]] = {
    "ddpm": lambda: pixels(DDPMPipeline, DDPMScheduler, 100, 1),
    "ddim": lambda: pixels(DDIMPipeline, DDIMScheduler, 50, 1),
    "ddim, 8 pictures": lambda: pixels(DDIMPipeline, DDIMScheduler, 25, 8),
    "dit": lambda: classes(25, 1),
    "dit, 4 pictures": lambda: classes(10, 4),
    "stable diffusion": lambda: texts(StableDiffusionPipeline, 25),
    "from pictures": lambda: texts(StableDiffusionImg2ImgPipeline, 25, image=PICTURES, strength=0.8),
    "in parts": lambda: texts(
        StableDiffusionInpaintPipeline,
        25,
        image=PICTURES,
        mask_image=MASKS,
        strength=1.0,
        height=64,
        width=64,
    ),
    "interval": lambda: interval(25),
}


def measure(theirs: Draw, own: Draw, rounds: int, cpu: bool) -> dict[str, float]:
    """Let the rivals draw in turns; the first round warms up."""
    clock = time.process_time if cpu else time.perf_counter
    times: dict[Draw, list[float]] = {theirs: [], own: []}
    drawn: dict[Draw, Tensor] = {}
    for turn in range(rounds + 1):
        for draw in (theirs, own) if turn % 2 else (own, theirs):
            start = clock()
            drawn[draw] = draw()
            if turn:
                times[draw].append(clock() - start)
    ratios = [peer / ours for peer, ours in zip(times[theirs], times[own], strict=True)]
    return {
        "diffusers": statistics.median(times[theirs]),
        "hf_mm": statistics.median(times[own]),
        "ratio": statistics.median(ratios),
        "largest difference": float((drawn[theirs] - drawn[own]).abs().max()),
    }


def main() -> None:
    """Run the works, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--works", nargs="+", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu", action="store_true", help="time of the process, not wall time")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    table = {}
    for name in args.works:
        torch.manual_seed(0)
        table[name] = row = measure(*WORKS[name](), args.rounds, args.cpu)
        print(
            f"{name:18} diffusers {row['diffusers']:7.3f} s   hf_mm {row['hf_mm']:7.3f} s   "
            f"{row['ratio']:5.3f}x   largest difference {row['largest difference']:.1e}",
            flush=True,
        )
    if args.out:
        facts = {
            "environment": environment(),
            "threads": args.threads,
            "time": "process" if args.cpu else "wall",
            "rounds": args.rounds,
            "works": table,
        }
        args.out.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
