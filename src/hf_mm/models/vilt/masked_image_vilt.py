"""ViLT guesses the pixels of hidden patches, with a text to help.

Xie et al. 2022, "SimMIM: a Simple Framework for Masked Image Modeling" (https://arxiv.org/abs/2111.09886), in
the encoder of Kim et al. 2021, "ViLT" (https://arxiv.org/abs/2102.03334).

Shapes: B rows, L places of a text, N most patches of an image, D width, C channels, P patch side, Y x X
pixels.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from ...objectives.masked_image import masked_pixel_loss, patch_pixels
from .configuration_vilt import MMViltConfig
from .inputs_vilt import mask_grids
from .modeling_vilt import MMViltModel, MMViltPreTrainedModel, weights_but
from .own_patches_vilt import own_patches, real_patches

__all__ = ["MMViltForMaskedImageModeling", "MMViltMaskedImageOutput"]


@dataclass
class MMViltMaskedImageOutput(ModelOutput):
    """What `MMViltForMaskedImageModeling` returns.

    Attributes:
        loss: Mean absolute error of the pixels of the patches that count.
        reconstruction: (B, N, C * P * P) pixels of each patch of an image's own grid; `None` while training.
        hidden_states: Of all layers, when asked for.
        attentions: Of all layers, when asked for.
    """

    loss: Tensor | None = None
    reconstruction: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class MMViltForMaskedImageModeling(MMViltPreTrainedModel):
    """The encoder with a linear layer that predicts the pixels of hidden patches."""

    towers = {"encoder": ("vilt.",), "head": ("pixel_decoder.",)}
    _keys_to_ignore_on_load_unexpected = weights_but("pixel_decoder", "mask_token")

    def __init__(self, config: MMViltConfig) -> None:
        super().__init__(config)
        self.vilt = MMViltModel(config, add_pooling_layer=False, use_mask_token=True)
        self.pixel_decoder = nn.Linear(config.hidden_size, config.num_channels * config.patch_size**2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        bool_masked_patches: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MMViltMaskedImageOutput:
        """Reconstruct images of which some patches are hidden.

        Args:
            input_ids: (B, L); see `MMViltModel.forward`, as for the arguments that follow.
            attention_mask: (B, L).
            token_type_ids: (B, L).
            pixel_values: (B, C, Y, X), whole: what is hidden is the target.
            pixel_mask: (B, Y, X).
            bool_masked_patches: (B, N), true where a patch of the image's own grid is hidden.
            labels: (B, N), -100 where a patch has no part in the loss, any other number where it has. By
                default the hidden patches have.
            **kwargs: `num_items_in_batch`: patches that count in the whole batch of which this is a part.

        Returns:
            `loss`, an exact 0 when no patch counts, when `bool_masked_patches` or `labels` are given; and
            `reconstruction`, while training only when there is no loss.

        Raises:
            ValueError: `bool_masked_patches` or `labels` do not fit the patches.
        """
        count: Any = kwargs.pop("num_items_in_batch", None)
        image: dict[str, Any] = {"pixel_values": pixel_values, "pixel_mask": pixel_mask}
        hidden: dict[str, Any] = {"bool_masked_patches": bool_masked_patches}
        encoded = self.vilt(input_ids, attention_mask, token_type_ids, **image, **hidden, **kwargs)
        states = encoded.last_hidden_state[:, input_ids.shape[1] + 1 :]  # (B, N, D)
        if labels is not None and labels.shape != states.shape[:2]:
            raise ValueError(
                f"`labels` must be {tuple(states.shape[:2])}, -100 where a patch has no part in the loss, "
                f"got {tuple(labels.shape)}."
            )
        scored, loss, reconstruction = bool_masked_patches if labels is None else labels.ne(-100), None, None
        if scored is None or not self.training:
            reconstruction = self.pixel_decoder(states)  # (B, N, C * P * P)
        if scored is not None:
            loss = self._pixel_loss(states, reconstruction, scored, image, count)
        return MMViltMaskedImageOutput(
            loss=loss,
            reconstruction=reconstruction,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def _pixel_loss(
        self,
        states: Tensor,
        reconstruction: Tensor | None,
        scored: Tensor,
        image: dict[str, Any],
        count: Tensor | int | None,
    ) -> Tensor:
        patch_size, most = self.config.patch_size, states.shape[1]
        grids = mask_grids(image["pixel_values"], image["pixel_mask"], patch_size)
        target = own_patches(patch_pixels(image["pixel_values"], patch_size), grids, most)
        scored = scored.bool() & real_patches(grids, most)
        if reconstruction is None and torch.compiler.is_compiling():
            reconstruction = self.pixel_decoder(states)
        elif reconstruction is None:
            counted = scored.flatten().nonzero().squeeze(1)
            target, scored = target.flatten(0, 1)[counted], scored.flatten()[counted]
            reconstruction = self.pixel_decoder(states.flatten(0, 1)[counted])
        return masked_pixel_loss(reconstruction, target, scored, num_items_in_batch=count)
