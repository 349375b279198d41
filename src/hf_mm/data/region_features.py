"""Regions of pictures for region-feature BERTs: where they are, what they look like, what they may show.

Anderson et al. 2018, "Bottom-Up and Top-Down Attention" (https://arxiv.org/abs/1707.07998), had them from a
Faster R-CNN in Caffe. Here boxes come from any object detector of transformers, from proposals, or from the
caller; features are the detector's states, or what a box holds on the feature map of any backbone.

Shapes: r regions of a picture, F width of a feature, C classes.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..imaging.box_shares import box_shares
from ..imaging.loading import load_rgb
from .feature_maps import Backbone, feature_map, image_pixels, read_boxes
from .region_detections import best_regions, detect

__all__ = ["RegionFeatureExtractor"]


class RegionFeatureExtractor:
    """Called with pictures, gives the regions of each, ready for `RegionStoreWriter` and `MMRegionProcessor`.

        detector = AutoModelForObjectDetection.from_pretrained("PekingU/rtdetr_r50vd")
        extract = RegionFeatureExtractor(detector, AutoImageProcessor.from_pretrained("PekingU/rtdetr_r50vd"))
        extract(["a.jpg"])[0]["features"]  # (36, 256)

        extract = RegionFeatureExtractor(
            backbone=efficientnet_lite0(16), backbone_processor=lite_image_processor(), proposals=sliding_grid
        )

    Boxes are those given with the pictures, else those of the detector, else those of `proposals`. Features
    are read off the map of the backbone if there is one, else they are the detector's states. Models run
    where they are, in their type and in the mode that they have: call `eval()` first.

    Args:
        detector: An `AutoModelForObjectDetection`.
        image_processor: Of the detector.
        backbone: What makes a feature map, see `hf_mm.data.feature_maps.Backbone`. A second map, of logits,
            becomes `class_scores` and `labels`.
        backbone_processor: Image processor of the backbone; it must show all of a picture.
        proposals: A function of a picture (an RGB array) that gives boxes (r, 4) as shares, the best first.
        max_regions: Keep no more regions of a picture; boxes that are given are all kept.
        min_regions: Of the detector's regions keep so many, also below `min_score`.
        min_score: Leave out regions of which the detector is less sure.
        max_overlap: Of detected regions that overlap more (intersection over union) keep the better one.
        layer: Which map of the backbone, see `feature_map`.
        bins: Per side of a box; features are `bins`² times as wide as the map has channels.
        sampling_ratio: As `roi_align` takes it.
        batch_size: Pictures at a time.

    Raises:
        ValueError: There is nothing that makes features, a processor is missing, or a number is out of range.
    """

    def __init__(
        self,
        detector: Any = None,
        image_processor: Any = None,
        *,
        backbone: Backbone | None = None,
        backbone_processor: Any = None,
        proposals: Callable[[Any], Any] | None = None,
        max_regions: int = 36,
        min_regions: int = 1,
        min_score: float = 0.0,
        max_overlap: float | None = None,
        layer: int = -1,
        bins: int = 1,
        sampling_ratio: int | None = None,
        batch_size: int = 8,
    ) -> None:
        if detector is None and backbone is None:
            raise ValueError("Neither `detector` nor `backbone` is given; one of them makes the features.")
        if (detector is None) != (image_processor is None):
            raise ValueError("`detector` and `image_processor` belong together; give both or neither.")
        if (backbone is None) != (backbone_processor is None):
            raise ValueError("`backbone` and `backbone_processor` belong together; give both or neither.")
        if detector is not None and proposals is not None:
            raise ValueError("`detector` and `proposals` both give boxes; leave one of them out.")
        if not 1 <= min_regions <= max_regions or bins < 1 or batch_size < 1:
            raise ValueError(
                f"`min_regions`={min_regions} must be from 1 to `max_regions`={max_regions}, `bins`={bins} "
                f"and `batch_size`={batch_size} at least 1."
            )
        self.detector, self.image_processor = detector, image_processor
        self.backbone: Any = backbone
        self.backbone_processor, self.proposals = backbone_processor, proposals
        self.max_regions, self.min_regions = max_regions, min_regions
        self.min_score, self.max_overlap = min_score, max_overlap
        self.layer, self.bins, self.sampling_ratio = layer, bins, sampling_ratio
        self.batch_size = batch_size

    def __call__(
        self, images: Iterable[Any], boxes: Sequence[Any] | None = None, box_format: str = "shares"
    ) -> list[dict[str, Any]]:
        """Find regions.

        Args:
            images: Anything that `hf_mm.load_rgb` reads, each.
            boxes: (r, 4), x1, y1, x2, y2, of each picture; needs a backbone.
            box_format: Of `boxes`: "shares" of width and height, or "pixels".

        Returns:
            For each picture `boxes` (r, 4) as shares, `features` (r, F), `image_size` (width, height) in
            pixels; from a detector also `scores` (r,), `labels` (r,), `class_scores` (r, C) and `tags`, the
            names of the labels. Tensors are on the CPU, floats in float32.

        Raises:
            ValueError: A picture cannot be read or has no regions, or a box is not in its picture; it is
                named by its number, from 0.
            TypeError: `images` is one picture.
        """
        if isinstance(images, str | bytes | dict | Image.Image):
            raise TypeError(f"`images` is one picture, a {type(images).__name__}; give a list of pictures.")
        pictures = [load_rgb(image, f"image {number}") for number, image in enumerate(images)]
        found = self._given(pictures, boxes, box_format)
        results: list[dict[str, Any]] = []
        with torch.no_grad():
            for first in range(0, len(pictures), self.batch_size):
                part = slice(first, first + self.batch_size)
                results += self._regions(pictures[part], None if found is None else found[part])
        return results

    def _given(self, pictures: list, boxes: Sequence[Any] | None, box_format: str) -> list[Tensor] | None:
        """Boxes that need no detector, (r, 4) shares of each picture."""
        if boxes is None:
            if self.detector is not None:
                return None
            if self.proposals is None:
                raise ValueError(
                    "There are no boxes: give `boxes`, or build the extractor with a detector or proposals."
                )
            boxes = [self.proposals(picture)[: self.max_regions] for picture in pictures]
            box_format = "shares"
        elif self.backbone is None:
            raise ValueError(
                "`boxes` are given, and a detector has features of its own boxes only; build the extractor "
                "with a `backbone`."
            )
        if len(boxes) != len(pictures):
            raise ValueError(f"There are {len(pictures)} images and `boxes` of {len(boxes)}; give all.")
        return [
            box_shares(of_one, _size(picture), box_format, f"image {number}")
            for number, (picture, of_one) in enumerate(zip(pictures, boxes, strict=True))
        ]

    def _regions(self, pictures: list, boxes: list[Tensor] | None) -> list[dict[str, Any]]:
        """The regions of one batch."""
        results: list[dict[str, Any]]
        results = self._detected(pictures) if boxes is None else [{"boxes": of_one} for of_one in boxes]
        if self.backbone is not None:
            looks = self._described(pictures, [result["boxes"] for result in results])
            results = [{**looked, **result} for looked, result in zip(looks, results, strict=True)]
        for picture, result in zip(pictures, results, strict=True):
            result["image_size"] = _size(picture)
        return results

    def _detected(self, pictures: list) -> list[dict[str, Any]]:
        results = []
        names = self.detector.config.id2label
        for detections in detect(self.detector, self.image_processor, pictures):
            kept = detections[
                best_regions(detections, self.max_regions, self.min_regions, self.min_score, self.max_overlap)
            ]
            result: dict[str, Any] = {"boxes": kept.boxes}
            if self.backbone is None:
                result["features"] = self._states(kept.states)
            tags = [names[label] for label in kept.labels.tolist()]
            result |= {
                "scores": kept.scores,
                "labels": kept.labels,
                "class_scores": kept.class_scores,
                "tags": tags,
            }
            results.append(result)
        return results

    def _states(self, states: Tensor | None) -> Tensor:
        if states is None:
            raise ValueError(
                f"{type(self.detector).__name__} gives no state of each query (`last_hidden_state`); build "
                "the extractor with a `backbone`, too."
            )
        return states

    def _described(self, pictures: list, boxes: list[Tensor]) -> list[dict[str, Any]]:
        """Features of boxes, read off the map."""
        pixels, seen = image_pixels(self.backbone_processor, pictures)
        maps, logits = feature_map(self.backbone, _like(pixels, self.backbone), self.layer)
        features = read_boxes(maps.float(), boxes, seen, self.bins, self.sampling_ratio)
        results: list[dict[str, Any]] = [{"features": part.cpu()} for part in features]
        if logits is not None:
            for result, part in zip(
                results, read_boxes(logits.float(), boxes, seen, 1, self.sampling_ratio), strict=True
            ):
                class_scores = part.softmax(-1).cpu()
                scores, labels = class_scores.max(-1)
                result |= {"scores": scores, "labels": labels, "class_scores": class_scores}
        return results


def _size(picture: Any) -> tuple[int, int]:
    return picture.shape[1], picture.shape[0]


def _like(pixels: Tensor, backbone: Any) -> Tensor:
    """On the device and in the type of the model's weights."""
    weights = next(backbone.parameters(), None) if hasattr(backbone, "parameters") else None
    return pixels if weights is None else pixels.to(weights.device, weights.dtype)
