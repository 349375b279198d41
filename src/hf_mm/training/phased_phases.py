"""The phases of a step, each with its parameters, its optimizer and its learning rate.

Gradients of several processes are averaged here, after the last small batch of a phase, and not by
DistributedDataParallel: its hooks do not see the derivatives that a gradient penalty takes inside the loss,
and it wants every weight to take part in every phase.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import Trainer, TrainingArguments, get_scheduler

from ..objectives.phased import PhasedObjective

__all__ = [
    "Phase",
    "average_gradients",
    "build_phases",
    "phases_state",
    "restore_phases",
    "share_weights",
]

BUCKET = 2**24
"""Numbers that processes exchange in one go."""


@dataclass
class Phase:
    """What a phase trains and how.

    Args:
        name: As the objective calls it.
        parameters: Of this phase alone.
        optimizer: Over them.
        scheduler: Of its learning rate; goes on only with the phase.
    """

    name: str
    parameters: list[nn.Parameter]
    optimizer: Optimizer
    scheduler: LRScheduler

    def require_grad(self, wanted: bool) -> None:
        """Whether its parameters learn."""
        for parameter in self.parameters:
            parameter.requires_grad_(wanted)

    def clear(self) -> None:
        """Drop its gradients."""
        for parameter in self.parameters:
            parameter.grad = None


def build_phases(
    objective: PhasedObjective,
    args: TrainingArguments,
    max_steps: int,
    learning_rates: Mapping[str, float] | None = None,
) -> list[Phase]:
    """The phases of an objective, with the optimizer and schedule that `args` asks for.

    A phase's schedule is as long as the steps that it takes part in, warm-up included: one that starts late
    warms up then. Weight decay acts on matrices and kernels, not on biases, norms and other vectors.

    Args:
        objective: Names phases and parameters.
        args: Of the run.
        max_steps: Of the run.
        learning_rates: By phase, where it is not `args.learning_rate`.

    Raises:
        ValueError: There are no phases, two of one name, or one without parameters or steps; a parameter of
            two phases, or of no model of the objective; a learning rate of an unknown phase.
    """
    rates = dict(learning_rates or {})
    parameters = _parameters(objective)
    unknown = sorted(set(rates) - set(parameters))
    if unknown:
        raise ValueError(f"`learning_rates` names {unknown}; the phases are {list(parameters)}.")
    steps = dict.fromkeys(parameters, 0)
    for step in range(max_steps):
        for name in objective.active_phases(step):
            steps[name] += 1
    settings: Any = args.lr_scheduler_kwargs
    phases = []
    for name, found in parameters.items():
        optimizer = _optimizer(found, args, rates.get(name, args.learning_rate))
        length = max(1, steps[name])
        scheduler = get_scheduler(
            args.lr_scheduler_type,
            optimizer,
            num_warmup_steps=args.get_warmup_steps(length),
            num_training_steps=length,
            scheduler_specific_kwargs=settings,
        )
        phases.append(Phase(name, found, optimizer, scheduler))
    return phases


def phases_state(phases: Mapping[str, Phase], scaler: "torch.amp.GradScaler | None") -> dict[str, Any]:
    """Optimizers, schedules and the scaler of half precision, for a checkpoint."""
    found: dict[str, Any] = {
        name: {"optimizer": phase.optimizer.state_dict(), "scheduler": phase.scheduler.state_dict()}
        for name, phase in phases.items()
    }
    return {"phases": found, "scaler": None if scaler is None else scaler.state_dict()}


def restore_phases(
    phases: Mapping[str, Phase], scaler: "torch.amp.GradScaler | None", state: Mapping[str, Any]
) -> None:
    """Go on with what `phases_state` found.

    Raises:
        ValueError: It is of other phases.
    """
    if set(state["phases"]) != set(phases):
        raise ValueError(
            f"The checkpoint has the phases {sorted(state['phases'])}, this run {sorted(phases)}; go on with "
            "the objective that wrote it."
        )
    for name, phase in phases.items():
        phase.optimizer.load_state_dict(state["phases"][name]["optimizer"])
        phase.scheduler.load_state_dict(state["phases"][name]["scheduler"])
    if scaler is not None and state["scaler"] is not None:
        scaler.load_state_dict(state["scaler"])


def _parameters(objective: PhasedObjective) -> dict[str, list[nn.Parameter]]:
    """The parameters of each phase, checked."""
    kind = type(objective).__name__
    if not objective.phases or len(set(objective.phases)) < len(objective.phases):
        raise ValueError(f"`phases` of {kind} must be different names, one at least; got {objective.phases}.")
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    owner: dict[int, str] = {}
    found = {phase: list(objective.phase_parameters(phase)) for phase in objective.phases}
    for phase, parameters in found.items():
        if not parameters:
            raise ValueError(f"Phase {phase!r} of {kind} has no parameters; give it some or leave it out.")
        for parameter in parameters:
            if id(parameter) not in names:
                raise ValueError(
                    f"Phase {phase!r} of {kind} has a parameter {tuple(parameter.shape)} that belongs to no "
                    "submodule of it; make its model an attribute of the objective."
                )
            if id(parameter) in owner:
                raise ValueError(
                    f"{names[id(parameter)]!r} of {kind} is given twice, by the phases "
                    f"{owner[id(parameter)]!r} and {phase!r}; a parameter belongs to one, once."
                )
            owner[id(parameter)] = phase
    return found


def _optimizer(parameters: Sequence[nn.Parameter], args: TrainingArguments, rate: float) -> Optimizer:
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args)
    groups = [
        {"params": [weight for weight in parameters if weight.ndim > 1], "weight_decay": args.weight_decay},
        {"params": [weight for weight in parameters if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    return kind([group for group in groups if group["params"]], **{**settings, "lr": rate})


def share_weights(objective: nn.Module) -> None:
    """Give all processes the weights and buffers of the first."""
    for tensor in (*objective.parameters(), *objective.buffers()):
        distributed.broadcast(tensor.detach(), 0)


def average_gradients(parameters: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
    """Replace gradients by their means over all processes, as if one had all the rows.

    A parameter that got a gradient in some processes only has 0 in the others; one that got none anywhere
    keeps none.

    Args:
        parameters: Of a phase.
        loss: Of this process, a scalar.

    Returns:
        The mean loss.
    """
    processes = distributed.get_world_size()
    there = loss.new_tensor([parameter.grad is not None for parameter in parameters])
    shared = torch.cat((loss.detach().view(1), there))
    distributed.all_reduce(shared)
    wanted = [weight for weight, some in zip(parameters, shared[1:].tolist(), strict=True) if some]
    for weight in wanted:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    for bucket in _buckets(wanted):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        distributed.all_reduce(flat)
        parts = flat.div_(processes).split([gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
    return shared[0] / processes


def _buckets(parameters: Sequence[nn.Parameter]) -> list[list[Tensor]]:
    """Gradients in lists of one type, none of which is much larger than it has to be."""
    found: list[list[Tensor]] = []
    room = 0
    for parameter in sorted(parameters, key=lambda weight: str(weight.dtype)):
        gradient = parameter.grad
        assert gradient is not None
        if not found or room < gradient.numel() or found[-1][0].dtype != gradient.dtype:
            found.append([])
            room = BUCKET
        found[-1].append(gradient)
        room -= gradient.numel()
    return found
