"""From a picture back to the noise that it is drawn from.

Song et al. 2021, "Denoising Diffusion Implicit Models", section 4.3 (https://arxiv.org/abs/2010.02502): with
no fresh noise, drawing is a differential equation, which can be walked backwards; Dhariwal and Nichol 2021,
"Diffusion Models Beat GANs on Image Synthesis", appendix F (https://arxiv.org/abs/2105.05233). A step back
needs what the denoiser says of where it arrives, and takes what it says of where it starts: so it returns
about, the nearer the more steps. Pan et al. 2023, "Effective Real Image Editing with Accelerated Iterative
Diffusion Inversion" (https://arxiv.org/abs/2309.04907): repeated from where it arrived, it returns exactly in
the end.

Shapes: B pictures, c x h x w latents, or pixels where there is no autoencoder.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...objectives.noising import convert_prediction
from .asked_conditions import Prompts, asked_guidance
from .denoising_call import denoise
from .guidance import DenoisingCondition, Guidance
from .memory_switches import memory_watch
from .scheduler_fit import check_scheduler, is_flow, set_steps

__all__ = ["InversionMixin", "StepBack"]


class StepBack(NamedTuple):
    """A step of the way from a picture to noise.

    Args:
        timestep: () of the noisier end, where the denoiser is asked.
        second: () that of the other end, for mean flows.
        source: Shares of picture and noise where the step starts.
        arrival: Those where it arrives, which is noisier.
    """

    timestep: Tensor
    second: Tensor | None
    source: tuple[float, float]
    arrival: tuple[float, float]


class InversionMixin:
    """For pipelines with the parts of `ImageDiffusionPipeline`: `invert`."""

    @torch.no_grad()
    def invert(
        self,
        image: Any,
        prompt: Prompts = None,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        negative_prompt: Prompts = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        repeats: int = 0,
        chunk_size: int | None = None,
    ) -> Tensor:
        """The noise that pictures are drawn from.

            noise = pipe.invert(image, class_labels="bag", repeats=3)
            again = pipe(class_labels="bag", latents=noise, guidance_scale=1.0).images[0]
            other = pipe(class_labels="shoe", latents=noise, guidance_scale=1.0).images[0]

        Args:
            image: One or several, as for drawing from pictures.
            prompt: What they show; one for all, or one for each.
            class_labels: Likewise.
            negative_prompt: What they do not show; only with guidance.
            num_inference_steps: Steps; draw with as many.
            guidance_scale: Draw with the same; far from 1 a step back is far off, and needs `repeats`.
            guidance_interval: See the call.
            repeats: How often a step is repeated from where it arrived; each asks the denoiser once more.
            chunk_size: Pictures at a time; by default all.

        Returns:
            (B, c, h, w), the `latents` to draw from.

        Raises:
            ValueError: The scheduler's steps cannot be undone, or conditions do not fit the pictures.
        """
        pipe: Any = self
        if num_inference_steps < 1 or repeats < 0 or (chunk_size is not None and chunk_size < 1):
            raise ValueError(
                f"`num_inference_steps`={num_inference_steps} and `chunk_size`={chunk_size} must be at least "
                f"1, and `repeats`={repeats} at least 0."
            )
        way = _way_back(pipe, num_inference_steps)
        with memory_watch(pipe, chunk_size):
            latents = pipe.encode(image)
        asked = (prompt, negative_prompt, class_labels)
        guidance = _guidance_of(pipe, len(latents), asked, guidance_scale, guidance_interval)
        size = chunk_size or len(latents)
        chunks = [slice(first, first + size) for first in range(0, len(latents), size)]
        with memory_watch(pipe, size), pipe.progress_bar(total=len(way) * len(chunks)) as bar:
            noise = [
                _walk_back(pipe, latents[rows], guidance.rows(rows), way, repeats, bar) for rows in chunks
            ]
        pipe.maybe_free_model_hooks()
        return torch.cat(noise)


def _guidance_of(
    pipe: Any, pictures: int, asked: tuple[Any, Any, Any], scale: float, interval: tuple[float, float]
) -> Guidance:
    """The conditions of as many pictures; what is said once is of all."""
    guidance, count = asked_guidance(pipe, *asked, 1, scale, interval)
    if count == 1 and pictures > 1:
        guidance, count = asked_guidance(pipe, *asked, pictures, scale, interval)
    if count != pictures:
        raise ValueError(
            f"`prompt` or `class_labels` have {count} entries for {pictures} pictures in `image`; give one "
            "for all, or one for each."
        )
    return guidance


def _walk_back(
    pipe: Any, latents: Tensor, guidance: Guidance, way: list[StepBack], repeats: int, bar: Any
) -> Tensor:
    """(B, c, h, w) from pictures to noise."""
    for step in way:
        latents = _step_back(_denoiser_at(pipe, step, guidance), _target(pipe), latents, step, repeats)
        bar.update()
    return latents


def _step_back(
    ask: Callable[[Tensor], Tensor], kind: str, latents: Tensor, step: StepBack, repeats: int
) -> Tensor:
    """Where `latents` come from.

    Args:
        ask: The denoiser at the noisier end.
        kind: What it predicts.
        latents: (B, c, h, w) at the other end.
        step: Which.
        repeats: See `invert`.
    """
    (alpha, sigma), (from_alpha, from_sigma) = step.source, step.arrival
    if sigma == 0 and kind in ("sample", "flow_sample"):
        # Beside a picture without noise, what is said of the picture says nothing of the noise.
        arrived, repeats = from_alpha * latents, repeats + 1
    else:
        clean, noise = _both(ask(latents), latents, step.source, kind)
        arrived = from_alpha * clean + from_sigma * noise
    for _ in range(repeats):  # by how much drawing from there misses
        clean, noise = _both(ask(arrived), arrived, step.arrival, kind)
        arrived = arrived + latents - (alpha * clean + sigma * noise)
    return arrived


def _both(output: Tensor, noisy: Tensor, level: tuple[float, float], kind: str) -> tuple[Tensor, Tensor]:
    """The picture and the noise that the denoiser sees."""
    clean = convert_prediction(output, noisy, *level, kind, "sample")
    return clean, convert_prediction(output, noisy, *level, kind, "epsilon")


def _denoiser_at(pipe: Any, step: StepBack, guidance: Guidance) -> Callable[[Tensor], Tensor]:
    """The guided prediction at the noisier end of a step."""

    def call(noisy: Tensor, condition: DenoisingCondition) -> Tensor:
        asked = (condition.class_labels, condition.text_states, condition.text_mask)
        return denoise(pipe.denoiser, noisy, step.timestep, *asked, step.second)

    time = float(step.timestep) / pipe.scheduler.config["num_train_timesteps"]
    return lambda noisy: guidance.predict(call, noisy, time)


def _target(pipe: Any) -> str:
    return "flow_velocity" if pipe.prediction_type == "mean_flow" else pipe.prediction_type


def _way_back(pipe: Any, count: int) -> list[StepBack]:
    """The steps of the scheduler, from the last to the first.

    Raises:
        ValueError: They cannot be undone.
    """
    scheduler = pipe.scheduler
    check_scheduler(scheduler, pipe.prediction_type, pipe.vae is not None)
    name, config = type(scheduler).__name__, scheduler.config
    wanted = "FlowMatchEulerDiscreteScheduler" if is_flow(scheduler) else "DDIMScheduler"
    options = ["stochastic_sampling"] if is_flow(scheduler) else ["clip_sample", "thresholding"]
    changed = [option for option in options if config.get(option)]
    if name != wanted or changed:
        off = "".join(f", {option}=False" for option in options)
        raise ValueError(
            f"The steps of {name}{f' with `{changed[0]}`' if changed else ''} cannot be undone; write "
            f"`pipe.scheduler = {wanted}.from_config(pipe.scheduler.config{off})`, also to draw with."
        )
    timesteps = set_steps(scheduler, count, pipe._execution_device)
    if is_flow(scheduler):
        levels = [(1.0 - sigma, sigma) for sigma in scheduler.sigmas.tolist()]
        ends = scheduler.sigmas * config["num_train_timesteps"]
        seconds = list(ends[1:].to(timesteps)) if pipe.prediction_type == "mean_flow" else [None] * count
        pairs = list(zip(levels[1:], levels, strict=False))
    else:
        stride = config["num_train_timesteps"] // count
        pairs = [(_level(scheduler, int(time) - stride), _level(scheduler, int(time))) for time in timesteps]
        seconds = [None] * count
    steps = [StepBack(time, end, *pair) for time, end, pair in zip(timesteps, seconds, pairs, strict=True)]
    return steps[::-1]


def _level(scheduler: Any, timestep: int) -> tuple[float, float]:
    """Shares of picture and noise, as DDIM's steps have them; below 0 what they end at."""
    kept = float(scheduler.alphas_cumprod[timestep] if timestep >= 0 else scheduler.final_alpha_cumprod)
    return kept**0.5, (1.0 - kept) ** 0.5
