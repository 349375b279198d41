"""The discriminator of patches: tells for every patch of a picture whether it looks real.

Isola et al. 2017, "Image-to-Image Translation with Conditional Adversarial Networks", section 3.2.2
(https://arxiv.org/abs/1611.07004), as VQGAN has it: Esser et al. 2021, "Taming Transformers for
High-Resolution Image Synthesis", section 3.1 (https://arxiv.org/abs/2012.09841). Both normalise over the
batch; here groups of channels of one picture are normalised (Wu and He 2018, https://arxiv.org/abs/1803.08494).
With batch statistics real and generated pictures, which come in batches of their own, would be told apart by
them; the logit of a picture would depend on its neighbours, on the number of processes and on the mode.

Shapes: B pictures, C channels, Y x X pixels, H x W patches.
"""

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ...hub.diffusers_code import RemoteModelMixin

__all__ = ["MMPatchDiscriminator"]

SLOPE = 0.2
DEVIATION = 0.02  # of the first weights, as in the paper
MOST_TIMES_WIDER = 8


class MMPatchDiscriminator(RemoteModelMixin, ModelMixin, ConfigMixin):
    """Convolutions with stride 2, each twice as wide as the one before, up to one logit for each patch.

    Each logit sees a square of 16, 34, 70, ... pixels for 1, 2, 3, ... `num_layers`.

    Args:
        in_channels: C.
        base_channels: Width of the first layer; later ones are at most eight times as wide.
        num_layers: Convolutions with stride 2; two more follow with stride 1.
        norm_num_groups: Groups of channels that are normalised together, in all but the first layer.

    Raises:
        ValueError: The groups do not divide `base_channels`, or there is no layer.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        base_channels: int = 64,
        num_layers: int = 3,
        norm_num_groups: int = 8,
    ) -> None:
        super().__init__()
        if base_channels % norm_num_groups:
            raise ValueError(
                f"`base_channels`={base_channels} must be a multiple of `norm_num_groups`={norm_num_groups}."
            )
        if num_layers < 1:
            raise ValueError(f"`num_layers`={num_layers} must be at least 1.")
        widths = [base_channels * min(2**layer, MOST_TIMES_WIDER) for layer in range(num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], 4, 2, 1), nn.LeakyReLU(SLOPE)]
        for number in range(1, num_layers + 1):
            stride = 2 if number < num_layers else 1
            layers += [
                nn.Conv2d(widths[number - 1], widths[number], 4, stride, 1, bias=False),
                nn.GroupNorm(norm_num_groups, widths[number]),
                nn.LeakyReLU(SLOPE),
            ]
        layers.append(nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.layers = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, DEVIATION)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    @property
    def least_px(self) -> int:
        """The smallest height and width of a picture that leaves a patch to judge."""
        return 3 * 2 ** self.config["num_layers"]

    def forward(self, sample: Tensor) -> Tensor:
        """Judge.

        Args:
            sample: (B, C, Y, X) in [-1, 1].

        Returns:
            (B, 1, H, W) logits, high where a patch looks real.

        Raises:
            ValueError: The pictures have other channels, or are too small for a patch.
        """
        channels = self.config["in_channels"]
        if sample.ndim != 4 or sample.shape[1] != channels:
            raise ValueError(
                f"`sample` must be (batch, {channels}, height, width), got {tuple(sample.shape)}."
            )
        if min(sample.shape[-2:]) < self.least_px:
            raise ValueError(
                f"`sample` is {sample.shape[-2]}x{sample.shape[-1]} px; a discriminator of "
                f"{self.config['num_layers']} layers needs {self.least_px} px at least. Take fewer layers."
            )
        return self.layers(sample)
