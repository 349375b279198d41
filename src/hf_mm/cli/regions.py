"""`hf-mm regions`: extract the regions of many pictures into a store."""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["main"]

LITE = "efficientnet-lite0"
LOST_SECONDS = 60.0  # of work, at most, when the process is killed
LITE_STRIDE, LITE_SIDE_PX = 16, 224
Extractor = Callable[[list[Any]], list[dict[str, Any]]]
PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}


def main(argv: Sequence[str]) -> int:
    """Extract, with a progress bar, and print how fast and how large; returns the exit status.

    Raises:
        FileNotFoundError: There are no pictures.
        ValueError: A picture cannot be read or has no regions, or the store is of another detector.
    """
    args = _parser().parse_args(argv)
    if not args.detector and not args.backbone:
        raise ValueError("Give `--detector`, `--backbone` or both: one of them makes the features.")

    from ..data.region_store import INDEX, RegionStore, drop_broken_shards
    from ..data.region_writing import RegionStoreWriter

    out = Path(args.out)
    if args.repair:
        for problem in drop_broken_shards(out).values():
            print(f"Taken out: {problem}")
    pictures = _pictures(args)
    there = RegionStore(out) if (out / INDEX).exists() else None
    extract, detector = _extractor(args)
    feature_size = there.feature_size if there else extract([pictures.at(0)])[0]["features"].shape[1]
    numbers = pictures.numbers(*args.part)
    with RegionStoreWriter(out, feature_size, detector, args.dtype, "shares", args.part[0]) as writer:
        missing = {image_id: number for image_id, number in numbers.items() if image_id not in writer}
        start = time.perf_counter()
        _extract(pictures, missing, extract, writer, args.batch_size)
    seconds = time.perf_counter() - start
    print(
        f"{len(missing):,} pictures in {seconds:,.1f} s, {len(missing) / seconds:,.1f} images/s; "
        f"{len(numbers) - len(missing):,} were there."
    )
    store = RegionStore(out)
    print(
        f"{out} has {len(store):,} pictures with {store.regions / max(1, len(store)):.1f} regions of "
        f"{feature_size:,} numbers in {args.dtype}, {store.bytes_per_image:,.0f} bytes per image."
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf-mm regions", description=__doc__)
    parser.add_argument("source", help="'easy-vqa', a folder of pictures, a Hub id, a file or a data set")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="the store; a stopped run goes on")
    parser.add_argument("--detector", help="folder or Hub id of an object detector, which finds the boxes")
    parser.add_argument(
        "--backbone",
        help=f"folder or Hub id of a vision model, or {LITE!r}, which makes features in the detector's place",
    )
    parser.add_argument(
        "--proposals",
        default="grid",
        choices=("grid", "things"),
        help="without a detector: boxes of a grid, or of what stands out from one colour and of a grid",
    )
    parser.add_argument("--split", default="train")
    parser.add_argument("--image", default="image", metavar="COLUMN", help="of the pictures of a data set")
    parser.add_argument("--id", metavar="COLUMN", help="of their ids; by default the number of the row")
    parser.add_argument(
        "--part", type=_part, default=(0, 1), metavar="I/N", help="one of N processes does 0/N, ..."
    )
    parser.add_argument("--dtype", default="float16", choices=("float16", "float32"), help="of features")
    parser.add_argument("--max_regions", type=int, default=36, help="of a picture, those of best scores")
    parser.add_argument("--min_score", type=float, default=0.0, help="of what the detector finds")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--repair", action="store_true", help="first take damaged shards out of the store")
    return parser


def _part(text: str) -> tuple[int, int]:
    number, _, parts = text.partition("/")
    if not (number.isdigit() and parts.isdigit() and int(number) < int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I below N, such as 0/4")
    return int(number), int(parts)


def _extractor(args: argparse.Namespace) -> tuple[Extractor, str]:
    """What extracts, and what the store calls it."""
    import torch
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    from ..data.region_features import RegionFeatureExtractor
    from ..data.region_proposals import region_proposals, sliding_grid

    device = "cuda" if torch.cuda.is_available() else "cpu"
    options: dict[str, Any] = {
        "max_regions": args.max_regions,
        "min_score": args.min_score,
        "batch_size": args.batch_size,
    }
    boxes = args.proposals
    if args.detector:
        options["detector"] = AutoModelForObjectDetection.from_pretrained(args.detector).eval().to(device)
        options["image_processor"] = AutoImageProcessor.from_pretrained(args.detector)
        boxes = args.detector
    else:
        options["proposals"] = sliding_grid if args.proposals == "grid" else region_proposals
    if not args.backbone:
        return RegionFeatureExtractor(**options), args.detector
    backbone, processor, side_px = _backbone(args.backbone)
    options |= {"backbone": backbone.to(device), "backbone_processor": processor}
    return RegionFeatureExtractor(**options), f"{args.backbone} of {side_px} px, boxes: {boxes}"


def _backbone(name: str) -> tuple[Any, Any, int]:
    """A vision model, an image processor that shows it all of a picture, and to how many pixels a side."""
    from transformers import AutoImageProcessor, AutoModel

    from ..data.efficientnet_lite import lite_image_processor
    from ..layers.efficientnet_lite import efficientnet_lite0
    from ..models.clip.image_processing_clip import MMCLIPImageProcessor

    if name == LITE:
        return efficientnet_lite0(LITE_STRIDE), lite_image_processor(LITE_SIDE_PX), LITE_SIDE_PX
    own = AutoImageProcessor.from_pretrained(name)
    size = (getattr(own, "crop_size", None) if getattr(own, "do_center_crop", False) else None) or own.size
    side_px = size["height"] if "height" in size else size["shortest_edge"]
    processor = MMCLIPImageProcessor(
        size={"height": side_px, "width": side_px},
        do_center_crop=False,
        image_mean=own.image_mean,
        image_std=own.image_std,
    )
    return AutoModel.from_pretrained(name).eval(), processor, side_px


@dataclass(frozen=True)
class Pictures:
    """Pictures that are read when they are asked for.

    Attributes:
        ids: Of all of them; an id may occur more than once.
        at: The picture of that number.
    """

    ids: Sequence[str]
    at: Callable[[int], Any]

    def numbers(self, part: int, parts: int) -> dict[str, int]:
        """Each id of that part and the number of its first picture."""
        first: dict[str, int] = {}
        for number, image_id in enumerate(self.ids):
            first.setdefault(image_id, number)
        return dict(list(first.items())[part::parts])


def _pictures(args: argparse.Namespace) -> Pictures:
    from ..data.easy_vqa import image_paths
    from ..data.sources import open_source
    from ..evaluation.features import undecoded

    folder = Path(args.source)
    if args.source == "easy-vqa":
        paths = image_paths(args.split)
        return Pictures([str(image_id) for image_id in paths], list(paths.values()).__getitem__)
    found = folder.rglob("*") if folder.is_dir() else ()
    files = sorted(path for path in found if path.suffix.lower() in PICTURES)
    if files:
        return Pictures([path.relative_to(folder).as_posix() for path in files], files.__getitem__)
    rows: Any = open_source(args.source, args.split)
    for option, column in (("--image", args.image), ("--id", args.id)):
        if column and column not in rows.column_names:
            raise ValueError(
                f"{args.source} has no column {column!r}, it has {rows.column_names}; name yours by "
                f"`{option}`."
            )
    if not len(rows):
        raise ValueError(f"{args.source} has no rows; check what it is.")
    ids = rows[args.id] if args.id else range(len(rows))
    rows = undecoded(rows)
    return Pictures([str(image_id) for image_id in ids], lambda number: rows[number][args.image])


def _extract(
    pictures: Pictures, numbers: Mapping[str, int], extract: Extractor, writer: Any, batch_size: int
) -> None:
    """Extract pictures; those of a batch are read while the batch before is looked at."""
    from tqdm.auto import tqdm

    from ..imaging.loading import load_rgb

    ids = list(numbers)
    batches = [ids[start : start + batch_size] for start in range(0, len(ids), batch_size)]

    def read(batch: list[str]) -> list[Any]:
        return [load_rgb(pictures.at(numbers[image_id]), f"picture {image_id!r}") for image_id in batch]

    with ThreadPoolExecutor(1) as pool, tqdm(total=len(ids), desc="regions", unit=" images") as bar:
        upcoming = pool.submit(read, batches[0] if batches else [])
        written = time.perf_counter()
        for number, batch in enumerate(batches, 1):
            found = upcoming.result()
            upcoming = pool.submit(read, batches[number] if number < len(batches) else [])
            for image_id, regions in zip(batch, extract(found), strict=True):
                writer.add(image_id, regions)
            bar.update(len(batch))
            if time.perf_counter() - written > LOST_SECONDS:
                writer.flush()
                written = time.perf_counter()
