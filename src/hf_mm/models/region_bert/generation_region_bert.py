"""A vision-language BERT on regions writes a text about an image: captions, answers in words.

Regions and a prompt are a prefix whose tokens see each other; what is written sees them and its own past:
Zhou et al. 2020, "Unified Vision-Language Pre-Training for Image Captioning and VQA", section 3
(https://arxiv.org/abs/1909.11059); with object tags Li et al. 2020, "Oscar", section 4
(https://arxiv.org/abs/2004.06165).

Shapes: B rows, L places of a text, R places for regions, F width of features, D width of tokens, W words.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from ...layers.prefix_cache import check_own_cache, keeps_cache, next_inputs, read_prompts
from ...layers.prompts import check_prompts
from ...objectives.batch_mean import labelled_cross_entropy
from ...objectives.masked_language import masked_token_loss
from .cache_region_bert import RegionBertCache
from .configuration_region_bert import MMRegionBertConfig
from .modeling_region_bert import MMRegionBertModel, MMRegionBertPreTrainedModel, weights_beside
from .parts_region_bert import RegionBertPredictionHead
from .written_region_bert import next_words, prefix_of_labels

__all__ = ["MMRegionBertForImageToText"]

# What stays as it is while a text is written.
LASTING = (
    "attention_mask",
    "token_type_ids",
    "region_features",
    "region_boxes",
    "region_mask",
    "image_features",
)


class MMRegionBertForImageToText(MMRegionBertPreTrainedModel, GenerationMixin):
    """Continues a text about the regions of an image; its head of words is that of `MMRegionBertForMaskedLM`.

    It begins as what `MMRegionBertForPreTraining` has learnt by the task "caption". What is written does not
    change what regions and prompt are to it: `generate` reads them once, and then one token at a time, with
    the keys and values of those before. All is read anew for each word where a region is told how long the
    text is, or a word what the image looks like (VL-BERT).
    """

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
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        region_features: Tensor | None = None,
        region_boxes: Tensor | None = None,
        region_mask: Tensor | None = None,
        prefix_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: RegionBertCache | None = None,
        logits_to_keep: int = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """Guess the word after each place.

        Args:
            input_ids: (B, L), prompt and text; see `MMRegionBertModel.forward`, as for what follows.
            attention_mask: (B, L).
            token_type_ids: (B, L).
            region_features: (B, R, F).
            region_boxes: (B, R, 4).
            region_mask: (B, R).
            prefix_mask: (B, L), 1 on the prompt; everything by default.
            labels: (B, L), the token at each place of the text to be written, guessed at the place before it;
                -100 elsewhere, and that is the prefix.
            past_key_values: Where keys and values are kept, for `generate`. Rows that continue one prompt
                stand side by side; it is read once for all of them.
            logits_to_keep: How many of the last places get logits; 0 for all.
            **kwargs: `num_items_in_batch`: labels in the whole batch of which this is a part; and what else
                `MMRegionBertModel.forward` takes.

        Returns:
            `loss`, the mean cross-entropy in nats, an exact 0 without any label, when `labels` are given; and
            `logits` (B, L, W). With `labels` while training `logits` is `None`: the head runs where the next
            token has a label.

        Raises:
            ValueError: `labels` are not one for each place, the first has one, or a prefix is given too.
        """
        count: Any = kwargs.pop("num_items_in_batch", None)
        if labels is not None:
            prefix_mask = _prefix_beside(prefix_mask, labels, input_ids)
        text = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        regions = {"region_features": region_features, "region_boxes": region_boxes}
        inputs: dict[str, Any] = {**text, **regions, "region_mask": region_mask, "prefix_mask": prefix_mask}
        kept: Any = {"past_key_values": past_key_values}
        encoded = read_prompts(partial(self.region_bert, **kept), {**inputs, **kwargs}, past_key_values)
        states = encoded.last_hidden_state  # (B, L, D)
        logits = None
        if labels is None or not self.training or torch.compiler.is_compiling():
            logits = self.mlm_head(states if labels is not None else states[:, -logits_to_keep:])
        loss = None if labels is None else self._loss(states, logits, labels, count)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=None if logits is None else logits[:, -logits_to_keep:],
            past_key_values=past_key_values,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def _loss(
        self, states: Tensor, logits: Tensor | None, labels: Tensor, count: Tensor | int | None
    ) -> Tensor:
        """The loss of (B, L) labels, each guessed from the state (B, L, D) before it."""
        if logits is None:
            return masked_token_loss(states, self.mlm_head, next_words(labels), count)
        return labelled_cross_entropy(logits.flatten(0, 1), next_words(labels).flatten(), count)

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:  # ty: ignore[incompatible-method-override]
        """Write texts about images.

        Args:
            inputs: (B, L) prompts, all prefix, also as `input_ids`; the token that begins a text by default.
                Prompts of unequal length are to be padded on the left.
            **kwargs: Regions, masks, and all that transformers' `generate` takes. Without a length a text may
                have as many tokens as there are positions. `use_cache=False` reads image and text anew for
                each word.

        Returns:
            (B, ...) token ids, prompts included, or what transformers' `generate` returns when asked.

        Raises:
            ValueError: More tokens are asked for than there are positions, a prompt ends with padding, or a
                cache is asked for of a model that cannot keep one, or of another kind.
        """
        ids = kwargs.pop("input_ids", inputs)
        if ids is None:
            begin: Any = self.config.bos_token_id
            ids = torch.full((len(kwargs["region_features"]), 1), begin, device=self.device)
        mask = kwargs.get("attention_mask")
        if mask is None:
            mask = kwargs["attention_mask"] = torch.ones_like(ids)
        most = self.config.max_text_tokens
        check_prompts(ids, mask, most, kwargs)
        check_own_cache(kwargs)
        if not {"max_length", "max_new_tokens", "generation_config"} & set(kwargs):
            kwargs["max_length"] = most
        if self._keeps(kwargs):
            kwargs["past_key_values"] = RegionBertCache(self.config, len(ids))
        else:
            kwargs |= {"use_cache": False, "prefix_mask": kwargs.get("prefix_mask", mask)}
        options: Any = kwargs
        return super().generate(ids, **options)  # ty: ignore[invalid-argument-type]

    def prepare_inputs_for_generation(  # ty: ignore[incompatible-method-override]
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: RegionBertCache | None = None,
        prefix_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """What `forward` is given next, see `next_inputs`."""
        beside = {name: kwargs.get(name) for name in LASTING}
        given = next_inputs(input_ids, next_sequence_length, past_key_values, prefix_mask, beside)
        return given | {"logits_to_keep": kwargs.get("logits_to_keep") or 0}

    def _keeps(self, options: dict[str, Any]) -> bool:
        """Whether keys and values are kept: as `options` of `generate` say, where that is possible."""
        if self.config.region_position != "after_text" and not self.config.text_sees_image:
            return keeps_cache(options, self.generation_config)
        if options.get("use_cache"):
            raise ValueError(
                "`use_cache`=True: the regions of this model change with the length of the text, or its "
                f'words know the image (`region_position`="{self.config.region_position}", `text_sees_image`='
                f"{self.config.text_sees_image}), so that no keys can be kept; leave it out."
            )
        return False


def _prefix_beside(prefix_mask: Tensor | None, labels: Tensor, input_ids: Tensor) -> Tensor:
    if prefix_mask is not None:
        raise ValueError(
            "`prefix_mask` and `labels` are both given: the prefix is where `labels` are -100; leave out "
            "`prefix_mask`."
        )
    return prefix_of_labels(labels, input_ids)
