"""ViT against transformers' own on the same weights: the same batch, in one process, taking turns.

    python benchmarks/vit.py --out vit.json
    python benchmarks/vit.py --hidden 768 --layers 12 --heads 12 --batch 8 --threads 2 --wall  # ViT-B/16

All use the sdpa kernel. Their calls alternate and the median counts, in CPU time of the process by default
(on a busy machine) or in wall time. `ratio` is transformers' time over ours: above 1, ours is faster;
0.95 to 1.05 is no difference. In the packed rows ours went through `pack_for_inference`; in the bfloat16 rows
all weights are bfloat16, theirs as well. `largest difference` is that of the final states of the same batch;
above a bound the run ends.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import ViTConfig, ViTModel

from hf_mm import MMViTModel, environment, pack_for_inference

LARGEST = {torch.float32: 1e-4, torch.bfloat16: 0.2}  # final states are normalised: of deviation 1


def pair(args: argparse.Namespace) -> dict[str, torch.nn.Module]:
    """The two models, ours loaded from the folder that theirs was saved to."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        intermediate_size=4 * args.hidden,
    )
    theirs = ViTModel(config)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return {"transformers": theirs, "hf_mm": MMViTModel.from_pretrained(folder)}


def forward(model: torch.nn.Module, pixels: torch.Tensor) -> None:
    """Inference on one batch."""
    with torch.inference_mode():
        model.eval()(pixels)


def train_step(model: torch.nn.Module, pixels: torch.Tensor) -> None:
    """Forward and backward, without the optimizer, which is the same for both."""
    model.zero_grad(set_to_none=True)
    model.train()(pixels).pooler_output.square().mean().backward()


def difference(models: dict[str, torch.nn.Module], pixels: torch.Tensor) -> float:
    """Of the final states of the two models.

    Raises:
        SystemExit: It is so large that they do not do the same work.
    """
    with torch.inference_mode():
        theirs, ours = (model.eval()(pixels).last_hidden_state.float() for model in models.values())
    gap = (theirs - ours).abs().max().item()
    if not gap < LARGEST[pixels.dtype]:
        raise SystemExit(f"The models differ by {gap:.1e} in {pixels.dtype}: not the same work.")
    return gap


def measure(
    work: Callable, models: dict[str, torch.nn.Module], pixels: torch.Tensor, args: argparse.Namespace
) -> dict[str, float]:
    """Median milliseconds of `work` by model, the models taking turns."""
    clock = time.perf_counter if args.wall else time.process_time
    times = {name: [] for name in models}
    for turn in range(args.rounds + 1):
        for name, model in models.items():
            start = clock()
            work(model, pixels)
            if turn:  # the first round warms up
                times[name].append(1000 * (clock() - start))
    row = {name: statistics.median(measured) for name, measured in times.items()}
    return row | {"ratio": row["transformers"] / row["hf_mm"]}


ROWS = (
    # name, work, dtype, packed
    ("forward", forward, torch.float32, False),
    ("forward packed", forward, torch.float32, True),
    ("forward bfloat16", forward, torch.bfloat16, False),
    ("forward bfloat16 packed", forward, torch.bfloat16, True),
    ("train step", train_step, torch.float32, False),
)


def main() -> None:
    """Measure forward and training, print the ratios and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--hidden", type=int, default=384, help="width; 384 is ViT-S")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--wall", action="store_true", help="wall time, not CPU time")
    parser.add_argument("--only", nargs="+", choices=[row[0] for row in ROWS], help="these rows")
    parser.add_argument("--out", type=Path, help="write the numbers here, as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results: dict = {"environment": environment()}
    for name, work, dtype, packed in ROWS:
        if args.only and name not in args.only:
            continue
        models = pair(args)
        pixels = torch.randn(args.batch, 3, 224, 224, dtype=dtype)
        for model in models.values():
            model.to(dtype).eval()
        if packed:
            pack_for_inference(models["hf_mm"])
        gap = difference(models, pixels)
        row = results[name] = {**measure(work, models, pixels, args), "largest difference": gap}
        print(f"{name}:", ", ".join(f"{key} {value:.3g}" for key, value in row.items()), flush=True)
    if args.out:
        args.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
