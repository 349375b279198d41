"""What pre-training and its alignment of words and patches are worth to ViLT, on easy-VQA.

    python benchmarks/vilt_easy_vqa.py --seeds 42,1,2 --folder out --out vilt_easy_vqa.json

Each run is one `hf-mm train vilt ...` with a folder of its own under `--folder`; a run whose `results.json`
is there is not repeated, so that this can be stopped, and several can work at one folder (`--runs`). Rows:
questions learnt from nothing, after pre-training by all three objectives, and after pre-training without
alignment, once for each seed; and with the first seed adapters instead of all weights, pairs of pictures and
retrieval, each from nothing and after pre-training.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from hf_mm import write_results

# name: flags, the run it starts from, and whether it is made for every seed
RUNS: dict[str, tuple[list[str], str | None, bool]] = {
    "pretrain": (["--task", "pretrain"], None, True),
    "pretrain-no-wpa": (["--task", "pretrain", "--objectives", "mlm,itm"], None, True),
    "vqa": (["--task", "vqa"], None, True),
    "vqa-pretrained": (["--task", "vqa"], "pretrain", True),
    "vqa-pretrained-no-wpa": (["--task", "vqa"], "pretrain-no-wpa", True),
    "vqa-pretrained-lora": (["--task", "vqa", "--lora_rank", "8"], "pretrain", False),
    "retrieval": (["--task", "retrieval"], None, False),
    "retrieval-pretrained": (["--task", "retrieval"], "pretrain", False),
    "nlvr": (["--task", "nlvr"], None, False),
    "nlvr-pretrained": (["--task", "nlvr"], "pretrain", False),
}
MEASURES = ("exact_match", "accuracy", "image_to_text_R@1", "text_to_image_R@1", "held_out_loss")


def train(name: str, seed: int, folder: Path) -> None:
    """One run, and before it the one it starts from, unless they are done."""
    flags, start, _ = RUNS[name]
    place = folder / f"{name}-{seed}"
    if (place / "results.json").is_file():
        return
    command = [sys.executable, "-m", "hf_mm.recipes.vilt", *flags, "--seed", str(seed)]
    if start is not None:
        train(start, seed, folder)
        command += ["--checkpoint", str(folder / f"{start}-{seed}")]
    subprocess.run([*command, "--output_dir", str(place), "--disable_tqdm", "true"], check=True)


def summary(folder: Path, seeds: list[int]) -> list[dict[str, Any]]:
    """A row for each kind of run that is done: each seed's figures, their mean and spread."""
    rows = []
    for name in RUNS:
        files = [folder / f"{name}-{seed}" / "results.json" for seed in seeds]
        done = [json.loads(file.read_text()) for file in files if file.is_file()]
        for measure in MEASURES:
            values = [results[measure] for results in done if measure in results]
            if values:
                row: dict[str, Any] = {"run": name, "measure": measure, "mean": statistics.mean(values)}
                row |= {"spread": statistics.stdev(values)} if len(values) > 1 else {}
                row |= {"values": values, "seeds": [results["seed"] for results in done]}
                row |= {"steps": done[0]["steps"]}
                rows.append(row | {"train_seconds": [round(results["train_seconds"]) for results in done]})
    return rows


def main() -> None:
    """Train what is missing, print and write what all runs measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", default="42,1,2")
    parser.add_argument("--folder", type=Path, default=Path("out"))
    parser.add_argument("--runs", default=",".join(RUNS), help="which of them to train, in this order")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    for seed in seeds:
        for name in args.runs.split(","):
            if RUNS[name][2] or seed == seeds[0]:
                train(name, seed, args.folder)
    rows = summary(args.folder, seeds)
    for row in rows:
        spread = f" +- {row['spread']:.4f}" if "spread" in row else ""
        print(f"{row['run']:24} {row['measure']:20} {row['mean']:.4f}{spread}  {row['values']}")
    if args.out is not None:
        write_results(args.out, {"runs": rows})


if __name__ == "__main__":
    main()
