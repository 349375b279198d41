"""The way from noise to pictures, step by step, by any scheduler that fits.

Shapes: B pictures, c x h x w latents, or pixels where there is no autoencoder.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...objectives.noising import convert_prediction
from .denoising_call import denoise
from .guidance import DenoisingCondition, Guidance
from .scheduler_fit import begin_steps, noise_level, step_options
from .starting_points import DenoisingStart

__all__ = ["CALLBACK_INPUTS", "DenoisingSettings", "denoised_latents"]

CALLBACK_INPUTS = ("latents", "clean")

StepCallback = Callable[[Any, int, Any, dict[str, Tensor]], Mapping[str, Tensor] | None] | None


@dataclass
class DenoisingSettings:
    """How the way is walked.

    Args:
        steps: Of the whole way.
        strength: Share of it that is walked.
        eta: Of DDIM.
        callback: Called after each step, as diffusers does it.
        callback_inputs: Names of what it is given.
    """

    steps: int
    strength: float = 1.0
    eta: float = 0.0
    callback: StepCallback = None
    callback_inputs: Sequence[str] = ("latents",)


def denoised_latents(
    pipe: Any,
    start: DenoisingStart,
    guidance: Guidance,
    settings: DenoisingSettings,
    generator: Any,
    bar: Any,
) -> Tensor:
    """Walk the way from `start` to the end.

    Args:
        pipe: An `ImageDiffusionPipeline`.
        start: Of B pictures.
        guidance: What they shall show.
        settings: How.
        generator: One for all pictures, or one for each.
        bar: A progress bar, moved by one for each step.

    Returns:
        (B, c, h, w).

    Raises:
        FloatingPointError: Numbers are not finite; the first such step is named.
    """
    scheduler, latents = pipe.scheduler, start.latents
    begin_steps(scheduler, settings.steps, settings.strength, latents.device)
    options = step_options(scheduler, generator, settings.eta)
    scale = scheduler.scale_model_input if hasattr(scheduler, "scale_model_input") else None
    watch = _FiniteWatch(scheduler.timesteps, start.first)
    times = (scheduler.timesteps.float() / scheduler.config["num_train_timesteps"]).tolist()
    for step in range(start.first, len(times)):
        if pipe.interrupt:
            break
        timestep = scheduler.timesteps[step]
        noisy = latents if scale is None else scale(latents, timestep)
        output = guidance.predict(_denoiser_call(pipe, step), noisy, times[step])
        before, answer = latents, _for_scheduler(pipe, output, noisy, step)
        latents = scheduler.step(answer, timestep, before, return_dict=False, **options)[0]
        latents = start.put_back(latents, scheduler, step)
        if settings.callback is not None:
            clean = (
                _clean_estimate(pipe, output, noisy, step) if "clean" in settings.callback_inputs else None
            )
            given = {"latents": latents, "clean": clean}
            asked: Any = {name: given[name] for name in settings.callback_inputs}
            changed = settings.callback(pipe, step - start.first, timestep, asked)
            latents = (changed or {}).get("latents", latents)
        watch.look_at(latents)
        bar.update()
    watch.finish()
    return latents


def _denoiser_call(pipe: Any, step: int) -> Callable[[Tensor, DenoisingCondition], Tensor]:
    """The denoiser at a step, of noisy pictures and their conditions."""
    scheduler = pipe.scheduler
    second = None
    if pipe.prediction_type == "mean_flow":  # the average velocity down to the next step
        second = scheduler.sigmas[step + 1] * scheduler.config["num_train_timesteps"]

    def call(noisy: Tensor, condition: DenoisingCondition) -> Tensor:
        asked = (condition.class_labels, condition.text_states, condition.text_mask)
        return denoise(pipe.denoiser, noisy, scheduler.timesteps[step], *asked, second)

    return call


def _for_scheduler(pipe: Any, output: Tensor, noisy: Tensor, step: int) -> Tensor:
    """The denoiser's answer in the words of the scheduler."""
    if pipe.prediction_type != "flow_sample":
        return output
    alpha, sigma = noise_level(pipe.scheduler, step)
    return convert_prediction(output, noisy, alpha, sigma, "flow_sample", "flow_velocity")


def _clean_estimate(pipe: Any, output: Tensor, noisy: Tensor, step: int) -> Tensor:
    """(B, c, h, w) the picture that the denoiser sees at this step."""
    kind = "flow_velocity" if pipe.prediction_type == "mean_flow" else pipe.prediction_type
    target = "flow_sample" if kind.startswith("flow") else "sample"
    if kind == target:
        return output
    alpha, sigma = noise_level(pipe.scheduler, step)
    return convert_prediction(output, noisy, alpha, sigma, kind, target)


class _FiniteWatch:
    """Stops at numbers that are not finite: at once on the CPU, elsewhere at the end, so as not to wait."""

    def __init__(self, timesteps: Tensor, first: int) -> None:
        self.timesteps, self.first = timesteps, first
        self.sums: list[Tensor] = []

    def look_at(self, latents: Tensor) -> None:
        self.sums.append(latents.sum(dtype=torch.float32))  # not finite if any of them is not
        if latents.device.type == "cpu" and not math.isfinite(self.sums[-1].item()):
            self.finish()

    def finish(self) -> None:
        finite = torch.stack(self.sums).isfinite().tolist() if self.sums else []
        if all(finite):
            return
        step = finite.index(False)
        raise FloatingPointError(
            f"The latents are not finite after step {step + 1} of {len(self.timesteps) - self.first} "
            f"(timestep {float(self.timesteps[self.first + step]):g}); draw in float32 or bfloat16 rather "
            "than float16 (`pipe.to(torch.float32)`), and if that does not help look for NaN in the weights "
            "of the denoiser."
        )
