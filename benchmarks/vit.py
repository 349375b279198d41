"""ViT against transformers' own on the same weights: the same batch, in one process, taking turns.

    python benchmarks/vit.py --out vit.json
    python benchmarks/vit.py --hidden 768 --layers 12 --heads 12 --batch 8      # ViT-B/16

Both use the sdpa kernel. Their calls alternate and the median counts, in CPU time of the process by default
(on a busy machine) or in wall time. `ratio` is transformers' time over ours: above 1, ours is faster;
0.95 to 1.05 is no difference.
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

from hf_mm import MMViTModel, environment


def pair(args: argparse.Namespace) -> tuple[ViTModel, MMViTModel]:
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
        return theirs, MMViTModel.from_pretrained(folder)


def forward(model: torch.nn.Module, pixels: torch.Tensor) -> None:
    """Inference on one batch."""
    with torch.inference_mode():
        model.eval()(pixels)


def train_step(model: torch.nn.Module, pixels: torch.Tensor) -> None:
    """Forward and backward, without the optimizer, which is the same for both."""
    model.zero_grad(set_to_none=True)
    model.train()(pixels).pooler_output.square().mean().backward()


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
    return {name: statistics.median(measured) for name, measured in times.items()}


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
    parser.add_argument("--out", type=Path, help="write the numbers here, as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    theirs, ours = pair(args)
    models = {"transformers": theirs, "hf_mm": ours}
    pixels = torch.randn(args.batch, 3, 224, 224)
    with torch.no_grad():
        gap = (theirs.eval()(pixels).last_hidden_state - ours(pixels).last_hidden_state).abs().max().item()
    results: dict = {"largest difference": gap, "environment": environment()}
    for work in (forward, train_step):
        row = measure(work, models, pixels, args)
        row["ratio"] = row["transformers"] / row["hf_mm"]
        results[work.__name__] = row
        print(work.__name__, ", ".join(f"{name} {value:.3g}" for name, value in row.items()))
    print(f"largest difference {gap:.1e}")
    if args.out:
        args.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
