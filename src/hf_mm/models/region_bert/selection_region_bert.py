"""A vision-language BERT points at the region that a text speaks of: "the red triangle".

Referring expressions: Lu et al. 2019, "ViLBERT", section 3.2 (https://arxiv.org/abs/1908.02265); Chen et
al. 2020, "UNITER", section 4 (https://arxiv.org/abs/1909.11740).

Shapes: B rows, L places of a text, R places for regions, F width of features, D width of text tokens, E
width of region tokens.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from ...objectives.batch_mean import batch_mean, labelled_cross_entropy
from ...objectives.classification import check_class_labels
from .configuration_region_bert import MMRegionBertConfig
from .modeling_region_bert import MMRegionBertModel, MMRegionBertPreTrainedModel, weights_beside

__all__ = ["MMRegionBertForRegionSelection"]


class MMRegionBertForRegionSelection(MMRegionBertPreTrainedModel):
    """Scores how well each region is what the text speaks of."""

    towers = {"encoder": ("region_bert.",), "head": ("selection_output.",)}
    _keys_to_ignore_on_load_unexpected = weights_beside("selection_output")

    def __init__(self, config: MMRegionBertConfig) -> None:
        super().__init__(config)
        self.region_bert = MMRegionBertModel(config, add_pooling_layer=False, use_mask_token=False)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.selection_output = nn.Linear(config.region_hidden_size, 1)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        region_features: Tensor | None = None,
        region_boxes: Tensor | None = None,
        region_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        """Score regions.

        Args:
            input_ids: See `MMRegionBertModel.forward`, as for the arguments that follow; `region_index` there
                lets many texts share the regions of an image.
            attention_mask: (B, L).
            token_type_ids: (B, L).
            region_features: (B, R, F).
            region_boxes: (B, R, 4).
            region_mask: (B, R).
            inputs_embeds: (B, L, D).
            labels: (B,) number of the right region, -100 where there is none, for which the loss is the
                cross-entropy among the regions of a row, a mean over rows. Or (B, R) how much each region is
                the right one, 0 to 1 (overlap of its box with the right one's), and -100 at padding, for
                which it is the binary cross-entropy, a mean over regions.
            **kwargs: `num_items_in_batch`: labels but -100 in the whole batch of which this is a part; and
                what else `MMRegionBertModel.forward` takes.

        Returns:
            `logits` (B, R), -inf at padding, and `loss`, a scalar in nats, an exact 0 without any label, when
            `labels` are given.

        Raises:
            ValueError: `labels` are neither one region for each row nor a number for each region.
        """
        count: Any = kwargs.pop("num_items_in_batch", None)
        text: Any = (input_ids, attention_mask, token_type_ids)
        encoded = self.region_bert(*text, region_features, region_boxes, region_mask, inputs_embeds, **kwargs)
        states = self.region_bert.own_regions(encoded.region_last_hidden_state)  # (B, R, E)
        logits = self.selection_output(self.dropout(states)).squeeze(2)  # (B, R)
        real = _regions_of_rows(logits, region_mask, kwargs.get("region_index"))
        loss = None
        if labels is not None:
            loss = _selection_loss(logits, real, labels, count)
        return SequenceClassifierOutput(
            loss=loss,
            logits=logits.masked_fill(~real, -torch.inf),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


def _regions_of_rows(logits: Tensor, region_mask: Tensor | None, region_index: Any) -> Tensor:
    """(B, R) bool, true on regions."""
    if region_mask is None:
        return torch.ones_like(logits, dtype=torch.bool)
    return (region_mask if region_index is None else region_mask[region_index]).bool()


def _selection_loss(logits: Tensor, real: Tensor, labels: Tensor, count: Tensor | int | None) -> Tensor:
    if labels.ndim == 1:
        check_class_labels(labels, len(logits))
        return labelled_cross_entropy(logits.masked_fill(~real, -torch.inf), labels, count)
    if labels.shape != logits.shape or not labels.is_floating_point():
        raise ValueError(
            f"`labels` must be ({len(logits)},) numbers of regions or {tuple(logits.shape)} overlaps with "
            f"the right one, 0 to 1, got {tuple(labels.shape)} of {labels.dtype}."
        )
    counted = real & (labels != -100)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).masked_fill(~counted, 0.0)
    wanted = labels.to(wide.dtype).masked_fill(~counted, 0.0)
    losses = binary_cross_entropy_with_logits(wide, wanted, reduction="none")
    return batch_mean((losses * counted).sum(), counted.sum(), count)
