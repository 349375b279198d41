"""The discriminator of a GAN without normalisation layers.

Huang et al. 2024, "The GAN is dead; long live the GAN! A Modern GAN Baseline", section 3
(https://arxiv.org/abs/2501.05441): the generator's mirror image. Miyato and Koyama 2018, "cGANs with
Projection Discriminator" (https://arxiv.org/abs/1802.05637): the logit is the product of what is seen and
what was asked for. Nothing mixes pictures of a batch, as penalties on gradients by pixels demand.

Shapes: B pictures, C channels of a stage, K width of the condition, S pixels a side, L and T of texts.
"""

import math
from dataclasses import dataclass

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from torch.nn import functional as F

from ...hub.diffusers_code import RemoteModelMixin
from .blocks_gan import GANBlock, check_gan_sizes, downsample, gan_convolution, scaled_normal
from .conditions_gan import ConditionEmbedding, check_conditions

__all__ = ["MMGANDiscriminator", "MMGANDiscriminatorOutput"]


@dataclass
class MMGANDiscriminatorOutput(BaseOutput):
    """What `MMGANDiscriminator` returns.

    Args:
        logits: (B,), high where a picture looks real and is what was asked for.
    """

    logits: Tensor


class MMGANDiscriminator(RemoteModelMixin, ModelMixin, ConfigMixin):
    """How real a picture looks, and how much like what was asked for.

    Args:
        sample_size: S.
        in_channels: 1 for grey, 3 for colours.
        block_out_channels: C of each stage, the coarsest first, as in the generator.
        layers_per_block: Residual blocks of each stage, likewise.
        expansion: Widening inside a block.
        group_size: Channels in a group of the 3x3 convolutions.
        base_size: Pixels a side of the coarsest stage.
        patch_size: Pixels a side that are seen as one.
        num_classes: Classes to choose from; at most one of this and the two below is given.
        vocab_size: Words of the own small text embedding.
        text_embed_dim: T, for the pooled output of a text encoder, such as CLIP's.
        condition_dim: K.

    Raises:
        ValueError: Sizes that do not fit each other, or several kinds of conditions.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        block_out_channels: tuple[int, ...] = (128, 96, 64),
        layers_per_block: tuple[int, ...] = (1, 1, 1),
        expansion: int = 2,
        group_size: int = 16,
        base_size: int = 4,
        patch_size: int = 2,
        num_classes: int | None = None,
        vocab_size: int | None = None,
        text_embed_dim: int | None = None,
        condition_dim: int = 64,
    ) -> None:
        super().__init__()
        check_conditions(num_classes, vocab_size, text_embed_dim)
        check_gan_sizes(
            sample_size,
            base_size,
            patch_size,
            block_out_channels,
            layers_per_block,
            expansion,
            group_size,
        )
        channels, layers = list(reversed(block_out_channels)), list(reversed(layers_per_block))
        depth = sum(layers)
        self.from_pixels = gan_convolution(in_channels * patch_size**2, channels[0], 1)
        self.stages = nn.ModuleList()
        before = channels[0]
        for width, blocks in zip(channels, layers, strict=True):
            stage: list[nn.Module] = [GANBlock(width, expansion, group_size, depth) for _ in range(blocks)]
            if width != before:
                stage.insert(0, gan_convolution(before, width, 1))
            self.stages.append(nn.Sequential(*stage))
            before = width
        self.basis = nn.Conv2d(before, before, base_size, groups=before, bias=False)
        scaled_normal(self.basis.weight)
        gain = 1 / math.sqrt(condition_dim)  # of a sum over K products
        self.condition = ConditionEmbedding(num_classes, vocab_size, text_embed_dim, condition_dim, gain)
        self.judge = nn.Linear(before, 1 if self.condition.kind is None else condition_dim, bias=False)
        scaled_normal(self.judge.weight)

    def forward(
        self,
        sample: Tensor,
        class_labels: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        text_embeds: Tensor | None = None,
        return_dict: bool = True,
    ) -> MMGANDiscriminatorOutput | tuple[Tensor]:
        """Judge pictures.

        Args:
            sample: (B, in_channels, S, S) pictures, real ones in [-1, 1].
            class_labels: (B,) class ids that were asked for, of a model with `num_classes`.
            input_ids: (B, L) tokens of the texts, of a model with `vocab_size`.
            attention_mask: (B, L), 0 on padding.
            text_embeds: (B, T), of a model with `text_embed_dim`.
            return_dict: An output object, or else a tuple.

        Raises:
            ValueError: Pictures of another size or number of channels, or the condition is missing.
        """
        size = self.config["sample_size"]
        wanted = (self.config["in_channels"], size, size)
        if tuple(sample.shape[1:]) != wanted:
            raise ValueError(
                f"`sample` must be (batch, {', '.join(map(str, wanted))}), got {tuple(sample.shape)}; resize "
                "the pictures, or build the model for theirs."
            )
        hidden_states = self.from_pixels(F.pixel_unshuffle(sample, self.config["patch_size"]))
        for number, stage in enumerate(self.stages):
            hidden_states = stage(downsample(hidden_states) if number else hidden_states)  # (B, C, Y, X)
        seen = self.judge(self.basis(hidden_states).flatten(1))  # (B, K), or (B, 1)
        asked = self.condition(class_labels, input_ids, attention_mask, text_embeds)
        logits = seen.squeeze(1) if asked is None else (seen * asked.to(seen)).sum(1)  # (B,)
        return MMGANDiscriminatorOutput(logits) if return_dict else (logits,)
