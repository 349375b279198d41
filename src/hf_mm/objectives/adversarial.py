"""Adversarial losses: what a discriminator and a generator learn from each other.

Goodfellow et al. 2014, "Generative Adversarial Nets", section 3: the classifier and the non-saturating
generator (https://arxiv.org/abs/1406.2661). Lim and Ye 2017, "Geometric GAN", section 3: the hinge
(https://arxiv.org/abs/1705.02894). Jolicoeur-Martineau 2019, "The relativistic discriminator: a key element
missing from standard GAN": pairs of a real and a generated picture (https://arxiv.org/abs/1807.00734).
Mescheder et al. 2018, "Which Training Methods for GANs do actually Converge?", section 4.1: the zero-centred
penalties R1 and R2 (https://arxiv.org/abs/1801.04406). Huang et al. 2024, "The GAN is dead; long live the
GAN! A Modern GAN Baseline", section 2: the relativistic loss with both of them, on every step, called R3
(https://arxiv.org/abs/2501.05441).

Logits are high where the discriminator takes a picture for real: one for each picture (B,), or one for each
of its patches (B, 1, H, W). Every loss is a mean over them all, in nats (the hinge in logits).
"""

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

__all__ = [
    "ADVERSARIAL_LOSSES",
    "discriminator_loss",
    "generator_loss",
    "hinge_discriminator_loss",
    "hinge_generator_loss",
    "non_saturating_discriminator_loss",
    "non_saturating_generator_loss",
    "relativistic_discriminator_loss",
    "relativistic_generator_loss",
    "squared_gradients",
    "zero_centred_penalty",
]

ADVERSARIAL_LOSSES = ("relativistic", "non_saturating", "hinge")


def relativistic_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """softplus(fake - real): the real picture of a pair shall look more real than the generated one.

    Args:
        real_logits: Of the pictures of the data set.
        fake_logits: Of as many generated pictures, each under the condition of its partner.

    Returns:
        A scalar; ln 2 where the two cannot be told apart.

    Raises:
        ValueError: The shapes differ.
    """
    _check_pairs(real_logits, fake_logits)
    return softplus(_wide(fake_logits) - _wide(real_logits)).mean()


def relativistic_generator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """softplus(real - fake): the generated picture of a pair shall look more real than the real one.

    Args:
        real_logits: Of the pictures of the data set; they give the generator no gradient, yet they weigh
            that of their partners.
        fake_logits: Of as many generated pictures, each under the condition of its partner.

    Returns:
        A scalar; ln 2 where the two cannot be told apart.

    Raises:
        ValueError: The shapes differ.
    """
    _check_pairs(real_logits, fake_logits)
    return softplus(_wide(real_logits) - _wide(fake_logits)).mean()


def non_saturating_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-log D(real) - log(1 - D(fake)) with D = sigmoid(logit): the cross-entropy of two classes, added up."""
    return softplus(-_wide(real_logits)).mean() + softplus(_wide(fake_logits)).mean()


def non_saturating_generator_loss(fake_logits: Tensor) -> Tensor:
    """-log D(fake): unlike log(1 - D(fake)) it keeps its gradient while the discriminator is sure."""
    return softplus(-_wide(fake_logits)).mean()


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """max(0, 1 - real) + max(0, 1 + fake): logits beyond the margin teach nothing.

    VQGAN takes half of it.
    """
    return relu(1 - _wide(real_logits)).mean() + relu(1 + _wide(fake_logits)).mean()


def hinge_generator_loss(fake_logits: Tensor) -> Tensor:
    """-fake: the logits of generated pictures shall rise."""
    return -_wide(fake_logits).mean()


def discriminator_loss(kind: str, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """The discriminator's loss of one of `ADVERSARIAL_LOSSES`.

    Args:
        kind: "relativistic", "non_saturating" or "hinge".
        real_logits: Of the pictures of the data set.
        fake_logits: Of generated pictures, which should be detached from their generator.

    Returns:
        A scalar.

    Raises:
        ValueError: There is no such loss, or pairs are wanted and the shapes differ.
    """
    if kind == "relativistic":
        return relativistic_discriminator_loss(real_logits, fake_logits)
    if kind == "non_saturating":
        return non_saturating_discriminator_loss(real_logits, fake_logits)
    if kind == "hinge":
        return hinge_discriminator_loss(real_logits, fake_logits)
    raise _unknown(kind)


def generator_loss(kind: str, fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
    """The generator's loss of one of `ADVERSARIAL_LOSSES`.

    Args:
        kind: "relativistic", "non_saturating" or "hinge".
        fake_logits: Of generated pictures.
        real_logits: Of as many pictures of the data set; only the relativistic loss reads them.

    Returns:
        A scalar.

    Raises:
        ValueError: There is no such loss, or pairs are wanted and `real_logits` are missing or of another
            shape.
    """
    if kind == "relativistic":
        if real_logits is None:
            raise ValueError("The relativistic loss compares pairs; pass `real_logits` too.")
        return relativistic_generator_loss(real_logits, fake_logits)
    if kind == "non_saturating":
        return non_saturating_generator_loss(fake_logits)
    if kind == "hinge":
        return hinge_generator_loss(fake_logits)
    raise _unknown(kind)


def squared_gradients(logits: Tensor, samples: Tensor) -> Tensor:
    """The squared length of the gradient of each picture's logit by its pixels, as the penalties take it.

    Args:
        logits: What the discriminator says of `samples`, those of patches are added up. The logit of a
            picture must depend on that picture alone: no normalisation over the batch.
        samples: (B, ...) pictures, which required gradients before the discriminator saw them.

    Returns:
        (B,) with a graph: its gradient is that of a gradient. In float32, or in float64 of such pictures.

    Raises:
        ValueError: `samples` require no gradients, so that `logits` cannot have any by them.
    """
    if not samples.requires_grad:
        raise ValueError(
            "`samples` require no gradients, so the penalty has none to measure; call "
            "`samples.requires_grad_()` before the discriminator sees them."
        )
    (gradient,) = torch.autograd.grad(_wide(logits).sum(), samples, create_graph=True)
    return _wide(gradient).square().flatten(1).sum(dim=1)


def zero_centred_penalty(logits: Tensor, samples: Tensor) -> Tensor:
    """The mean of `squared_gradients`: R1 on real pictures, R2 on generated ones.

    The loss takes gamma / 2 of it. Without it the game turns in circles: at equilibrium the discriminator
    shall be flat.

    Args:
        logits: As `squared_gradients` takes them.
        samples: As `squared_gradients` takes them.

    Returns:
        A scalar.

    Raises:
        ValueError: As `squared_gradients`.
    """
    return squared_gradients(logits, samples).mean()


def _wide(values: Tensor) -> Tensor:
    """At least float32: half precision cannot hold sums of small squares."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _check_pairs(real_logits: Tensor, fake_logits: Tensor) -> None:
    if real_logits.shape != fake_logits.shape:
        raise ValueError(
            f"`real_logits` {tuple(real_logits.shape)} and `fake_logits` {tuple(fake_logits.shape)} must be "
            "pairs; generate as many pictures as there are real ones."
        )


def _unknown(kind: str) -> ValueError:
    return ValueError(f"No adversarial loss {kind!r}; there are {', '.join(ADVERSARIAL_LOSSES)}.")
