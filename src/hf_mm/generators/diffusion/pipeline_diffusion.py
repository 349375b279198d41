"""Pictures out of noise, step by step: by class or text, from a picture, or in a part of one.

Ho et al. 2020, "Denoising Diffusion Probabilistic Models" (https://arxiv.org/abs/2006.11239); Song et al.
2021, "Denoising Diffusion Implicit Models" (https://arxiv.org/abs/2010.02502); Lipman et al. 2023, "Flow
Matching for Generative Modeling" (https://arxiv.org/abs/2210.02747); Rombach et al. 2022, "High-Resolution
Image Synthesis with Latent Diffusion Models" (https://arxiv.org/abs/2112.10752).

Shapes: B pictures, C channels, Y x X pixels, c x h x w latents, or pixels where there is no autoencoder.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...hub.diffusers_code import RemotePipelineMixin
from ...layers.picture_chance import Generators, picture_generators
from .asked_conditions import Prompts, asked_guidance
from .denoising_loop import CALLBACK_INPUTS, DenoisingSettings, StepCallback, denoised_latents
from .guidance import Guidance
from .image_inputs import downscale_of, latent_size, read_pictures
from .inversion import InversionMixin
from .lora_loading import DiffusionLoraMixin
from .memory_switches import MemorySwitches, memory_watch
from .pipeline_parts import check_parts
from .scaled_latents import latents_of_pictures, pictures_of_latents
from .scheduler_fit import check_scheduler
from .stable_diffusion import StableDiffusionFolderMixin
from .starting_points import DenoisingStart, starting_point

__all__ = ["ImageDiffusionPipeline"]

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class ImageDiffusionPipeline(
    MemorySwitches,
    InversionMixin,
    StableDiffusionFolderMixin,
    DiffusionLoraMixin,
    RemotePipelineMixin,
    DiffusionPipeline,
):
    """Draw with a denoiser and any scheduler that fits.

        pipe = DiffusionPipeline.from_pretrained("me/my-diffusion")
        pipe(class_labels=["sneaker", "bag"], num_images_per_prompt=4, seed=0).images
        pipe("a small red triangle", num_inference_steps=25, guidance_scale=4.0).images[0]

    Another scheduler, from the config of this one: `pipe.scheduler =
    DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)`. To and from plain Stable Diffusion:
    `to_pipeline`, `from_stable_diffusion`; LoRA: `load_lora_weights` and what goes with it in diffusers.

    Args:
        denoiser: `UNet2DModel`, `UNet2DConditionModel` or `MMDiTModel`.
        scheduler: Of diffusers; it must take what the denoiser predicts.
        vae: `AutoencoderKL` or `MMVQAutoencoder`, for latents; `None` for pixels.
        text_encoder: For denoisers with texts.
        tokenizer: Of the text encoder.
        prediction_type: What the denoiser predicts: "epsilon", "sample" or "v_prediction" with a noise
            schedule; "flow_velocity", "flow_sample" or "mean_flow" with a flow.
        id2label: Names of the classes by their number; `None` when they have none.

    Raises:
        ValueError: Parts that do not go together.
    """

    model_cpu_offload_seq = "text_encoder->denoiser->vae"
    _optional_components = ["vae", "text_encoder", "tokenizer"]
    _callback_tensor_inputs = list(CALLBACK_INPUTS)

    def __init__(
        self,
        denoiser: ModelMixin,
        scheduler: SchedulerMixin,
        vae: ModelMixin | None = None,
        text_encoder: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        prediction_type: str = "epsilon",
        id2label: dict | None = None,
    ) -> None:
        super().__init__()
        check_parts(denoiser, scheduler, vae, text_encoder, prediction_type, id2label)
        parts = {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer}
        self.register_modules(denoiser=denoiser, scheduler=scheduler, **parts)
        labels = {str(number): name for number, name in (id2label or {}).items()}  # JSON's keys are texts
        self.register_to_config(prediction_type=prediction_type, id2label=labels)
        self.classes = [labels[str(number)] for number in range(len(labels))]
        self.prediction_type = prediction_type
        self.image_processor = VaeImageProcessor(do_resize=False, vae_scale_factor=downscale_of(vae))
        self.reported_prompts: set[str] = set()  # that were longer than the context
        self._interrupt = False

    @property
    def interrupt(self) -> bool:
        """Whether to stop after this step; a callback may set `_interrupt`, as with diffusers' own."""
        return self._interrupt

    @property
    def picture_channels(self) -> int:
        """C."""
        return (self.denoiser if self.vae is None else self.vae).config["in_channels"]

    @torch.no_grad()
    def __call__(
        self,
        prompt: Prompts = None,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        negative_prompt: Prompts = None,
        image: Any = None,
        mask_image: Any = None,
        strength: float = 0.8,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        seed: int | Sequence[int] | None = None,
        latents: Tensor | None = None,
        chunk_size: int | None = None,
        eta: float = 0.0,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw pictures; with an `image` begin there, with a `mask_image` draw in a part of it only.

        Args:
            prompt: Texts; an empty one asks for any picture.
            class_labels: Numbers or names of classes; with neither, one picture of anything.
            negative_prompt: What pictures shall not show, instead of the empty text.
            image: One or several, PIL, or in [0, 1] as an array (N, Y, X, C) or a tensor (N, C, Y, X).
            mask_image: Likewise, with one channel: white is drawn, black stays.
            strength: Share of the way that is walked from an `image`; 1 leaves nothing of it.
            height: In pixels; by default that of `image`, or of training.
            width: Likewise.
            num_inference_steps: Steps of the whole way.
            guidance_scale: 1 as in training, at half the work; by default 3 for what is asked for.
            guidance_interval: Times of the way at which it acts, 1 noise and 0 picture.
            num_images_per_prompt: Pictures of each.
            generator: For the same pictures each time; or one for each picture.
            seed: Instead: picture i has `seed` + i, or the i-th of a list, whatever it is drawn with.
            latents: (B, c, h, w) the noise itself.
            chunk_size: Pictures at a time, where memory is short; by default all.
            eta: Noise of DDIM's steps, 0 to 1.
            output_type: "pil", "np" (B, Y, X, C) or "pt" (B, C, Y, X) in [0, 1], or "latent".
            return_dict: Whether to return an `ImagePipelineOutput` or a tuple.
            callback_on_step_end: Called with pipeline, step, timestep, and what it asks for by name.
            callback_on_step_end_tensor_inputs: "latents", and "clean": the picture to be seen in them.
        """
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        settings = DenoisingSettings(num_inference_steps, 1.0 if image is None else strength, eta, *callback)
        self._check_call(settings, output_type, chunk_size)
        asked = (prompt, negative_prompt, class_labels, num_images_per_prompt)
        guidance, count = self._asked(chunk_size, *asked, guidance_scale, guidance_interval)
        chance = picture_generators(generator, seed, count)
        begin = (image, mask_image, strength, num_inference_steps, (height, width), latents)
        with memory_watch(self, min(chunk_size or count, count)):
            start = starting_point(self, count, *begin, chance)
            drawn = self._drawn(start, guidance, settings, chance, chunk_size or count, output_type)
        return ImagePipelineOutput(images=drawn) if return_dict else (drawn,)

    @torch.no_grad()
    def encode(self, image: Any, sample: bool = False, generator: Generators = None) -> Tensor:
        """Pictures to what is denoised: scaled latents (B, c, h, w), or the pixels themselves in [-1, 1].

        Args:
            image: See the call.
            sample: Draw from the posterior of a VAE instead of its mean.
            generator: For `sample`.

        Raises:
            ValueError: Pictures of other channels, or of a size that the parts cannot halve often enough.
        """
        pixels = read_pictures(image, self.picture_channels).to(self._execution_device, self.denoiser.dtype)
        latent_size(self.denoiser, self.vae, *pixels.shape[2:])
        if self.vae is None:
            return pixels
        # The autoencoder may be of another dtype, such as float32 where float16 overflows.
        return latents_of_pictures(self.vae, pixels, sample, generator).to(self.denoiser.dtype)

    @torch.no_grad()
    def decode(self, latents: Tensor, output_type: str = "pil") -> Any:
        """What `encode` gives, or a callback is shown, to pictures.

        Args:
            latents: (B, c, h, w).
            output_type: See the call.

        Raises:
            FloatingPointError: The autoencoder makes numbers of them that are not finite.
            ValueError: An unknown type of output.
        """
        _check_output_type(output_type)
        if output_type == "latent":
            return latents
        pixels = latents if self.vae is None else pictures_of_latents(self.vae, latents)
        if self.vae is not None and not bool(pixels.isfinite().all()):
            raise FloatingPointError(
                f"The {type(self.vae).__name__} decodes to numbers that are not finite in {self.vae.dtype}; "
                "decode in float32 (`pipe.vae.to(torch.float32)`), and if that does not help look for NaN in "
                "its weights and in the latents."
            )
        postprocess: Any = self.image_processor.postprocess
        return postprocess(pixels.float(), output_type=output_type)

    def _asked(self, chunk_size: int | None, *asked: Any) -> tuple[Guidance, int]:
        """The conditions of a call, for which a text encoder runs, and B."""
        with memory_watch(self, chunk_size):
            return asked_guidance(self, *asked)

    def _drawn(
        self,
        start: DenoisingStart,
        guidance: Guidance,
        settings: DenoisingSettings,
        chance: Any,
        chunk_size: int,
        output_type: str,
    ) -> Any:
        """Walk and decode `chunk_size` pictures at a time."""
        count, images = len(start.latents), []
        self._interrupt = False
        total = (len(self.scheduler.timesteps) - start.first) * -(-count // chunk_size)
        with self.progress_bar(total=total) as bar:
            for first in range(0, count, chunk_size):
                rows = slice(first, first + chunk_size)
                own = chance[rows] if isinstance(chance, list) else chance
                begun = (start.rows(rows), guidance.rows(rows))
                latents = denoised_latents(self, *begun, settings, own, bar)
                images.append(self.decode(latents, output_type))
        self.maybe_free_model_hooks()
        return _joined(images)

    def _check_call(self, settings: DenoisingSettings, output_type: str, chunk_size: int | None) -> None:
        _check_output_type(output_type)
        check_scheduler(self.scheduler, self.prediction_type, self.vae is not None)
        if settings.steps < 1 or (chunk_size is not None and chunk_size < 1):
            raise ValueError(
                f"`num_inference_steps`={settings.steps} and `chunk_size`={chunk_size} must be at least 1."
            )
        if not 0 < settings.strength <= 1 or not 0 <= settings.eta <= 1:
            raise ValueError(
                f"`strength`={settings.strength} must be above 0 and at most 1, `eta`={settings.eta} "
                "from 0 to 1."
            )
        if unknown := sorted(set(settings.callback_inputs) - set(CALLBACK_INPUTS)):
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` names {unknown}; there are {list(CALLBACK_INPUTS)}."
            )


def _joined(parts: list[Any]) -> Any:
    """Pictures of all chunks."""
    if isinstance(parts[0], list):
        return [picture for part in parts for picture in part]
    return torch.cat(parts) if isinstance(parts[0], Tensor) else np.concatenate(parts)


def _check_output_type(output_type: str) -> None:
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"`output_type`={output_type!r} is not one of {', '.join(OUTPUT_TYPES)}.")
