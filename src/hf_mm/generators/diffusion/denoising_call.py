"""One call for every denoiser: `UNet2DModel`, `UNet2DConditionModel` and `MMDiTModel` are asked differently.

What a denoiser takes is read from its config, not from its class: loaded from the Hub, a class of this
package is another object than the one imported here.

Classes: a denoiser that was trained to draw without a condition too (Ho and Salimans 2022, "Classifier-Free
Diffusion Guidance", https://arxiv.org/abs/2207.12598) has one embedding more than classes; the null class is
the last one, and its number is that of the classes. Texts: the null condition is the empty text.

Shapes: B pictures, C channels, Y x X places, L tokens, D width of a text encoder.
"""

from collections.abc import Sized
from typing import Any

from torch import Tensor

__all__ = [
    "class_count",
    "denoise",
    "encode_text",
    "null_class",
    "reads_padding",
    "takes_classes",
    "takes_texts",
]


def takes_classes(denoiser: Any) -> bool:
    """Whether a denoiser is asked by `class_labels`."""
    return _class_embeddings(denoiser) is not None


def takes_texts(denoiser: Any) -> bool:
    """Whether a denoiser is asked by texts."""
    config = denoiser.config
    return config.get("cross_attention_dim") is not None or config.get("text_dim") is not None


def reads_padding(denoiser: Any) -> bool:
    """Whether texts go in with their padding, without a mask, in denoiser and text encoder.

    So Stable Diffusion has it, and with it whatever is to be loaded as one: `UNet2DConditionModel`. Its texts
    must have the same length in training and in drawing: that of the tokenizer.
    """
    return takes_texts(denoiser) and "text_dim" not in denoiser.config


def class_count(denoiser: Any, id2label: Sized | None = None) -> int | None:
    """How many classes a denoiser draws, the null class not counted; `None` without classes.

    Args:
        denoiser: Any of the three.
        id2label: The names of the classes, which say whether the last embedding of a UNet is the null class.
            Without names it is.

    Raises:
        ValueError: There are more or fewer names than classes.
    """
    embeddings = _class_embeddings(denoiser)
    if embeddings is None or not id2label:
        if id2label:
            raise ValueError(
                f"`id2label` has {len(id2label)} names, but {type(denoiser).__name__} draws no classes; "
                "build it with `num_class_embeds` or `num_classes`, or leave the names out."
            )
        return None if embeddings is None else embeddings - 1
    allowed = (embeddings - 1,) if "num_classes" in denoiser.config else (embeddings - 1, embeddings)
    if len(id2label) not in allowed:
        raise ValueError(
            f"`id2label` has {len(id2label)} names, but {type(denoiser).__name__} embeds {embeddings} "
            f"classes, the null class included; give {' or '.join(map(str, allowed))} names."
        )
    return len(id2label)


def null_class(denoiser: Any, id2label: Sized | None = None) -> int | None:
    """The number of the null class, that of the classes; `None` where the denoiser has none.

    Args:
        denoiser: Any of the three.
        id2label: See `class_count`.
    """
    count, embeddings = class_count(denoiser, id2label), _class_embeddings(denoiser)
    return None if count is None or count == embeddings else count


def denoise(
    denoiser: Any,
    noisy: Tensor,
    timestep: Tensor | float,
    class_labels: Tensor | None = None,
    text_states: Tensor | None = None,
    text_mask: Tensor | None = None,
    second_timestep: Tensor | float | None = None,
) -> Tensor:
    """What a denoiser says of noisy pictures; the half of a learned variance is dropped.

    Args:
        denoiser: `UNet2DModel`, `UNet2DConditionModel` or `MMDiTModel`.
        noisy: (B, C, Y, X).
        timestep: () or (B,), as its scheduler counts: 0 to 999, whole for a noise schedule.
        class_labels: (B,), the null class included, for denoisers with classes.
        text_states: (B, L, D), for denoisers with texts.
        text_mask: (B, L), 0 on padding; not for those that read padding, see `reads_padding`.
        second_timestep: () or (B,), for an `MMDiTModel` with `second_time`; by default `timestep`.

    Returns:
        (B, C', Y, X), where C' are the channels that are denoised.

    Raises:
        ValueError: A condition is missing, or the denoiser takes none of that kind.
    """
    conditions = _checked_conditions(denoiser, class_labels, text_states, text_mask, second_timestep)
    output = denoiser(noisy, timestep, **conditions, return_dict=False)[0]
    if output.shape[1] == 2 * noisy.shape[1]:
        output = output[:, : noisy.shape[1]]
    return output


def encode_text(text_encoder: Any, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """The states (B, L, D) of the last layer of a text encoder, which is what denoisers read.

    Args:
        text_encoder: Any of transformers' with a `last_hidden_state`.
        input_ids: (B, L) tokens.
        attention_mask: (B, L), 0 on padding; `None` where the denoiser reads padding, see `reads_padding`.
    """
    return text_encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def _class_embeddings(denoiser: Any) -> int | None:
    """How many classes are embedded, the null class included."""
    config = denoiser.config
    if "num_classes" in config:
        return None if config["num_classes"] is None else config["num_classes"] + 1
    return config.get("num_class_embeds")


def _checked_conditions(
    denoiser: Any,
    class_labels: Tensor | None,
    text_states: Tensor | None,
    text_mask: Tensor | None,
    second_timestep: Tensor | float | None,
) -> dict[str, Any]:
    """The conditions that there are, under the names that the denoiser knows."""
    asked = {
        "class_labels": (takes_classes(denoiser), class_labels),
        "text_states": (takes_texts(denoiser), text_states),
    }
    if second_timestep is not None:
        asked["second_timestep"] = (denoiser.config.get("second_time", False), second_timestep)
    for name, (wants, given) in asked.items():
        if wants != (given is not None):
            raise ValueError(
                f"{type(denoiser).__name__} is asked by `{name}`, which are missing; pass them."
                if wants
                else f"{type(denoiser).__name__} takes no `{name}`, its config says; leave them out."
            )
    names = {"class_labels": class_labels, "encoder_hidden_states": text_states}
    names["second_timestep"] = second_timestep
    if text_mask is not None and not reads_padding(denoiser):
        names["encoder_attention_mask"] = text_mask
    return {name: value for name, value in names.items() if value is not None}
