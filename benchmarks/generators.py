"""Which generator gives what for the same minutes: one table of runs that were measured alike.

    hf-mm train gan --dataset fashion-mnist --net NET --measure_steps 1000 --output_dir out/gan
    hf-mm train diffusion --dataset fashion-mnist --net NET --measure_steps 600 --output_dir out/flow-unet
    hf-mm score out/ar fashion-mnist --net NET --out out/ar/score  # of a run that was trained without NET
    python benchmarks/generators.py out/flow-unet out/gan out/ar --reach 4 2 1 --out generators.json

Reads what recipes of generators leave: the report in `results.json`, or that of `hf-mm score` in the folder
`score`; and `measures.jsonl`, of fewer pictures than the report, for the seconds of training until a distance
was first seen. Reports in other features, or of another number of pictures, are refused: their distances do
not compare.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_mm import environment, markdown_table, time_to, write_results

SHOWN = ("precision", "recall", "coverage", "class accuracy")
UNMEASURED = {"value": float("nan"), "floor": float("nan")}
WEIGHTS = ("weights", "generator_weights")


def read_report(folder: Path, results: dict[str, Any]) -> dict[str, Any]:
    """Measures of one run.

    Raises:
        FileNotFoundError: It was not measured.
    """
    if "report" in results:
        return results["report"]
    scored = folder / "score" / "results.json"
    if not scored.is_file():
        raise FileNotFoundError(
            f"{folder} has no report: train with `--net`, or run `hf-mm score {folder} DATASET --net NET "
            f"--out {folder / 'score'}`."
        )
    return json.loads(scored.read_text(encoding="utf-8"))


def read_run(folder: Path, reach: list[float]) -> dict[str, Any]:
    """What one run cost and gave."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    report = read_report(folder, results)
    measures = report["measures"]
    distance = next(name for name in measures if name in ("FID", "Frechet distance"))
    curve = folder / "measures.jsonl"
    reached = [time_to(curve, one, distance) if curve.is_file() else None for one in reach]
    weights = next(results[name] for name in WEIGHTS if name in results)
    return {
        "run": folder.name,
        "alike": [report["net"], report["pictures"], distance],
        "distance": measures[distance],
        "shares": {name: measures.get(name, UNMEASURED) for name in SHOWN},
        "seconds": results["train_seconds"],
        "weights": weights,
        "seconds to": dict(zip((f"{one:g}" for one in reach), reached, strict=True)),
    }


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown, the nearest to real pictures first; last, what real pictures score in the place of drawn."""
    ordered = sorted(runs, key=lambda run: run["distance"]["value"])
    rows = [row_of(run, "value") for run in ordered]
    unmade = {"run": "real pictures", "seconds": None, "weights": None, "seconds to": {}}
    return markdown_table([*rows, row_of(runs[0] | unmade, "floor", list(rows[0]))])


def row_of(run: dict[str, Any], which: str, columns: Sequence[str] = ()) -> dict[str, str]:
    """The cells of one run, `which` is "value" or "floor"; cells that it lacks are empty."""
    row = {"run": run["run"], run["alike"][2]: f"{run['distance'][which]:.2f}"}
    row |= {name: f"{found[which]:.2f}" for name, found in run["shares"].items()}
    if run["weights"] is not None:
        row |= {"weights": f"{run['weights'] / 1e6:.2f} M", "seconds": f"{run['seconds']:,.0f}"}
    for distance, seconds in run["seconds to"].items():
        row[f"seconds to {distance}"] = "" if seconds is None else f"{seconds:,.0f}"
    return dict.fromkeys(columns, "") | row


def main() -> None:
    """Read, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folders", type=Path, nargs="+", help="of runs")
    parser.add_argument("--reach", type=float, nargs="*", default=[4.0, 2.0, 1.0], help="distances")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args()
    runs = [read_run(folder, args.reach) for folder in args.folders]
    for run in runs[1:]:
        if run["alike"] != runs[0]["alike"]:
            raise ValueError(
                f"{run['run']} was measured by {run['alike']}, not {runs[0]['alike']} as the first."
            )
    print(table(runs))
    if args.out is not None:
        write_results(args.out, {"runs": runs, "environment": environment()})


if __name__ == "__main__":
    main()
