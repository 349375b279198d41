"""What a call asks for, as conditions of the denoiser: classes, prompts, and their opposites.

Shapes: B pictures.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...layers.class_ids import class_ids
from .denoising_call import class_count, null_class, reads_padding, takes_classes, takes_texts
from .guidance import DenoisingCondition, Guidance
from .text_states import prompt_states

__all__ = ["asked_guidance"]

GUIDANCE = 3.0  # where something is asked for and nothing said

Prompts = str | Sequence[str] | None


def asked_guidance(
    pipe: Any,
    prompt: Prompts,
    negative_prompt: Prompts,
    class_labels: Any,
    num_images_per_prompt: int,
    guidance_scale: float | None,
    guidance_interval: tuple[float, float],
) -> tuple[Guidance, int]:
    """The conditions of a call, and B.

    Args:
        pipe: An `ImageDiffusionPipeline`.
        prompt: Texts; "" by default, where the denoiser reads any.
        negative_prompt: Texts instead of the empty one.
        class_labels: Numbers or names; the null class by default.
        num_images_per_prompt: Pictures of each.
        guidance_scale: See the call.
        guidance_interval: See the call.

    Raises:
        TypeError: A class is neither a whole number nor a name.
        ValueError: What is asked for is nothing that the parts know, or contradicts itself.
    """
    prompts = _texts(pipe, prompt, "prompt")
    labels = _labels(pipe, class_labels)
    count = max(len(prompts or ()), 0 if labels is None else len(labels), 1)
    if prompts is not None and labels is not None and {len(prompts), len(labels)} - {1, count}:
        raise ValueError(
            f"`prompt` has {len(prompts)} entries and `class_labels` {len(labels)}; give as many of both, or "
            "one for all."
        )
    if num_images_per_prompt < 1:
        raise ValueError(f"`num_images_per_prompt`={num_images_per_prompt} must be at least 1.")
    asked = prompts is not None or labels is not None
    negative = _texts(pipe, negative_prompt, "negative_prompt")
    scale = _scale(pipe, guidance_scale, asked or negative is not None)
    _check_guidance(scale, guidance_interval, negative, count)
    states = _states(pipe, prompts or [""], negative or [""], scale != 1.0)
    none = null_class(pipe.denoiser, pipe.classes)
    if takes_classes(pipe.denoiser) and labels is None:
        if none is None:
            raise ValueError(
                f"{type(pipe.denoiser).__name__} was trained on {len(pipe.classes)} classes and never "
                "without one; pass `class_labels`."
            )
        labels = torch.tensor([none])
    sides = []
    for side, (text, mask) in enumerate(states):
        numbers = labels if not side or none is None or labels is None else torch.full_like(labels, none)
        parts = (None if numbers is None else numbers.to(pipe._execution_device), text, mask)
        sides.append(DenoisingCondition(*(_repeated(part, count, num_images_per_prompt) for part in parts)))
    unwanted = sides[1] if len(sides) > 1 else None
    return Guidance(sides[0], unwanted, scale, guidance_interval), count * num_images_per_prompt


def _repeated(part: Tensor | None, count: int, each: int) -> Tensor | None:
    if part is None:
        return None
    return part.expand(count, *part.shape[1:]).repeat_interleave(each, 0)


def _texts(pipe: Any, prompt: Prompts, name: str) -> list[str] | None:
    if prompt is None:
        return None
    if not takes_texts(pipe.denoiser):
        raise ValueError(
            f"{type(pipe.denoiser).__name__} reads no texts, its config says; leave `{name}` out."
        )
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError(f"No picture is asked for: `{name}` is an empty list.")
    return prompts


def _labels(pipe: Any, class_labels: Any) -> Tensor | None:
    if class_labels is None:
        return None
    count = class_count(pipe.denoiser, pipe.classes)
    if count is None:
        raise ValueError(
            f"{type(pipe.denoiser).__name__} knows no classes, its config says; leave `class_labels` out."
        )
    return class_ids(class_labels, count, pipe.classes)


def _scale(pipe: Any, guidance_scale: float | None, asked: bool) -> float:
    """The scale of a call; 1 where there is nothing to guide by."""
    knows_null = takes_texts(pipe.denoiser) or null_class(pipe.denoiser, pipe.classes) is not None
    if guidance_scale is None:
        return GUIDANCE if asked and knows_null and pipe.prediction_type != "mean_flow" else 1.0
    if guidance_scale < 0:
        raise ValueError(f"`guidance_scale`={guidance_scale} must be 0 or more; 1 is without guidance.")
    if guidance_scale != 1.0 and not asked:
        raise ValueError(
            f"`guidance_scale`={guidance_scale} has nothing to guide to; pass `class_labels` or `prompt`, as "
            "the denoiser takes them, or leave it out."
        )
    if guidance_scale != 1.0 and not knows_null:
        raise ValueError(
            f"`guidance_scale`={guidance_scale} needs the null class, but all {len(pipe.classes)} classes "
            f"that {type(pipe.denoiser).__name__} embeds have names (`id2label`); pass `guidance_scale=1`, "
            "or train one class more, with condition dropout."
        )
    return float(guidance_scale)


def _check_guidance(
    scale: float, interval: tuple[float, float], negative: list[str] | None, count: int
) -> None:
    if not 0 <= interval[0] <= interval[1] <= 1:
        raise ValueError(
            f"`guidance_interval`={tuple(interval)} must be two times from 0, a picture, to 1, noise, the "
            "lower one first."
        )
    if negative is not None and scale == 1.0:
        raise ValueError(
            "`negative_prompt` has no effect with `guidance_scale`=1; raise that, or leave it out."
        )
    if negative is not None and len(negative) not in (1, count):
        raise ValueError(
            f"`negative_prompt` has {len(negative)} entries for {count} prompts; give one for all or one for "
            "each."
        )


def _states(
    pipe: Any, prompts: list[str], negative: list[str], both: bool
) -> list[tuple[Tensor | None, Tensor | None]]:
    """States and mask of what is wanted and, for `both`, of what is not."""
    if not takes_texts(pipe.denoiser):
        return [(None, None)] * (1 + both)
    missing = [name for name in ("text_encoder", "tokenizer") if getattr(pipe, name) is None]
    if missing:
        raise ValueError(
            f"This pipeline has no `{missing[0]}` to read `prompt` by; build it with the one that the "
            "denoiser was trained with."
        )
    texts = prompts + negative if both else prompts
    states, mask = prompt_states(
        pipe.tokenizer,
        pipe.text_encoder,
        texts,
        reads_padding(pipe.denoiser),
        pipe._execution_device,
        pipe.reported_prompts,
    )
    states = states.to(pipe.denoiser.dtype)
    sizes = [len(prompts), len(negative)] if both else [len(prompts)]
    masks = [None] * len(sizes) if mask is None else mask.split(sizes)
    return list(zip(states.split(sizes), masks, strict=True))
