"""JPEG files decoded by libjpeg-turbo through the package simplejpeg, where it is installed.

A third faster than by Pillow, and the same pixels, because Pillow's wheels hold the same library; a Pillow
built on another one decodes by itself. Pillow always reads the head of the file, and whatever is not a plain
RGB or grey JPEG, whole and without warnings, is left to it: so errors, limits and odd files stay Pillow's.
"""

from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
from PIL import ExifTags, Image, features

__all__ = ["decode_jpeg", "jpeg_decoder"]

FLIPPED_ROWS, FLIPPED_COLUMNS = (3, 4, 7, 8), (2, 3, 6, 7)  # of the EXIF orientations
LYING = (5, 6, 7, 8)  # rows are stored as columns


@lru_cache(maxsize=1)
def jpeg_decoder() -> Any:
    """The module simplejpeg, `None` if it is absent or Pillow uses another library than libjpeg-turbo."""
    if not features.check_feature("libjpeg_turbo"):
        return None
    try:
        return import_module("simplejpeg")
    except ModuleNotFoundError:
        return None


def decode_jpeg(opened: Image.Image, data: bytes) -> np.ndarray | None:
    """The pixels of a JPEG file, turned as its EXIF data says.

    Args:
        opened: The file as Pillow has opened it, not yet decoded.
        data: Its bytes.

    Returns:
        (height, width, 3) uint8, equal to what Pillow makes of it; `None` where Pillow must do it.
    """
    decoder = jpeg_decoder()
    if decoder is None or opened.format not in ("JPEG", "MPO") or opened.mode not in ("RGB", "L"):
        return None
    try:
        pixels = decoder.decode_jpeg(data, "RGB")  # strict: also a warning is an error
    except ValueError:  # Pillow finds out whether it can be read all the same
        return None
    orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation in LYING:
        pixels = pixels.swapaxes(0, 1)
    if orientation in FLIPPED_ROWS:
        pixels = pixels[::-1]
    if orientation in FLIPPED_COLUMNS:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
