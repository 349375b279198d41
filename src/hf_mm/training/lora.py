"""LoRA adapters on chosen towers, saved together with what joins the towers.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (https://arxiv.org/abs/2106.09685).
"""

from collections.abc import Iterable

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from .towers import tower_of, towers_of

__all__ = ["add_lora", "lora_targets"]

_JOINING = ("connector", "classifier")


def add_lora(
    model: PreTrainedModel,
    rank: int,
    alpha: int | None = None,
    dropout: float = 0.0,
    towers: Iterable[str] = ("language",),
    train_connector: bool = True,
) -> PeftModel:
    """Freeze a model and put adapters on the linear layers of some of its towers.

    What joins towers to each other or to the answer is new when they are pretrained, so it is trained whole
    and saved with the adapters: a connector, the projections of the adapted towers, a classifier. A
    contrastive model's temperature stays as it is: PEFT saves no bare parameters.
    `PeftModel.from_pretrained` or an Auto class's `from_pretrained` reload the folder, `merge_and_unload`
    melts it in.

    Args:
        model: The model to adapt.
        rank: Rank of the adapters, at least 1.
        alpha: Adapters are scaled by `alpha / rank`; twice the rank when `None`.
        dropout: Probability of dropping an input of an adapter.
        towers: Which towers get adapters.
        train_connector: Train whole what joins the towers, instead of freezing a connector or a classifier
            and adapting the projections.

    Raises:
        ValueError: A rank below 1, or nothing to adapt in the towers.
    """
    if rank < 1:
        raise ValueError(f"`rank`={rank} must be at least 1; leave LoRA out to train every weight.")
    towers = list(towers)
    joints = _joints(model, towers) if train_connector else []
    targets = [name for name in lora_targets(model, towers) if name not in joints]
    if not targets:
        raise ValueError(
            f"No linear layer to adapt in `towers`={towers} but {', '.join(joints)}, trained whole; adapters "
            "go on linear layers only, so train a CNN whole (`train_only`)."
        )
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=targets,
        modules_to_save=joints or None,
        task_type="CAUSAL_LM" if model.can_generate() else None,
    )
    return get_peft_model(model, config)


def lora_targets(model: PreTrainedModel, towers: Iterable[str]) -> list[str]:
    """Full names of the linear layers of some towers, heads of the vocabulary left out.

    Raises:
        ValueError: A tower is unknown or has no linear layer.
    """
    head = model.get_output_embeddings()
    found: dict[str, list[str]] = {tower: [] for tower in towers_of(model)}
    for name, module in model.named_modules():
        # By class name: GPT-2's Conv1D is linear too, and PEFT knows it.
        if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D") and module is not head:
            found[tower_of(model, f"{name}.weight")].append(name)
    chosen = list(towers)
    empty = [tower for tower in chosen if not found.get(tower)]
    if empty or not chosen:
        there = "; ".join(f"{tower}: {len(names)}" for tower, names in found.items())
        raise ValueError(f"No linear layer to adapt in `towers`={chosen}; linear layers by tower: {there}.")
    return [name for tower in chosen for name in found[tower]]


def _joints(model: PreTrainedModel, towers: Iterable[str]) -> list[str]:
    """Modules to train whole: connector and classifier, and the linear layers that end the adapted towers."""
    chosen, joints = set(towers), []
    for name, module in model.named_children():
        if not list(module.parameters()):
            continue
        tower = tower_of(model, f"{name}.")
        if tower in _JOINING or (tower in chosen and isinstance(module, nn.Linear)):
            joints.append(name)
    return joints
