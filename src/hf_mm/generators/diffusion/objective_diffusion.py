"""What a denoiser learns by: pictures or latents with noise on them, and what of it is to be found.

Ho et al. 2020, "Denoising Diffusion Probabilistic Models", algorithm 1 (https://arxiv.org/abs/2006.11239);
Lipman et al. 2023, "Flow Matching for Generative Modeling" (https://arxiv.org/abs/2210.02747); Rombach et al.
2022, "High-Resolution Image Synthesis with Latent Diffusion Models" (https://arxiv.org/abs/2112.10752); Ho
and Salimans 2022, "Classifier-Free Diffusion Guidance", algorithm 1 (https://arxiv.org/abs/2207.12598): some
rows learn without their condition. Targets and weights: `objectives/noising.py` and `flow_matching.py`.

Shapes: B pictures of a batch, C channels, Y x X places, L tokens, D width of a text encoder.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...layers.class_ids import check_class_ids
from ...objectives.flow_matching import flow_path, flow_weights, logit_normal_times, uniform_times
from ...objectives.noising import add_noise, diffusion_target, schedule_of, snr_weights
from ...objectives.phased import DivergedError, PhasedObjective
from .denoising_call import class_count, denoise, null_class, takes_texts
from .image_inputs import latent_size
from .pipeline_diffusion import ImageDiffusionPipeline
from .pipeline_parts import check_parts
from .scaled_latents import latents_of_pictures
from .training_texts import TrainingTexts

__all__ = ["DiffusionObjective"]

FLOW_TYPES = ("flow_velocity", "flow_sample")
TIMES = ("uniform", "logit_normal")


class DiffusionObjective(PhasedObjective):
    """A denoiser that learns pictures, or latents of an autoencoder: of classes, of texts, or of anything.

    A batch has `pixel_values` (B, C, Y, X) in [-1, 1], or `latents`, scaled, from a cache; for a denoiser
    with classes `class_labels` (B,); for one with texts `input_ids` and `attention_mask` (B, L), or from a
    cache `text_states` (B, L, D) and `text_mask` (B, L). `row_weights` (B,), if any, say how much each row
    counts.

    Noise, times and which conditions are dropped come from torch's own generator, which the trainer keeps.

    Args:
        denoiser: `UNet2DModel`, `UNet2DConditionModel` or `MMDiTModel`. What of it requires no gradient now,
            such as all but its adapters, is not trained.
        scheduler: Of diffusers: of a noise schedule, or of a flow. The pipeline draws with it.
        prediction_type: "epsilon", "sample" or "v_prediction" by a noise schedule; "flow_velocity" or
            "flow_sample" along a flow.
        weighting: "constant", or by the signal-to-noise ratio one of `SNR_WEIGHTINGS`; of flows one of
            `FLOW_WEIGHTINGS`.
        vae: Frozen; pictures are learnt and drawn as its latents.
        text_encoder: Reads texts for the denoiser.
        tokenizer: Of the texts; the collator needs the same.
        condition_dropout: Share of rows, in 0..1, that learn the null class or the empty text instead.
        times: Of flows: "uniform" or "logit_normal".
        id2label: Names of the classes by their number.
        train_text_encoder: Train the text encoder along; else it is frozen.
        preview_prompts: What previews of a denoiser with texts show; none without.
        preview_guidance: Guidance scale of previews.
        preview_steps: Steps of previews.
        gamma: Of the weighting "min_snr".
        time_mean: Mean of the logits of "logit_normal" times.
        time_std: Their deviation.

    Raises:
        ValueError: Parts or choices that do not go together.
    """

    phases = ("denoiser",)
    averaged = ("denoiser",)
    alphas: Tensor
    sigmas: Tensor
    weights: Tensor

    def __init__(
        self,
        denoiser: Any,
        scheduler: Any,
        prediction_type: str = "epsilon",
        weighting: str = "constant",
        vae: Any = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
        condition_dropout: float = 0.1,
        times: str = "uniform",
        id2label: Mapping[int, str] | None = None,
        train_text_encoder: bool = False,
        preview_prompts: Sequence[str] = (),
        preview_guidance: float = 1.0,
        preview_steps: int = 25,
        gamma: float = 5.0,
        time_mean: float = 0.0,
        time_std: float = 1.0,
    ) -> None:
        super().__init__()
        if prediction_type == "mean_flow":
            raise ValueError("`prediction_type`='mean_flow' is learnt by `MeanFlowObjective`; use that.")
        check_parts(denoiser, scheduler, vae, text_encoder, prediction_type, id2label)
        self.denoiser, self.vae, self.text_encoder = denoiser, vae, text_encoder
        self.scheduler, self.tokenizer = scheduler, tokenizer
        self.prediction_type, self.weighting = prediction_type, weighting
        self.id2label = None if id2label is None else dict(id2label)
        self.preview_prompts = tuple(preview_prompts)
        self.preview_guidance, self.preview_steps = preview_guidance, preview_steps
        self.times, self.time_mean, self.time_std = times, time_mean, time_std
        self._set_schedule(gamma)
        self._set_conditions(condition_dropout, train_text_encoder)
        frozen = {"vae": vae, "text_encoder": None if train_text_encoder else text_encoder}
        self.frozen = tuple(name for name, part in frozen.items() if part is not None)
        learning = ("denoiser", "text_encoder") if train_text_encoder else ("denoiser",)
        self.averaged = learning
        # By name and now: the trainer switches `requires_grad` later on.
        self._trained = tuple(
            name
            for name, weight in self.named_parameters()
            if weight.requires_grad and name.startswith(tuple(f"{part}." for part in learning))
        )
        if not self._trained:
            raise ValueError(
                f"No weight of {', '.join(learning)} requires a gradient, so nothing would learn; call "
                "`denoiser.requires_grad_(True)`, or add an adapter."
            )

    def _set_schedule(self, gamma: float) -> None:
        """Shares and weights of each timestep of a noise schedule; a flow has them at any time."""
        kind, nothing = self.prediction_type, torch.empty(0)
        alphas, sigmas, weights = nothing, nothing, nothing
        if self.times not in TIMES:
            raise ValueError(f"`times`={self.times!r} must be one of {', '.join(TIMES)}.")
        if kind in FLOW_TYPES:
            flow_weights(kind, self.weighting, nothing)
            logit_normal_times(0, self.time_mean, self.time_std)
        elif self.times != "uniform":
            raise ValueError(
                f"`times`={self.times!r} are of flows, but {kind!r} is learnt at the whole timesteps of "
                f"{type(self.scheduler).__name__}; leave it at 'uniform'."
            )
        else:
            alphas, sigmas = schedule_of(self.scheduler)
            if kind == "epsilon" and bool((alphas == 0).any()):
                raise ValueError(
                    "The schedule ends in noise alone (`rescale_betas_zero_snr`), where 'epsilon' tells "
                    "nothing of the picture; set `prediction_type`='v_prediction' here and in the scheduler."
                )
            weights = snr_weights(kind, self.weighting, alphas.square() / sigmas.square(), gamma)
        for name, table in {"alphas": alphas, "sigmas": sigmas, "weights": weights}.items():
            self.register_buffer(name, table.clone(), persistent=False)  # (T,)

    def _set_conditions(self, condition_dropout: float, train_text_encoder: bool) -> None:
        """What the denoiser is asked by, and what stands for no condition."""
        if not 0 <= condition_dropout < 1:
            raise ValueError(f"`condition_dropout`={condition_dropout} must be at least 0 and below 1.")
        if train_text_encoder and not takes_texts(self.denoiser):
            raise ValueError(
                f"`train_text_encoder` is set, but {type(self.denoiser).__name__} takes no texts; leave it "
                "out."
            )
        self.condition_dropout = condition_dropout
        self.classes = class_count(self.denoiser, self.id2label)
        self.null = null_class(self.denoiser, self.id2label)
        if self.classes is not None and self.null is None and condition_dropout:
            raise ValueError(
                f"`condition_dropout`={condition_dropout} needs a null class, but all {self.classes} "
                f"embeddings are of classes; build the denoiser with `num_class_embeds`="
                f"{self.classes + 1}, or pass `condition_dropout=0.0`."
            )
        self.texts = None
        if takes_texts(self.denoiser):
            self.texts = TrainingTexts(self.denoiser, self.text_encoder, self.tokenizer, train_text_encoder)

    def phase_parameters(self, phase: str) -> list[nn.Parameter]:
        """The weights of the denoiser, and those of the text encoder that is trained along."""
        if phase not in self.phases:
            raise ValueError(f"No phase {phase!r}; there are {', '.join(self.phases)}.")
        return [self.get_parameter(name) for name in self._trained]

    def loss(self, batch: Mapping[str, Tensor], phase: str) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted squared error of what the denoiser says, a mean over all numbers of the batch.

        Raises:
            DivergedError: Pictures or latents are not finite; the step is named.
            ValueError: A missing condition, a class that there is not, or pictures of other channels.
        """
        clean = self.clean(batch)
        asked = self.conditions(batch, len(clean))
        noise = torch.randn_like(clean)
        noisy, timestep, target, weights = self.noised(clean, noise)
        output = denoise(self.denoiser, noisy.to(self.denoiser.dtype), timestep, **asked)
        errors = (output.float() - target).square().flatten(1).mean(1)  # (B,)
        if "row_weights" in batch:
            weights = weights * batch["row_weights"]
        logs = {} if self.weighting == "constant" else {"squared_error": errors.detach().mean()}
        return (weights * errors).mean(), logs

    def clean(self, batch: Mapping[str, Tensor]) -> Tensor:
        """What noise is added to, in float32: the latents, or the pictures where there is no autoencoder."""
        name = "`latents`" if "latents" in batch else "`pixel_values`"
        encodes = "latents" not in batch and self.vae is not None
        if encodes:
            with torch.no_grad():
                found = latents_of_pictures(self.vae, batch["pixel_values"], sample=self.training)
            name = "latents of `pixel_values`"
        else:
            found = batch[name.strip("`")]
        channels = self.denoiser.config["in_channels"]
        if found.ndim != 4 or found.shape[1] != channels:
            raise ValueError(
                f"{name} must be (batch, {channels}, height, width) for this denoiser, got "
                f"{tuple(found.shape)}."
            )
        latent_size(self.denoiser, None, *found.shape[2:])
        # On an accelerator looking would wait; there the trainer finds the loss that comes of it.
        if found.device.type == "cpu" and not bool(found.isfinite().all()):
            advice = "Look at the pictures, or make the cache of latents anew"
            if encodes:
                advice = (
                    f"Look at the pictures; or the autoencoder overflows in {self.vae.dtype}, use float32"
                )
            raise DivergedError(f"Step {self.step + 1}: the {name} are not finite. {advice}.")
        return found.float()

    def dropped_rows(self, rows: int) -> Tensor:
        """(B,) true where the condition is to be dropped: in training, by chance."""
        device = self.denoiser.device
        if self.training and self.condition_dropout and (self.null is not None or self.texts is not None):
            return torch.rand(rows, device=device) < self.condition_dropout
        return torch.zeros(rows, dtype=torch.bool, device=device)

    def conditions(
        self, batch: Mapping[str, Tensor], rows: int, dropped: Tensor | None = None
    ) -> dict[str, Tensor | None]:
        """What the denoiser is asked by, as `denoise` takes it; in training without it in some rows.

        Args:
            batch: See the class.
            rows: B.
            dropped: (B,) true in rows without a condition; by default `dropped_rows`.
        """
        dropped = self.dropped_rows(rows) if dropped is None else dropped
        asked: dict[str, Tensor | None] = {}
        if self.classes is not None:
            if "class_labels" not in batch:
                raise ValueError(f"The denoiser is asked by classes, but the batch has only {sorted(batch)}.")
            labels = batch["class_labels"]
            check_class_ids(labels, self.classes)
            asked["class_labels"] = labels if self.null is None else labels.masked_fill(dropped, self.null)
        if self.texts is not None:
            states, mask = self.texts.states(batch, dropped)
            asked |= {"text_states": states.to(self.denoiser.dtype), "text_mask": mask}
        return asked

    def noised(self, clean: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noisy pictures, their timesteps (B,), the target, and the weights (B,)."""
        kind, count = self.prediction_type, len(clean)
        if kind not in FLOW_TYPES:
            timesteps = torch.randint(len(self.alphas), (count,), device=clean.device)
            alpha, sigma = self.alphas[timesteps], self.sigmas[timesteps]
            target = diffusion_target(kind, clean, noise, alpha, sigma)
            return add_noise(clean, noise, alpha, sigma), timesteps, target, self.weights[timesteps]
        if self.times == "uniform":
            times = uniform_times(count, device=clean.device)
        else:
            times = logit_normal_times(count, self.time_mean, self.time_std, device=clean.device)
        target = diffusion_target(kind, clean, noise, 1 - times, times)
        timesteps = times * self.scheduler.config["num_train_timesteps"]
        return flow_path(clean, noise, times), timesteps, target, flow_weights(kind, self.weighting, times)

    def preview(self, noise_generator: torch.Generator, count: int) -> Tensor | None:
        """Pictures of every class in turn, of the prompts, or of anything; of texts only with prompts."""
        if self.texts is not None and not self.preview_prompts:
            return None
        pipe: Any = self.pipeline()
        pipe.set_progress_bar_config(disable=True)
        asked: dict[str, Any] = {}
        if self.texts is not None:
            asked["prompt"] = [self.preview_prompts[i % len(self.preview_prompts)] for i in range(count)]
        if self.classes is not None:
            asked["class_labels"] = [i % self.classes for i in range(count)]
        options = {"num_inference_steps": self.preview_steps, "guidance_scale": self.preview_guidance}
        one_each = {"num_images_per_prompt": 1 if asked else count}
        images = pipe(**asked, **options, **one_each, generator=noise_generator, output_type="pt").images
        return images * 2 - 1

    def pipeline(self) -> ImageDiffusionPipeline:
        """The parts, ready to draw."""
        names = self.id2label
        if names is None and self.classes is not None:
            names = {number: str(number) for number in range(self.classes)}
        return ImageDiffusionPipeline(
            self.denoiser,
            type(self.scheduler).from_config(self.scheduler.config),
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            prediction_type=self.prediction_type,
            id2label=names,
        )
