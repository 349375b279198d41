"""Images of any shape to ViLT: resized with their proportions kept, padded to the largest of a batch.

Kim et al. 2021, "ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision", section
4.1 (https://arxiv.org/abs/2102.03334).

Shapes: B images, Y x X pixels of the largest.
"""

from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

from ...hub.remote_code import RemoteCodeMixin
from ...imaging.normalising import check_colours, normalised
from ...imaging.processor import PictureProcessor
from ...imaging.views import fit_views

__all__ = ["MMViltImageProcessor", "MMViltImagesKwargs", "vilt_size"]

# Of a photo of COCO in detectors: https://github.com/dandelin/ViLT, vilt/transforms/pixelbert.py
LONGER_TO_SHORTER = 1333 / 800

# Of transformers' image processors, written into their files: what they say here when they are switched off.
SWITCHED_OFF: dict[str, tuple[object, ...]] = {
    "crop_size": (),
    "data_format": ("channels_first",),
    "default_to_square": (False,),
    "device": (),
    "disable_grouping": (True, False),
    "do_center_crop": (False,),
    "image_seq_length": (),
    "pad_size": (),
}


def vilt_size(height: int, width: int, shorter: int, longer: int, divisor: int) -> tuple[int, int]:
    """Height and width of a resized image: its shorter side at `shorter`, or its longer one at `longer`.

    Rounded down to multiples of `divisor`, in the order of the published arithmetic.

    Args:
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        shorter: Wanted length of the shorter side, in pixels.
        longer: Most of the longer side, in pixels.
        divisor: Both sides become multiples of it; 0 for a side that would be shorter than it.
    """
    scale = shorter / min(height, width)
    sides = (shorter, scale * width) if height < width else (scale * height, shorter)
    if max(sides) > longer:
        scale = longer / max(sides)
        sides = (scale * sides[0], scale * sides[1])
    return int(sides[0] + 0.5) // divisor * divisor, int(sides[1] + 0.5) // divisor * divisor


class MMViltImagesKwargs(TypedDict, total=False):
    """The fields of `MMViltImageProcessor`; each can also be given for one call."""

    do_convert_rgb: bool | None
    do_resize: bool
    size: int | list[int] | tuple[int, int] | dict[str, int] | None
    size_divisor: int
    resample: int
    exact: bool
    do_rescale: bool
    rescale_factor: float | int
    do_normalize: bool
    image_mean: float | int | list[float | int] | tuple[float | int, ...]
    image_std: float | int | list[float | int] | tuple[float | int, ...]
    do_pad: bool
    input_data_format: str | None
    return_tensors: str | None


class MMViltImageProcessor(RemoteCodeMixin, PictureProcessor):
    """Any pictures (see `load_rgb`) to `pixel_values` and `pixel_mask`.

    The fields are those of transformers' ViLT, and its files are read: `from_pretrained`. The pixels are
    those of its Pillow processor to the bit, but for pictures that `load_rgb` reads with more care: 16 bits
    are scaled, EXIF orientation is applied, all become RGB.

    Args:
        do_convert_rgb: As transformers writes it; pictures always become RGB, `False` is refused.
        do_resize: Resize pictures to `size`.
        size: `{"shortest_edge": S}` or S, the shorter side. The longer one is at most 1333/800 of it, rounded
            down: 639 for 384, and so 608 in multiples of 32. `{"shortest_edge": S, "longest_edge": L}` for
            another limit, which transformers does not read.
        size_divisor: Sides are rounded down to multiples of it: the side of a patch.
        resample: Filter, a value of `PIL.Image.Resampling`.
        exact: Equal to transformers' Pillow processor bit for bit. `False` for 8-bit integers, if `resample`
            is bilinear (2) or bicubic (3): several times as fast (`benchmarks/preprocessing.py`) and within
            one level of 255, but for a few pixels in a thousand of very noisy pictures, which were up to
            three away.
        do_rescale: Multiply pixels by `rescale_factor`.
        rescale_factor: 1/255 makes 0..255 into 0..1.
        do_normalize: Subtract `image_mean` and divide by `image_std`, per channel, after rescaling.
        image_mean: One number or three; 0.5 by default.
        image_std: One number or three; 0.5 by default.
        do_pad: Pad pictures at the right and the bottom, by 0 after normalising, to the largest of the batch,
            and return `pixel_mask`. `False` is for pictures that become all of one size.
        input_data_format: "channels_first" or "channels_last" where an array's shape leaves it open.
        return_tensors: "pt" or `None` for torch, "np" for numpy; given per call.

    Returns, when called with `images`:
        `pixel_values` (B, 3, Y, X) float32; uint8 with neither rescaling nor normalising.
        `pixel_mask` (B, Y, X) int64, 1 on the picture; only with `do_pad`.

    Raises:
        ValueError: Fields that do not fit each other; a picture that cannot be read, is so narrow that not
            even one patch would be left of its shorter side, or is not a multiple of `size_divisor` where
            it is not resized.
        TypeError: An unknown field.
    """

    valid_kwargs = MMViltImagesKwargs
    silent = SWITCHED_OFF
    model_input_names = ["pixel_values", "pixel_mask"]

    do_convert_rgb = True
    do_resize = True
    size = {"shortest_edge": 384}
    size_divisor = 32
    default_to_square = False
    resample = int(Image.Resampling.BICUBIC)
    exact = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    do_pad = True
    input_data_format = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.resample = int(self.resample)  # a member of an enumeration would not be saved as a number
        self.check_fields()

    def _standardize_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        return super()._standardize_kwargs(default_to_square=False, **kwargs)

    def _validate_preprocess_kwargs(self, **fields: Any) -> None:  # ty: ignore[incompatible-method-override]
        check_colours(fields)
        size, divisor = dict(fields["size"]), fields["size_divisor"]
        given = {name: value for name, value in size.items() if value is not None}
        shorter, longer = given.get("shortest_edge", 0), given.get("longest_edge", np.inf)
        if not given.keys() <= {"shortest_edge", "longest_edge"} or not 0 < shorter <= longer:
            raise ValueError(
                "`size` must be {'shortest_edge': S} or {'shortest_edge': S, 'longest_edge': L} in pixels, S "
                f"at least 1 and L no less; got {given}."
            )
        if not 0 < divisor <= shorter:
            raise ValueError(
                f"`size_divisor`={divisor} must be at least 1 and at most the shorter side, {shorter} px; "
                "give the side of a patch."
            )
        if fields["do_convert_rgb"] is False:
            raise ValueError("`do_convert_rgb`=False: pictures always become RGB here; leave it out.")
        if not 0 <= fields["resample"] <= 5:
            raise ValueError(
                f"`resample` must be a filter of Pillow's, 0 to 5 (3 is bicubic), got {fields['resample']}."
            )

    def _preprocess(  # ty: ignore[incompatible-method-override]
        self, images: list[np.ndarray], return_tensors: str | None, **fields: Any
    ) -> BatchFeature:
        """RGB pictures, (height, width, 3) uint8 each, and all fields to the model's inputs."""
        groups: dict[tuple[int, int], list[int]] = {}
        for number, picture in enumerate(images):
            groups.setdefault(_target_size(picture, number, fields), []).append(number)
        if len(groups) > 1 and not fields["do_pad"]:
            raise ValueError(
                f"Without `do_pad` all pictures of a call must become one size, they become {list(groups)} "
                "px; pad them, or call the processor once for each size."
            )
        views = {
            size: fit_views([images[i] for i in members], size, None, fields["resample"], fields["exact"])
            for size, members in groups.items()
        }
        pixels, mask = _padded_views(views, groups, fields)
        data = {"pixel_values": pixels, "pixel_mask": mask} if fields["do_pad"] else {"pixel_values": pixels}
        return BatchFeature(data, tensor_type=return_tensors)


def _target_size(picture: np.ndarray, number: int, fields: dict[str, Any]) -> tuple[int, int]:
    """Height and width that a picture gets."""
    (height, width), divisor = picture.shape[:2], fields["size_divisor"]
    if not fields["do_resize"]:
        if height % divisor or width % divisor:
            raise ValueError(
                f"image {number} is {height}x{width} px, not a multiple of `size_divisor`={divisor}; resize "
                "it (`do_resize=True`), or pad or cut it first."
            )
        return height, width
    shorter = fields["size"].shortest_edge
    longer = fields["size"].longest_edge or int(LONGER_TO_SHORTER * shorter)
    target = vilt_size(height, width, shorter, longer, divisor)
    if 0 in target:
        raise ValueError(
            f"image {number} is {height}x{width} px: with its longer side at {longer} px the shorter one is "
            f"below one patch, `size_divisor`={divisor} px; cut the image, pad its shorter side, or give "
            "`size` a larger 'longest_edge'."
        )
    return target


def _padded_views(
    views: dict[tuple[int, int], Tensor], groups: dict[tuple[int, int], list[int]], fields: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Views of each size, and which pictures they are, to one batch and its mask."""
    height, width = (max(sides) for sides in zip(*views, strict=True))
    count = sum(map(len, groups.values()))
    mask = torch.zeros(count, height, width, dtype=torch.int64)
    if len(views) == 1:
        return normalised(views[height, width], fields, fields["exact"]), mask.fill_(1)
    raw = not fields["do_rescale"] and not fields["do_normalize"]
    pixels = torch.zeros(count, 3, height, width, dtype=torch.uint8 if raw else torch.float32)
    for (high, wide), members in groups.items():
        pixels[members, :, :high, :wide] = normalised(views[high, wide], fields, fields["exact"])
        mask[members, :high, :wide] = 1
    return pixels, mask
