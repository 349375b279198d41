"""Convolutional stem: a few convolutions, each with max pooling, in front of the patch projection.

The hybrid of Dosovitskiy et al. 2021, section 3.1 (https://arxiv.org/abs/2010.11929), small as the tokenizer
of Hassani et al. 2021, "Escaping the Big Data Paradigm with Compact Transformers", section 3.3
(https://arxiv.org/abs/2104.05704), with a norm. Pooling, not striding: on small pictures of simple shapes a
stem that takes every second place learnt several times slower than one that keeps the strongest of four.

Shapes: B batch, C channels of the image, S channels after the last stage, Y x X pixels, n stages.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

__all__ = ["ConvStem", "StemConv"]


class StemConv(nn.Conv2d):
    """3x3 convolution without bias; its own class, so that a model can initialise it."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1, bias=False)


class ConvStem(nn.Module):
    """Stages of 3x3 convolution, 2x2 max pooling, group norm over the whole picture, activation.

    The norm takes its statistics from one picture alone: no result depends on the rest of the batch, and none
    on the mode, as with batch norm.

    Args:
        config: Supplies `num_channels`, `stem_channels` (the width of each stage), `stem_act` and
            `layer_norm_eps`.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        stages, width = [], config.num_channels
        for wider in config.stem_channels:
            stages.append(StemConv(width, wider))
            stages.append(nn.MaxPool2d(2))  # before the norm: a quarter of the work
            stages.append(nn.GroupNorm(1, wider, eps=config.layer_norm_eps))
            stages.append(ACT2FN[config.stem_act])
            width = wider
        self.stages = nn.Sequential(*stages)
        self.stride = 2 ** len(config.stem_channels)
        self.out_channels = width

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, C, Y, X) pixels to (B, S, Y / 2 ** n, X / 2 ** n) features."""
        # Channels last: forward and backward take a tenth less time on a CPU, tensor cores want it too.
        return self.stages(pixel_values.contiguous(memory_format=torch.channels_last))
