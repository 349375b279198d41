"""A few pictures of one subject, and many of its class: what DreamBooth learns from.

Ruiz et al. 2023, "DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven Generation"
(https://arxiv.org/abs/2208.12242): the subject's pictures have one text with a rare word for it ("a sks
dog"). So that "a dog" still means any dog, each step also learns pictures that the model itself drew of the
class before (prior preservation, section 3.3, equation 2).

Shapes: N pictures of the subject, P of the class, C channels, S pixels a side, B rows of a batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image as PILImage
from torch import Tensor
from torch.utils.data import Dataset

from ..hub.saving import atomic_write
from ..imaging.loading import load_rgb
from ..imaging.views import fit_views
from .pixel_rows import PixelCollator, PixelRows

__all__ = ["PriorCollator", "SubjectRows", "draw_class", "picture_folder"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True, eq=False)
class SubjectRows(Dataset):
    """Rows of a subject's pictures, each with one of the class beside it.

        rows = SubjectRows(picture_folder("my-dog", 512, "a sks dog"), picture_folder("dogs", 512, "a dog"))

    The partners go round: epoch after epoch the next pictures of the class are taken, so that all of them
    are seen.

    Args:
        subject: N pictures with their text.
        prior: P pictures of the class, with theirs; `None` leaves prior preservation out.

    Raises:
        ValueError: There are no texts, or the two have other sizes.
    """

    subject: PixelRows
    prior: PixelRows | None = None

    def __post_init__(self) -> None:
        for name, rows in (("subject", self.subject), ("prior", self.prior)):
            if rows is not None and (rows.texts is None or not len(rows)):
                raise ValueError(
                    f"`{name}` has {len(rows)} pictures and {'no ' if rows.texts is None else ''}texts; give "
                    "pictures that each have one, see `picture_folder`."
                )
        if self.prior is not None and self.prior.pixels.shape[1:] != self.subject.pixels.shape[1:]:
            raise ValueError(
                f"Pictures of the `subject` are {tuple(self.subject.pixels.shape[1:])}, those of the `prior` "
                f"{tuple(self.prior.pixels.shape[1:])} (channels, height, width); read both in one size."
            )

    def __len__(self) -> int:
        """Of pairs: as many as are needed to show each picture once."""
        return max(len(self.subject), 0 if self.prior is None else len(self.prior))

    def __getitem__(self, index: Any) -> dict[str, Any]:
        """A row of the subject, and under "prior" one of the class."""
        number = range(len(self))[int(index)]  # an IndexError where a list would raise it
        row = self.subject[number % len(self.subject)] | {"number": number}
        if self.prior is not None:
            row["prior"] = self.prior[number % len(self.prior)] | {"number": number}
        return row

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True)
class PriorCollator:
    """Rows of `SubjectRows` to one batch: first the subject's pictures, then those of the class.

    Args:
        pixels: Makes each half.
        prior_weight: How much the loss on the class counts beside that on the subject, 0 or more. It stands
            in `row_weights`, such that the loss is the mean over the subject's half plus so many times that
            over the other.

    Raises:
        ValueError: A weight below 0.
    """

    pixels: PixelCollator
    prior_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.prior_weight < 0:
            raise ValueError(f"`prior_weight`={self.prior_weight} must be 0 or more; 1 is the paper's.")

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """The batch, of 2 B rows; of B without a prior."""
        own = [{name: value for name, value in row.items() if name != "prior"} for row in rows]
        if "prior" not in rows[0]:
            return self.pixels(own)
        batch = self.pixels([*own, *(row["prior"] for row in rows)])
        weights = torch.tensor([1.0, self.prior_weight]).repeat_interleave(len(rows))
        return batch | {"row_weights": 2 * weights}  # the mean over both halves is half of their sum


def picture_folder(folder: str | Path, image_size: int, text: str, channels: int = 3) -> PixelRows:
    """All pictures of a folder, with one text for each of them.

    Args:
        folder: Of files; folders inside are left alone.
        image_size: S; the shorter side is resized to it and the middle cut out.
        text: Of each picture.
        channels: 3 or 1, as the model has them.

    Raises:
        FileNotFoundError: There is no such folder, or no picture in it.
        ValueError: A file is no picture; it is named.
    """
    paths = sorted(path for path in Path(folder).glob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise FileNotFoundError(
            f"{folder} has no pictures ({', '.join(SUFFIXES)}); name the folder that they are in."
        )
    size = (image_size, image_size)
    views = [
        fit_views([load_rgb(str(path), str(path))], image_size, size, PILImage.Resampling.BICUBIC, exact=True)
        for path in paths
    ]
    pixels = torch.cat([torch.as_tensor(view) for view in views])  # (N, 3, S, S)
    if channels == 1:
        pixels = pixels.float().mean(1, keepdim=True).round().to(torch.uint8)
    return PixelRows(pixels, texts=((text,),) * len(paths))


def draw_class(
    pipe: Any, folder: str | Path, prompt: str, count: int, image_size: int, **drawing: Any
) -> PixelRows:
    """Pictures of the subject's class that a model itself draws before it learns; those there are stay.

    Args:
        pipe: Draws by `prompt`, `seed`, `height` and `width`, as `ImageDiffusionPipeline` does.
        folder: Where they are kept, as PNG, with the text that they were drawn for in `prompt.txt`.
        prompt: Of all of them, such as "a dog".
        count: P.
        image_size: S.
        **drawing: What else `pipe` is called with, such as `num_inference_steps` or `chunk_size`.

    Raises:
        ValueError: A count below 1, or the folder has pictures of another prompt.
    """
    if count < 1:
        raise ValueError(f"`count`={count} must be at least 1; a few hundred are usual.")
    said = Path(folder) / "prompt.txt"
    if said.is_file() and (before := said.read_text(encoding="utf-8")) != prompt:
        raise ValueError(f"{folder} has pictures of {before!r}, not of {prompt!r}; remove them first.")
    paths = {number: Path(folder) / f"{number:05}.png" for number in range(count)}
    missing = [number for number, path in paths.items() if not path.is_file()]
    if missing:
        with atomic_write(said) as temporary:
            temporary.write_text(prompt, encoding="utf-8")
        size = {"height": image_size, "width": image_size}
        drawn = pipe(prompt=[prompt] * len(missing), seed=missing, **size, **drawing).images
        for number, picture in zip(missing, drawn, strict=True):
            with atomic_write(paths[number]) as temporary:
                picture.save(temporary)
    return picture_folder(folder, image_size, prompt, pipe.picture_channels)[:count]
