"""Four ways to make codes of pictures, and diffusers' VQModel trained the same way: errors and codes in use.

    python benchmarks/autoencoders.py --data_folder fashion --folder out --out autoencoders.json

Each run is one `hf-mm train autoencoder ...` with a folder of its own under `--folder`: the same pictures in
the same order, the same encoder and decoder, optimizer and steps; only what stands between them differs. A
run whose `results.json` is there is not repeated, so that this can be stopped, and several can work at one
folder (`--models`). All figures are of the test split and of the averaged weights. What follows `--` goes to
the recipe: `-- --max_steps 2` tries everything out.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from hf_mm import environment, markdown_table, write_results

MODELS = ("vq", "fsq", "vq-plain", "diffusers-vq")
MEASURES = ("mse", "psnr", "rFD", "rFD_of_real_pictures", "perplexity", "used_codes", "train_seconds")


def train(model: str, seed: int, args: argparse.Namespace) -> None:
    """One run, unless it is done."""
    place = args.folder / f"{model}-{seed}"
    if (place / "results.json").is_file():
        return
    command = [sys.executable, "-m", "hf_mm.recipes.autoencoder", "--model", model, "--seed", str(seed)]
    command += ["--dataset", args.dataset, "--output_dir", str(place), "--disable_tqdm", "true"]
    if args.data_folder is not None:
        command += ["--data_folder", args.data_folder]
    subprocess.run([*command, *args.further], check=True)


def summary(folder: Path, models: list[str], seeds: list[int]) -> list[dict[str, Any]]:
    """A row for each kind of run that is done: the mean over seeds and, of several, the spread."""
    rows = []
    for model in models:
        files = [folder / f"{model}-{seed}" / "results.json" for seed in seeds]
        done = [json.loads(file.read_text()) for file in files if file.is_file()]
        if not done:
            continue
        row: dict[str, Any] = {"model": model, "seeds": [results["seed"] for results in done]}
        row |= {"steps": done[0]["steps"], "weights": done[0]["weights"], "codes": done[0]["codes"]}
        for measure in MEASURES:
            values = [results[measure] for results in done if measure in results]
            if values:
                row[measure] = statistics.mean(values)
                row |= {f"{measure}_spread": statistics.stdev(values)} if len(values) > 1 else {}
        rows.append(row)
    return rows


def main() -> None:
    """Train what is missing, print and write what all runs measured."""
    own, further = sys.argv[1:], []
    if "--" in own:
        own, further = own[: own.index("--")], own[own.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="fashion-mnist")
    parser.add_argument("--data_folder", help="where its files are")
    parser.add_argument("--seeds", default="42")
    parser.add_argument("--models", default=",".join(MODELS), help="which to train, in this order")
    parser.add_argument("--folder", type=Path, default=Path("out"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(own)
    args.further = further
    models, seeds = args.models.split(","), [int(seed) for seed in args.seeds.split(",")]
    for seed in seeds:
        for model in models:
            train(model, seed, args)
    rows = summary(args.folder, models, seeds)
    shown = [{name: row.get(name, "") for name in ("model", *MEASURES)} for row in rows]
    print(markdown_table(shown))
    if args.out is not None:
        write_results(args.out, {"dataset": args.dataset, "runs": rows, "environment": environment()})


if __name__ == "__main__":
    main()
