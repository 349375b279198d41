"""CLIP's text encoder: a causal transformer whose state at the end-of-text token is the text's vector.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", section 2.4
(https://arxiv.org/abs/2103.00020).

Padding is not computed: with an `attention_mask` the blocks run on the real tokens side by side, and only
attention sees rows. Since a token looks back only, padding behind it changes nothing.

Shapes: B texts, L places of the longest row, T real tokens of all rows together, D width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.output_capturing import capture_outputs

from ...hub.interop import ForeignLoadingMixin
from ...hub.saving import AtomicSaveMixin
from ...layers.attention import Attention
from ...layers.blocks import PreNormBlock
from ...layers.packing import PackedRows
from .configuration_clip_text import MMCLIPTextConfig
from .convert_clip_text import CLIP_TEXT_CHECKPOINT, TEXT_OF_CLIP_CHECKPOINT

__all__ = ["MMCLIPTextModel", "MMCLIPTextPreTrainedModel"]


class CLIPTextEmbeddings(nn.Module):
    """Token vectors plus learned positions."""

    def __init__(self, config: MMCLIPTextConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """(..., ) ids and places to (..., D)."""
        return self.dropout(self.tokens(input_ids) + self.positions(position_ids))


class MMCLIPTextPreTrainedModel(AtomicSaveMixin, ForeignLoadingMixin, PreTrainedModel):
    """What Hugging Face needs to know of every model of this family."""

    config_class = MMCLIPTextConfig
    base_model_prefix = "text_model"
    main_input_name = "input_ids"
    input_modalities = ["text"]
    supports_gradient_checkpointing = True
    foreign_checkpoints = (CLIP_TEXT_CHECKPOINT, TEXT_OF_CLIP_CHECKPOINT)
    _no_split_modules = ["CLIPTextEmbeddings", "PreNormBlock"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": PreNormBlock, "attentions": Attention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As OpenAI's `initialize_parameters`: the deeper the model, the smaller what a block adds."""
        super()._init_weights(module)
        width, depth = self.config.hidden_size, self.config.num_hidden_layers
        if isinstance(module, CLIPTextEmbeddings):
            init.normal_(module.tokens.weight, std=self.config.initializer_range)
            init.normal_(module.positions.weight, std=self.config.initializer_range / 2)
        elif isinstance(module, PreNormBlock):
            attention, mlp = module.attention, module.mlp
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                init.normal_(projection.weight, std=width**-0.5)
            init.normal_(mlp.fc1.weight, std=(2 * width) ** -0.5)
            for projection in (attention.o_proj, mlp.fc2):
                init.normal_(projection.weight, std=width**-0.5 * (2 * depth) ** -0.5)


class MMCLIPTextModel(MMCLIPTextPreTrainedModel):
    """The text encoder."""

    def __init__(self, config: MMCLIPTextConfig) -> None:
        super().__init__(config)
        self.embeddings = CLIPTextEmbeddings(config)
        self.blocks = nn.ModuleList(
            PreNormBlock(config, is_causal=True) for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.tokens = value  # ty: ignore[invalid-assignment]

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode a batch of texts.

        Args:
            input_ids: (B, L) token ids, each text ended by the end-of-text token.
            attention_mask: (B, L), 1 on tokens and 0 on the padding behind them. With it the padding is not
                computed; without it every place is, as Stable Diffusion wants it. Under `torch.compile`, and
                when hidden states or attentions are asked for, padding is computed and hidden.
            **kwargs: `output_hidden_states`, `output_attentions` (eager kernel only).

        Returns:
            `last_hidden_state` (B, L, D) after the final norm, zero at padding that was not computed, and
            `pooler_output` (B, D), the state at the end of the text.

        Raises:
            ValueError: A text longer than the position table, padding in front of or inside a text, an
                empty row, or a text without an end.
        """
        self._check_shapes(input_ids, attention_mask)
        if attention_mask is None or torch.compiler.is_compiling() or self._records(kwargs):
            states, end = self._encode_rows(input_ids, attention_mask, **kwargs)
        else:
            states, end = self._encode_packed(input_ids, attention_mask, **kwargs)
        pooled = states[torch.arange(len(states), device=states.device), end]  # (B, D)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pooled)

    def _encode_rows(
        self, input_ids: Tensor, attention_mask: Tensor | None, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[Tensor, Tensor]:
        """All places, padding too: (B, L, D) states and the (B,) places of the ends."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)  # (L,)
        states = self.embeddings(input_ids, places)  # (B, L, D)
        mask = create_causal_mask(self.config, states, attention_mask, past_key_values=None)
        for block in self.blocks:
            states = block(states, attention_mask=mask, **kwargs)
        return self.norm(states), self._end_of_text(input_ids)

    def _encode_packed(
        self, input_ids: Tensor, attention_mask: Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[Tensor, Tensor]:
        """Real tokens only; the same results as `_encode_rows` at their places."""
        rows = PackedRows.of_lengths(self._lengths(input_ids, attention_mask))
        places = torch.arange(rows.length, device=input_ids.device).expand(rows.rows, -1)  # (B, longest)
        ids = rows.pack(input_ids[:, : rows.length])  # (T,)
        states = self.embeddings(ids, rows.pack(places))  # (T, D)
        # Rows begin at place 0 and look back only: a kernel that can be causal by itself needs no mask.
        mask = create_causal_mask(
            self.config, states.new_empty(rows.rows, rows.length, 1), None, past_key_values=None
        )
        for block in self.blocks:
            states = block(states, attention_mask=mask, packed_rows=rows, **kwargs)
        states = rows.unpack(self.norm(states))  # (B, longest, D)
        states = nn.functional.pad(states, (0, 0, 0, input_ids.shape[1] - rows.length))  # (B, L, D)
        return states, self._end_of_text(rows.unpack(ids))

    def _end_of_text(self, input_ids: Tensor) -> Tensor:
        """(B,) place of the token whose state is the text's vector."""
        if self.config.end_of_text == "highest_id":
            return input_ids.argmax(dim=-1)
        return (input_ids == self.config.eos_token_id).int().argmax(dim=-1)

    def _records(self, kwargs: Mapping[str, Any]) -> bool:
        """Whether hidden states or attentions are asked for, which come in rows."""
        asked = (kwargs.get(name, getattr(self.config, name)) for name in RECORDS)
        return any(flag not in (False, None) for flag in asked)

    def _check_shapes(self, input_ids: Tensor, attention_mask: Tensor | None) -> None:
        if input_ids.ndim != 2 or not input_ids.shape[1]:
            raise ValueError(f"`input_ids` must be (batch, length), got {tuple(input_ids.shape)}.")
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"`attention_mask` must have the shape of `input_ids`, {tuple(input_ids.shape)}, "
                f"got {tuple(attention_mask.shape)}."
            )
        most = self.config.max_position_embeddings
        if input_ids.shape[1] > most:
            raise ValueError(
                f"`input_ids` has rows of {input_ids.shape[1]} tokens but the position table ends at {most}; "
                f"truncate with `max_length={most}`, so that the end-of-text token is kept."
            )

    def _lengths(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B,) number of tokens of each row, all checks that need a look at the numbers made."""
        real = attention_mask.bool()
        lengths = real.sum(dim=-1)
        left = real[:, 1:] & ~real[:, :-1]  # a token behind padding
        ended = real & (input_ids == self.config.eos_token_id)
        open_end = ~ended.any(dim=-1) & (self.config.end_of_text == "first_eos")
        wrong = torch.stack((left.any(dim=-1), lengths == 0, open_end))  # (3, B)
        if wrong.any():
            kind, row = wrong.nonzero()[0].tolist()
            raise ValueError(f"Row {row} of `input_ids` {PROBLEMS[kind]}")
        return lengths


RECORDS = ("output_hidden_states", "output_attentions")
PROBLEMS = (
    'has padding before its last token; set `padding_side="right"` on the tokenizer.',
    "has no token at all: its `attention_mask` is 0 throughout; leave empty texts out.",
    "has no end-of-text token (`eos_token_id`); let the tokenizer add it, also when it truncates.",
)
