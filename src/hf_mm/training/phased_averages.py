"""Moving averages of some submodules of a phased objective, and the objective as one sees it from outside."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .averaging import averaged_copy, swap_averages

__all__ = ["ModuleAverages", "in_evaluation"]


class ModuleAverages:
    """Exponential averages of submodules, weights and buffers, see `averaged_copy`.

    Args:
        model: Holds the submodules.
        names: Of the submodules, none inside another.
        decay: Share of the old average kept at each step; `None` keeps no averages.

    Raises:
        ValueError: An unknown name, one inside another, or `decay` outside 0..1.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], decay: float | None) -> None:
        self._model = model
        self._averages = {}
        for name in names if decay is not None else ():
            inside = [other for other in names if other != name and name.startswith(f"{other}.")]
            if inside or list(names).count(name) > 1:
                raise ValueError(
                    f"`averaged`={tuple(names)}: {name!r} is averaged twice; name each submodule once."
                )
            self._averages[name] = averaged_copy(self._module(name), float(decay or 0))

    def _module(self, name: str) -> nn.Module:
        try:
            return self._model.get_submodule(name)
        except AttributeError as error:
            raise ValueError(
                f"`averaged` names {name!r}, which is no submodule of {type(self._model).__name__}; there "
                f"are {[child for child, _ in self._model.named_children()]}."
            ) from error

    def update(self) -> None:
        """Take the present weights and buffers into the averages."""
        for name, average in self._averages.items():
            average.update_parameters(self._model.get_submodule(name))

    @contextmanager
    def applied(self) -> Generator[None]:
        """Averages in the places of what they average while the block runs."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, average in self._averages.items():
            if average.n_averaged > 0:
                swap_averages(self._model.get_submodule(name), average)

    def state_dict(self) -> dict[str, Any]:
        """The averages by name."""
        return {name: average.state_dict() for name, average in self._averages.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with these averages.

        Raises:
            ValueError: They are of other submodules.
        """
        if set(state) != set(self._averages):
            raise ValueError(
                f"The checkpoint has averages of {sorted(state)}, this run keeps those of "
                f"{sorted(self._averages)}; give the `ema_decay` and `averaged` of the run that wrote it."
            )
        for name, average in self._averages.items():
            average.load_state_dict(state[name])


@contextmanager
def in_evaluation(model: nn.Module) -> Generator[None]:
    """Evaluation mode, no gradients, and whatever is drawn leaves torch's own generators as they were."""
    training = [module for module in model.modules() if module.training]
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True
