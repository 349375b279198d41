"""The parts that a GAN's generator and discriminator share: residual blocks without normalisation.

Huang et al. 2024, "The GAN is dead; long live the GAN! A Modern GAN Baseline", section 3: inverted
bottlenecks with grouped convolutions, biases only where an activation follows, bilinear resampling
(https://arxiv.org/abs/2501.05441). Zhang et al. 2019, "Fixup Initialization": in place of normalisation the
last layer of a branch begins with zeros and the others scaled down by the depth
(https://arxiv.org/abs/1901.09321).

Shapes: B pictures, C channels, E channels inside a block, Y x X pixels.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["GANBlock", "check_gan_sizes", "downsample", "gan_convolution", "scaled_normal", "upsample"]

NEGATIVE_SLOPE = 0.2  # of the leaky rectifier
ACTIVATION_GAIN = math.sqrt(2 / (1 + NEGATIVE_SLOPE**2))  # keeps the variance through it
LINEAR_LAYERS = 3  # in a branch


class GANBlock(nn.Module):
    """x + W3 f(W2 f(W1 x)): 1x1 to E channels, 3x3 in groups, 1x1 back; the identity at the start.

    Args:
        channels: C.
        expansion: E / C.
        group_size: Channels in a group of the 3x3 convolution, a divisor of E.
        depth: Blocks in the whole net, by which the first two layers are scaled down.
    """

    def __init__(self, channels: int, expansion: int, group_size: int, depth: int) -> None:
        super().__init__()
        inner = channels * expansion
        gain = ACTIVATION_GAIN * depth ** (-1 / (2 * LINEAR_LAYERS - 2))
        self.conv_in = gan_convolution(channels, inner, 1, gain=gain)
        self.activation_in = BiasedActivation(inner)
        self.conv_mid = gan_convolution(inner, inner, 3, groups=inner // group_size, gain=gain)
        self.activation_mid = BiasedActivation(inner)
        self.conv_out = gan_convolution(inner, channels, 1, gain=0.0)

    def forward(self, hidden_states: Tensor) -> Tensor:
        branch = self.activation_in(self.conv_in(hidden_states))  # (B, E, Y, X)
        branch = self.activation_mid(self.conv_mid(branch))  # (B, E, Y, X)
        return hidden_states + self.conv_out(branch)  # (B, C, Y, X)


class BiasedActivation(nn.Module):
    """A bias for each channel, then a leaky rectifier: the only place where a bias does something."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return F.leaky_relu(hidden_states + self.bias[:, None, None], NEGATIVE_SLOPE)


def gan_convolution(
    in_channels: int, out_channels: int, kernel_size: int, groups: int = 1, gain: float = 1.0
) -> nn.Conv2d:
    """A convolution that keeps the size, without bias.

    Args:
        in_channels: Of the input.
        out_channels: Of the output.
        kernel_size: Odd.
        groups: Channels of one group see only their like.
        gain: Deviation of the output at the start where the input has deviation 1.
    """
    layer = nn.Conv2d(
        in_channels, out_channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=False
    )
    scaled_normal(layer.weight, gain)
    return layer


@torch.no_grad()
def scaled_normal(weight: Tensor, gain: float = 1.0) -> None:
    """Fill (out, in, ...) weights at random so that the variance of the input is kept, times gain squared."""
    if gain:
        nn.init.normal_(weight, std=gain / math.sqrt(weight[0].numel()))
    else:
        nn.init.zeros_(weight)


def upsample(hidden_states: Tensor) -> Tensor:
    """Bilinear to twice the size."""
    return F.interpolate(hidden_states, scale_factor=2.0, mode="bilinear", align_corners=False)


def downsample(hidden_states: Tensor) -> Tensor:
    """Bilinear to half the size: the mean of each 2x2 pixels."""
    return F.avg_pool2d(hidden_states, 2)


def check_gan_sizes(
    sample_size: int,
    base_size: int,
    patch_size: int,
    block_out_channels: Sequence[int],
    layers_per_block: Sequence[int],
    expansion: int,
    group_size: int,
) -> None:
    """Refuse sizes that do not fit each other.

    Args:
        sample_size: Pixels a side of a picture.
        base_size: Pixels a side of the coarsest stage.
        patch_size: Pixels a side that the finest stage sees as one.
        block_out_channels: Of the stages, the coarsest first in a generator.
        layers_per_block: Blocks of each stage.
        expansion: Of the blocks.
        group_size: Of the blocks.

    Raises:
        ValueError: As said, with the numbers.
    """
    stages = len(block_out_channels)
    if not stages or stages != len(layers_per_block) or not sum(layers_per_block):
        raise ValueError(
            f"`block_out_channels`={tuple(block_out_channels)} and `layers_per_block`="
            f"{tuple(layers_per_block)} must name the same stages, with one block at least."
        )
    reached = base_size * 2 ** (stages - 1) * patch_size
    if reached != sample_size:
        raise ValueError(
            f"{stages} stages from `base_size`={base_size} px, each twice the one before, with `patch_size`="
            f"{patch_size} make {reached} px, not `sample_size`={sample_size}; add or leave out a stage in "
            "`block_out_channels`, or change `base_size`."
        )
    for channels in block_out_channels:
        if channels * expansion % group_size:
            raise ValueError(
                f"`group_size`={group_size} must divide {channels * expansion}, a stage of {channels} "
                f"channels times `expansion`={expansion}."
            )
