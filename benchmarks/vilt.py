"""ViLT-B/32 against transformers' own: the same weights and batches, in one process, taking turns.

    python benchmarks/vilt.py --out vilt.json

Rows: the encoder in inference, and a training step of masked words (forward, loss, backward), on images of
sizes as in COCO, shorter side 384, and captions of 8 to 18 tokens. The peers are `transformers.ViltModel` and
`ViltForMaskedLM`, with texts padded to 40 tokens, as ViLT's code and the published processors do
(`padding="max_length"`), and to the longest of the batch. Medians of alternating calls, in CPU time of the
process, divided by the number of its threads. `peak_mb` is by how much the resident memory of a fresh process
rises above that of the model while it computes (Linux only).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import ViltConfig, ViltForMaskedLM, ViltModel

from hf_mm import MMViltForMaskedLM, MMViltModel

SLOTS, WORDS = 40, 30522
LENGTHS = (11, 13, 12, 18, 10, 14, 8, 12)  # of captions, in tokens
GRIDS = ((12, 16), (12, 18), (16, 12), (12, 12), (12, 20), (12, 16), (18, 12), (12, 17))  # rows, columns
SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
}
KINDS = {
    "forward": (ViltModel, MMViltModel),
    "training step, masked words": (ViltForMaskedLM, MMViltForMaskedLM),
}
# rival: whether it is ours, and the tokens to which texts are padded; the first is the peer at its best
RIVALS: dict[str, tuple[bool, int | None]] = {
    "transformers, padding=True": (False, None),
    "transformers, 40 tokens": (False, SLOTS),
    "hf_mm": (True, None),
    "hf_mm, 40 tokens": (True, SLOTS),
}


def batch_of(length: int | None, rows: int, labels: bool) -> dict[str, torch.Tensor]:
    """Images and captions; of the words 15 % hidden when there are labels."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.tensor(LENGTHS[:rows])
    real = torch.arange(length or int(counts.max())) < counts.unsqueeze(1)
    ids = torch.randint(1000, WORDS, (rows, SLOTS), generator=generator)[:, : real.shape[1]] * real
    height, width = (32 * max(grid[axis] for grid in GRIDS[:rows]) for axis in (0, 1))
    pixels, mask = torch.zeros(rows, 3, height, width), torch.zeros(rows, height, width, dtype=torch.long)
    for row, (down, right) in enumerate(GRIDS[:rows]):
        pixels[row, :, : 32 * down, : 32 * right] = torch.randn(3, 32 * down, 32 * right, generator=generator)
        mask[row, : 32 * down, : 32 * right] = 1
    inputs = {"input_ids": ids, "attention_mask": real.long(), "pixel_values": pixels, "pixel_mask": mask}
    if labels:
        drawn = torch.rand(rows, SLOTS, generator=generator)[:, : real.shape[1]]
        inputs["labels"] = ids.masked_fill(~(real & (drawn < 0.15)), -100)
    return inputs


def model_of(kind: str, ours: bool, small: bool) -> Any:
    """The peer with random weights, or ours with the same."""
    torch.manual_seed(0)
    theirs, own = KINDS[kind]
    peer = theirs(ViltConfig(**(SMALL if small else {}))).eval()
    if not ours:
        return peer
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        return own.from_pretrained(folder).eval()


def run(model: Any, kind: str, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The vectors of a batch; or its loss, gradients made and dropped."""
    if kind == "forward":
        with torch.inference_mode():
            return model(**inputs).pooler_output
    loss = model.train()(**inputs).loss
    loss.backward()
    model.zero_grad(set_to_none=True)
    return loss.detach()


def resident_mb(entry: str) -> float:
    """A line of Linux's account of this process."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(entry)) * 1024 / 1e6


def peak_mb(kind: str, rival: str, rows: int, small: bool) -> float:
    """By how much a call raises the memory of this process, which has to be a fresh one."""
    ours, length = RIVALS[rival]
    model, inputs = model_of(kind, ours, small), batch_of(length, rows, kind != "forward")
    for weight in model.parameters():  # weights of a file are in memory only once they are touched
        weight.data = weight.data.clone()
    before = resident_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    run(model, kind, inputs)
    return resident_mb("VmHWM") - before


def peak_of_fresh_process(kind: str, rival: str, args: argparse.Namespace) -> float | None:
    """`peak_mb` in a process of its own; `None` where Linux's account is missing."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    command = [sys.executable, __file__, "--peak_of", f"{kind}/{rival}"]
    command += [
        "--rows",
        str(args.rows),
        "--threads",
        str(args.threads),
        *(["--small"] if args.small else []),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def measure(kind: str, args: argparse.Namespace) -> list[dict]:
    """Time the rivals in turns; the first call of each warms it up and is compared with the peer's."""
    models = {ours: model_of(kind, ours, args.small) for ours in (False, True)}
    inputs = {length: batch_of(length, args.rows, kind != "forward") for length in (None, SLOTS)}
    outputs = {name: run(models[ours], kind, inputs[length]) for name, (ours, length) in RIVALS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in RIVALS}
    for _ in range(args.rounds):
        for name, (ours, length) in RIVALS.items():
            start = time.process_time()
            run(models[ours], kind, inputs[length])
            seconds[name].append((time.process_time() - start) / torch.get_num_threads())
    models.clear()  # make room for the processes that measure memory
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    peer = next(iter(RIVALS))
    return [
        {
            "rival": name,
            "milliseconds": 1000 * medians[name],
            "ours_is_faster_by": medians[name] / medians["hf_mm"],
            "apart": (outputs[name] - outputs[peer]).abs().max().item(),
            "peak_mb": peak_of_fresh_process(kind, name, args),
        }
        for name in RIVALS
    ]


def main() -> None:
    """Run both workloads, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=len(GRIDS), help="images of a batch, at most 8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="a tiny model, to see that this runs")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak_of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak_of:
        kind, rival = args.peak_of.split("/")
        print(peak_mb(kind, rival, args.rows, args.small))
        return
    table = {}
    for kind in KINDS:
        table[kind] = measure(kind, args)
        print(f"{kind}, {args.rows} pairs")
        for row in table[kind]:
            memory = "" if row["peak_mb"] is None else f"  peak {row['peak_mb']:6.0f} MB"
            print(
                f"  {row['rival']:28} {row['milliseconds']:8.0f} ms  "
                f"{row['ours_is_faster_by']:5.2f}x of ours  apart {row['apart']:.1e}{memory}"
            )
    if args.out:
        versions = {"transformers": transformers.__version__, "torch": torch.__version__}
        facts = {"versions": versions, "threads": args.threads, "rows": args.rows, "workloads": table}
        args.out.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
