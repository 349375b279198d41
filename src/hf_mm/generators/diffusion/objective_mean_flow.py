"""What a denoiser learns that draws in one to four steps: average velocities.

Geng et al. 2025, "Mean Flows for One-step Generative Modeling", algorithm 1 (https://arxiv.org/abs/2505.13447).
There is no teacher: it is trained from nothing, on the same batches as any denoiser. Guidance can be learnt
with it, so that drawing takes one forward for each step. The formulas are in `objectives/mean_flow.py`.

Shapes: B pictures of a batch, C channels, Y x X places.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from ...objectives.flow_matching import flow_path, flow_velocity
from ...objectives.mean_flow import (
    adaptive_squared_error,
    guided_velocity,
    interval_times,
    mean_flow_target,
)
from ...objectives.noising import per_picture
from .denoising_call import denoise
from .objective_diffusion import DiffusionObjective
from .pipeline_parts import check_parts

__all__ = ["MeanFlowObjective"]

MOST_TIMESTEPS = 100  # measured: with 1000 the error of a small transformer grows from the first steps on
Conditions = dict[str, Tensor | None]


class MeanFlowObjective(DiffusionObjective):
    """An `MMDiTModel` with `second_time` that learns the average velocity between any two times.

    Batches are those of `DiffusionObjective`. Rows with an interval cost a forward with its derivative more,
    learnt guidance another forward of all rows. Logged: `squared_error`, the mean over all numbers, since the
    weighted loss hardly changes.

    Args:
        denoiser: With `second_time`.
        scheduler: A `FlowMatchEulerDiscreteScheduler`, by default one that counts times from 0 to 1
            (`num_train_timesteps=1`): a denoiser that is told times up to 1000 changes so fast with them that
            its derivative is of no use, and diverges.
        vae: Frozen; pictures are learnt and drawn as its latents.
        text_encoder: Frozen; reads texts for the denoiser.
        tokenizer: Of the texts; the collator needs the same.
        condition_dropout: Share of rows, in 0..1, that learn the null class or the empty text instead.
        guidance_scale: Of what is learnt under a condition; 1.0 is none. Draw with `guidance_scale=1`.
        guidance_interval: Times between which it is learnt, 0 that of a picture and 1 that of noise.
        mixing: How much of the guided target is the denoiser's own, in 0..1: it varies less. 0.0 saves time.
        share_apart: Share of rows with an interval; the others learn the velocity.
        power: Of the weights of errors, see `adaptive_squared_error`.
        offset: Of the weights of errors.
        id2label: Names of the classes by their number.
        preview_prompts: What previews of a denoiser with texts show; none without.
        preview_steps: Steps of previews.
        time_mean: Mean of the logits of times.
        time_std: Their deviation.

    Raises:
        ValueError: Parts or choices that do not go together.
    """

    def __init__(
        self,
        denoiser: Any,
        scheduler: Any = None,
        vae: Any = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
        condition_dropout: float = 0.1,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        mixing: float = 0.0,
        share_apart: float = 0.25,
        power: float = 1.0,
        offset: float = 1e-3,
        id2label: Mapping[int, str] | None = None,
        preview_prompts: Sequence[str] = (),
        preview_steps: int = 1,
        time_mean: float = -0.4,
        time_std: float = 1.0,
    ) -> None:
        if scheduler is None:
            scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1)
        check_parts(denoiser, scheduler, vae, text_encoder, "mean_flow", id2label)
        _check_times(scheduler)
        super().__init__(
            denoiser,
            scheduler,
            "flow_velocity",  # the path is that of a flow
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            condition_dropout=condition_dropout,
            times="logit_normal",
            id2label=id2label,
            preview_prompts=preview_prompts,
            preview_steps=preview_steps,
            time_mean=time_mean,
            time_std=time_std,
        )
        self.prediction_type = "mean_flow"
        self.guidance_scale, self.guidance_interval, self.mixing = guidance_scale, guidance_interval, mixing
        self.share_apart, self.power, self.offset = share_apart, power, offset
        self._check_guidance()
        # The functions know their ranges: said now, not at the first step.
        nothing = torch.zeros(0, 1)
        interval_times(0, share_apart, time_mean, time_std)
        adaptive_squared_error(nothing, nothing, power, offset)
        guided_velocity(nothing, nothing, guidance_scale, nothing, mixing)

    def loss(self, batch: Mapping[str, Tensor], phase: str) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted squared error of the average velocity, a mean over the rows of the batch.

        Raises:
            DivergedError: Pictures or latents are not finite; the step is named.
            ValueError: A missing condition, a class that there is not, or pictures of other channels.
        """
        clean = self.clean(batch)
        dropped = self.dropped_rows(len(clean))
        asked = self.conditions(batch, len(clean), dropped)
        noise = torch.randn_like(clean)
        times, earlier, apart = interval_times(
            len(clean), self.share_apart, self.time_mean, self.time_std, device=clean.device
        )
        noisy, velocity = flow_path(clean, noise, times), flow_velocity(clean, noise)
        # First, since autocast keeps the weights it converts: without gradients they would stay without.
        prediction = self.average(asked)(noisy, times, earlier)
        with torch.no_grad():
            velocity = self.learnt_velocity(batch, asked, dropped, noisy, velocity, times)
            target = velocity.clone()
            if apart:
                rows = slice(apart)
                average = self.average({name: _rows(value, rows) for name, value in asked.items()})
                parts = (part[rows] for part in (noisy, velocity, times, earlier))
                target[rows] = mean_flow_target(average, *parts)
        losses, squared = adaptive_squared_error(prediction.float(), target, self.power, self.offset)
        if "row_weights" in batch:
            losses = losses * batch["row_weights"]
        return losses.mean(), {"squared_error": squared.mean() / clean[0].numel()}

    def average(self, asked: Conditions) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """The average velocity under a condition: of pictures (B, C, Y, X), times and earlier times (B,)."""
        per_time = self.scheduler.config["num_train_timesteps"]

        def call(noisy: Tensor, times: Tensor, earlier: Tensor) -> Tensor:
            noisy = noisy.to(self.denoiser.dtype)
            second = earlier * per_time
            return denoise(self.denoiser, noisy, times * per_time, **asked, second_timestep=second).float()

        return call

    def learnt_velocity(
        self,
        batch: Mapping[str, Tensor],
        asked: Conditions,
        dropped: Tensor,
        noisy: Tensor,
        velocity: Tensor,
        times: Tensor,
    ) -> Tensor:
        """The velocity (B, C, Y, X) of the flow that is learnt, with guidance where there is a condition."""
        if self.guidance_scale == 1.0:
            return velocity
        nothing = self.conditions(batch, len(noisy), torch.ones_like(dropped))
        unconditional = self.average(nothing)(noisy, times, times)
        conditional = self.average(asked)(noisy, times, times) if self.mixing else None
        guided = guided_velocity(velocity, unconditional, self.guidance_scale, conditional, self.mixing)
        lowest, highest = self.guidance_interval
        plain = dropped | (times < lowest) | (times > highest)
        return torch.where(per_picture(plain, noisy).bool(), velocity, guided)

    def _check_guidance(self) -> None:
        lowest, highest = self.guidance_interval
        if not 0 <= lowest <= highest <= 1:
            raise ValueError(
                f"`guidance_interval`={self.guidance_interval} must be two times from 0, a picture, to 1, "
                "noise, the lower one first."
            )
        if self.guidance_scale < 0:
            raise ValueError(
                f"`guidance_scale`={self.guidance_scale} must be 0 or more; 1 is without guidance."
            )
        if self.guidance_scale != 1.0 and not self.condition_dropout:
            raise ValueError(
                f"`guidance_scale`={self.guidance_scale} is learnt beside pictures without a condition; set "
                "`condition_dropout` above 0, such as 0.1."
            )
        if self.guidance_scale != 1.0 and self.null is None and self.texts is None:
            raise ValueError(
                f"`guidance_scale`={self.guidance_scale} needs conditions, but the denoiser knows neither "
                "classes nor texts; leave it at 1.0."
            )


def _check_times(scheduler: Any) -> None:
    found = scheduler.config["num_train_timesteps"]
    if found > MOST_TIMESTEPS:
        raise ValueError(
            f"The scheduler counts times up to `num_train_timesteps`={found}, with which the derivative by "
            f"the time grows until the run diverges; give at most {MOST_TIMESTEPS}, as "
            "`FlowMatchEulerDiscreteScheduler(num_train_timesteps=1)`."
        )


def _rows(value: Tensor | None, rows: slice) -> Tensor | None:
    return None if value is None else value[rows]
