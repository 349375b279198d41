"""Pictures made worse in steady steps: noise, blur, less contrast, JPEG.

Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations" (https://arxiv.org/abs/1903.12261). The strengths are those with which the authors made
ImageNet-C, for 224 px, and CIFAR-10-C, for 32 px (https://github.com/hendrycks/robustness); written anew, so
single pixels differ from the published files.
"""

import io

import numpy as np
from PIL import Image

from .loading import load_rgb

__all__ = ["CORRUPTIONS", "SEVERITIES", "corrupt"]

SEVERITIES = (1, 2, 3, 4, 5)
SMALL_BELOW_PX = 112
STRENGTHS = {  # for severities 1 to 5, at 32 px and at 224 px
    "gaussian_noise": (
        (0.04, 0.06, 0.08, 0.09, 0.10),
        (0.08, 0.12, 0.18, 0.26, 0.38),
    ),  # deviation, white = 1
    "gaussian_blur": ((0.4, 0.6, 0.7, 0.8, 1.0), (1.0, 2.0, 3.0, 4.0, 6.0)),  # deviation in px
    "contrast": (
        (0.75, 0.5, 0.4, 0.3, 0.15),
        (0.4, 0.3, 0.2, 0.1, 0.05),
    ),  # share of the contrast that is left
    "jpeg": ((80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),  # quality
}
CORRUPTIONS = tuple(STRENGTHS)


def corrupt(image: object, kind: str, severity: int, seed: int = 0) -> Image.Image:
    """One picture, corrupted; the same seed gives the same picture.

    Which strengths hold is decided by the shorter side: those for 32 px below 112 px, else those for 224 px.
    Resize larger pictures to what the model reads first: noise and blur are per pixel.

    Args:
        image: Anything that `load_rgb` reads.
        kind: One of `CORRUPTIONS`: "gaussian_noise", "gaussian_blur", "contrast", "jpeg".
        severity: From 1, slight, to 5.
        seed: Of the noise. The noise of one seed is the same at every severity but for its strength.

    Returns:
        A picture of the same size, RGB.

    Raises:
        ValueError: There is no such kind or severity, or the picture cannot be read.
    """
    if kind not in STRENGTHS:
        raise ValueError(f"`kind` is {kind!r}; there are: {', '.join(CORRUPTIONS)}.")
    if severity not in SEVERITIES:
        raise ValueError(f"`severity` is {severity!r}; it is one of 1, 2, 3, 4, 5.")
    pixels = load_rgb(image)
    small, large = STRENGTHS[kind]
    strength = (small if min(pixels.shape[:2]) < SMALL_BELOW_PX else large)[severity - 1]
    if kind == "jpeg":
        return _jpeg(pixels, int(strength))
    shares = pixels / 255
    if kind == "gaussian_noise":
        shares = shares + strength * np.random.default_rng(seed).standard_normal(shares.shape)
    elif kind == "gaussian_blur":
        shares = _blurred(shares, strength)
    else:
        means = shares.mean(axis=(0, 1))  # of each channel
        shares = means + strength * (shares - means)
    return Image.fromarray((shares.clip(0, 1) * 255).round().astype(np.uint8))


def _blurred(shares: np.ndarray, sigma_px: float) -> np.ndarray:
    """Gaussian blur of (Y, X, 3), cut at four deviations; beyond the edge its pixels repeat."""
    radius = int(4 * sigma_px + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma_px) ** 2)
    weights /= weights.sum()
    for _ in range(2):  # rows, then columns, and both are back in their places
        length = len(shares)
        padded = np.pad(shares, ((radius, radius), (0, 0), (0, 0)), mode="edge")
        shares = np.zeros_like(shares)
        for first, weight in enumerate(weights):
            shares += weight * padded[first : first + length]
        shares = np.ascontiguousarray(shares.swapaxes(0, 1))
    return shares


def _jpeg(pixels: np.ndarray, quality: int) -> Image.Image:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")
