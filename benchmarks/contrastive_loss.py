"""InfoNCE against the loss of transformers' CLIPModel: forward and backward, from the same features.

    python benchmarks/contrastive_loss.py --out contrastive_loss.json

The rivals take turns in one process and the median counts (CPU time of the process, one thread), with the
spread of its middle half. Memory is measured apart: a fresh process for each rival and size, what its
resident memory rises by at the peak, less the features, gradients included (Linux only). `error` is
the largest distance of a gradient from the peer's, as a share of the largest gradient.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from torch import Tensor
from torch.nn.functional import normalize
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from hf_mm import info_nce, sigmoid_loss

WIDTH, CHUNK_SIZE = 512, 1024
PAIRS, ROUNDS = (2048, 8192), (9, 5)


def transformers_clip(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """The lines of `CLIPModel.forward` from the features on."""
    logits_per_text = torch.matmul(texts, images.t()) * scale
    return image_text_contrastive_loss(logits_per_text)


def transformers_siglip(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """The lines of `SiglipModel.forward` from the features on, with a bias of -10."""
    logits_per_text = torch.matmul(texts, images.t()) * scale - 10
    signs = -torch.ones_like(logits_per_text) + 2 * torch.eye(logits_per_text.size(0))
    return -torch.sum(torch.nn.functional.logsigmoid(signs * logits_per_text), dim=-1).mean()


RIVALS: dict[str, dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "InfoNCE": {
        "transformers CLIP": transformers_clip,
        "hf_mm": info_nce,
        "hf_mm streamed": lambda x, t, s: info_nce(x, t, s, chunk_size=CHUNK_SIZE),
    },
    "sigmoid": {
        "transformers SigLIP": transformers_siglip,
        "hf_mm": lambda x, t, s: sigmoid_loss(x, t, s, -10.0),
        "hf_mm streamed": lambda x, t, s: sigmoid_loss(x, t, s, -10.0, chunk_size=CHUNK_SIZE),
    },
}


def leaves(pairs: int) -> list[Tensor]:
    """Features of pairs that resemble each other, and CLIP's initial scale."""
    generator = torch.Generator().manual_seed(0)
    images = normalize(torch.randn(pairs, WIDTH, generator=generator), dim=-1)
    texts = normalize(images + 0.1 * torch.randn(pairs, WIDTH, generator=generator), dim=-1)
    return [part.requires_grad_() for part in (images, texts, torch.tensor(1 / 0.07))]


def gradients(rival: Callable[[Tensor, Tensor, Tensor], Tensor], parts: list[Tensor]) -> tuple[Tensor, ...]:
    """One forward and backward."""
    return torch.autograd.grad(rival(*parts), parts)


def resident_mb(field: str) -> float:
    """A line of Linux's account of this process, in MB: VmRSS now, VmHWM the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1.024e-3 for line in lines if line.startswith(field))


def peak_mb(loss: str, rival: str, pairs: int) -> float:
    """By how much a rival raises the memory of this process, which has to be a fresh one."""
    gradients(RIVALS[loss][rival], leaves(600))  # loads libraries, which are no part of the loss
    before = resident_mb("VmRSS")
    parts = leaves(pairs)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    gradients(RIVALS[loss][rival], parts)
    # Not from after `leaves`: what that freed again stays with the process, and the rival would get it free.
    return resident_mb("VmHWM") - before - sum(part.nbytes for part in parts) / 1e6


def peak_of_fresh_process(loss: str, rival: str, pairs: int) -> float | None:
    """`peak_mb` in a process of its own; `None` where Linux's account is missing."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    command = [sys.executable, __file__, "--peak", loss, rival, str(pairs)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(loss: str, pairs: int, rounds: int) -> list[dict]:
    """Time the rivals in turns, compare their gradients with the peer's, and weigh each on its own."""
    rivals, parts = RIVALS[loss], leaves(pairs)
    peer, *_ = rivals
    expected = gradients(rivals[peer], parts)
    errors = {
        name: max(
            ((ours - theirs).abs().max() / theirs.abs().max()).item()
            for ours, theirs in zip(gradients(rival, parts), expected, strict=True)
        )
        for name, rival in rivals.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, rival in rivals.items():
            start = time.process_time()
            gradients(rival, parts)
            seconds[name].append(time.process_time() - start)
    quartiles = {name: statistics.quantiles(times, n=4) for name, times in seconds.items()}
    memory = {name: peak_of_fresh_process(loss, name, pairs) for name in rivals}
    return [
        {
            "rival": name,
            "ms": 1e3 * middle,
            "ms_quartiles": [1e3 * low, 1e3 * high],
            "ratio": quartiles[peer][1] / middle,
            "peak_mb": memory[name],
            "memory_ratio": None if memory[name] is None else memory[peer] / memory[name],
            "error": errors[name],
        }
        for name, (low, middle, high) in quartiles.items()
    ]


def table(rows: list[dict]) -> str:
    """One line per rival."""
    lines = []
    for row in rows:
        memory = "-"
        if row["peak_mb"] is not None:
            memory = f"{row['peak_mb']:7.0f} MB  1/{row['memory_ratio']:.1f}"
        low, high = row["ms_quartiles"]
        lines.append(
            f"  {row['rival']:20} {row['ms']:8.0f} ms ({low:.0f} to {high:.0f})  {row['ratio']:5.2f}x  "
            f"{memory}  error {row['error']:.0e}"
        )
    return "\n".join(lines)


def main() -> None:
    """Run all sizes, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=PAIRS)
    parser.add_argument("--rounds", type=int, nargs="+", default=ROUNDS, help="for each of --pairs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak", nargs=3, metavar=("LOSS", "RIVAL", "PAIRS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        print(peak_mb(args.peak[0], args.peak[1], int(args.peak[2])))
        return
    measured: dict[str, list[dict]] = {}
    for loss in RIVALS:
        for pairs, rounds in zip(args.pairs, args.rounds, strict=True):
            workload = f"{loss}, {pairs:,} pairs of width {WIDTH}, forward and backward"
            measured[workload] = measure(loss, pairs, rounds)
            print(workload, table(measured[workload]), sep="\n", flush=True)
    if args.out:
        versions = {"transformers": transformers.__version__, "torch": torch.__version__}
        args.out.write_text(
            json.dumps({"versions": versions, "threads": args.threads, "workloads": measured}, indent=2)
            + "\n"
        )


if __name__ == "__main__":
    main()
