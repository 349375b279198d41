"""Whether the parts of a pipeline go together, said before anything is drawn."""

from typing import Any

from .denoising_call import class_count, takes_texts
from .image_inputs import latent_channels_of
from .scheduler_fit import check_scheduler

__all__ = ["check_parts"]


def check_parts(
    denoiser: Any, scheduler: Any, vae: Any, text_encoder: Any, prediction_type: str, id2label: Any
) -> None:
    """Refuse parts that were not made for each other.

    Args:
        denoiser: Of the pipeline, as all that follow.
        scheduler: See `check_scheduler`.
        vae: Its latents must have the denoiser's channels.
        text_encoder: Its states must have the width that the denoiser reads.
        prediction_type: What the denoiser predicts.
        id2label: Names of its classes, numbered from 0.

    Raises:
        ValueError: Names the two parts that disagree.
    """
    check_scheduler(scheduler, prediction_type, vae is not None)
    class_count(denoiser, id2label)
    if sorted(map(str, id2label or {})) != sorted(map(str, range(len(id2label or {})))):
        raise ValueError(
            f"`id2label` must number the classes 0 to {len(id2label) - 1}, got {sorted(map(str, id2label))}."
        )
    name, config = type(denoiser).__name__, denoiser.config
    if prediction_type == "mean_flow" and not config.get("second_time"):
        raise ValueError(
            f"`prediction_type`='mean_flow' needs a denoiser that is asked for two times, {name} is not; "
            "build an MMDiTModel with `second_time=True`."
        )
    if vae is not None and latent_channels_of(vae) != config["in_channels"]:
        raise ValueError(
            f"{name} reads {config['in_channels']} channels (`in_channels`), the latents of "
            f"{type(vae).__name__} have {latent_channels_of(vae)}; take the `vae` it was trained with."
        )
    if text_encoder is None:
        return
    if not takes_texts(denoiser):
        raise ValueError(f"{name} reads no texts, its config says; leave `text_encoder` out.")
    width = config["text_dim"] if "text_dim" in config else config["cross_attention_dim"]
    states = text_encoder.config.to_dict().get("hidden_size", width)
    if isinstance(width, int) and config.get("encoder_hid_dim") is None and states != width:
        raise ValueError(
            f"{name} reads text states of width {width}, those of {type(text_encoder).__name__} have "
            f"{states}; take the `text_encoder` it was trained with."
        )
