"""Noise on pictures by a schedule, what a denoiser is to say of them, and how much each step counts.

Ho et al. 2020, "Denoising Diffusion Probabilistic Models", equations 4 and 14
(https://arxiv.org/abs/2006.11239): noisy = alpha * clean + sigma * noise with alpha^2 + sigma^2 = 1, and the
noise as target. Salimans and Ho 2022, "Progressive Distillation for Fast Sampling of Diffusion Models",
section 4 and appendix D (https://arxiv.org/abs/2202.00512): v = alpha * noise - sigma * clean, and weights by
the signal-to-noise ratio. Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy",
section 3.4 (https://arxiv.org/abs/2303.09556). Lin et al. 2024, "Common Diffusion Noise Schedules and Sample
Steps are Flawed" (https://arxiv.org/abs/2305.08891): schedules that end in noise alone.

Shapes: B pictures, C channels, Y x X places, T timesteps of a schedule.
"""

from typing import Any

import torch
from torch import Tensor

__all__ = [
    "SNR_WEIGHTINGS",
    "add_noise",
    "convert_prediction",
    "diffusion_target",
    "per_picture",
    "schedule_of",
    "snr_weights",
]

SNR_WEIGHTINGS = ("constant", "snr", "min_snr", "truncated_snr", "snr_plus_one")


def schedule_of(scheduler: Any) -> tuple[Tensor, Tensor]:
    """The shares of picture and noise at each timestep of a diffusers scheduler.

    Args:
        scheduler: Any that has `alphas_cumprod`.

    Returns:
        alphas (T,) and sigmas (T,), whose squares add up to 1.

    Raises:
        ValueError: It has no such schedule.
    """
    products = scheduler.__dict__.get("alphas_cumprod")
    if products is None:
        raise ValueError(
            f"{type(scheduler).__name__} has no `alphas_cumprod`, so no schedule that keeps the variance; "
            "take one such as DDPMScheduler, or train a flow (`prediction_type`='flow_velocity')."
        )
    return products**0.5, (1 - products) ** 0.5


def per_picture(values: Tensor | float, pictures: Tensor) -> Tensor:
    """Numbers () or (B,) in the shape (B, 1, 1, 1) that goes with pictures, on their device.

    Args:
        values: One for all pictures, or one for each.
        pictures: (B, ...), whose dtype is taken over too.
    """
    values = torch.as_tensor(values, device=pictures.device, dtype=pictures.dtype)
    return values.reshape(-1, *[1] * (pictures.ndim - 1)) if values.ndim else values


def add_noise(clean: Tensor, noise: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
    """As the `add_noise` of a scheduler: alpha * clean + sigma * noise.

    Args:
        clean: (B, C, Y, X) pictures or latents.
        noise: Of the same shape, standard normal.
        alpha: () or (B,) share of the picture.
        sigma: () or (B,) share of the noise.
    """
    return per_picture(alpha, clean) * clean + per_picture(sigma, clean) * noise


def diffusion_target(
    kind: str, clean: Tensor, noise: Tensor, alpha: Tensor | float, sigma: Tensor | float
) -> Tensor:
    """What the denoiser shall say of alpha * clean + sigma * noise.

    Args:
        kind: "epsilon", "sample", "v_prediction", "flow_velocity" or "flow_sample".
        clean: (B, C, Y, X) pictures or latents.
        noise: Of the same shape.
        alpha: () or (B,).
        sigma: () or (B,).

    Raises:
        ValueError: There is no such target.
    """
    of_clean, of_noise = _shares(kind, alpha, sigma)
    return per_picture(of_clean, clean) * clean + per_picture(of_noise, clean) * noise


def convert_prediction(
    output: Tensor, noisy: Tensor, alpha: Tensor | float, sigma: Tensor | float, have: str, want: str
) -> Tensor:
    """What a denoiser said, as if it had been asked for something else.

    Every target is a sum of a clean picture and of noise, and so is the noisy picture: two equations.

    Args:
        output: (B, C, Y, X), of the kind `have`.
        noisy: (B, C, Y, X), what the denoiser saw.
        alpha: () or (B,) share of the picture in `noisy`.
        sigma: () or (B,) share of the noise.
        have: "epsilon", "sample", "v_prediction", "flow_velocity" or "flow_sample".
        want: Another of these. For the pair on the flow's path alpha is 1 - t and sigma is t.

    Returns:
        (B, C, Y, X).

    Raises:
        ValueError: There is no such kind; or the output says nothing new, as the noise in a picture that is
            noise alone, or the picture where there is no noise.
    """
    of_clean, of_noise = _shares(have, alpha, sigma)
    wanted_clean, wanted_noise = _shares(want, alpha, sigma)
    if have == want:
        return output
    scale = torch.as_tensor(alpha * of_noise - sigma * of_clean)
    if bool((scale == 0).any()):
        nothing = "`alpha` is 0: noise alone has no picture in it" if have == "epsilon" else "`sigma` is 0"
        raise ValueError(
            f"A prediction of {have!r} cannot be converted to {want!r} where {nothing}; predict "
            "'v_prediction', which can be converted everywhere."
        )
    from_noisy = (wanted_clean * of_noise - wanted_noise * of_clean) / scale
    from_output = (wanted_noise * alpha - wanted_clean * sigma) / scale
    return per_picture(from_noisy, noisy) * noisy + per_picture(from_output, noisy) * output


def snr_weights(kind: str, weighting: str, snr: Tensor, gamma: float = 5.0) -> Tensor:
    """How much the squared error of a prediction counts at each signal-to-noise ratio.

    As weights of the error of the clean picture they are: "snr", the ratio itself, which is a constant weight
    for the noise; "snr_plus_one", a constant weight for v; "truncated_snr", the ratio, at least 1; "min_snr",
    the ratio, at most `gamma`. An error of the picture is 1 / snr times that of the noise, squared, and
    1 / (snr + 1) times that of v. "constant" is 1 whatever is predicted.

    Args:
        kind: "epsilon", "sample" or "v_prediction": what is predicted.
        weighting: One of `SNR_WEIGHTINGS`.
        snr: Of any shape, alpha^2 / sigma^2.
        gamma: Of "min_snr".

    Returns:
        Of the shape of `snr`.

    Raises:
        ValueError: There is no such kind or weighting, `gamma` is not above 0, or a weight is infinite, as
            that of the noise where the picture counts and the ratio is 0.
    """
    if kind not in ("epsilon", "sample", "v_prediction"):
        raise ValueError(f"`kind`={kind!r} has no weights by `snr`; there are epsilon, sample, v_prediction.")
    if weighting not in SNR_WEIGHTINGS:
        raise ValueError(f"No weighting {weighting!r}; there are {', '.join(SNR_WEIGHTINGS)}.")
    if gamma <= 0:
        raise ValueError(f"`gamma`={gamma} must be above 0.")
    if weighting == "constant":
        return torch.ones_like(snr)
    # Each in a form that has its limit at the ratios 0 and infinity.
    noise_share, clean_share = 1 / (snr + 1), 1 / (1 + 1 / snr)
    weights = {
        "epsilon": {
            "snr": torch.ones_like(snr),
            "min_snr": (gamma / snr).clamp(max=1),
            "truncated_snr": (1 / snr).clamp(min=1),
            "snr_plus_one": 1 + 1 / snr,
        },
        "sample": {
            "snr": snr,
            "min_snr": snr.clamp(max=gamma),
            "truncated_snr": snr.clamp(min=1),
            "snr_plus_one": snr + 1,
        },
        "v_prediction": {
            "snr": clean_share,
            "min_snr": torch.minimum(clean_share, gamma * noise_share),
            "truncated_snr": torch.maximum(clean_share, noise_share),
            "snr_plus_one": torch.ones_like(snr),
        },
    }[kind][weighting]
    if not bool(weights.isfinite().all()):
        raise ValueError(
            f"The weighting {weighting!r} of {kind!r} is infinite at a signal-to-noise ratio of "
            f"{float(snr[~weights.isfinite()][0])}; take 'constant' or 'min_snr', or predict 'v_prediction'."
        )
    return weights


def _shares(kind: str, alpha: Any, sigma: Any) -> tuple[Any, Any]:
    """How much of the clean picture and of the noise is in a target."""
    shares = {
        "epsilon": (0.0, 1.0),
        "sample": (1.0, 0.0),
        "v_prediction": (-sigma, alpha),
        "flow_velocity": (-1.0, 1.0),
        "flow_sample": (1.0, 0.0),
    }
    if kind not in shares:
        raise ValueError(f"No prediction {kind!r}; there are {', '.join(shares)}.")
    return shares[kind]
