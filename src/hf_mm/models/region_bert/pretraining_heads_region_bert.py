"""What a vision-language BERT guesses of hidden regions while it is pre-trained.

Feature, class and distribution: Chen et al. 2020, "UNITER", section 3.2 (https://arxiv.org/abs/1909.11740).
Object, attribute and feature by one head: Tan and Bansal 2019, "LXMERT", section 3.1
(https://arxiv.org/abs/1908.07490).

Shapes: B rows, R places for regions, K hidden regions, E width of region tokens, F width of features, C
classes.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...objectives.masked_regions import (
    masked_feature_smooth_l1,
    masked_region_classification,
    masked_region_kl,
    masked_region_regression,
)
from .configuration_region_bert import MMRegionBertConfig
from .parts_region_bert import RegionBertTransform

__all__ = ["REGION_TASKS", "HiddenRegions", "RegionBertDetectorHead", "region_losses"]

# task on hidden regions: the column that tells what is to be guessed
REGION_TASKS = {
    "mrfr": "region_features",
    "smooth": "region_features",
    "mrc": "region_class_labels",
    "mrc_kl": "region_class_scores",
    "object": "object_labels",
    "attribute": "attribute_labels",
}


class RegionBertDetectorHead(nn.Module):
    """What LXMERT guesses of a region by one transform: its object, its attribute, its feature."""

    def __init__(self, config: MMRegionBertConfig) -> None:
        super().__init__()
        choices = {
            "object": config.num_object_classes,
            "attribute": config.num_attribute_classes,
            "smooth": config.region_feature_size,
        }
        width = config.region_hidden_size
        self.transform = RegionBertTransform(config, width)
        self.decoders = nn.ModuleDict(
            {task: nn.Linear(width, count) for task, count in choices.items() if task in config.task_weights}
        )

    def forward(self, states: Tensor, tasks: Collection[str]) -> dict[str, Tensor]:
        """(K, E) states to (K, C) logits or (K, F) features of each of the tasks."""
        states = self.transform(states)
        return {task: self.decoders[task](states) for task in tasks}


@dataclass(frozen=True)
class HiddenRegions:
    """The states of hidden regions, and what is to be guessed there.

    Attributes:
        states: (K, E).
        counted: (K,) bool, false on regions that are not hidden; `None` when all are.
        targets: By column, (K, ...).
    """

    states: Tensor
    counted: Tensor | None
    targets: Mapping[str, Tensor]

    @classmethod
    def of(cls, states: Tensor, hidden: Tensor, columns: Mapping[str, Tensor]) -> "HiddenRegions":
        """Of (B, R, E) states those that are (B, R) hidden; all of them in a graph that may not look.

        Args:
            states: (B, R, E).
            hidden: (B, R) bool.
            columns: By name, (B, R, ...).

        Raises:
            ValueError: A column is not one for each region.
        """
        for name, values in columns.items():
            if values.shape[:2] != hidden.shape:
                raise ValueError(
                    f"`{name}` must begin with {tuple(hidden.shape)}, one for each region, got "
                    f"{tuple(values.shape)}."
                )
        flat = {name: values.flatten(0, 1) for name, values in columns.items()}
        if torch.compiler.is_compiling():
            return cls(states.flatten(0, 1), hidden.flatten(), flat)
        places = hidden.flatten().nonzero().squeeze(1)  # (K,)
        return cls(
            states.flatten(0, 1)[places], None, {name: values[places] for name, values in flat.items()}
        )

    def labels(self, column: str) -> Tensor:
        """(K,) labels of a column, -100 on regions that are not hidden."""
        labels = self.targets[column]
        return labels if self.counted is None else labels.masked_fill(~self.counted, -100)


def region_losses(
    hidden: HiddenRegions, guessed: Mapping[str, Tensor], items: Mapping[str, Tensor | int]
) -> dict[str, Tensor]:
    """The loss of each task on hidden regions.

    Args:
        hidden: What is to be guessed.
        guessed: By task, (K, C) logits or (K, F) features.
        items: By task, its items in the whole batch of which this is a part.
    """
    losses = {}
    for task, values in guessed.items():
        column, count = REGION_TASKS[task], items.get(task)
        if task in COMPARED:
            losses[task] = COMPARED[task](values, hidden.targets[column], count, hidden.counted)
        else:
            losses[task] = masked_region_classification(values, hidden.labels(column), count)
    return losses


# Tasks whose targets are numbers; those of the others are classes.
COMPARED = {
    "mrfr": masked_region_regression,
    "smooth": masked_feature_smooth_l1,
    "mrc_kl": masked_region_kl,
}
