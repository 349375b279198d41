"""What ViLT is asked about text and image as wholes: an answer, how well they match, what is true of images.

Kim et al. 2021, "ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision", section 4
(https://arxiv.org/abs/2102.03334).

Shapes: B rows, L places of a text, D width, A answers or classes, I images of a row, C channels, Y x X
pixels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from ...objectives.answers import answer_loss
from ...objectives.classification import check_class_labels, classification_loss
from ...objectives.matching import choice_loss
from .configuration_vilt import MMViltConfig
from .modeling_vilt import MMViltModel, MMViltPreTrainedModel, weights_but

__all__ = [
    "MMViltForImageAndTextRetrieval",
    "MMViltForImagesAndTextClassification",
    "MMViltForQuestionAnswering",
]


class ViltClassifier(nn.Sequential):
    """Dense layer, norm, gelu, dense layer.

    Args:
        width: Of the vector that it gets.
        hidden: Width between.
        classes: How many there are.
    """

    def __init__(self, width: int, hidden: int, classes: int) -> None:
        super().__init__(
            nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, classes)
        )


class MMViltForQuestionAnswering(MMViltPreTrainedModel):
    """Answers a question about an image with one of a list of answers, `config.id2label`."""

    towers = {"encoder": ("vilt.",), "head": ("answer_classifier.",)}
    _keys_to_ignore_on_load_unexpected = weights_but("answer_classifier", "pooler")

    def __init__(self, config: MMViltConfig) -> None:
        super().__init__(config)
        self.vilt = MMViltModel(config)
        width = config.hidden_size
        self.answer_classifier = ViltClassifier(width, 2 * width, config.num_labels)  # ty: ignore[invalid-argument-type]
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
    ) -> SequenceClassifierOutput:
        """Score all answers.

        Args:
            input_ids: See `MMViltModel.forward`, as for the arguments that follow.
            attention_mask: (B, L).
            token_type_ids: (B, L).
            pixel_values: (B, C, Y, X).
            pixel_mask: (B, Y, X).
            inputs_embeds: (B, L, D).
            labels: (B, A) scores of the answers, 0 to 1, for which the loss is the binary cross-entropy
                summed over answers; or (B,) numbers of the right answers, for which it is the cross-entropy
                among all. The mean over rows of either.
            **kwargs: `num_items_in_batch`: labels in the whole batch of which this is a part, counted as
                Trainer counts them: every number of `labels`.

        Returns:
            `logits` (B, A), and `loss`, a scalar in nats, when `labels` are given.

        Raises:
            ValueError: `labels` are neither scores of all answers nor one answer for each row.
        """
        count: Any = kwargs.pop("num_items_in_batch", None)
        encoded = self.vilt(
            input_ids, attention_mask, token_type_ids, pixel_values, pixel_mask, inputs_embeds, **kwargs
        )
        logits = self.answer_classifier(encoded.pooler_output)
        return SequenceClassifierOutput(
            loss=None if labels is None else answer_loss(logits, labels, count),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


class MMViltForImageAndTextRetrieval(MMViltPreTrainedModel):
    """Scores how well text and image go together, to rank texts for an image or images for a text."""

    towers = {"encoder": ("vilt.",), "head": ("rank_output.",)}
    _keys_to_ignore_on_load_unexpected = weights_but("rank_output", "pooler")

    def __init__(self, config: MMViltConfig) -> None:
        super().__init__(config)
        self.vilt = MMViltModel(config)
        self.rank_output = nn.Linear(config.hidden_size, 1)
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
    ) -> SequenceClassifierOutput:
        """Score pairs.

        Args:
            input_ids: See `MMViltModel.forward`, as for the arguments that follow; `image_index` there lets
                many texts share an image.
            attention_mask: (B, L).
            token_type_ids: (B, L).
            pixel_values: (B, C, Y, X).
            pixel_mask: (B, Y, X).
            inputs_embeds: (B, L, D).
            labels: (Q,), which candidate of each of Q questions is right: the B rows are Q groups of B / Q
                candidates, side by side. ViLT has 16, the first of them right. -100 leaves a group out.
            **kwargs: `num_items_in_batch`: groups in the whole batch of which this is a part.

        Returns:
            `logits` (B, 1); and `loss`, the mean cross-entropy of the right candidates in nats, when `labels`
            are given.

        Raises:
            ValueError: The rows are not as many for each of the `labels`, at least two.
        """
        count: Any = kwargs.pop("num_items_in_batch", None)
        encoded = self.vilt(
            input_ids, attention_mask, token_type_ids, pixel_values, pixel_mask, inputs_embeds, **kwargs
        )
        logits, loss = self.rank_output(encoded.pooler_output), None  # (B, 1)
        if labels is not None:
            loss = choice_loss(logits, labels, count)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )


class MMViltForImagesAndTextClassification(MMViltPreTrainedModel):
    """Classifies a text about several images, such as whether it is true of a pair (NLVR2).

    Every image meets the text in a pass of its own; the classifier reads the vectors of all.
    """

    towers = {"encoder": ("vilt.",), "head": ("images_classifier.",)}
    _keys_to_ignore_on_load_unexpected = weights_but("images_classifier", "pooler")

    def __init__(self, config: MMViltConfig) -> None:
        super().__init__(config)
        self.vilt = MMViltModel(config)
        width = config.hidden_size * config.num_images
        self.images_classifier = ViltClassifier(width, width, config.num_labels)  # ty: ignore[invalid-argument-type]
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
    ) -> SequenceClassifierOutput:
        """Classify texts, each with its images.

        Args:
            input_ids: See `MMViltModel.forward`, as for the arguments that follow.
            attention_mask: (B, L).
            token_type_ids: (B, L).
            pixel_values: (B, I, C, Y, X).
            pixel_mask: (B, I, Y, X).
            inputs_embeds: (B, L, D).
            labels: (B,) class indices.
            **kwargs: `num_items_in_batch`: labels in the whole batch of which this is a part.

        Returns:
            `logits` (B, A), and `loss`, a scalar in nats, when `labels` are given. Hidden states and
            attentions are those of all passes, (B * I, ...), the images of a row side by side.

        Raises:
            ValueError: Not `config.num_images` images for each text, or no modality for each image.
        """
        count: Any = kwargs.pop("num_items_in_batch", None)
        images = self.config.num_images
        self._check_images(pixel_values, pixel_mask)
        repeated = (
            None if part is None else part.repeat_interleave(images, dim=0)
            for part in (input_ids, attention_mask, token_type_ids, inputs_embeds)
        )
        input_ids, attention_mask, token_type_ids, inputs_embeds = repeated
        assert pixel_values is not None
        encoded = self.vilt(
            input_ids,
            attention_mask,
            token_type_ids,
            pixel_values.flatten(0, 1),
            None if pixel_mask is None else pixel_mask.flatten(0, 1),
            inputs_embeds,
            image_token_type_idx=torch.arange(1, images + 1, device=self.device).repeat(len(pixel_values)),
            **kwargs,
        )
        vectors = encoded.pooler_output.unflatten(0, (-1, images)).flatten(1)  # (B * I, D) -> (B, I * D)
        logits = self.images_classifier(vectors)
        if labels is not None:
            check_class_labels(labels, len(logits))
        return SequenceClassifierOutput(
            loss=None if labels is None else classification_loss(logits, labels, count),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def _check_images(self, pixel_values: Tensor | None, pixel_mask: Tensor | None) -> None:
        images, kinds = self.config.num_images, self.config.modality_type_vocab_size
        if pixel_values is None or pixel_values.ndim != 5 or pixel_values.shape[1] != images:
            given = None if pixel_values is None else tuple(pixel_values.shape)
            raise ValueError(
                f"`pixel_values` must be (batch, {images}, {self.config.num_channels}, height, width), "
                f"`num_images`={images} images for each text, got {given}."
            )
        if pixel_mask is not None and pixel_mask.shape[:2] != pixel_values.shape[:2]:
            raise ValueError(
                f"`pixel_mask` must be {(*pixel_values.shape[:2], *pixel_values.shape[3:])} as the images "
                f"are, got {tuple(pixel_mask.shape)}."
            )
        if kinds < images + 1:
            raise ValueError(
                f"`modality_type_vocab_size`={kinds} has a row for text and {kinds - 1} images, `num_images`="
                f"{images}; call `resize_modality_types({images + 1})` after loading."
            )
