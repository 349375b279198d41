"""How different two pictures look to a network that has learnt to see.

Johnson et al. 2016, "Perceptual Losses for Real-Time Style Transfer and Super-Resolution", section 3.2
(https://arxiv.org/abs/1603.08155): distances between feature maps instead of pixels. Features of length one
at every place: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
equation 1 (https://arxiv.org/abs/1801.03924), here without their learnt weights of channels. Any network
will do; one trained on pictures like these sees most.

Shapes: B pictures, C channels, Y x X pixels, F channels of a feature map, L tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

__all__ = ["PerceptualLoss"]

FEATURE_EPS = 1e-6  # a place without any feature must not give an endless gradient


class PerceptualLoss(nn.Module):
    """The distance of two pictures in the features of a frozen network; its gradient goes to the picture.

    Args:
        feature_net: Gives features of pixels: a map (B, F, H, W), tokens (B, L, F), several of them, or the
            output of a model of transformers, whose feature maps or hidden states count. It is frozen and
            stays in evaluation mode.
        layers: Names of submodules of `feature_net` whose outputs count instead of its own output.
        in_channels: Channels that the network reads; grey pictures are repeated.
        size_px: Height and width to which pictures are resized first, for networks of one size or to look
            at small pictures more closely; `None` leaves them as they are.
        mean: Subtracted from pixels in [0, 1], for each channel or all; with 0.5 and 0.5 the network reads
            [-1, 1].
        std: What pixels are then divided by.

    Raises:
        ValueError: `layers` names no submodule.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        feature_net: nn.Module,
        layers: Sequence[str] = (),
        in_channels: int = 3,
        size_px: int | None = None,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
    ) -> None:
        super().__init__()
        self.feature_net = feature_net.requires_grad_(False).eval()
        known = dict(feature_net.named_modules())
        for name in layers:
            if name not in known:
                raise ValueError(
                    f"`layers` names {name!r}, which {type(feature_net).__name__} does not have; "
                    f"its parts are {', '.join(list(known)[1:9])}, ..."
                )
        self.layers, self.in_channels, self.size_px = tuple(layers), in_channels, size_px
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).view(-1, 1, 1), False)
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32).view(-1, 1, 1), False)

    def train(self, mode: bool = True) -> "PerceptualLoss":
        """Nothing: a frozen network has no training mode, its dropout and statistics included."""
        return super().train(False)

    def forward(self, sample: Tensor, target: Tensor) -> Tensor:
        """Compare.

        Args:
            sample: (B, C, Y, X) in [-1, 1]; the gradient goes here.
            target: (B, C, Y, X).

        Returns:
            (B,) squared distances of unit features, the mean over the places of a map, added up over maps.

        Raises:
            ValueError: The shapes differ, or the channels are not those of the network.
        """
        if sample.shape != target.shape:
            raise ValueError(
                f"`sample` {tuple(sample.shape)} and `target` {tuple(target.shape)} must have one shape."
            )
        with torch.no_grad():
            wanted = self.features(target)
        total = sample.new_zeros(len(sample), dtype=torch.float32)
        for found, true in zip(self.features(sample), wanted, strict=True):
            total = total + (_unit(found) - _unit(true)).square().sum(1).flatten(1).mean(1)
        return total

    def features(self, pixel_values: Tensor) -> list[Tensor]:
        """The feature maps of pictures, channels second.

        Args:
            pixel_values: (B, C, Y, X) in [-1, 1].
        """
        pixels = (self._as_read(pixel_values) + 1) / 2
        pixels = ((pixels - self.mean) / self.std).to(next(self.feature_net.parameters(), pixels).dtype)
        if not self.layers:
            return _feature_maps(self.feature_net(pixels), self.feature_net)
        caught: dict[str, Any] = {}
        modules = dict(self.feature_net.named_modules())
        handles = [
            modules[name].register_forward_hook(lambda _, __, out, name=name: caught.update({name: out}))
            for name in self.layers
        ]
        try:
            self.feature_net(pixels)
        finally:
            for handle in handles:
                handle.remove()
        return [part for name in self.layers for part in _feature_maps(caught[name], modules[name])]

    def _as_read(self, pixels: Tensor) -> Tensor:
        """With as many channels as the network reads, and of its size."""
        channels = pixels.shape[1]
        if channels == 1:
            pixels = pixels.expand(-1, self.in_channels, -1, -1)
        elif channels != self.in_channels:
            raise ValueError(
                f"The pictures have {channels} channels, the feature network reads {self.in_channels} "
                "(`in_channels`); only grey ones are repeated."
            )
        if self.size_px is None or pixels.shape[-2:] == (self.size_px, self.size_px):
            return pixels
        size = (self.size_px, self.size_px)
        return interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)


def _feature_maps(output: Any, net: nn.Module) -> list[Tensor]:
    """What a network gave, as maps (B, F, ...)."""
    if hasattr(output, "keys"):  # of transformers
        named = (output.get(name) for name in ("feature_maps", "hidden_states", "last_hidden_state"))
        output = next((found for found in named if found is not None), None)
    maps = [output] if isinstance(output, Tensor) else list(output or ())
    for part in maps:
        if not isinstance(part, Tensor) or part.ndim not in (2, 3, 4):
            shape = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
            raise ValueError(
                f"The feature network {type(net).__name__} gives {shape}, no map (pictures, channels, rows, "
                "columns) and no tokens (pictures, tokens, channels); name its `layers`."
            )
    if not maps:
        raise ValueError(f"The feature network {type(net).__name__} gives no features; name its `layers`.")
    return [part.transpose(1, 2) if part.ndim == 3 else part for part in maps]


def _unit(maps: Tensor) -> Tensor:
    """Of length one along the channels, in float32."""
    maps = maps.float()
    return maps / (maps.square().sum(1, keepdim=True) + FEATURE_EPS).sqrt()
