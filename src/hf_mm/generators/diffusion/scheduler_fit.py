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


def check_scheduler(scheduler: Any, prediction_type: str, of_latents: bool = False) -> None:
    """Refuse a scheduler that would take the denoiser's answers for something else.

    Args:
        scheduler: Of diffusers.
        prediction_type: What the denoiser predicts, one of `PREDICTION_TYPES`.
        of_latents: Whether latents of an autoencoder are walked, which go beyond -1..1.

    Raises:
        ValueError: Says what the scheduler expects, and the line that puts it right.
    """
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"`prediction_type`={prediction_type!r} is not one of {', '.join(PREDICTION_TYPES)}."
        )
    name, expects = type(scheduler).__name__, _expected_by(scheduler)
    if "Inverse" in name:
        raise ValueError(
            f"{name} walks from pictures to noise, and so draws nothing; write `pipe.scheduler = "
            f"{name.replace('Inverse', '')}.from_config(pipe.scheduler.config)`, and call `pipe.invert` for "
            "that way."
        )
    fits = expects == ("flow_prediction" if prediction_type in FLOW_TARGETS else prediction_type)
    if prediction_type == "mean_flow" and name != FLOW_EULER:
        fits, expects = False, f"{expects} of one time"
    if not fits:
        raise ValueError(
            f"The denoiser predicts {prediction_type!r} (`prediction_type` of the pipeline), but {name} "
            f"expects {expects}; write `pipe.scheduler = {_remedy(scheduler, prediction_type)}`."
        )
    if str(scheduler.config.get("variance_type", "")).startswith("learned"):
        raise ValueError(
            f"{name} expects a learned variance (`variance_type`={scheduler.config['variance_type']!r}), "
            f"which is not passed on; write `pipe.scheduler = {name}.from_config(pipe.scheduler.config, "
            "variance_type='fixed_small')`."
        )
    if of_latents and scheduler.config.get("clip_sample") and not is_flow(scheduler):
        raise ValueError(
            f"{name} has `clip_sample`, which cuts off at -1 and 1 what it sees of a picture, but latents of "
            f"a `vae` go beyond; write `pipe.scheduler = {name}.from_config(pipe.scheduler.config, "
            "clip_sample=False)`."
        )


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


def _expected_by(scheduler: Any) -> str:
    """The target that a scheduler takes, in the words of diffusers, or what it takes instead of one."""
    target = scheduler.config.get("prediction_type")
    if type(scheduler).__name__.startswith("FlowMatch"):
        return "flow_prediction"
    if target is None or not hasattr(scheduler, "alphas_cumprod"):
        return "something that its config does not name"
    if is_flow(scheduler) == (target == "flow_prediction"):
        return target
    return f"{target} along a {'flow' if is_flow(scheduler) else 'noise schedule'}"


def _remedy(scheduler: Any, prediction_type: str) -> str:
    """A scheduler that takes the target; the same one, where that can."""
    name, config = type(scheduler).__name__, scheduler.config
    knows_flow, flow = "use_flow_sigmas" in config, prediction_type in FLOW_TARGETS
    if flow and (not knows_flow or prediction_type == "mean_flow"):
        times = "num_train_timesteps=1" if prediction_type == "mean_flow" else ""  # as it was trained
        return f"{FLOW_EULER}({times})"
    if not flow and ("prediction_type" not in config or not hasattr(scheduler, "alphas_cumprod")):
        return f"DDIMScheduler(prediction_type={prediction_type!r}, ...)` with the betas of training in `..."
    target = "flow_prediction" if flow else prediction_type
    sigmas = f"use_flow_sigmas={flow}, " if knows_flow else ""
    return f"{name}.from_config(pipe.scheduler.config, {sigmas}prediction_type={target!r})"
