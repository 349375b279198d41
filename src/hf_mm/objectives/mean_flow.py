"""Mean flow: the average velocity between two times, by which one step goes the whole way.

Geng et al. 2025, "Mean Flows for One-step Generative Modeling" (https://arxiv.org/abs/2505.13447). On the
linear path z_t = (1 - t) x + t noise with the velocity v = noise - x, the average velocity from an earlier
time r to t is u(z_t, r, t), the integral of v from r to t divided by t - r, so that z_r = z_t - (t - r) u.
Differentiating by t gives the identity of its section 4.1, u = v - (t - r) du/dt, whose right side is what u
learns; the derivative along the path is one product of the Jacobian with the tangents (v, 0, 1) of (z, r, t).
Where r = t it is flow matching.

Shapes: B pictures, C channels, Y x X places.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .flow_matching import logit_normal_times
from .noising import per_picture

__all__ = [
    "AverageVelocity",
    "adaptive_squared_error",
    "guided_velocity",
    "interval_times",
    "mean_flow_target",
]

AverageVelocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Noisy pictures (B, C, Y, X), their times (B,) and the earlier times (B,) to the velocity between."""


def interval_times(
    count: int,
    share_apart: float = 0.25,
    mean: float = -0.4,
    std: float = 1.0,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor, int]:
    """Draw times t and earlier times r: two logit-normal draws each, of which t is the later.

    The first rows have r < t, all others r = t. How many is the share of `count`, rounded up or down by
    chance, so that small batches have it on average too.

    Args:
        count: B.
        share_apart: Share of the rows with r < t; the paper found a quarter best on ImageNet, and took three
            quarters on CIFAR-10.
        mean: Of the normal draws, before the sigmoid.
        std: Of the normal draws.
        generator: By default torch's own.
        device: Of the times and of the generator.

    Returns:
        t (B,) and r (B,) in 0..1, and how many rows at the beginning have r < t.

    Raises:
        ValueError: A share outside of 0..1, or a deviation that is not above 0.
    """
    if not 0 <= share_apart <= 1:
        raise ValueError(f"`share_apart`={share_apart} must be a share in 0..1.")
    first, second = (logit_normal_times(count, mean, std, generator, device) for _ in range(2))
    chance = torch.rand((), generator=generator, device=None if generator is None else generator.device)
    apart = int(share_apart * count + float(chance))  # `chance` is below 1
    times = torch.maximum(first, second)
    earlier = times.clone()
    earlier[:apart] = torch.minimum(first, second)[:apart]
    return times, earlier, apart


def mean_flow_target(
    average: AverageVelocity, noisy: Tensor, velocity: Tensor, times: Tensor, earlier: Tensor
) -> Tensor:
    """What the average velocity learns: v - (t - r) du/dt, without a gradient.

    Args:
        average: u, of which forward-mode derivatives exist: kernels of attention that have none must be
            switched off.
        noisy: z_t (B, C, Y, X).
        velocity: v (B, C, Y, X) at `noisy`, with guidance where it is learnt, see `guided_velocity`.
        times: t (B,) in 0..1.
        earlier: r (B,) in 0..t.

    Returns:
        (B, C, Y, X).
    """
    tangents = (velocity, torch.ones_like(times), torch.zeros_like(earlier))
    with torch.no_grad():  # forward-mode derivatives do not ask for the graph
        slope = torch.func.jvp(average, (noisy, times, earlier), tangents)[1]
    return velocity - per_picture(times - earlier, noisy) * slope


def guided_velocity(
    velocity: Tensor,
    unconditional: Tensor,
    guidance_scale: Tensor | float,
    conditional: Tensor | None = None,
    mixing: float = 0.0,
) -> Tensor:
    """The velocity of a guided flow, by which guided pictures take one forward: section 4.2, appendix B.1.

    With `mixing` the velocity of the data is in part replaced by what the net says under the condition, which
    varies less: w v + k u(c) + (1 - w - k) u(). Where u(c) has learnt it, this is guidance by w / (1 - k),
    which is `guidance_scale`; so `mixing` changes nothing of what is learnt.

    Args:
        velocity: noise - x (B, C, Y, X).
        unconditional: u(z, t, t) under the null condition.
        guidance_scale: Of what is learnt, a number or (B, 1, 1, 1); 1.0 is none.
        conditional: u(z, t, t) under the condition; only read where `mixing` is not 0.
        mixing: k, in 0..1, 1 excluded.

    Returns:
        (B, C, Y, X).

    Raises:
        ValueError: `mixing` out of range, or without `conditional`.
    """
    if not 0 <= mixing < 1:
        raise ValueError(f"`mixing`={mixing} must be at least 0 and below 1.")
    if mixing and conditional is None:
        raise ValueError(f"`mixing`={mixing} mixes `conditional` in, which is missing; pass it too.")
    weight = guidance_scale * (1 - mixing)
    guided = weight * velocity + (1 - weight - mixing) * unconditional
    return guided if conditional is None else guided + mixing * conditional


def adaptive_squared_error(
    prediction: Tensor, target: Tensor, power: float = 1.0, offset: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """The squared error d of each picture times (d + offset) ** -power, a weight without a gradient.

    Section 4.3. `power` 0 is the squared error, 0.5 about its root, as of a pseudo-Huber loss; at 1
    all pictures pull alike, and the loss is close to 1 whatever was learnt: watch d.

    Args:
        prediction: (B, C, Y, X).
        target: (B, C, Y, X), without a gradient.
        power: p, at least 0.
        offset: c, above 0: of squared errors, added up over all numbers of a picture.

    Returns:
        Losses (B,), and the errors d (B,) without a gradient, in float32 at least.

    Raises:
        ValueError: `power` or `offset` out of range.
    """
    if power < 0 or offset <= 0:
        raise ValueError(f"`power`={power} must be at least 0, and `offset`={offset} above 0.")
    difference = prediction - target
    wide = difference.to(torch.promote_types(difference.dtype, torch.float32))
    squared = wide.square().flatten(1).sum(dim=1)  # (B,)
    return squared / (squared.detach() + offset) ** power, squared.detach()
