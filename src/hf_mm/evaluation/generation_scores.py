"""Figures of generators and of the autoencoders in front of them, each of one formula.

Class accuracy as in Shmelkov et al. 2018, "How good is my GAN?", GAN-test
(https://arxiv.org/abs/1807.09499). Bits per dimension: Theis et al. 2016, "A note on the evaluation of
generative models", section 3.1 (https://arxiv.org/abs/1511.01844).

Shapes: N pictures, P classes, C channels, H x W pixels.
"""

from math import log, log2
from typing import NamedTuple

import torch
from torch import Tensor

from ..objectives.quantisation import code_perplexity

__all__ = [
    "ClassAccuracy",
    "CodebookUsage",
    "bits_per_dimension",
    "class_accuracy",
    "codebook_usage",
    "psnr",
]


class ClassAccuracy(NamedTuple):
    """How often a classifier sees the class that was asked for.

    Attributes:
        accuracy: Share of all pictures.
        by_class: Share of each class that was asked for.
    """

    accuracy: float
    by_class: dict[int, float]


class CodebookUsage(NamedTuple):
    """How much of a codebook is in use.

    Attributes:
        perplexity: e to the entropy of the codes: how many would be used if all were used alike.
        used_codes: Codes that occur.
        used_share: Of the codebook.
    """

    perplexity: float
    used_codes: int
    used_share: float


def class_accuracy(logits: Tensor, labels: Tensor) -> ClassAccuracy:
    """How often an independent classifier, one that the generator was not trained with, agrees.

    Args:
        logits: (N, P) of the classifier on generated pictures.
        labels: (N,) what they should show.

    Raises:
        ValueError: Other shapes, NaN, or a label that the classifier does not have.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(
            f"`logits` must be (pictures, classes) and `labels` (pictures,), got {tuple(logits.shape)} and "
            f"{tuple(labels.shape)}."
        )
    if not logits.isfinite().all():
        raise ValueError("`logits` hold NaN or infinity.")
    wrong = ((labels < 0) | (labels >= logits.shape[1])).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"Row {row}: label {int(labels[row])} is none of the classifier's {logits.shape[1]} classes."
        )
    labels = labels.to(logits.device)
    hits = (logits.argmax(dim=1) == labels).double()
    by_class = {int(label): hits[labels == label].mean().item() for label in labels.unique()}
    return ClassAccuracy(hits.mean().item(), by_class)


def psnr(pictures: Tensor, references: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture, 10 log10(range^2 / mean squared error).

    Args:
        pictures: (N, C, H, W), floats in [-1, 1] or uint8.
        references: The same shape and type.

    Returns:
        (N,) float64 decibels; infinity where a picture is its reference.

    Raises:
        ValueError: They differ in shape or type, or are none of both types.
    """
    if pictures.shape != references.shape or pictures.dtype != references.dtype or pictures.ndim != 4:
        raise ValueError(
            f"`pictures` are {tuple(pictures.shape)} {pictures.dtype}, `references` "
            f"{tuple(references.shape)} {references.dtype}; give pictures of one shape and type."
        )
    if pictures.dtype != torch.uint8 and not pictures.is_floating_point():
        raise ValueError(f"`pictures` are {pictures.dtype}; give floats in [-1, 1] or uint8 in 0..255.")
    span = 255.0 if pictures.dtype == torch.uint8 else 2.0
    errors = (pictures.double() - references.double()).square().flatten(1).mean(dim=1)
    return 10 * (span**2 / errors).log10()


def codebook_usage(indices: Tensor, num_codes: int) -> CodebookUsage:
    """Perplexity and used codes, of the codes of a whole data set; those of one batch are fewer.

    Args:
        indices: Codes, of any shape.
        num_codes: Size of the codebook.

    Raises:
        ValueError: No codes, or one outside the codebook.
    """
    if not indices.numel() or indices.is_floating_point():
        raise ValueError(f"`indices` must be whole numbers, one at least, got {tuple(indices.shape)}.")
    least, most = int(indices.min()), int(indices.max())
    if least < 0 or most >= num_codes:
        raise ValueError(
            f"`indices` run from {least} to {most}, the codebook from 0 to {num_codes - 1} (`num_codes`="
            f"{num_codes}); count the codes of the autoencoder that made them."
        )
    counts = torch.bincount(indices.flatten().long(), minlength=num_codes)  # (codes,)
    used = int((counts > 0).sum())
    return CodebookUsage(code_perplexity(counts).item(), used, used / num_codes)


def bits_per_dimension(nats: Tensor, dimensions: int, level_width: float = 1.0) -> float:
    """Mean negative log likelihood in bits, over the count of what is predicted.

    Args:
        nats: (N,) negative log likelihoods of whole pictures.
        dimensions: C * H * W for pixels, or the number of codes of a picture.
        level_width: Of a density over pixels: by how much neighbouring levels differ in the units it was
            trained in, 2 / 255 for [-1, 1]; its likelihood of a level is about the density times this. 1
            for probabilities of levels or of codes.

    Raises:
        ValueError: No pictures, NaN, or `dimensions` or `level_width` not above 0.
    """
    if nats.ndim != 1 or not len(nats) or not nats.isfinite().all():
        raise ValueError(f"`nats` must be finite, a number for each picture, got {tuple(nats.shape)}.")
    if dimensions < 1 or level_width <= 0:
        raise ValueError(
            f"`dimensions`={dimensions} must be at least 1 and `level_width`={level_width} above 0."
        )
    return nats.double().mean().item() / (dimensions * log(2)) - log2(level_width)
