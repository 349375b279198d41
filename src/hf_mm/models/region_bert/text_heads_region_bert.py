"""What a vision-language BERT on regions guesses of single words: which one is hidden, of what kind one is.

The head is that of Devlin et al. 2019, "BERT" (https://arxiv.org/abs/1810.04805), as in LXMERT, ViLBERT,
VL-BERT, UNITER, OSCAR and VisualBERT.

Shapes: B rows, L places of a text, R places for regions, F width of features, D width of text tokens, W
words, A classes.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import MaskedLMOutput, TokenClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from ...objectives.batch_mean import labelled_cross_entropy
from ...objectives.masked_language import check_place_labels, masked_token_loss
from .configuration_region_bert import MMRegionBertConfig
from .modeling_region_bert import MMRegionBertModel, MMRegionBertPreTrainedModel, weights_beside
from .parts_region_bert import RegionBertPredictionHead

__all__ = ["MMRegionBertForMaskedLM", "MMRegionBertForTokenClassification"]


class MMRegionBertForMaskedLM(MMRegionBertPreTrainedModel):
    """Guesses hidden words from the rest of the text and the regions."""

    towers = {"encoder": ("region_bert.",), "head": ("mlm_head.",)}
    _tied_weights_keys = {"mlm_head.decoder.weight": "region_bert.embeddings.tokens.weight"}
    _keys_to_ignore_on_load_unexpected = weights_beside("mlm_head")

    def __init__(self, config: MMRegionBertConfig) -> None:
        super().__init__(config)
        self.region_bert = MMRegionBertModel(config, add_pooling_layer=False, use_mask_token=False)
        self.mlm_head = RegionBertPredictionHead(config, config.hidden_size, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.mlm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.mlm_head.decoder = new_embeddings  # ty: ignore[invalid-assignment]

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
    ) -> MaskedLMOutput:
        """Guess words.

        Args:
            input_ids: See `MMRegionBertModel.forward`, as for the arguments that follow.
            attention_mask: (B, L).
            token_type_ids: (B, L).
            region_features: (B, R, F).
            region_boxes: (B, R, 4).
            region_mask: (B, R).
            inputs_embeds: (B, L, D).
            labels: (B, L), the words at hidden places, -100 at all others.
            **kwargs: `num_items_in_batch`: hidden words in the whole batch of which this is a part; and what
                else `MMRegionBertModel.forward` takes.

        Returns:
            `loss`, the mean cross-entropy in nats, an exact 0 where nothing is hidden, when `labels` are
            given; and `logits` (B, L, W). With `labels` while training `logits` is `None`: the head runs at
            the hidden places alone.

        Raises:
            ValueError: `labels` are not one for each place.
        """
        count: Any = kwargs.pop("num_items_in_batch", None)
        text: Any = (input_ids, attention_mask, token_type_ids)
        encoded = self.region_bert(*text, region_features, region_boxes, region_mask, inputs_embeds, **kwargs)
        states = encoded.last_hidden_state  # (B, L, D)
        loss = logits = None
        if labels is not None and self.training and not torch.compiler.is_compiling():
            loss = masked_token_loss(states, self.mlm_head, labels, count)
        else:
            logits = self.mlm_head(states)  # (B, L, W)
            if labels is not None:
                check_place_labels(labels, states)
                loss = labelled_cross_entropy(logits.flatten(0, 1), labels.flatten(), count)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )


class MMRegionBertForTokenClassification(MMRegionBertPreTrainedModel):
    """Classifies every token of a text beside the regions of an image."""

    towers = {"encoder": ("region_bert.",), "head": ("token_classifier.",)}
    _keys_to_ignore_on_load_unexpected = weights_beside("token_classifier")

    def __init__(self, config: MMRegionBertConfig) -> None:
        super().__init__(config)
        self.region_bert = MMRegionBertModel(config, add_pooling_layer=False, use_mask_token=False)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.token_classifier = nn.Linear(config.hidden_size, config.num_labels)  # ty: ignore[invalid-argument-type]
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
    ) -> TokenClassifierOutput:
        """Classify tokens.

        Args:
            input_ids: See `MMRegionBertModel.forward`, as for the arguments that follow.
            attention_mask: (B, L).
            token_type_ids: (B, L).
            region_features: (B, R, F).
            region_boxes: (B, R, 4).
            region_mask: (B, R).
            inputs_embeds: (B, L, D).
            labels: (B, L) class indices, -100 where a token has none.
            **kwargs: `num_items_in_batch`: labels in the whole batch of which this is a part; and what else
                `MMRegionBertModel.forward` takes.

        Returns:
            `logits` (B, L, A), and `loss`, a scalar in nats, an exact 0 without any label, when `labels` are
            given.

        Raises:
            ValueError: `labels` are not one for each place.
        """
        count: Any = kwargs.pop("num_items_in_batch", None)
        text: Any = (input_ids, attention_mask, token_type_ids)
        encoded = self.region_bert(*text, region_features, region_boxes, region_mask, inputs_embeds, **kwargs)
        states = encoded.last_hidden_state  # (B, L, D)
        logits, loss = self.token_classifier(self.dropout(states)), None  # (B, L, A)
        if labels is not None:
            check_place_labels(labels, states)
            loss = labelled_cross_entropy(logits.flatten(0, 1), labels.flatten(), count)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )
