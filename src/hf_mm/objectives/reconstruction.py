"""Reconstruction: how far pictures out of an autoencoder are from those that went in, and what latents cost.

The Gaussian posterior and its divergence from the prior: Kingma and Welling 2014, "Auto-Encoding Variational
Bayes", appendix B (https://arxiv.org/abs/1312.6114). The deviation of the pixels that suits a batch best:
Rybkin et al. 2021, "Simple and Effective VAE Training with Calibrated Decoders", section 3.2
(https://arxiv.org/abs/2006.13202). The weight of the adversarial term: Esser et al. 2021, "Taming
Transformers for High-Resolution Image Synthesis", equation 7 (https://arxiv.org/abs/2012.09841).

Shapes: B pictures, C channels, Y x X pixels.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss, smooth_l1_loss

__all__ = [
    "RECONSTRUCTION_LOSSES",
    "adaptive_adversarial_weight",
    "calibrated_gaussian_nll",
    "gaussian_kl",
    "reconstruction_loss",
]

RECONSTRUCTION_LOSSES = ("l1", "l2", "smooth_l1", "gaussian")
ADAPTIVE_EPS = 1e-4
ADAPTIVE_MOST = 1e4
LEAST_DEVIATION = 1 / 255
"""Half a step of 8-bit pixels in [-1, 1]: a finer error is none."""


def reconstruction_loss(sample: Tensor, target: Tensor, kind: str = "l1") -> Tensor:
    """The error of reconstructed pictures, a mean over all their numbers.

    Args:
        sample: (B, C, Y, X) reconstructions; half precision is widened.
        target: (B, C, Y, X) what they should be.
        kind: "l1", the absolute error; "l2", the square; "smooth_l1", half the square below 1; "gaussian",
            see `calibrated_gaussian_nll`.

    Returns:
        A scalar, in float32 at least.

    Raises:
        ValueError: There is no such error, or the shapes differ.
    """
    if kind not in RECONSTRUCTION_LOSSES:
        raise ValueError(f"No reconstruction loss {kind!r}; there are {', '.join(RECONSTRUCTION_LOSSES)}.")
    if kind == "gaussian":
        return calibrated_gaussian_nll(sample, target)
    _check_shapes(sample, target)
    loss = {"l1": l1_loss, "l2": mse_loss, "smooth_l1": smooth_l1_loss}[kind]
    with torch.autocast(sample.device.type, enabled=False):
        return loss(_widened(sample), _widened(target))


def calibrated_gaussian_nll(sample: Tensor, target: Tensor) -> Tensor:
    """Nats per number when pixels scatter around the reconstruction with the deviation that fits them best.

    That deviation is the root of the batch's mean squared error, so the loss is half its logarithm and a
    constant. Beside the divergence of the latents, at weight 1, there is no weight left to choose: the
    better the pictures, the more a further improvement counts.

    Args:
        sample: (B, C, Y, X) reconstructions.
        target: (B, C, Y, X).

    Returns:
        A scalar, in float32 at least. One deviation for a whole batch: the loss of a batch is not quite the
        mean over its parts.

    Raises:
        ValueError: The shapes differ.
    """
    _check_shapes(sample, target)
    with torch.autocast(sample.device.type, enabled=False):
        error = mse_loss(_widened(sample), _widened(target))
        variance = error.detach().clamp(min=LEAST_DEVIATION**2)  # its own gradient is 0 where it is best
        return 0.5 * (error / variance + variance.log() + math.log(2 * math.pi))


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Divergence of N(mean, variance) from N(0, 1): 1/2 sum(exp(logvar) - (1 + logvar) + mean^2).

    Args:
        mean: (B, ...) of the latents' posterior.
        log_variance: (B, ...).

    Returns:
        (B,) nats of each picture, in float32 at least.

    Raises:
        ValueError: The shapes differ.
    """
    if mean.shape != log_variance.shape:
        raise ValueError(
            f"`mean` {tuple(mean.shape)} and `log_variance` {tuple(log_variance.shape)} must have one shape."
        )
    with torch.autocast(mean.device.type, enabled=False):
        mean, log_variance = _widened(mean), _widened(log_variance)
        return 0.5 * (log_variance.exp() - (1 + log_variance) + mean.square()).flatten(1).sum(1)


def adaptive_adversarial_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """How much the adversarial loss may count so that it pulls as hard as the reconstruction.

    Every process weighs its own batch, as the paper's code does.

    Args:
        reconstruction: Scalar loss, perceptual term included; its graph stays.
        adversarial: Scalar loss of the generator; its graph stays.
        last_layer: Weight of the decoder's last layer, where the lengths of both gradients are compared.

    Returns:
        |gradient of `reconstruction`| / (|gradient of `adversarial`| + 1e-4), at most 1e4; a detached scalar.

    Raises:
        ValueError: `last_layer` requires no gradient.
    """
    if not last_layer.requires_grad:
        raise ValueError(
            "`last_layer` requires no gradient, so the losses cannot be weighed there; give a weight of the "
            "decoder that this phase trains."
        )
    lengths = [
        torch.autograd.grad(loss, last_layer, retain_graph=True)[0].float().norm()
        for loss in (reconstruction, adversarial)
    ]
    return (lengths[0] / (lengths[1] + ADAPTIVE_EPS)).clamp(max=ADAPTIVE_MOST).detach()


def _widened(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _check_shapes(sample: Tensor, target: Tensor) -> None:
    if sample.shape != target.shape:
        raise ValueError(
            f"`sample` {tuple(sample.shape)} and `target` {tuple(target.shape)} must have one shape."
        )
