"""The small heads that vision-language BERTs on regions share.

Shapes: D width of a state, K states.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.activations import ACT2FN

from ...layers.onednn_linear import OneDNNLinear
from .configuration_region_bert import MMRegionBertConfig

__all__ = [
    "RegionBertFeatureHead",
    "RegionBertPredictionHead",
    "RegionBertTransform",
    "region_bert_classifier",
    "region_bert_mlp",
]


class RegionBertTransform(nn.Module):
    """Dense layer, activation, norm: what BERT does to a state before it guesses.

    Args:
        config: Activation and eps.
        width: Of a state.
        has_norm: VL-BERT has none before it guesses a region's class.
    """

    def __init__(self, config: MMRegionBertConfig, width: int, has_norm: bool = True) -> None:
        super().__init__()
        self.dense = OneDNNLinear(width, width)
        self.act = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if has_norm else nn.Identity()

    def forward(self, states: Tensor) -> Tensor:
        return self.norm(self.act(self.dense(states)))


class RegionBertPredictionHead(nn.Module):
    """A choice for each state, as BERT makes it.

    Args:
        config: Activation and eps.
        width: Of a state.
        choices: How many things there are to choose from: words, or classes of regions.
        has_norm: Normalise before the choice.
    """

    def __init__(self, config: MMRegionBertConfig, width: int, choices: int, has_norm: bool = True) -> None:
        super().__init__()
        self.transform = RegionBertTransform(config, width, has_norm)
        self.decoder = nn.Linear(width, choices)

    def forward(self, states: Tensor) -> Tensor:
        """(..., D) states to (..., choices)."""
        return self.decoder(self.transform(states))


class RegionBertFeatureHead(nn.Module):
    """The feature of a region, by the weights that project features, transposed (UNITER)."""

    def __init__(self, config: MMRegionBertConfig) -> None:
        super().__init__()
        self.transform = RegionBertTransform(config, config.region_hidden_size)
        self.bias = nn.Parameter(torch.zeros(config.region_feature_size))

    def forward(self, states: Tensor, projection: Tensor) -> Tensor:
        """(K, D) states to (K, F) features.

        Args:
            states: (K, D).
            projection: (D, F or more), the weights that project features, and locations behind them where
                both are projected together.
        """
        return linear(self.transform(states), projection[:, : len(self.bias)].t(), self.bias)


def region_bert_classifier(
    config: MMRegionBertConfig, width: int, hidden: int, classes: int
) -> nn.Sequential:
    """The classifier of `config.classifier`.

    Args:
        config: Kind and eps.
        width: Of the vector that it gets.
        hidden: Width between the two layers of "mlp".
        classes: How many there are.
    """
    dropout, last = nn.Dropout(config.hidden_dropout), nn.Linear(width, classes)
    if config.classifier == "linear":
        return nn.Sequential(dropout, last)
    if config.classifier == "transform":
        return nn.Sequential(RegionBertTransform(config, width), dropout, last)
    return region_bert_mlp(config, width, hidden, classes)


def region_bert_mlp(config: MMRegionBertConfig, width: int, hidden: int, classes: int) -> nn.Sequential:
    """Dense layer, gelu, norm, dense layer: what LXMERT, ViLBERT and UNITER answer with."""
    norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
    return nn.Sequential(OneDNNLinear(width, hidden), nn.GELU(), norm, nn.Linear(hidden, classes))
