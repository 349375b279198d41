"""One, two, four steps against fifty: how far drawn pictures are from real ones, and what a picture costs.

    python benchmarks/few_steps.py out/flow-dit out/mean-flow --dataset fashion-mnist --net out/vit-fashion \
        --out few_steps.json --page few_steps.png

Pipelines of diffusion or flow matching, and of mean flows, draw as many pictures as are compared, of the
classes of the test split, from the same noise at every number of steps. What a better solver gives for
nothing stands beside it: those that are no mean flow are drawn once with the scheduler they were saved with,
and once with DPM-Solver++ of second order. Columns: how often the denoiser was asked for a picture, which
guidance doubles; seconds a picture, of many at a time and of one alone (the median); the measures of
`generation_report`. What real pictures score in the place of drawn ones stands below. A mean flow has learnt
its guidance and is drawn without.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
from torch import Tensor

from hf_mm import (
    PixelRows,
    atomic_write,
    environment,
    feature_net,
    generation_report,
    generation_rows,
    markdown_table,
    sample_grid,
    write_results,
)

Row = dict[str, Any]
Pages = dict[str, Tensor]

STEPS = (1, 2, 4, 50)
AT_ONCE = 32  # pictures that are drawn together; what leaves the caches of a core takes twice the time
ALONE = 5  # pictures that are drawn one after the other, to be timed
COLUMNS = 10  # of the page


class AskedRows:
    """Counts the pictures that a denoiser is asked about."""

    def __init__(self, denoiser: torch.nn.Module) -> None:
        self.rows = 0
        self.hook = denoiser.register_forward_hook(self._count)

    def _count(self, module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.rows += len(inputs[0])


def solvers(pipe: Any) -> dict[str, Any]:
    """Schedulers to draw with, by their names: the saved one, and a better one where there is any."""
    saved = pipe.scheduler
    found = {type(saved).__name__.removesuffix("Scheduler"): saved}
    if pipe.prediction_type == "mean_flow":
        return found
    options: dict[str, Any] = {"algorithm_type": "dpmsolver++", "solver_order": 2}
    if pipe.prediction_type.startswith("flow"):
        options |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    else:  # at the times of equal steps, down to the picture
        options |= {"timestep_spacing": "trailing", "final_sigmas_type": "zero"}
    return found | {"DPM-Solver++": DPMSolverMultistepScheduler.from_config(saved.config, **options)}


def drawn(pipe: Any, steps: int, guidance: float, rows: PixelRows) -> tuple[Tensor, float]:
    """As many pictures (N, C, H, W) in [-1, 1] as there are rows, of their classes, and how long it took."""
    asked: dict[str, Any] = {"num_images_per_prompt": len(rows)}
    if pipe.classes and rows.labels is not None:
        asked = {"class_labels": rows.labels.tolist()}
    scale = guidance if pipe.classes and pipe.prediction_type != "mean_flow" else 1.0
    options = {"num_inference_steps": steps, "guidance_scale": scale, "chunk_size": AT_ONCE}
    begun = time.perf_counter()
    pictures = pipe(**asked, **options, seed=0, output_type="pt").images
    return pictures.float().cpu() * 2 - 1, time.perf_counter() - begun


def measure(name: str, pipe: Any, args: argparse.Namespace, real: "Real") -> tuple[list[Row], Pages]:
    """A row for each solver and number of steps, and the first pictures of each."""
    rows: list[Row] = []
    pages: Pages = {}
    for solver, scheduler in solvers(pipe).items():
        pipe.scheduler = scheduler
        for steps in args.steps:
            times = [drawn(pipe, steps, args.guidance_scale, real.test[:1])[1] for _ in range(ALONE + 1)]
            asked = AskedRows(pipe.denoiser)
            samples, seconds = drawn(pipe, steps, args.guidance_scale, real.test)
            asked.hook.remove()
            row: Row = {"pipeline": name, "solver": solver, "steps": steps}
            row |= {"asked": asked.rows / len(samples), "seconds": seconds / len(samples)}
            row["seconds alone"] = statistics.median(times[1:])  # the first warms up
            rows.append(row | real.compare(samples))
            pages[f"{name}, {solver}, {steps}"] = samples[:COLUMNS]
            print(f"{name}, {solver}, {steps} steps: {seconds:.1f} s", flush=True)
    return rows, pages


class Real:
    """Pictures to compare with, whose features are computed once."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.net = feature_net(args.net)
        options = {"image_size": args.image_size, "folder": args.data_folder}
        train, test = (generation_rows(args.dataset, split, **options) for split in ("train", "test"))
        self.test = test[: args.pictures]
        known = train.pixels[: args.training_pictures]
        self.features = {"test": self.net(self.test.pixels), "train": self.net(known)}
        self.floors: dict[str, float | None] = {}

    def compare(self, samples: Tensor) -> dict[str, float]:
        """What `generation_report` says, and the accuracy where the net tells classes."""
        labels: dict[str, Any] = {}
        if self.test.labels is not None and self.features["test"].logits is not None:
            labels = {"labels": self.test.labels, "test_labels": self.test.labels}
        found = generation_report(samples, **self.features, net=self.net, **labels)["measures"]
        self.floors = {name: entry["floor"] for name, entry in found.items()}
        return {name: entry["value"] for name, entry in found.items()}


def main() -> None:
    """Draw, measure, print a table, write it as JSON and the pictures as a page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pipelines", nargs="+", help="folders or Hub ids of image diffusion pipelines")
    parser.add_argument("--dataset", default="digits", help="as of `generation_rows`")
    parser.add_argument("--data_folder")
    parser.add_argument("--image_size", type=int, help="in px, that of the pipelines")
    parser.add_argument("--net", required=True, help="features to measure in, as of `feature_net`")
    parser.add_argument("--steps", nargs="+", type=int, default=list(STEPS))
    parser.add_argument("--pictures", type=int, help="to be compared; by default all of the test split")
    parser.add_argument("--training_pictures", type=int, help="for the floor, and searched for copies")
    parser.add_argument("--guidance_scale", type=float, default=1.5, help="of those that are no mean flow")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--page", type=Path, help="PNG with a row of pictures for each row of the table")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    real, table, pages = Real(args), [], {}
    for place in args.pipelines:
        pipe: Any = DiffusionPipeline.from_pretrained(place)
        pipe.set_progress_bar_config(disable=True)
        rows, drawn_of_it = measure(Path(place).name, pipe, args, real)
        table, pages = table + rows, pages | drawn_of_it
    print(markdown_table(table))
    print("Real pictures in the place of drawn ones:", real.floors)
    if args.out:
        facts: dict[str, Any] = {"environment": environment(), "dataset": args.dataset, "net": args.net}
        facts |= {"pictures": len(real.test), "guidance_scale": args.guidance_scale}
        write_results(args.out, facts | {"rows": table, "real pictures": real.floors})
    if args.page:
        page = sample_grid(torch.cat(list(pages.values())), COLUMNS, row_labels=list(pages))
        with atomic_write(args.page) as temporary:
            page.save(temporary)


if __name__ == "__main__":
    main()
