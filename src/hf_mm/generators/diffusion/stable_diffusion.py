"""Text to image as plain Stable Diffusion: a folder that diffusers alone opens, and back.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models"
(https://arxiv.org/abs/2112.10752): a UNet that denoises the latents of a VAE and looks at the states of a
text encoder by cross-attention. Where the parts of a pipeline are of these kinds, nothing of this package is
needed to draw with them; where one is not, the error names it.
"""

import json
from pathlib import Path
from typing import Any, Self

import diffusers  # whose own pipeline is imported when it is asked for: it brings much along
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from transformers import CLIPTextConfig, CLIPTextModel

__all__ = ["StableDiffusionFolderMixin", "stock_text_encoder"]

PLAIN = "StableDiffusionPipeline"
FLOW, PLAIN_FLOW = "flow_velocity", "flow_prediction"  # our word, and that of diffusers' schedulers
PLAIN_TARGETS = ("epsilon", "v_prediction", "sample", FLOW)
PLAIN_SCHEDULER_ASKS = ("init_noise_sigma", "scale_model_input")  # StableDiffusionPipeline, of a scheduler
LONGEST_PLAIN_TEXT = 100_000  # tokenizers without a limit have an astronomical one
PLAIN_FIELDS = {"steps_offset": 1, "clip_sample": False}  # it sets them so in any scheduler that has them
PLAIN_INDEX = "model_index.json"


class StableDiffusionFolderMixin:
    """For `ImageDiffusionPipeline`: to and from `StableDiffusionPipeline`, without a copy of any weight.

    pipe.to_pipeline().save_pretrained("out/plain")  # StableDiffusionPipeline.from_pretrained opens it
    ImageDiffusionPipeline.from_stable_diffusion("stable-diffusion-v1-5/stable-diffusion-v1-5")
    """

    def to_pipeline(self) -> DiffusionPipeline:
        """The same parts as diffusers' own pipeline, which draws the same pictures.

        A text tower of this package becomes transformers' `CLIPTextModel`, with its weights.

        Raises:
            ValueError: A part that Stable Diffusion does not have; it is named.
        """
        parts: Any = self
        _require_plain_unet(parts.denoiser)
        _require_plain_vae(parts.vae, parts.denoiser)
        _require_plain_texts(parts.text_encoder, parts.tokenizer)
        _require_plain_scheduler(parts.scheduler, parts.prediction_type)
        plain: Any = diffusers.StableDiffusionPipeline
        return plain(
            vae=parts.vae,
            text_encoder=stock_text_encoder(parts.text_encoder),
            tokenizer=parts.tokenizer,
            unet=parts.denoiser,
            scheduler=parts.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    @classmethod
    def from_stable_diffusion(cls, source: str | Path, **options: Any) -> Self:
        """Open a folder or Hub repository in the layout of Stable Diffusion.

        What the UNet predicts is read from the config of the scheduler. The safety checker is not loaded.

        Args:
            source: Folder, or id of the Hub.
            **options: As for `StableDiffusionPipeline.from_pretrained`, such as `torch_dtype`, `variant`,
                `revision` or a component to replace.

        Raises:
            FileNotFoundError: A folder without a pipeline.
            ValueError: Another kind of pipeline.
        """
        if Path(source).is_dir():
            _require_plain_index(Path(source))
        pipe: Any = diffusers.StableDiffusionPipeline.from_pretrained(
            str(source),
            **{"safety_checker": None, "requires_safety_checker": False, "feature_extractor": None} | options,
        )
        make: Any = cls
        target = pipe.scheduler.config["prediction_type"]
        return make(
            denoiser=pipe.unet,
            scheduler=pipe.scheduler,
            vae=pipe.vae,
            text_encoder=pipe.text_encoder,
            tokenizer=pipe.tokenizer,
            prediction_type=FLOW if target == PLAIN_FLOW else target,
        )


def stock_text_encoder(text_encoder: Any) -> CLIPTextModel:
    """A text tower as transformers' `CLIPTextModel`: itself, or its weights under other names.

    Args:
        text_encoder: `CLIPTextModel`, or a model that says how it maps to one (`MMCLIPTextModel`).

    Raises:
        ValueError: It is of another kind.
    """
    if isinstance(text_encoder, CLIPTextModel):
        return text_encoder
    cls = type(text_encoder)
    known = getattr(cls, "foreign_checkpoints", ())
    fitting = [table for table in known if table.classes.get(cls.__name__) == CLIPTextModel.__name__]
    if not fitting:
        raise ValueError(
            f"The `text_encoder` is {cls.__name__}; Stable Diffusion reads texts by transformers' "
            "CLIPTextModel. Train with one, or with MMCLIPTextModel, which becomes one."
        )
    fields = fitting[0].config_to(text_encoder.config, cls)
    stock = CLIPTextModel(CLIPTextConfig(**fields))
    weights = fitting[0].weights_to(text_encoder.state_dict())
    own = stock.state_dict()
    if not set(own) <= set(weights):  # files begin with `text_model.`, modules no longer do
        weights = {name.removeprefix("text_model."): weight for name, weight in weights.items()}
    stock.load_state_dict(weights)
    return stock.to(text_encoder.device, text_encoder.dtype).train(text_encoder.training)


def _require_plain_unet(denoiser: Any) -> None:
    if not isinstance(denoiser, UNet2DConditionModel):
        raise ValueError(
            f"The `denoiser` is {type(denoiser).__name__}; Stable Diffusion has UNet2DConditionModel only. "
            "Share the pipeline itself, it loads with `trust_remote_code=True`."
        )
    config = denoiser.config
    if config["class_embed_type"] is not None or config["num_class_embeds"] is not None:
        raise ValueError(
            f"The `denoiser` has classes (`num_class_embeds`={config['num_class_embeds']}), which Stable "
            "Diffusion never passes; train it without them."
        )


def _require_plain_vae(vae: Any, denoiser: UNet2DConditionModel) -> None:
    if not isinstance(vae, AutoencoderKL):
        raise ValueError(
            f"The `vae` is {type(vae).__name__}; Stable Diffusion decodes by AutoencoderKL. Train one by "
            "`hf-mm train autoencoder --model vae`."
        )
    if vae.config["shift_factor"]:
        raise ValueError(
            f"The `vae` has `shift_factor`={vae.config['shift_factor']}, which Stable Diffusion ignores; "
            "train with a VAE that has none."
        )
    width = (denoiser.config["in_channels"], denoiser.config["out_channels"])
    if set(width) != {vae.config["latent_channels"]}:
        raise ValueError(
            f"The `denoiser` takes and gives {width[0]} and {width[1]} channels, the latents of the `vae` "
            f"have {vae.config['latent_channels']}; Stable Diffusion wants the same."
        )


def _require_plain_texts(text_encoder: Any, tokenizer: Any) -> None:
    if text_encoder is None or tokenizer is None:
        missing = "text_encoder" if text_encoder is None else "tokenizer"
        raise ValueError(f"The pipeline has no `{missing}`; Stable Diffusion is asked by texts.")
    if tokenizer.pad_token is None or tokenizer.model_max_length > LONGEST_PLAIN_TEXT:
        raise ValueError(
            f"The `tokenizer` has `pad_token`={tokenizer.pad_token!r} and `model_max_length`="
            f"{tokenizer.model_max_length}; Stable Diffusion pads every text to that length. Set both."
        )


def _require_plain_scheduler(scheduler: Any, prediction_type: str) -> None:
    name, config = type(scheduler).__name__, scheduler.config
    if prediction_type not in PLAIN_TARGETS:
        raise ValueError(
            f"The `denoiser` predicts {prediction_type!r}; Stable Diffusion draws by "
            f"{', '.join(PLAIN_TARGETS)}. Share the pipeline itself, it loads with `trust_remote_code=True`."
        )
    if not all(hasattr(scheduler, asked) for asked in PLAIN_SCHEDULER_ASKS):
        remedy = "DDIMScheduler.from_config(pipe.scheduler.config)"
        if prediction_type == FLOW:
            remedy = f"UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type={PLAIN_FLOW!r})"
        raise ValueError(f"Stable Diffusion cannot draw by {name}; write `pipe.scheduler = {remedy}` before.")
    wanted: dict[str, Any] = {"prediction_type": _plain_target(prediction_type)}
    wanted |= {"use_flow_sigmas": True} if prediction_type == FLOW else {}
    wanted |= {field: value for field, value in PLAIN_FIELDS.items() if field in config}
    if other := {field: config.get(field) for field, value in wanted.items() if config.get(field) != value}:
        remedy = ", ".join(f"{field}={wanted[field]!r}" for field in other)
        raise ValueError(
            f"{name} has {other}; Stable Diffusion would draw other pictures of what predicts "
            f"{prediction_type!r}. Write `pipe.scheduler = {name}.from_config(pipe.scheduler.config, "
            f"{remedy})` before."
        )


def _plain_target(prediction_type: str) -> str:
    """The word of diffusers' schedulers for it."""
    return PLAIN_FLOW if prediction_type == FLOW else prediction_type


def _require_plain_index(folder: Path) -> None:
    if not (folder / PLAIN_INDEX).is_file():
        raise FileNotFoundError(f"{folder} has no {PLAIN_INDEX}; give the folder of a whole pipeline.")
    name = json.loads((folder / PLAIN_INDEX).read_text(encoding="utf-8")).get("_class_name")
    if name != PLAIN:
        raise ValueError(
            f"{folder} holds a {name}, not a {PLAIN}; load it by `DiffusionPipeline.from_pretrained`."
        )
