"""Flow matching: the straight line from a picture to noise, and the velocity along it.

Lipman et al. 2023, "Flow Matching for Generative Modeling", section 4.1 (https://arxiv.org/abs/2210.02747);
Liu et al. 2023, "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow"
(https://arxiv.org/abs/2209.03003): noisy = (1 - t) clean + t noise, velocity = noise - clean. Esser et al.
2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", section 3.1
(https://arxiv.org/abs/2403.03206): logit-normal times. Li and He 2025, "Back to Basics: Let Denoising
Generative Models Denoise" (https://arxiv.org/abs/2511.13720): the clean picture predicted, the error counted
as that of the velocity.

Shapes: B pictures, C channels, Y x X places; times t (B,) from 0, the picture, to 1, noise.
"""

import torch
from torch import Tensor

from .noising import per_picture

__all__ = [
    "FLOW_WEIGHTINGS",
    "flow_path",
    "flow_velocity",
    "flow_weights",
    "logit_normal_times",
    "sample_from_velocity",
    "uniform_times",
    "velocity_from_sample",
]

FLOW_WEIGHTINGS = ("constant", "velocity")
LEAST_TIME = 0.05
"""Below it the weight 1 / t^2 of an error of the picture no longer grows, as in Li and He 2025."""


def flow_path(clean: Tensor, noise: Tensor, times: Tensor | float) -> Tensor:
    """(1 - t) clean + t noise, as the `scale_noise` of diffusers' flow schedulers.

    Args:
        clean: (B, C, Y, X) pictures or latents.
        noise: Of the same shape, standard normal.
        times: () or (B,).
    """
    times = per_picture(times, clean)
    return (1 - times) * clean + times * noise


def flow_velocity(clean: Tensor, noise: Tensor) -> Tensor:
    """Where the path goes, at all times: noise - clean."""
    return noise - clean


def velocity_from_sample(sample: Tensor, noisy: Tensor, times: Tensor | float) -> Tensor:
    """The velocity (noisy - sample) / t that leads from a predicted picture to the noisy one.

    Args:
        sample: (B, C, Y, X) the predicted clean pictures.
        noisy: (B, C, Y, X).
        times: () or (B,), above 0.

    Raises:
        ValueError: A time is not above 0, where no picture has moved yet.
    """
    times = torch.as_tensor(times)
    if bool((times <= 0).any()):
        raise ValueError(
            f"`times` has {float(times.min())}, but at 0 a noisy picture is the clean one and tells no "
            "velocity; end the steps above 0."
        )
    return (noisy - sample) / per_picture(times, noisy)


def sample_from_velocity(velocity: Tensor, noisy: Tensor, times: Tensor | float) -> Tensor:
    """The picture noisy - t velocity that a velocity leads back to.

    Args:
        velocity: (B, C, Y, X) predicted.
        noisy: (B, C, Y, X).
        times: () or (B,).
    """
    return noisy - per_picture(times, noisy) * velocity


def logit_normal_times(
    count: int,
    mean: float = 0.0,
    std: float = 1.0,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Times (count,) whose logits log(t / (1 - t)) are normal: most in the middle, none at the ends.

    Args:
        count: B.
        mean: Of the logits; above 0 for more noise.
        std: Of the logits.
        generator: By default torch's own.
        device: Of the times and of the generator.

    Raises:
        ValueError: `std` is not above 0.
    """
    if std <= 0:
        raise ValueError(f"`std`={std} must be above 0.")
    return torch.sigmoid(mean + std * torch.randn(count, generator=generator, device=device))


def uniform_times(
    count: int, generator: torch.Generator | None = None, device: torch.device | str | None = None
) -> Tensor:
    """Times (count,) spread evenly over 0 < t <= 1.

    Args:
        count: B.
        generator: By default torch's own.
        device: Of the times and of the generator.
    """
    return 1 - torch.rand(count, generator=generator, device=device)


def flow_weights(kind: str, weighting: str, times: Tensor) -> Tensor:
    """How much the squared error of a prediction counts at each time.

    Args:
        kind: "flow_velocity" or "flow_sample": what is predicted.
        weighting: "constant", 1 whatever is predicted; or "velocity", as an error of the velocity: that of
            the picture over t, which counts as 0.05 where it is smaller.
        times: Of any shape.

    Returns:
        Of the shape of `times`.

    Raises:
        ValueError: There is no such kind or weighting.
    """
    if kind not in ("flow_velocity", "flow_sample"):
        raise ValueError(f"`kind`={kind!r} is no target of a flow; there are flow_velocity, flow_sample.")
    if weighting not in FLOW_WEIGHTINGS:
        raise ValueError(f"No weighting {weighting!r} of flows; there are {', '.join(FLOW_WEIGHTINGS)}.")
    if weighting == "constant" or kind == "flow_velocity":
        return torch.ones_like(times)
    return times.clamp(min=LEAST_TIME) ** -2
