"""Images to the square views of a CLIP-like model: the middle of each picture, or all of it, stretched.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision" (CLIP,
https://arxiv.org/abs/2103.00020): shorter side to 224 px, bicubic, the middle kept. SigLIP (Zhai et al. 2023,
https://arxiv.org/abs/2303.15343) and ViT stretch.
"""

from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np
from PIL import Image
from transformers import BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, SizeDict

from ...hub.remote_code import RemoteCodeMixin
from ...imaging.normalising import check_colours, normalised
from ...imaging.processor import PictureProcessor
from ...imaging.views import fit_views

__all__ = ["MMCLIPImageProcessor", "MMCLIPImagesKwargs"]

# Of transformers' image processors, written into their files: what they say here when they are switched off.
OFF: dict[str, tuple[object, ...]] = {
    "data_format": ("channels_first",),
    "default_to_square": (True, False),  # says how an integer `size` is meant, see `_means_both_sides`
    "device": (),
    "disable_grouping": (True, False),
    "do_pad": (False,),
    "image_seq_length": (),
    "pad_size": (),
    "use_square_size": (False,),
}


class MMCLIPImagesKwargs(TypedDict, total=False):
    """The fields of `MMCLIPImageProcessor`; each can also be given for one call."""

    do_convert_rgb: bool | None
    do_resize: bool
    size: int | list[int] | tuple[int, int] | dict[str, int] | None
    resample: int
    exact: bool
    do_center_crop: bool | None
    crop_size: int | list[int] | tuple[int, int] | dict[str, int] | None
    do_rescale: bool
    rescale_factor: float | int
    do_normalize: bool
    image_mean: float | int | list[float | int] | tuple[float | int, ...]
    image_std: float | int | list[float | int] | tuple[float | int, ...]
    input_data_format: str | None
    return_tensors: str | None


class MMCLIPImageProcessor(RemoteCodeMixin, PictureProcessor):
    """Any pictures (see `load_rgb`) to `pixel_values`.

    The fields are those of transformers' CLIP, and its files, SigLIP's and ViT's are read: `from_pretrained`.
    The pixels are those of transformers' Pillow processors to the bit, but for pictures that `load_rgb` reads
    with more care: 16 bits are scaled, EXIF orientation is applied.

    Args:
        do_convert_rgb: As transformers writes it; pictures always become RGB, `False` is refused.
        do_resize: Resize pictures to `size`.
        size: `{"shortest_edge": S}`, for the middle of a picture as CLIP sees it, or
            `{"height": S, "width": S}`, for all of it, stretched, as SigLIP and ViT do. An integer is the
            shorter side, or both sides if `do_center_crop` is `False`.
        resample: Filter, a value of `PIL.Image.Resampling`.
        exact: Equal to transformers' Pillow processors bit for bit. `False` for 8-bit integers, if `resample`
            is bilinear (2) or bicubic (3): several times as fast (`benchmarks/preprocessing.py`) and within
            one level of 255, but for a few pixels in a thousand of very noisy pictures, which were up to
            three away.
        do_center_crop: Keep the middle of `crop_size`; by default if that is given, or `size` is a shorter
            side.
        crop_size: Height and width of the view, on black if a picture is smaller; by default `size`.
        do_rescale: Multiply pixels by `rescale_factor`.
        rescale_factor: 1/255 makes 0..255 into 0..1.
        do_normalize: Subtract `image_mean` and divide by `image_std`, per channel, after rescaling.
        image_mean: One number or three; CLIP's by default.
        image_std: One number or three; CLIP's by default.
        input_data_format: "channels_first" or "channels_last" where an array's shape leaves it open.
        return_tensors: "pt" or `None` for torch, "np" for numpy; given per call.

    Returns, when called with `images`:
        `pixel_values` (images, 3, height, width) float32; uint8 with neither rescaling nor normalising.

    Raises:
        ValueError: Fields that do not fit each other, a picture that cannot be read, or views that would
            differ in size.
        TypeError: An unknown field.
    """

    valid_kwargs = MMCLIPImagesKwargs
    silent = OFF
    model_input_names = ["pixel_values"]

    do_convert_rgb = True
    do_resize = True
    size = {"shortest_edge": 224}
    resample = int(Image.Resampling.BICUBIC)
    exact = True
    do_center_crop = None
    crop_size = None
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    input_data_format = None

    def __init__(self, **kwargs: Any) -> None:
        if kwargs.get("do_center_crop") is None and _means_both_sides(kwargs):
            kwargs["do_center_crop"] = False
        super().__init__(**kwargs)
        self.resample = int(self.resample)  # a member of an enumeration would not be saved as a number
        self.check_fields()

    def preprocess(self, images: object, *args: Any, **kwargs: Any) -> BatchFeature:
        """As a call. Where `size` is given and `crop_size` is not, the latter follows."""
        if kwargs.get("size") is not None:
            kwargs = {"crop_size": None, **kwargs}
        return super().preprocess(images, *args, **kwargs)

    def _standardize_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        size = kwargs["size"]
        if kwargs["do_center_crop"] is None:
            shorter = isinstance(size, int) or "shortest_edge" in dict(size)
            kwargs["do_center_crop"] = shorter or kwargs["crop_size"] is not None
        kwargs = super()._standardize_kwargs(default_to_square=not kwargs["do_center_crop"], **kwargs)
        if kwargs["crop_size"] is None and kwargs["do_center_crop"]:
            size = kwargs["size"]
            kwargs["crop_size"] = SizeDict(
                height=size.height or size.shortest_edge, width=size.width or size.shortest_edge
            )
        return kwargs

    def _validate_preprocess_kwargs(self, **fields: Any) -> None:  # ty: ignore[incompatible-method-override]
        _check_sizes(fields)
        check_colours(fields)
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
        exact, size, crop = fields["exact"], None, None
        if fields["do_resize"]:
            size = fields["size"].shortest_edge or (fields["size"].height, fields["size"].width)
        if fields["do_center_crop"]:
            crop = (fields["crop_size"].height, fields["crop_size"].width)
        views = fit_views(images, size, crop, fields["resample"], exact)  # (B, 3, height, width)
        return BatchFeature({"pixel_values": normalised(views, fields, exact)}, tensor_type=return_tensors)


def _means_both_sides(fields: dict[str, Any]) -> bool:
    """Whether a file of another class than CLIP's holds an integer `size`: that of both sides."""
    names = [fields.get("image_processor_type"), fields.get("feature_extractor_type")]
    return isinstance(fields.get("size"), int) and any(name and "CLIP" not in name for name in names)


def _check_sizes(fields: dict[str, Any]) -> None:
    size, crop = fields["size"], fields["crop_size"]
    given = {name for name, value in dict(size).items() if value is not None}
    if given not in ({"shortest_edge"}, {"height", "width"}) or min(_sides(size)) < 1:
        raise ValueError(
            "`size` must be {'shortest_edge': S} or {'height': S, 'width': S} in pixels, at least 1; got "
            f"{dict(size)}."
        )
    if fields["do_center_crop"] and (not crop.height or not crop.width or min(_sides(crop)) < 1):
        raise ValueError(
            f"`crop_size` must be {{'height': S, 'width': S}} in pixels, at least 1; got {dict(crop)}."
        )


def _sides(size: Mapping[str, int | None]) -> list[int]:
    return [side for side in dict(size).values() if side is not None]
