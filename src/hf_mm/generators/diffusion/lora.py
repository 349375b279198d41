"""LoRA on a denoiser, and on the text encoder that it reads, for training.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (https://arxiv.org/abs/2106.09685), by
PEFT. What is trained is saved by `ImageDiffusionPipeline.save_lora_weights`, see `lora_loading.py`.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from torch import nn

__all__ = ["add_diffusion_lora"]

# The linear layers of attention, by the ends of their names.
DENOISER_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "o_proj")


def add_diffusion_lora(
    denoiser: Any,
    text_encoder: Any = None,
    rank: int = 4,
    alpha: int | None = None,
    dropout: float = 0.0,
    targets: Sequence[str] = (),
    adapter_name: str = "default",
) -> int:
    """Freeze a denoiser and put adapters on the linear layers of its attention.

        add_diffusion_lora(pipe.denoiser, rank=8)
        objective = DiffusionObjective(pipe.denoiser, ...)  # trains the adapters only

    Args:
        denoiser: Of a pipeline: `UNet2DConditionModel`, `MMDiTModel`, or another with diffusers' adapters.
        text_encoder: Adapted too where it is given; train it along.
        rank: Of the adapters, at least 1.
        alpha: Adapters are scaled by `alpha / rank`; by default the rank.
        dropout: Probability of dropping an input of an adapter.
        targets: Ends of the names of the denoiser's layers to adapt; by default those of attention.
        adapter_name: For `save_lora_weights`.

    Returns:
        How many weights learn.

    Raises:
        ImportError: PEFT is not installed.
        TypeError: The denoiser takes no adapters.
        ValueError: A rank below 1, or no layer of such a name.
    """
    if rank < 1:
        raise ValueError(f"`rank`={rank} must be at least 1; leave LoRA out to train every weight.")
    if not hasattr(denoiser, "add_adapter"):
        raise TypeError(
            f"{type(denoiser).__name__} takes no adapters; take UNet2DConditionModel or MMDiTModel."
        )
    try:
        lora_config = import_module("peft").LoraConfig
    except ImportError as error:
        raise ImportError("LoRA needs peft: pip install 'hf-mm[train]'.") from error
    adapted = [(denoiser, tuple(targets) or DENOISER_LAYERS)]
    if text_encoder is not None:
        adapted.append((text_encoder, TEXT_LAYERS))
    layers = [_layers_to_adapt(model, ends) for model, ends in adapted]  # refuses before anything is changed
    settings: dict[str, Any] = {
        "r": rank,
        "lora_alpha": rank if alpha is None else alpha,
        "lora_dropout": dropout,
    }
    for (model, _), names in zip(adapted, layers, strict=True):
        model.requires_grad_(False)
        config = lora_config(target_modules=names, init_lora_weights="gaussian", **settings)
        model.add_adapter(config, adapter_name=adapter_name)
        source = model.config.get("_name_or_path") if isinstance(model.config, dict) else model.name_or_path
        model.peft_config[adapter_name].base_model_name_or_path = source or None
    learning = [weight for model, _ in adapted for weight in model.parameters() if weight.requires_grad]
    return sum(weight.numel() for weight in learning)


def _layers_to_adapt(model: nn.Module, ends: Sequence[str]) -> list[str]:
    """The full names of the linear layers whose names end so."""
    linear = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    found = [name for name in linear if any(f".{name}".endswith(f".{end}") for end in ends)]
    if not found:
        there = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise ValueError(
            f"No layer of {type(model).__name__} matches `targets`={list(ends)}; its linear layers end in "
            f"{', '.join(there)}."
        )
    return found
