"""`hf-mm score`: compare a generator's pictures with real ones: distances, coverage, classes, copies."""

import argparse
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ..data.pixel_rows import PixelRows

__all__ = ["main"]

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SHOWN, COPIES, NEAREST = 64, 8, 5
COUNTS = ("num_images", "num_images_per_prompt", "batch_size")
"""How pipelines call the number of pictures of one call."""


def main(argv: Sequence[str]) -> int:
    """Write `results.json`, `samples.png` and `neighbours.png`, print the table; returns the exit status.

    Raises:
        ValueError: The pictures are too few, or of another size or other channels than the data set's.
    """
    args = _parser().parse_args(argv)

    import torch

    from ..data.generation_rows import generation_rows
    from ..evaluation.feature_nets import feature_net
    from ..evaluation.generation import generation_report, generation_table
    from ..evaluation.report import environment, write_results

    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = feature_net(args.net, device)
    options = {"image_size": args.image_size, "folder": args.data_folder, "channels": args.channels}
    train, test = (generation_rows(args.dataset, split, **options) for split in ("train", "test"))
    train, test = _some(train, args.train_limit, args.seed), _some(test, args.limit, args.seed)
    samples, asked = _samples(args, test, device)
    if samples.shape[1:] != test.pixels.shape[1:]:
        raise ValueError(
            f"{args.model} draws (channels, height, width) {tuple(samples.shape[1:])}, the pictures of "
            f"{args.dataset} are {tuple(test.pixels.shape[1:])}; set `--image_size` or `--channels`."
        )
    test = test[slice(len(samples))]
    known, real, made = (net(x, args.batch_size, progress=True) for x in (train.pixels, test.pixels, samples))
    classes = test.labels if asked == "classes" and made.logits is not None else None
    report = generation_report(
        made,
        test=real,
        train=known,
        net=net,
        labels=classes,
        test_labels=classes,
        k=args.k,
        seed=args.seed,
    )
    about = {"model": args.model, "dataset": args.dataset, "asked": asked, "seed": args.seed}
    out = Path(args.out)
    write_results(out / "results.json", {**about, **report, "environment": environment()})
    _draw(out, samples, made.features, train, known.features)
    print(generation_table(report))
    print("\n" + "\n".join(str(out / name) for name in ("results.json", "samples.png", "neighbours.png")))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf-mm score", description=__doc__)
    parser.add_argument("model", help="a saved pipeline (folder or Hub id), or a folder of its pictures")
    parser.add_argument(
        "dataset", help="'digits', 'fashion-mnist', 'easy-vqa', 'openmoji', a folder or a Hub id"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="for results and pictures")
    parser.add_argument(
        "--net",
        default="efficientnet-lite0",
        help="in whose features: efficientnet-lite0 (also @96, smaller pictures), inception, or a classifier",
    )
    parser.add_argument(
        "--ask",
        choices=("classes", "texts", "nothing"),
        help="ask a pipeline for the classes or texts of the test pictures; by default what both have",
    )
    parser.add_argument("--limit", type=int, help="compare so many test pictures, drawn at random")
    parser.add_argument(
        "--train_limit", type=int, help="search so many training pictures for copies, at random, not all"
    )
    parser.add_argument("--image_size", type=int, help="in pixels, by default as the data set has them")
    parser.add_argument("--channels", type=int, default=3, choices=(1, 3), help="of pictures of your own")
    parser.add_argument("--data_folder", help="where the files of fashion-mnist or openmoji are")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--k", type=int, default=5, help="neighbour that the balls of coverage reach to")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _some(rows: "PixelRows", count: int | None, seed: int) -> "PixelRows":
    """As many as asked for, drawn at random, the same for the same seed."""
    import torch

    if count is None or count >= len(rows):
        return rows
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count]]


def _samples(args: argparse.Namespace, test: "PixelRows", device: str) -> tuple["Tensor", str]:
    """As many pictures as test pictures, uint8, or fewer out of a folder; and what was asked for."""
    import torch

    folder = Path(args.model)
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        return _read(folder, test), "nothing"
    from diffusers import DiffusionPipeline

    from .. import pixel_levels

    try:
        pipeline: Any = DiffusionPipeline.from_pretrained(args.model).to(device)
    except (OSError, ValueError) as error:
        if folder.is_dir():
            raise
        raise FileNotFoundError(
            f"{args.model}: there is no such folder, and the Hub gives no such pipeline; give a saved "
            "pipeline or a folder of pictures."
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    accepted = inspect.signature(pipeline.__call__).parameters
    asked = args.ask or _askable(pipeline, accepted, test)
    parts = []
    for first in range(0, len(test), args.batch_size):
        rows = test[slice(first, first + args.batch_size)]
        call = _request(accepted, asked, rows)
        generator = torch.Generator().manual_seed(args.seed + first)
        drawn = torch.from_numpy(pipeline(**call, generator=generator, output_type="np").images)
        parts.append(pixel_levels(drawn.permute(0, 3, 1, 2) * 2 - 1))
    return torch.cat(parts), asked


def _askable(pipeline: Any, accepted: Any, test: "PixelRows") -> str:
    """What both have: a pipeline may take classes and texts, and the parts of it only one of them."""
    parts = pipeline.components
    texts = "prompt" in accepted and ("text_encoder" not in parts or parts["text_encoder"] is not None)
    classes = "class_labels" in accepted and (
        "denoiser" not in parts or bool(pipeline.config.get("id2label"))
    )
    if classes and test.labels is not None:
        return "classes"
    return "texts" if texts and test.texts else "nothing"


def _request(accepted: Any, asked: str, rows: "PixelRows") -> dict[str, Any]:
    """Arguments of a call for as many pictures as `rows`."""
    if asked == "classes" and rows.labels is not None:
        return {"class_labels": rows.labels.tolist()}
    if asked == "texts" and rows.texts:
        return {"prompt": [text if isinstance(text, str) else text[0] for text in rows.texts]}
    if asked != "nothing":
        raise ValueError(f"The data set has no {asked} to ask for; take `--ask nothing`.")
    names = [name for name in COUNTS if name in accepted]
    if not names:
        raise ValueError(
            f"The pipeline takes none of {', '.join(COUNTS)}; write its pictures into a folder and give that."
        )
    return {names[0]: len(rows)}


def _read(folder: Path, test: "PixelRows") -> "Tensor":
    """The first pictures of a folder by name, with the channels of the test pictures."""
    import torch

    from ..imaging.loading import load_rgb

    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)[: len(test)]
    if not paths:
        raise ValueError(
            f"{folder} has neither model_index.json nor pictures ({', '.join(PICTURES)}); give a saved "
            "pipeline or a folder of pictures."
        )
    found, shape = [], tuple(test.pixels.shape[1:])
    for path in paths:
        pixels = torch.from_numpy(load_rgb(path)).permute(2, 0, 1)  # (3, H, W)
        if pixels.shape[1:] != shape[1:]:
            raise ValueError(
                f"{path} is {pixels.shape[2]}x{pixels.shape[1]} px, the data set's pictures are "
                f"{shape[2]}x{shape[1]}; set `--image_size`, or write them in their own size."
            )
        if shape[0] == 1 and not (pixels == pixels[:1]).all():
            raise ValueError(f"{path} has colours, the data set's pictures are grey; write it in grey.")
        found.append(pixels[: shape[0]])
    return torch.stack(found)


def _draw(out: Path, samples: "Tensor", made: "Tensor", train: "PixelRows", known: "Tensor") -> None:
    from ..evaluation.generation_manifolds import nearest_neighbours
    from ..hub.saving import atomic_write
    from ..visualization.sample_grids import neighbour_grid, sample_grid

    found = nearest_neighbours(made[:COPIES], known, min(NEAREST, len(known)))
    beside = train.pixels[found.indices]  # (COPIES, NEAREST, C, H, W)
    pages = {
        "samples.png": sample_grid(samples[:SHOWN]),
        "neighbours.png": neighbour_grid(samples[:COPIES], beside, found.distances),
    }
    for name, page in pages.items():
        with atomic_write(out / name) as temporary:
            page.save(temporary)
