"""What a region BERT is given: regions that go with texts, or an error that says why not.

Shapes: B texts, I images, R places for regions, F width of features.
"""

import torch
from torch import Tensor

from .configuration_region_bert import MMRegionBertConfig
from .layout_region_bert import RegionPlaces

__all__ = ["check_region_inputs"]


def check_region_inputs(
    config: MMRegionBertConfig,
    words: Tensor,
    attention_mask: Tensor | None,
    features: Tensor | None,
    boxes: Tensor | None,
    region_mask: Tensor | None,
    masked: Tensor | None,
    region_index: Tensor | None,
    image_features: Tensor | None,
) -> RegionPlaces:
    """What is a token and what is padding; without masks all is a token.

    Raises:
        ValueError: No features or boxes, features of another width, or shapes and numbers that do not go
            together.
    """
    features, size = _check_features(features, config.region_feature_size), config.region_feature_size
    if boxes is None and config.region_location != "none":
        raise ValueError(
            f'Give `region_boxes`, {(*features.shape[:2], 4)}: `region_location`="{config.region_location}" '
            "tells where regions are."
        )
    shapes = {
        "region_boxes": (boxes, (*features.shape[:2], 4)),
        "region_mask": (region_mask, features.shape[:2]),
        "masked_regions": (masked, features.shape[:2]),
        "image_features": (image_features, (len(features), size)),
    }
    for name, (values, wanted) in shapes.items():
        if values is not None and values.shape != wanted:
            raise ValueError(
                f"`{name}` must be {tuple(wanted)} as `region_features` is {tuple(features.shape)}, got "
                f"{tuple(values.shape)}."
            )
    if image_features is not None and not config.whole_image_region:
        raise ValueError(
            "`image_features` are those of the first region in models with `whole_image_region`=True; this "
            "one has none, leave them out."
        )
    _check_index(len(words), len(features), region_index)
    texts, regions = words.shape[:2], features.shape[:2]
    every = features.new_ones((), dtype=torch.bool)
    return RegionPlaces(
        every.expand(texts) if attention_mask is None else attention_mask.bool(),
        every.expand(regions) if region_mask is None else region_mask.bool(),
        region_index,
        int(config.whole_image_region),
        int(config.end_token),
    )


def _check_features(features: Tensor | None, size: int) -> Tensor:
    if features is None:
        raise ValueError(f"Give `region_features`, (batch, regions, {size}), beside the text.")
    if features.ndim != 3 or not features.shape[1]:
        raise ValueError(
            f"`region_features` must be (batch, regions, {size}) with at least one region, got "
            f"{tuple(features.shape)}."
        )
    if features.shape[2] != size:
        raise ValueError(
            f"`region_features` is {features.shape[2]} wide, the model was made for {size} "
            "(`region_feature_size`); extract them with the same detector."
        )
    return features


def _check_index(texts: int, images: int, region_index: Tensor | None) -> None:
    if region_index is None and images != texts:
        raise ValueError(
            f"{texts} texts and the regions of {images} images: give those of one image for each text, or "
            "say by `region_index` whose go with each text."
        )
    if region_index is not None and (region_index.shape != (texts,) or region_index.is_floating_point()):
        raise ValueError(
            f"`region_index` must be ({texts},) numbers of images, got {tuple(region_index.shape)} of "
            f"{region_index.dtype}."
        )
