"""ViLT: text and image patches in one transformer, without a vision tower.

Kim et al. 2021, "ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision", figure 3
(https://arxiv.org/abs/2102.03334).

Padding is not computed: the blocks run on the tokens of all rows side by side, only attention sees rows. So
texts and images of any length and size cost what they hold.

Shapes: B rows, I images, C channels, Y x X pixels, L places of a text, G x F patches of the padded images, N
most patches of an image, S = L + 1 + N, T tokens of all rows, D width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.output_capturing import capture_outputs

from ...hub.interop import ForeignLoadingMixin
from ...hub.saving import AtomicSaveMixin
from ...layers.attention import Attention
from ...layers.blocks import PreNormBlock
from ...layers.prefix_mask import following_mask, row_mask
from ...layers.texts import check_word_rows
from .cache_vilt import ViltCache
from .configuration_vilt import MMViltConfig
from .convert_vilt import VILT_CHECKPOINT
from .embeddings_vilt import ViltEmbeddings
from .inputs_vilt import check_images, patch_grids
from .layout_vilt import ViltLayout, lay_out, lay_out_padded

__all__ = ["MMViltModel", "MMViltPreTrainedModel", "weights_but"]

# What a checkpoint of the family may hold beside the encoder.
PARTS = (
    "mlm_head",
    "itm_head",
    "mpp_head",
    "rank_output",
    "answer_classifier",
    "images_classifier",
    "token_classifier",
    "pixel_decoder",
    "pooler",
    "mask_token",
)


def weights_but(*own: str) -> list[str]:
    """Patterns of all `PARTS` but one's own: loading leaves out in silence what another head has."""
    return [rf"(^|\.){part}(\.|$)" for part in PARTS if part not in own]


class ViltPooler(nn.Module):
    """The state of a text's first token through a dense layer and tanh."""

    def __init__(self, config: MMViltConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, first: Tensor) -> Tensor:
        """(B, D) to (B, D)."""
        return self.dense(first).tanh()


class MMViltPreTrainedModel(AtomicSaveMixin, ForeignLoadingMixin, PreTrainedModel):
    """What Hugging Face needs to know of every model of this family."""

    config: MMViltConfig
    config_class = MMViltConfig
    base_model_prefix = "vilt"
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    foreign_checkpoints = (VILT_CHECKPOINT,)
    _no_split_modules = ["ViltEmbeddings", "PreNormBlock"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": PreNormBlock, "attentions": Attention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # linear, convolution, embedding, layer norm
        if isinstance(module, ViltEmbeddings):
            std = self.config.initializer_range
            for table in (module.positions, module.cls_token, module.mask_token):
                if table is not None:
                    init.trunc_normal_(table, std=std)

    @torch.no_grad()
    def resize_modality_types(self, count: int) -> None:
        """Give the table of modalities more rows, each a copy of the last, as ViLT does for pairs of images.

        Args:
            count: Rows wanted: one for text and one for each image of a row.

        Raises:
            ValueError: Fewer than there are.
        """
        embeddings: Any = self.base_model.embeddings
        old = embeddings.modalities.weight
        if count < len(old):
            raise ValueError(f"`count`={count} is less than the {len(old)} modalities that there are.")
        wider = torch.cat((old, old[-1:].expand(count - len(old), -1)))
        embeddings.modalities = nn.Embedding.from_pretrained(wider, freeze=not old.requires_grad)
        self.config.modality_type_vocab_size = count


class MMViltModel(MMViltPreTrainedModel):
    """The bare encoder.

    Args:
        config: Sizes and switches.
        add_pooling_layer: Give a vector of text and image, `pooler_output`.
        use_mask_token: Have the token that stands for the patches hidden by `bool_masked_patches`.
    """

    _keys_to_ignore_on_load_unexpected = weights_but("pooler")

    def __init__(
        self, config: MMViltConfig, add_pooling_layer: bool = True, use_mask_token: bool = False
    ) -> None:
        super().__init__(config)
        self.embeddings = ViltEmbeddings(config, use_mask_token)
        self.blocks = nn.ModuleList(PreNormBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = ViltPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.text.tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.text.tokens = value  # ty: ignore[invalid-assignment]

    def embed_patches(self, pixel_values: Tensor) -> Tensor:
        """(I, C, Y, X) pixels to (I, G, F, D) projected patches, for `patch_embeds` of `forward`.

        Many texts about one image then need its pixels once.
        """
        patch_size = self.config.patch_size
        patches = self.embeddings.patches(pixel_values)  # (I, G * F, D)
        return patches.unflatten(1, (pixel_values.shape[2] // patch_size, -1))

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        patch_embeds: Tensor | None = None,
        image_token_type_idx: int | Tensor | None = None,
        image_index: Tensor | None = None,
        bool_masked_patches: Tensor | None = None,
        prefix_mask: Tensor | None = None,
        past_key_values: ViltCache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode texts, each with an image.

        Args:
            input_ids: (B, L) token ids.
            attention_mask: (B, L), 0 on padding, which may stand on either side of a text.
            token_type_ids: (B, L) segments of a text; all 0 when `None`.
            pixel_values: (I, C, Y, X), images padded on the right and below to multiples of the patch size.
            pixel_mask: (I, Y, X), 1 on the image, 0 on padding; without it nothing is padding.
            inputs_embeds: (B, L, D) vectors of the words, instead of `input_ids`.
            patch_embeds: (I, G, F, D), what `embed_patches` gives, instead of `pixel_values`.
            image_token_type_idx: Modality of the images, 1 by default; (B,) when it differs by row.
            image_index: (B,) the image that goes with each text; the first with the first and so on by
                default, and then I is B.
            bool_masked_patches: (B, N), true where the mask token stands for a patch of the image's own grid;
                then no patch is left out by `max_patches`.
            prefix_mask: (B, L), 1 on the text that every token sees, as it sees the image. The text that
                follows sees also what stands before it, and nobody else sees it. All is prefix by default.
            past_key_values: Where keys and values are kept. Once it is filled, `input_ids` (B, S) and their
                segments are what follows, nothing else is given, and `last_hidden_state` is (B, S, D).
            **kwargs: `output_hidden_states`, `output_attentions` (eager kernel only); with them, and under
                `torch.compile`, padding is computed and hidden.

        Returns:
            `last_hidden_state` (B, S, D) after the final norm: the places of the text, the [CLS] of the
            image, the patches of the image's own grid row by row; 0 where there is padding. N is the most
            patches of an image; under `torch.compile` as in `bool_masked_patches`, else G * F or, if
            that is less and some are drawn, `max_patches`. And `pooler_output` (B, D).

        Raises:
            ValueError: A text longer than the position table, without a token or with padding inside; an
                image without a patch; numbers of texts, images and masks that do not go together.
        """
        if past_key_values is not None and past_key_values.filled:
            return self._read_on(input_ids, token_type_ids, past_key_values, **kwargs)
        masks = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        sizes = (self.config.hidden_size, self.config.max_position_embeddings)
        words = check_word_rows(input_ids, inputs_embeds, masks, *sizes)
        check_images(self.config, len(words), pixel_values, pixel_mask, patch_embeds, image_index)
        patch_embeds = patch_embeds if pixel_values is None else self.embed_patches(pixel_values)
        image = (patch_embeds, pixel_mask, image_index, image_token_type_idx, bool_masked_patches)
        tokens, layout = self._embed(words, attention_mask, token_type_ids, *image)
        if past_key_values is not None:
            past_key_values.begin(layout.real_places(tokens), words.shape[1])
        return self._encode(tokens, layout, prefix_mask, past_key_values, **kwargs)

    def _embed(
        self,
        words: Tensor,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        patch_embeds: Tensor | None,
        pixel_mask: Tensor | None,
        image_index: Tensor | None,
        image_token_type_idx: int | Tensor | None,
        hidden: Tensor | None,
    ) -> tuple[Tensor, ViltLayout]:
        """(T, D) tokens and where they stand."""
        assert patch_embeds is not None
        modalities = self._modalities(image_token_type_idx, words)
        grids = patch_grids(patch_embeds, pixel_mask, self.config.patch_size)
        grids = grids if image_index is None else grids.of_rows(image_index)
        if attention_mask is None:
            attention_mask = torch.ones(words.shape[:2], dtype=torch.long, device=words.device)
        limit = self.config.max_patches if self.training and hidden is None else None
        if torch.compiler.is_compiling():
            layout = lay_out_padded(attention_mask, grids, None if hidden is None else hidden.shape[1], limit)
        else:
            layout = lay_out(attention_mask, grids, limit)
        self._check_hidden(hidden, layout, words)
        patches = patch_embeds.flatten(1, 2)
        tokens = self.embeddings(
            words, token_type_ids, patches, image_index, modalities, layout, grids, hidden
        )
        return tokens, layout

    def _encode(
        self,
        tokens: Tensor,
        layout: ViltLayout,
        prefix_mask: Tensor | None,
        past_key_values: ViltCache | None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """The blocks, on tokens side by side or, where hidden states are to be seen, on rows."""
        seen = None if prefix_mask is None else self._seen(prefix_mask, layout)
        layers = [None] * len(self.blocks) if past_key_values is None else past_key_values.layers
        if torch.compiler.is_compiling() or self.records(kwargs):
            mask = row_mask(self.config, layout.output, tokens, seen, layout.real)
            states = layout.output.unpack(tokens)  # (B, S, D)
            for block, kept in zip(self.blocks, layers, strict=True):
                states = block(states, attention_mask=mask, kept=kept, **kwargs)
            tokens = layout.output.pack(states)
        else:
            # Keys that are kept have the places of the text first, to be found again.
            rows = layout.rows if past_key_values is None else layout.output
            mask = row_mask(self.config, rows, tokens, seen, None, bounded=past_key_values is None)
            for block, kept in zip(self.blocks, layers, strict=True):
                tokens = block(tokens, attention_mask=mask, packed_rows=rows, kept=kept, **kwargs)
        tokens = self.norm(tokens)
        states = layout.output.unpack(tokens)
        if layout.real is not None:
            states = states * layout.real.unsqueeze(2)
        return BaseModelOutputWithPooling(
            last_hidden_state=states,
            pooler_output=None if self.pooler is None else self.pooler(tokens[layout.first]),
        )

    def _read_on(
        self, words: Tensor | None, token_type_ids: Tensor | None, past_key_values: ViltCache, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """The states, (B, S, D), of (B, S) words that follow what was read."""
        assert words is not None
        positions, real = past_key_values.go_on(words.shape[1])  # (B, S), (B, K)
        segments = torch.zeros_like(words) if token_type_ids is None else token_type_ids
        text = self.embeddings.text(words.flatten(), positions.flatten(), segments.flatten())
        states = (text + self.embeddings.modalities.weight[0]).unflatten(0, words.shape)  # (B, S, D)
        mask = following_mask(self.config, states, real)
        for block, kept in zip(self.blocks, past_key_values.layers, strict=True):
            states = block(states, attention_mask=mask, kept=kept, **kwargs)
        return BaseModelOutputWithPooling(last_hidden_state=self.norm(states))

    @staticmethod
    def _seen(prefix_mask: Tensor, layout: ViltLayout) -> Tensor:
        """(T,) bool, true on what everybody sees: the image and the prefix of the text."""
        text = prefix_mask.flatten()[layout.text_places].bool()
        image = torch.ones_like(layout.order[len(text) :], dtype=torch.bool)
        return layout.side_by_side(torch.cat((text, image)))

    def _modalities(self, image_token_type_idx: int | Tensor | None, words: Tensor) -> Tensor:
        """(B,) row of the table of modalities for each image."""
        if isinstance(image_token_type_idx, Tensor):
            return image_token_type_idx.to(words.device)
        number = 1 if image_token_type_idx is None else image_token_type_idx
        if not 0 <= number < self.config.modality_type_vocab_size:
            raise ValueError(
                f"`image_token_type_idx`={number} is not below `modality_type_vocab_size`="
                f"{self.config.modality_type_vocab_size}; call `resize_modality_types({number + 1})` first."
            )
        return torch.full((len(words),), number, device=words.device)

    @staticmethod
    def _check_hidden(bool_masked_patches: Tensor | None, layout: ViltLayout, words: Tensor) -> None:
        if bool_masked_patches is None:
            return
        wanted = (len(words), layout.output.length - words.shape[1] - 1)
        if tuple(bool_masked_patches.shape) != wanted or bool_masked_patches.is_floating_point():
            raise ValueError(
                f"`bool_masked_patches` must be {wanted}, true where a patch is hidden, got "
                f"{tuple(bool_masked_patches.shape)} of {bool_masked_patches.dtype}."
            )

    def records(self, kwargs: Mapping[str, Any]) -> bool:
        """Whether hidden states or attentions are asked for, which come in rows."""
        asked = (kwargs.get(name, getattr(self.config, name)) for name in RECORDED)
        return any(flag not in (False, None) for flag in asked)


RECORDED = ("output_hidden_states", "output_attentions")
