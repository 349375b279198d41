"""Whether a scheduler walks the way that a denoiser was trained on, and how the two are brought together.

A noise schedule (Ho et al. 2020, https://arxiv.org/abs/2006.11239) goes with "epsilon", "sample" and
"v_prediction"; the straight path of flow matching (Lipman et al. 2023, https://arxiv.org/abs/2210.02747) with
"flow_velocity", "flow_sample" and "mean_flow" (Geng et al. 2025, https://arxiv.org/abs/2505.13447).
"""

import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "PREDICTION_TYPES",
    "begin_steps",
    "check_scheduler",
    "is_flow",
    "noise_level",
    "noised_start",
    "set_steps",
    "step_options",
]

SCHEDULE_TARGETS = ("epsilon", "sample", "v_prediction")
FLOW_TARGETS = ("flow_velocity", "flow_sample", "mean_flow")
PREDICTION_TYPES = SCHEDULE_TARGETS + FLOW_TARGETS
FLOW_EULER = "FlowMatchEulerDiscreteScheduler"


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler goes along the straight path from noise to pictures."""
    return type(scheduler).__name__.startswith("FlowMatch") or bool(scheduler.config.get("use_flow_sigmas"))


def check_scheduler(scheduler: Any, prediction_type: str) -> None:
    """Refuse a scheduler that would take the denoiser's answers for something else.

    Args:
        scheduler: Of diffusers.
        prediction_type: What the denoiser predicts, one of `PREDICTION_TYPES`.

    Raises:
        ValueError: Says what the scheduler expects, and the line that puts it right.
    """
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"`prediction_type`={prediction_type!r} is not one of {', '.join(PREDICTION_TYPES)}."
        )
    name, config = type(scheduler).__name__, scheduler.config
    wanted = expected_target(prediction_type)
    expects = config.get("prediction_type", wanted if is_flow(scheduler) else None)
    if prediction_type in FLOW_TARGETS:
        remedy = _flow_remedy(scheduler, prediction_type)
        if not is_flow(scheduler):
            expects = expects or "a noise schedule"
    else:
        remedy = f"pipe.scheduler = {name}.from_config(pipe.scheduler.config, prediction_type={wanted!r})"
        if is_flow(scheduler):
            expects = "flow_prediction"
            remedy = (
                f"pipe.scheduler = {name}.from_config(pipe.scheduler.config, use_flow_sigmas=False, "
                f"prediction_type={wanted!r})"
                if "use_flow_sigmas" in config
                else f"pipe.scheduler = DDIMScheduler(prediction_type={wanted!r}), with the betas of training"
            )
        elif "prediction_type" not in config or not hasattr(scheduler, "alphas_cumprod"):
            raise ValueError(
                f"{name} has no `prediction_type` or no noise schedule, so it cannot be told that the "
                f"denoiser predicts {prediction_type!r}; write `pipe.scheduler = "
                f"DDIMScheduler(prediction_type={wanted!r})`, with the betas of training."
            )
    fits = is_flow(scheduler) == (prediction_type in FLOW_TARGETS) and expects == wanted
    if not fits or (prediction_type == "mean_flow" and name != FLOW_EULER):
        raise ValueError(
            f"The denoiser predicts {prediction_type!r} (`prediction_type` of the pipeline), but {name} "
            f"expects {expects!r}; write `{remedy}`."
        )
    if str(config.get("variance_type", "")).startswith("learned"):
        raise ValueError(
            f"{name} expects a learned variance (`variance_type`={config['variance_type']!r}), which is not "
            f"passed on; write `pipe.scheduler = {name}.from_config(pipe.scheduler.config, "
            "variance_type='fixed_small')`."
        )


def expected_target(prediction_type: str) -> str:
    """The word of diffusers' schedulers for what they are given."""
    return "flow_prediction" if prediction_type in FLOW_TARGETS else prediction_type


def set_steps(scheduler: Any, count: int, device: torch.device) -> Tensor:
    """The times (S,) of the steps, in the order in which they are walked.

    `FlowMatchEulerDiscreteScheduler` by itself shifts its times twice where `shift` is not 1
    (https://github.com/huggingface/diffusers/issues/13243), and spends its last step on 1 / 1000 of the way;
    here it is given times in equal steps down to 0, which it shifts once.

    Args:
        scheduler: Of diffusers.
        count: Steps of a whole way.
        device: Where the denoiser is.

    Raises:
        ValueError: The scheduler needs a shift that depends on the size of the picture, or shifts twice.
    """
    config, name = scheduler.config, type(scheduler).__name__
    if config.get("use_dynamic_shifting"):
        raise ValueError(
            f"{name} has `use_dynamic_shifting`, a shift for each size of picture, which is not supported; "
            f"write `pipe.scheduler = {name}.from_config(pipe.scheduler.config, use_dynamic_shifting=False, "
            "shift=3.0)`, with the shift of your size."
        )
    if not name.startswith("FlowMatch"):
        scheduler.set_timesteps(count, device=device)
    elif "sigmas" in inspect.signature(scheduler.set_timesteps).parameters:
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / count, count).tolist(), device=device)
    elif config.get("shift", 1.0) != 1.0:
        raise ValueError(
            f"{name} would apply its `shift`={config['shift']} twice; write `pipe.scheduler = "
            f"{FLOW_EULER}.from_config(pipe.scheduler.config)`, which is kept from that."
        )
    else:
        scheduler.set_timesteps(count, device=device)
    return scheduler.timesteps


def begin_steps(scheduler: Any, count: int, strength: float, device: torch.device) -> int:
    """Set the steps of a scheduler, and have it begin where a picture with noise on it stands.

    Args:
        scheduler: Of diffusers.
        count: Steps of the whole way.
        strength: Share of it that is walked.
        device: Where the denoiser is.

    Returns:
        The place of the first step in `scheduler.timesteps`.

    Raises:
        ValueError: No step is left; or see `set_steps`.
    """
    timesteps = set_steps(scheduler, count, device)
    first = (count - min(int(count * strength), count)) * scheduler.order
    if first >= len(timesteps):
        raise ValueError(
            f"`strength`={strength} of `num_inference_steps`={count} is less than one step; raise one of "
            "them."
        )
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    return first


def noise_level(scheduler: Any, place: int) -> tuple[float, float]:
    """The shares of picture and noise at a step: noisy = first * picture + second * noise.

    For a noise schedule this is of what the denoiser is given, whose variance is kept.

    Args:
        scheduler: After `set_steps`.
        place: Of the step in `scheduler.timesteps`.
    """
    if is_flow(scheduler):
        sigma = float(scheduler.sigmas[place])
        return 1.0 - sigma, sigma
    if "sigmas" in vars(scheduler) and len(scheduler.sigmas) > len(scheduler.timesteps):
        ratio = float(scheduler.sigmas[place])  # of noise to picture
        alpha = (1.0 + ratio**2) ** -0.5
        return alpha, ratio * alpha
    kept = float(scheduler.alphas_cumprod[int(scheduler.timesteps[place])])
    return kept**0.5, (1.0 - kept) ** 0.5


def noised_start(scheduler: Any, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """(B, C, Y, X) pictures to where the scheduler has them at a time (1,)."""
    add = scheduler.scale_noise if hasattr(scheduler, "scale_noise") else scheduler.add_noise
    if add.__name__ == "scale_noise":
        return add(clean, timestep.expand(len(clean)), noise)
    return add(clean, noise, timestep.expand(len(clean)))


def step_options(scheduler: Any, generator: Any, eta: float) -> dict[str, Any]:
    """What `scheduler.step` takes of these.

    Raises:
        ValueError: `eta` is given to a scheduler that has none.
    """
    known = inspect.signature(scheduler.step).parameters
    if eta and "eta" not in known:
        raise ValueError(
            f"`eta`={eta} is of DDIMScheduler, {type(scheduler).__name__} has none; leave it out, or write "
            "`pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)`."
        )
    given = {"generator": generator, "eta": eta}
    return {name: value for name, value in given.items() if name in known}


def _flow_remedy(scheduler: Any, prediction_type: str) -> str:
    if "use_flow_sigmas" in scheduler.config and prediction_type != "mean_flow":
        return (
            f"pipe.scheduler = {type(scheduler).__name__}.from_config(pipe.scheduler.config, "
            "use_flow_sigmas=True, prediction_type='flow_prediction')"
        )
    return f"pipe.scheduler = {FLOW_EULER}()"
