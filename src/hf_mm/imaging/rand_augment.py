"""Random operations on a picture, all of one strength: RandAugment, for training.

Cubuk et al. 2020, "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space", figure 2
(https://arxiv.org/abs/1909.13719); what each operation does at most is from Cubuk et al. 2019, "AutoAugment",
table 6 (https://arxiv.org/abs/1805.09501). Colour inversion and cutout, which these have beside them, are
left out as in Kim et al. 2021, "ViLT", section 3.5 (https://arxiv.org/abs/2102.03334): texts name colours,
and small things that a cut would hide.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image, ImageEnhance, ImageOps

__all__ = ["AUGMENTATIONS", "RandAugment"]

STRONGEST = 30.0
Colour = tuple[int, int, int]


def _moved(matrix: Callable[[float, Image.Image], tuple[float, ...]]) -> Callable:
    """An operation that moves pixels: each new one is the old one where an affine map points."""

    def move(image: Image.Image, strength: float, fill: Colour) -> Image.Image:
        affine = Image.Transform.AFFINE
        return image.transform(image.size, affine, matrix(strength, image), fillcolor=fill)

    return move


def _enhanced(kind: type) -> Callable:
    """An operation that multiplies a property, by 0.1 to 1.9."""
    return lambda image, strength, fill: kind(image).enhance(1 + 0.9 * strength)


def _solarized(image: Image.Image, strength: float, fill: Colour) -> Image.Image:
    return ImageOps.solarize(image, round(256 * (1 - abs(strength))))


def _posterized(image: Image.Image, strength: float, fill: Colour) -> Image.Image:
    return ImageOps.posterize(image, 8 - round(4 * abs(strength)))


def _rotated(image: Image.Image, strength: float, fill: Colour) -> Image.Image:
    return image.rotate(30 * strength, fillcolor=fill)


# (image, strength from -1 to 1, colour of what comes in from outside) to an image of the same size
AUGMENTATIONS: dict[str, Callable[[Image.Image, float, Colour], Image.Image]] = {
    "identity": lambda image, strength, fill: image,
    "autocontrast": lambda image, strength, fill: ImageOps.autocontrast(image),
    "equalize": lambda image, strength, fill: ImageOps.equalize(image),
    "rotate": _rotated,
    "solarize": _solarized,
    "posterize": _posterized,
    "color": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "shear_x": _moved(lambda strength, image: (1, 0.3 * strength, 0, 0, 1, 0)),
    "shear_y": _moved(lambda strength, image: (1, 0, 0, 0.3 * strength, 1, 0)),
    "translate_x": _moved(lambda strength, image: (1, 0, 150 / 331 * image.width * strength, 0, 1, 0)),
    "translate_y": _moved(lambda strength, image: (1, 0, 0, 0, 1, 150 / 331 * image.height * strength)),
}


@dataclass(frozen=True)
class RandAugment:
    """Changes a picture by a few operations drawn at random; give it to collators as `augment`.

    The defaults are those of ViLT's fine-tuning. Draws come from torch's own generator.

    Args:
        operations: How many are drawn, one after the other; one may come twice.
        magnitude: Of each of them, from 0 to 30. Those with two directions go either way.
        without: Names of `AUGMENTATIONS` to leave out, such as "color" where questions ask for colours.
        fill: Red, green and blue, 0 to 255, of what comes in from outside of the picture.

    Raises:
        ValueError: Numbers out of their range, or names of no operation or of all.
    """

    operations: int = 2
    magnitude: float = 9.0
    without: tuple[str, ...] = ()
    fill: Colour = (0, 0, 0)

    def __post_init__(self) -> None:
        if self.operations < 1:
            raise ValueError(f"`operations`={self.operations} must be at least 1.")
        if not 0 <= self.magnitude <= STRONGEST:
            raise ValueError(f"`magnitude`={self.magnitude} must be from 0 to {STRONGEST:.0f}.")
        unknown = sorted(set(self.without) - set(AUGMENTATIONS))
        if unknown or set(self.without) == set(AUGMENTATIONS):
            raise ValueError(
                f"`without`={self.without} must name some, not all, of {', '.join(AUGMENTATIONS)}."
            )

    def __call__(self, image: Image.Image) -> Image.Image:
        """An RGB picture to one of the same size.

        Raises:
            ValueError: The picture is not RGB.
        """
        if image.mode != "RGB":
            raise ValueError(f'The picture is {image.mode}, "RGB" is needed; call `image.convert("RGB")`.')
        for name, strength in self.draw():
            image = AUGMENTATIONS[name](image, strength, self.fill)
        return image

    def draw(self) -> list[tuple[str, float]]:
        """Names of operations, and how strong each is, from -1 to 1."""
        names = [name for name in AUGMENTATIONS if name not in self.without]
        numbers = torch.randint(len(names), (self.operations,)).tolist()
        signs = (2 * torch.randint(2, (self.operations,)) - 1).tolist()
        strength = self.magnitude / STRONGEST
        return [(names[number], sign * strength) for number, sign in zip(numbers, signs, strict=True)]
