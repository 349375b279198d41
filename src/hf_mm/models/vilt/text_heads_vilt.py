"""What ViLT is asked about single words: which one is hidden, of what kind one is.

Kim et al. 2021, "ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision", section
3.2 (https://arxiv.org/abs/2102.03334); the head is that of Devlin et al. 2019, "BERT"
(https://arxiv.org/abs/1810.04805).

Shapes: B rows, L places of a text, S places of a row, D width, W words, A classes, C channels, Y x X pixels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_outputs import MaskedLMOutput, TokenClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from ...objectives.batch_mean import labelled_cross_entropy
from ...objectives.masked_language import check_place_labels, masked_token_loss
from .configuration_vilt import MMViltConfig
from .modeling_vilt import MMViltModel, MMViltPreTrainedModel, weights_but

__all__ = [
    "MMViltForMaskedLM",
    "MMViltForTokenClassification",
    "ViltPredictionHead",
    "text_states",
]


class ViltTransform(nn.Module):
    """Dense layer, activation, norm: what BERT does to a state before it guesses a word."""

    def __init__(self, config: MMViltConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.text_layer_norm_eps)

    def forward(self, states: Tensor) -> Tensor:
        return self.norm(self.act(self.dense(states)))


class ViltPredictionHead(nn.Module):
    """A choice at each place, as BERT makes it.

    Args:
        config: Sizes.
        choices: How many things there are to choose from: words, or levels of colours.
    """

    def __init__(self, config: MMViltConfig, choices: int) -> None:
        super().__init__()
        self.transform = ViltTransform(config)
        self.decoder = nn.Linear(config.hidden_size, choices)

    def forward(self, states: Tensor) -> Tensor:
        """(..., D) states to (..., choices)."""
        return self.decoder(self.transform(states))


class MMViltForMaskedLM(MMViltPreTrainedModel):
    """Guesses hidden words from the rest of the text and the image."""

    _tied_weights_keys = {"mlm_head.decoder.weight": "vilt.embeddings.text.tokens.weight"}
    _keys_to_ignore_on_load_unexpected = weights_but("mlm_head")

    def __init__(self, config: MMViltConfig) -> None:
        super().__init__(config)
        self.vilt = MMViltModel(config, add_pooling_layer=False)
        self.mlm_head = ViltPredictionHead(config, config.vocab_size)
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
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput:
        """Guess words.

        Args:
            input_ids: See `MMViltModel.forward`, as for the arguments that follow.
            attention_mask: (B, L).
            token_type_ids: (B, L).
            pixel_values: (B, C, Y, X).
            pixel_mask: (B, Y, X).
            inputs_embeds: (B, L, D).
            labels: (B, L), the words at hidden places, -100 at all others.
            **kwargs: `num_items_in_batch`: hidden words in the whole batch of which this is a part.

        Returns:
            `loss`, the mean cross-entropy in nats, an exact 0 where nothing is hidden, when `labels` are
            given; and `logits` (B, L, W). With `labels` while training `logits` is `None`: the head runs at
            the hidden places alone.

        Raises:
            ValueError: `labels` are not one for each place.
        """
        count: Any = kwargs.pop("num_items_in_batch", None)
        encoded = self.vilt(
            input_ids, attention_mask, token_type_ids, pixel_values, pixel_mask, inputs_embeds, **kwargs
        )
        states = text_states(encoded.last_hidden_state, input_ids, inputs_embeds)  # (B, L, D)
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


class MMViltForTokenClassification(MMViltPreTrainedModel):
    """Classifies every token of a text beside an image."""

    _keys_to_ignore_on_load_unexpected = weights_but("token_classifier")

    def __init__(self, config: MMViltConfig) -> None:
        super().__init__(config)
        self.vilt = MMViltModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.token_classifier = nn.Linear(config.hidden_size, config.num_labels)  # ty: ignore[invalid-argument-type]
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        """Classify tokens.

        Args:
            input_ids: See `MMViltModel.forward`, as for the arguments that follow.
            attention_mask: (B, L).
            token_type_ids: (B, L).
            pixel_values: (B, C, Y, X).
            pixel_mask: (B, Y, X).
            inputs_embeds: (B, L, D).
            labels: (B, L) class indices, -100 where a token has none.
            **kwargs: `num_items_in_batch`: labels in the whole batch of which this is a part.

        Returns:
            `logits` (B, L, A), and `loss`, a scalar in nats, when `labels` are given.

        Raises:
            ValueError: `labels` are not one for each place.
        """
        count: Any = kwargs.pop("num_items_in_batch", None)
        encoded = self.vilt(
            input_ids, attention_mask, token_type_ids, pixel_values, pixel_mask, inputs_embeds, **kwargs
        )
        states = text_states(encoded.last_hidden_state, input_ids, inputs_embeds)  # (B, L, D)
        logits, loss = self.token_classifier(self.dropout(states)), None  # (B, L, A)
        if labels is not None:
            check_place_labels(labels, states)
            loss = labelled_cross_entropy(logits.flatten(0, 1), labels.flatten(), count)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )


def text_states(states: Tensor, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """The places of the text, (B, L, D), of (B, S, D) states."""
    words = inputs_embeds if input_ids is None else input_ids
    assert words is not None
    return states[:, : words.shape[1]]
