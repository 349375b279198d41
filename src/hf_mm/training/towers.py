"""The parts of a vision-language model by name: which are trained, and at which learning rate.

A tower is a name of `TOWERS`; it holds the weights whose names begin with one of its prefixes, also behind
the wrappers of PEFT and of distributed training.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import Trainer, TrainingArguments
from transformers.trainer_pt_utils import get_parameter_names

from ..models.vlm.modeling_vlm import MMVLMForConditionalGeneration

__all__ = ["TOWERS", "build_optimizer", "parameter_groups", "tower_of", "train_only"]

TOWERS = {
    "vision": ("vision_tower.",),
    "connector": ("connector.", "padding_embedding"),
    "language": ("language_model.",),
}
_NORMS = (nn.LayerNorm, nn.GroupNorm)


def tower_of(name: str) -> str:
    """The tower that a weight belongs to, by its full name.

    Raises:
        ValueError: The weight belongs to none.
    """
    for prefix in ("module.", "base_model.model."):
        name = name.removeprefix(prefix)
    for tower, prefixes in TOWERS.items():
        if name.startswith(prefixes):
            return tower
    raise ValueError(f"{name!r} belongs to no tower; there are {', '.join(TOWERS)}.")


def train_only(model: MMVLMForConditionalGeneration, towers: Iterable[str]) -> None:
    """Freeze every tower but these; weights that feed nothing (behind the last block used) stay frozen.

    Args:
        model: A vision-language model, not yet wrapped.
        towers: Names of `TOWERS`.
    """
    wanted = _known(towers)
    idle = {id(weight) for weight in model.vision_tower.idle_parameters()}
    for name, weight in model.named_parameters():
        weight.requires_grad_(tower_of(name) in wanted and id(weight) not in idle)


def parameter_groups(
    model: nn.Module, rate: float, rates: Mapping[str, float] | None = None, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Trainable weights by tower, those to decay apart from biases and norms.

    Args:
        model: A vision-language model, wrapped or not.
        rate: Learning rate of the towers that `rates` leaves out.
        rates: Learning rate by tower.
        weight_decay: Of matrices; biases and norms get none.

    Returns:
        Groups for an optimizer; each has a `name` such as "vision", "vision (no decay)".

    Raises:
        ValueError: `rates` names an unknown tower, or one that has nothing to train.
    """
    rates = dict(rates or {})
    _known(rates)
    decayed = set(get_parameter_names(model, [*_NORMS], ["bias", "norm", "padding_embedding", "cls_token"]))
    groups: dict[str, dict[str, Any]] = {}
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        tower, decay = tower_of(name), name in decayed
        key = tower if decay else f"{tower} (no decay)"
        settings = {
            "params": [],
            "lr": rates.get(tower, rate),
            "weight_decay": weight_decay if decay else 0.0,
            "name": key,
        }
        groups.setdefault(key, settings)["params"].append(weight)
    missing = sorted(set(rates) - {tower_of_group(key) for key in groups})
    if missing:
        raise ValueError(
            f"A learning rate is given for {', '.join(missing)}, which has nothing to train; "
            "leave the rate out or unfreeze the tower."
        )
    return list(groups.values())


def tower_of_group(name: str) -> str:
    """The tower in the `name` of a group of `parameter_groups`."""
    return name.removesuffix(" (no decay)")


def build_optimizer(
    model: nn.Module, args: TrainingArguments, rates: Mapping[str, float] | None = None
) -> Optimizer:
    """The optimizer that `args` asks for, over `parameter_groups`, for `Trainer(optimizers=(it, None))`."""
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args)
    groups = parameter_groups(model, args.learning_rate, rates, args.weight_decay)
    return kind(groups, **settings)


def _known(towers: Iterable[str]) -> set[str]:
    unknown = sorted(set(towers) - set(TOWERS))
    if unknown:
        raise ValueError(f"No tower {', '.join(map(repr, unknown))}; there are {', '.join(TOWERS)}.")
    return set(towers)
