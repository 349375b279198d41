"""ViLT writes a text about an image: captions, answers in words.

The image and a prompt are a prefix whose tokens see each other; what is written sees them and its own past.
Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
section 3.2.1 (https://arxiv.org/abs/1910.10683), on the encoder of Kim et al. 2021, "ViLT"
(https://arxiv.org/abs/2102.03334).

Shapes: B rows, L places of a text, W words, D width, G x F patches, C channels, Y x X pixels.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from ...layers.prefix_cache import check_own_cache, keeps_cache, next_inputs, read_prompts
from ...layers.prompts import check_prompts
from ...objectives.batch_mean import labelled_cross_entropy
from ...objectives.masked_language import check_place_labels
from .cache_vilt import ViltCache
from .configuration_vilt import MMViltConfig
from .modeling_vilt import MMViltModel, MMViltPreTrainedModel, weights_but
from .text_heads_vilt import ViltPredictionHead

__all__ = ["MMViltForImageToText"]

# What `generate` gives on: what is read, and what is asked.
LASTING = ("attention_mask", "token_type_ids", "pixel_values", "pixel_mask", "patch_embeds")
ASKED = ("logits_to_keep", "output_hidden_states", "output_attentions")


class MMViltForImageToText(MMViltPreTrainedModel, GenerationMixin):
    """Continues a text about an image; its head of words is that of `MMViltForMaskedLM`.

    What is written does not change what the image and the prompt are to it: `generate` reads them once, and
    then one token at a time, with the keys and values of those before.
    """

    towers = {"encoder": ("vilt.",), "head": ("mlm_head.",)}
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
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        prefix_mask: Tensor | None = None,
        labels: Tensor | None = None,
        patch_embeds: Tensor | None = None,
        past_key_values: ViltCache | None = None,
        logits_to_keep: int = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """Guess the word after each place.

        Args:
            input_ids: (B, L), prompt and text; see `MMViltModel.forward`, as for the arguments that follow.
            attention_mask: (B, L).
            token_type_ids: (B, L).
            pixel_values: (B, C, Y, X).
            pixel_mask: (B, Y, X).
            prefix_mask: (B, L), 1 on the prompt. By default what stands before the first of the `labels`,
                without them everything.
            labels: (B, L), the token at each place of the text to be written, -100 elsewhere. The place
                before it is where it is guessed.
            patch_embeds: (B, G, F, D), instead of `pixel_values`.
            past_key_values: Where keys and values are kept, for `generate`. Rows that continue one prompt
                stand side by side; it is read once for all of them.
            logits_to_keep: How many of the last places get logits; 0 for all.
            **kwargs: `num_items_in_batch`: labels in the whole batch of which this is a part.

        Returns:
            `loss`, the mean cross-entropy in nats, an exact 0 without any label, when `labels` are given; and
            `logits` (B, L, W). With `labels` while training `logits` is `None`: the head runs where the next
            token has a label.

        Raises:
            ValueError: `labels` are not one for each place, the first token has one, or the prefix has one.
        """
        count: Any = kwargs.pop("num_items_in_batch", None)
        if labels is not None:
            prefix_mask = _prefix(labels, prefix_mask, input_ids)
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        inputs |= {"token_type_ids": token_type_ids, "prefix_mask": prefix_mask}
        inputs |= {"pixel_values": pixel_values, "pixel_mask": pixel_mask, "patch_embeds": patch_embeds}
        encoded = self._encode(inputs, past_key_values, **kwargs)
        states = encoded.last_hidden_state[:, : input_ids.shape[1]]  # (B, L, D)
        logits = None
        if labels is None or not self.training or torch.compiler.is_compiling():
            wanted = states if labels is not None else states[:, -logits_to_keep:]
            logits = self.mlm_head(wanted)  # (B, L, W)
        loss = None if labels is None else self._loss(states, logits, labels, count)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=None if logits is None else logits[:, -logits_to_keep:],
            past_key_values=past_key_values,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def _encode(self, inputs: dict[str, Any], past_key_values: ViltCache | None, **kwargs: Any) -> Any:
        """What the encoder makes of rows; where states are recorded they are those of every row."""
        encode = partial(self.vilt, past_key_values=past_key_values, **kwargs)
        return read_prompts(encode, inputs, None if self.vilt.records(kwargs) else past_key_values)

    def _loss(
        self, states: Tensor, logits: Tensor | None, labels: Tensor, count: Tensor | int | None
    ) -> Tensor:
        """The loss of (B, L) labels, each guessed from the state (B, L, D) before it."""
        check_place_labels(labels, states)
        following = pad(labels[:, 1:], (0, 1), value=-100).flatten()  # (B * L,)
        if logits is not None:
            return labelled_cross_entropy(logits.flatten(0, 1), following, count)
        counted = (following != -100).nonzero().squeeze(1)
        words = self.mlm_head(states.flatten(0, 1)[counted])
        return labelled_cross_entropy(words, following[counted], count)

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:  # ty: ignore[incompatible-method-override]
        """Write texts about images.

        Args:
            inputs: (B, L) prompts, all prefix, also as `input_ids`; the token that begins a text by default.
                Prompts of unequal length are to be padded on the left.
            **kwargs: `pixel_values`, masks, and all that transformers' `generate` takes. Without a length a
                text may have as many tokens as there are positions. `use_cache=False` reads image and text
                anew for each word.

        Returns:
            (B, ...) token ids, prompts included, or what transformers' `generate` returns when asked.

        Raises:
            ValueError: More tokens are asked for than there are positions, a prompt ends with padding, or a
                cache of another kind is asked for.
        """
        pixels = kwargs.pop("pixel_values", None)
        if pixels is not None:
            kwargs["patch_embeds"] = self.vilt.embed_patches(pixels)
        ids = kwargs.pop("input_ids", inputs)
        if ids is None:
            begin: Any = self.config.bos_token_id
            ids = torch.full((len(kwargs["patch_embeds"]), 1), begin, device=self.device)
        mask = kwargs.get("attention_mask")
        if mask is None:
            mask = kwargs["attention_mask"] = torch.ones_like(ids)
        check_prompts(ids, mask, self.config.max_position_embeddings, kwargs)
        check_own_cache(kwargs)
        if not {"max_length", "max_new_tokens", "generation_config"} & set(kwargs):
            kwargs["max_length"] = self.config.max_position_embeddings
        if keeps_cache(kwargs, self.generation_config):
            kwargs["past_key_values"] = ViltCache(self.config, len(ids))
        else:
            kwargs.setdefault("prefix_mask", mask)
        options: Any = kwargs
        return super().generate(ids, **options)  # ty: ignore[invalid-argument-type]

    def prepare_inputs_for_generation(  # ty: ignore[incompatible-method-override]
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: ViltCache | None = None,
        prefix_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """What `forward` is given next, see `next_inputs`."""
        beside = {name: kwargs.get(name) for name in LASTING}
        given = next_inputs(input_ids, next_sequence_length, past_key_values, prefix_mask, beside)
        asked = {name: kwargs[name] for name in ASKED if kwargs.get(name) is not None}
        return given | asked


def _prefix(labels: Tensor, prefix_mask: Tensor | None, input_ids: Tensor) -> Tensor:
    """(B, L), 1 on what all tokens may see; nothing that is to be guessed may be among it."""
    if labels.shape != input_ids.shape:
        raise ValueError(
            f"`labels` must be {tuple(input_ids.shape)} as `input_ids`, got {tuple(labels.shape)}."
        )
    learnt = labels != -100
    if prefix_mask is None:
        return learnt.long().cumsum(dim=1) == 0
    if not torch.compiler.is_compiling() and (learnt & prefix_mask.bool()).any():
        row = (learnt & prefix_mask.bool()).any(dim=1).nonzero()[0].item()
        raise ValueError(
            f"Row {row} has `labels` where `prefix_mask` is 1: what every token sees cannot be learnt; put "
            "-100 there."
        )
    return prefix_mask
