"""What our image processors share: pictures of any kind, and fields that are checked by name and type."""

from itertools import count
from typing import Any

import numpy as np
from huggingface_hub.dataclasses import validate_typed_dict
from torch import Tensor
from transformers import BatchFeature
from transformers.image_processing_backends import PilBackend

from .loading import load_images, load_rgb

__all__ = ["PictureProcessor"]

# What transformers writes into or passes along with a saved image processor, besides its fields.
SERVICE_FIELDS = {"auto_map", "image_processor_type", "processor_class", "feature_extractor_type"}


class PictureProcessor(PilBackend):
    """An image processor whose fields are those of its `valid_kwargs`, and that reads what `load_rgb` reads.

    `silent` has fields of transformers' processors that are written into their files and say nothing here,
    with the values (besides `None`) of which that is true.

    Raises:
        TypeError: An unknown field.
    """

    input_data_format: str | None = None
    silent: dict[str, tuple[object, ...]] = {}

    def __init__(self, **kwargs: Any) -> None:
        kwargs = {
            name: value
            for name, value in kwargs.items()
            if name not in self.silent or not (value is None or value in self.silent[name])
        }
        fields = self.valid_kwargs.__annotations__
        unknown = sorted(kwargs.keys() - fields.keys() - SERVICE_FIELDS)
        if unknown:
            raise TypeError(
                f"`{unknown[0]}` is no field of {type(self).__name__}; it has {', '.join(fields)}."
            )
        given = {name: kwargs[name] for name in fields if kwargs.get(name) is not None}
        validate_typed_dict(self.valid_kwargs, given)  # ty: ignore[invalid-argument-type]
        super().__init__(**kwargs)

    def check_fields(self) -> None:
        """Raise unless the fields fit each other; for the end of `__init__`."""
        fields = {name: getattr(self, name) for name in self.valid_kwargs.__annotations__}
        self._validate_preprocess_kwargs(**fields)

    def fetch_images(self, image_url_or_urls: object) -> np.ndarray | list:
        """Read pictures, in the nesting they come in; processors call this first.

        Args:
            image_url_or_urls: Pictures of any kind, see `load_rgb`. The name is transformers'.
        """
        numbers = count()

        def read(item: object) -> np.ndarray | list:
            if isinstance(item, list | tuple):
                return [read(part) for part in item]
            if isinstance(item, np.ndarray | Tensor) and item.ndim == 4:
                return [read(part) for part in item]
            return load_rgb(item, f"image {next(numbers)}", self.input_data_format)

        return read(image_url_or_urls)

    def _standardize_kwargs(  # ty: ignore[incompatible-method-override]
        self, *, default_to_square: bool = True, **kwargs: Any
    ) -> dict[str, Any]:
        kwargs = super()._standardize_kwargs(**kwargs, default_to_square=default_to_square)
        return {name: value for name, value in kwargs.items() if name in self.valid_kwargs.__annotations__}

    def _preprocess_image_like_inputs(  # ty: ignore[incompatible-method-override]
        self, images: object, **fields: Any
    ) -> BatchFeature:
        pictures = load_images(images, fields.pop("input_data_format"))
        if not pictures:
            raise ValueError("`images` holds no image; leave the argument out where there is text alone.")
        return self._preprocess(pictures, **fields)
