"""The generator of a GAN without normalisation layers.

Huang et al. 2024, "The GAN is dead; long live the GAN! A Modern GAN Baseline", section 3
(https://arxiv.org/abs/2501.05441): a learnt picture of base_size px, its channels weighed by the noise and
the condition, then residual blocks and bilinear upsampling, and one linear layer to the colours.

Shapes: B pictures, Z numbers of noise, K width of the condition, L tokens of the longest text, T width of a
text encoder, C channels of a stage, S pixels a side of a picture.
"""

from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from torch.nn import functional as F

from ...hub.diffusers_code import RemoteModelMixin
from .blocks_gan import GANBlock, check_gan_sizes, gan_convolution, scaled_normal, upsample
from .conditions_gan import ConditionEmbedding, check_conditions

__all__ = ["MMGANGenerator", "MMGANGeneratorOutput"]


@dataclass
class MMGANGeneratorOutput(BaseOutput):
    """What `MMGANGenerator` returns.

    Args:
        sample: (B, out_channels, S, S) pictures, real ones being in [-1, 1].
    """

    sample: Tensor


class MMGANGenerator(RemoteModelMixin, ModelMixin, ConfigMixin):
    """Noise, and a class or a text, to a picture in one step.

    Args:
        sample_size: S.
        out_channels: 1 for grey, 3 for colours.
        latent_dim: Z.
        block_out_channels: C of each stage, the coarsest first.
        layers_per_block: Residual blocks of each stage.
        expansion: Widening inside a block.
        group_size: Channels in a group of the 3x3 convolutions.
        base_size: Pixels a side of the first stage; each stage has twice those of the one before.
        patch_size: The last stage is finer by this factor than its pixels: 2 draws 2x2 pixels at each place,
            for a quarter of the work.
        num_classes: Classes to choose from; at most one of this and the two below is given.
        vocab_size: Words of the own small text embedding.
        text_embed_dim: T, for the pooled output of a text encoder, such as CLIP's.
        condition_dim: K.
        class_names: Names by which the pipeline takes classes.
        text_context: Most tokens of a text that the pipeline takes; by default as its tokenizer says.

    Raises:
        ValueError: Sizes that do not fit each other, or several kinds of conditions.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        out_channels: int = 3,
        latent_dim: int = 64,
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
        class_names: tuple[str, ...] | None = None,
        text_context: int | None = None,
    ) -> None:
        super().__init__()
        check_conditions(num_classes, vocab_size, text_embed_dim, class_names)
        check_gan_sizes(
            sample_size,
            base_size,
            patch_size,
            block_out_channels,
            layers_per_block,
            expansion,
            group_size,
        )
        first, depth = block_out_channels[0], sum(layers_per_block)
        self.condition = ConditionEmbedding(num_classes, vocab_size, text_embed_dim, condition_dim)
        self.basis = nn.Parameter(torch.randn(first, base_size, base_size))
        asked = 0 if self.condition.kind is None else condition_dim
        self.weigh = nn.Linear(latent_dim + asked, first, bias=False)
        scaled_normal(self.weigh.weight)
        self.stages = nn.ModuleList()
        before = first
        for channels, layers in zip(block_out_channels, layers_per_block, strict=True):
            stage: list[nn.Module] = [GANBlock(channels, expansion, group_size, depth) for _ in range(layers)]
            if channels != before:
                stage.insert(0, gan_convolution(before, channels, 1))
            self.stages.append(nn.Sequential(*stage))
            before = channels
        self.to_pixels = gan_convolution(before, out_channels * patch_size**2, 1)

    def forward(
        self,
        latents: Tensor,
        class_labels: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        text_embeds: Tensor | None = None,
        condition_embeds: Tensor | None = None,
        return_dict: bool = True,
    ) -> MMGANGeneratorOutput | tuple[Tensor]:
        """Draw pictures.

        Args:
            latents: (B, Z) noise of variance 1.
            class_labels: (B,) class ids, of a model with `num_classes`.
            input_ids: (B, L) tokens, of a model with `vocab_size`.
            attention_mask: (B, L), 0 on padding.
            text_embeds: (B, T), of a model with `text_embed_dim`.
            condition_embeds: (B, K) what `condition` makes of those, or a mixture of such vectors, instead.
            return_dict: An output object, or else a tuple.

        Raises:
            ValueError: The noise has another width, or the condition is missing.
        """
        if latents.ndim != 2 or latents.shape[1] != self.config["latent_dim"]:
            raise ValueError(
                f"`latents` must be (batch, {self.config['latent_dim']}), got {tuple(latents.shape)}."
            )
        if condition_embeds is None:
            condition_embeds = self.condition(class_labels, input_ids, attention_mask, text_embeds)
        if condition_embeds is not None:
            latents = torch.cat([latents, condition_embeds.to(latents)], dim=1)  # (B, Z + K)
        hidden_states = self.basis * self.weigh(latents)[..., None, None]  # (B, C, base, base)
        for number, stage in enumerate(self.stages):
            hidden_states = stage(upsample(hidden_states) if number else hidden_states)
        sample = F.pixel_shuffle(self.to_pixels(hidden_states), self.config["patch_size"])  # (B, out, S, S)
        return MMGANGeneratorOutput(sample) if return_dict else (sample,)
