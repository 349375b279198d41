"""What a vision-language BERT on regions is asked about text and image as wholes: answers, matches, truths.

Answers from the vector of text and image: Tan and Bansal 2019, "LXMERT", section 4.2
(https://arxiv.org/abs/1908.07490); from the state of the word before the end, [MASK]: Li et al. 2019,
"VisualBERT", section 4.1 (https://arxiv.org/abs/1908.03557), and Su et al. 2020, "VL-BERT", section 4.2
(https://arxiv.org/abs/1908.08530).

Shapes: B rows, L places of a text, R places for regions, F width of features, D width of text tokens, P
width of the pooled vector, A answers or classes, I images of a row.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from ...objectives.answers import answer_loss
from ...objectives.batch_mean import labelled_cross_entropy
from ...objectives.classification import check_class_labels
from ...objectives.matching import choice_loss
from .configuration_region_bert import MMRegionBertConfig
from .modeling_region_bert import MMRegionBertModel, MMRegionBertPreTrainedModel, weights_beside
from .parts_region_bert import region_bert_classifier

__all__ = [
    "MMRegionBertForImageAndTextRetrieval",
    "MMRegionBertForImagesAndTextClassification",
    "MMRegionBertForQuestionAnswering",
]


class MMRegionBertForQuestionAnswering(MMRegionBertPreTrainedModel):
    """Answers a question about an image with one of a list of answers, `config.id2label`."""

    towers = {"encoder": ("region_bert.",), "head": ("answer_classifier.",)}
    _keys_to_ignore_on_load_unexpected = weights_beside("answer_classifier", "pooler")

    def __init__(self, config: MMRegionBertConfig) -> None:
        super().__init__(config)
        pooled = config.answer_state == "pooled"
        self.region_bert = MMRegionBertModel(config, add_pooling_layer=pooled, use_mask_token=False)
        width = config.pooler_size if pooled else config.hidden_size
        classes: Any = config.num_labels
        self.answer_classifier = region_bert_classifier(config, width, 2 * width, classes)
        if not pooled:
            self._keys_to_ignore_on_load_unexpected = weights_beside("answer_classifier")
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
        """Score all answers.

        Args:
            input_ids: See `MMRegionBertModel.forward`, as for the arguments that follow.
            attention_mask: (B, L).
            token_type_ids: (B, L).
            region_features: (B, R, F).
            region_boxes: (B, R, 4).
            region_mask: (B, R).
            inputs_embeds: (B, L, D).
            labels: (B, A) scores of the answers, 0 to 1, for which the loss is the binary cross-entropy
                summed over answers, or the divergence from them where `config.answers_as_distribution`; or
                (B,) numbers of the right answers, -100 where there is none, for which it is the cross-entropy
                among all. The mean over rows.
            **kwargs: `num_items_in_batch`: labels in the whole batch of which this is a part, counted as
                Trainer counts them: every number of `labels`; and what else `MMRegionBertModel.forward`
                takes.

        Returns:
            `logits` (B, A), and `loss`, a scalar in nats, when `labels` are given.

        Raises:
            ValueError: `labels` are neither scores of all answers nor one answer for each row.
        """
        count: Any = kwargs.pop("num_items_in_batch", None)
        text: Any = (input_ids, attention_mask, token_type_ids)
        regions: Any = (region_features, region_boxes, region_mask)
        pooled = self.config.answer_state == "pooled"
        encoded = self.region_bert(*text, *regions, inputs_embeds, only_pooled=pooled, **kwargs)
        vectors = encoded.pooler_output
        if vectors is None:
            vectors = _before_end(encoded.last_hidden_state, attention_mask)
        logits, soft = self.answer_classifier(vectors), self.config.answers_as_distribution  # (B, A)
        return SequenceClassifierOutput(
            loss=None if labels is None else answer_loss(logits, labels, count, as_distribution=soft),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


class MMRegionBertForImageAndTextRetrieval(MMRegionBertPreTrainedModel):
    """Scores how well text and image go together, to rank texts, images, or choices."""

    towers = {"encoder": ("region_bert.",), "head": ("rank_output.",)}
    _keys_to_ignore_on_load_unexpected = weights_beside("rank_output", "pooler")

    def __init__(self, config: MMRegionBertConfig) -> None:
        super().__init__(config)
        self.region_bert = MMRegionBertModel(config, use_mask_token=False)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.rank_output = nn.Linear(config.pooler_size, 1)
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
        """Score pairs.

        Args:
            input_ids: See `MMRegionBertModel.forward`, as for the arguments that follow; `region_index` there
                lets many texts share the regions of an image.
            attention_mask: (B, L).
            token_type_ids: (B, L).
            region_features: (B, R, F).
            region_boxes: (B, R, 4).
            region_mask: (B, R).
            inputs_embeds: (B, L, D).
            labels: (Q,), which candidate of each of Q questions is right: the B rows are Q groups of B / Q
                candidates, side by side. -100 leaves a group out.
            **kwargs: `num_items_in_batch`: groups in the whole batch of which this is a part; and what else
                `MMRegionBertModel.forward` takes.

        Returns:
            `logits` (B, 1); and `loss`, the mean cross-entropy of the right candidates in nats, when `labels`
            are given.

        Raises:
            ValueError: The rows are not as many for each of the `labels`, at least two.
        """
        count: Any = kwargs.pop("num_items_in_batch", None)
        text: Any = (input_ids, attention_mask, token_type_ids)
        regions: Any = (region_features, region_boxes, region_mask)
        encoded = self.region_bert(*text, *regions, inputs_embeds, only_pooled=True, **kwargs)
        logits = self.rank_output(self.dropout(encoded.pooler_output))  # (B, 1)
        return SequenceClassifierOutput(
            loss=None if labels is None else choice_loss(logits, labels, count),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


class MMRegionBertForImagesAndTextClassification(MMRegionBertPreTrainedModel):
    """Classifies a text about several images, such as whether it is true of a pair (NLVR2).

    Every image meets the text in a pass of its own and the classifier reads the vectors of all; or, where
    `config.images_together`, the regions of all stand side by side in one pass, as in VisualBERT.
    """

    towers = {"encoder": ("region_bert.",), "head": ("images_classifier.",)}
    _keys_to_ignore_on_load_unexpected = weights_beside("images_classifier", "pooler")

    def __init__(self, config: MMRegionBertConfig) -> None:
        super().__init__(config)
        self.region_bert = MMRegionBertModel(config, use_mask_token=False)
        width = config.pooler_size * (1 if config.images_together else config.num_images)
        classes: Any = config.num_labels
        self.images_classifier = region_bert_classifier(config, width, width, classes)
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
        """Classify texts, each with the regions of its images.

        Args:
            input_ids: See `MMRegionBertModel.forward`, as for the arguments that follow.
            attention_mask: (B, L).
            token_type_ids: (B, L).
            region_features: (B, I, R, F).
            region_boxes: (B, I, R, 4).
            region_mask: (B, I, R).
            inputs_embeds: (B, L, D).
            labels: (B,) class indices, -100 where there is none.
            **kwargs: `num_items_in_batch`: labels in the whole batch of which this is a part; and what else
                `MMRegionBertModel.forward` takes.

        Returns:
            `logits` (B, A), and `loss`, a scalar in nats, when `labels` are given. Hidden states and
            attentions are those of all passes, (B * I, ...), the images of a row side by side.

        Raises:
            ValueError: Not the regions of `config.num_images` images for each text.
        """
        count: Any = kwargs.pop("num_items_in_batch", None)
        regions = {
            "region_features": region_features,
            "region_boxes": region_boxes,
            "region_mask": region_mask,
        }
        text = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "inputs_embeds": inputs_embeds,
        }
        self._check_images(regions)
        encoded = self._encode(text, regions, **kwargs)
        logits = self.images_classifier(encoded.pooler_output.unflatten(0, (-1, self._passes)).flatten(1))
        loss = None
        if labels is not None:
            check_class_labels(labels, len(logits))
            loss = labelled_cross_entropy(logits, labels, count)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )

    @property
    def _passes(self) -> int:
        """How often a text is read."""
        return 1 if self.config.images_together else self.config.num_images

    def _encode(
        self, text: dict[str, Tensor | None], regions: dict[str, Tensor | None], **kwargs: Any
    ) -> Any:
        """The encoder's output for (B * I) or, with all images in one pass, B rows."""
        side_by_side = (1, 2) if self.config.images_together else (0, 1)
        given = {name: part.flatten(*side_by_side) for name, part in regions.items() if part is not None}
        if not self.config.images_together:
            images = self.config.num_images
            text = {
                name: None if part is None else part.repeat_interleave(images, 0)
                for name, part in text.items()
            }
        return self.region_bert(**text, **given, only_pooled=True, **kwargs)

    def _check_images(self, regions: dict[str, Tensor | None]) -> None:
        images, size = self.config.num_images, self.config.region_feature_size
        features = regions["region_features"]
        if features is None or features.ndim != 4 or features.shape[1] != images:
            given = None if features is None else tuple(features.shape)
            raise ValueError(
                f"`region_features` must be (batch, {images}, regions, {size}), those of `num_images`="
                f"{images} images for each text, got {given}."
            )
        wanted = {"region_boxes": (*features.shape[:3], 4), "region_mask": tuple(features.shape[:3])}
        for name, shape in wanted.items():
            part = regions[name]
            if part is not None and part.shape != shape:
                raise ValueError(
                    f"`{name}` must be {shape} as `region_features` is {tuple(features.shape)}, got "
                    f"{tuple(part.shape)}."
                )


def _before_end(states: Tensor, attention_mask: Tensor | None) -> Tensor:
    """(B, D): of (B, L, D) states that of the token before the last; of the first in a text of one token."""
    if attention_mask is None:
        attention_mask = torch.ones_like(states[..., 0], dtype=torch.long)
    tokens = attention_mask.long()
    place = tokens.cumsum(1) * tokens  # of a token among those of its text, from 1
    wanted = (tokens.sum(1, keepdim=True) - 1).clamp(min=1)
    where = (place == wanted).int().argmax(1)  # (B,)
    return states[torch.arange(len(states), device=states.device), where]
