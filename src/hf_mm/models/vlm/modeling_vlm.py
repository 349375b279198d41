"""Vision-language model: images as vectors among the tokens of a causal language model.

Liu et al. 2023, "Visual Instruction Tuning" (https://arxiv.org/abs/2304.08485), figure 1, and Deitke et
al. 2024, "Molmo and PixMo" (https://arxiv.org/abs/2409.17146), section 2.

Shapes: B rows, L tokens of a row, I images, V views of all images, N patches of a view, C width of a patch,
T image tokens of all images, P patches in the cell of a token, D width of the language model, W words.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from ...hub.interop import ForeignLoadingMixin
from ...hub.saving import AtomicSaveMixin
from ...imaging.crops import crop_token_index
from ...layers.packed_mask import packed_attention_mask
from .configuration_vlm import MMVLMConfig
from .connector_vlm import build_connector
from .convert_vlm import LLAVA_CHECKPOINT
from .vision_tower_vlm import VisionTower

__all__ = ["MMVLMForConditionalGeneration", "MMVLMOutput", "MMVLMPreTrainedModel"]


@dataclass
class MMVLMOutput(ModelOutput):
    """What a vision-language model returns.

    Attributes:
        loss: Mean cross-entropy in nats over the labelled tokens, when `labels` are given.
        logits: (B, L, W), or what `logits_to_keep` leaves of it.
        past_key_values: The cache, when asked for.
        hidden_states: Of the language model, when asked for.
        attentions: Of the language model, when asked for.
        image_hidden_states: (T, D), the vectors put in the place of the image tokens.
        last_hidden_state: What the head of the language model was given, (B, L, D) or what `logits_to_keep`
            leaves of it, for losses that apply the head themselves (TRL); `None` in a compiled model.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    image_hidden_states: Tensor | None = None
    last_hidden_state: Tensor | None = None


@contextmanager
def _inputs_of(module: nn.Module | None) -> Generator[list[Tensor]]:
    """Collect what a module is called with; nothing while compiling, where hooks would break the graph."""
    states: list[Tensor] = []
    if module is None or torch.compiler.is_compiling():
        yield states
        return
    handle = module.register_forward_pre_hook(lambda _, args: states.append(args[0]))
    try:
        yield states
    finally:
        handle.remove()


class MMVLMPreTrainedModel(AtomicSaveMixin, ForeignLoadingMixin, PreTrainedModel):
    """What Hugging Face needs to know of every model of this family."""

    config_class = MMVLMConfig
    foreign_checkpoints = (LLAVA_CHECKPOINT,)
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["CellAttention"]
    _skip_keys_device_placement = ["past_key_values"]
    # Published checkpoints hold all blocks of their tower, also those above the last one in use.
    _keys_to_ignore_on_load_unexpected = [r"^vision_tower\.encoder\."]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MMVLMForConditionalGeneration) and module.padding_embedding is not None:
            init.normal_(module.padding_embedding, std=self.config.initializer_range)


class MMVLMForConditionalGeneration(MMVLMPreTrainedModel, GenerationMixin):
    """A vision tower, a connector and a causal language model, wrapped whole.

    Args:
        config: The parts and how they fit.
        vision_encoder: The tower's encoder when it is at hand, as from `AutoModel.from_pretrained`.
        language_model: The language model when it is at hand.

    Arguments of a call:
        input_ids: (B, L); `config.image_token_id` stands for one vector of an image.
        attention_mask: (B, L), 0 on padding; not needed for packed rows.
        position_ids: (B, L).
        pixel_values: (V, 3, S, S), images in the order of their placeholders.
        image_grids: See `get_image_features`, as `image_masks`.
        labels: (B, L), -100 where nothing is learned; shifted here, not by the caller.
        document_ids: (B, L) of packed rows, see `packed_attention_mask`; needs `position_ids`.
        branch_ids: (B, L) of packed rows; all zero when `None`.
        past_key_values: The cache of the tokens before these.
        inputs_embeds: (B, L, D) in the place of `input_ids`.
        use_cache: Return the cache.
        logits_to_keep: How many last positions get logits (0: all), or which: (B, L) booleans give logits
            (kept, W) and, with `labels`, a loss over the kept positions.
        mm_encoder_outputs: {"image": what `get_image_features` returned} in the place of pixels.
        num_items_in_batch: The labelled tokens of all accumulated batches; divides the loss in the place of
            the number in this one.

    A call returns `MMVLMOutput`; what else it is given goes to the language model.
    """

    # What can be trained, frozen or adapted apart, by the beginnings of the names of the weights.
    towers = {
        "vision": ("vision_tower.",),
        "connector": ("connector.", "padding_embedding"),
        "language": ("language_model.",),
    }

    def __init__(
        self,
        config: MMVLMConfig,
        vision_encoder: PreTrainedModel | None = None,
        language_model: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config)
        self.vision_tower = VisionTower(config, vision_encoder)
        self.connector = build_connector(config, self.vision_tower.width)
        self.padding_embedding = (
            nn.Parameter(torch.zeros(2, self.vision_tower.width)) if config.padding_embedding else None
        )
        # Whole, head included: soft-caps, logit scaling and biases of the head survive.
        self.language_model = (
            AutoModelForCausalLM.from_config(config.text_config) if language_model is None else language_model
        )
        self.post_init()
        # A generated placeholder would ask for an image that does not exist.
        self.generation_config.suppress_tokens = [config.image_token_id]

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)

    def get_image_features(
        self,
        pixel_values: Tensor,
        image_grids: Tensor | None = None,
        image_masks: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode images once; pass the result as `mm_encoder_outputs={"image": ...}` as often as wanted.

        Args:
            pixel_values: (V, 3, S, S), the views of all images one after the other, of each image the
                global view first, then its crops row by row.
            image_grids: (I, 2) rows and columns of crops of each image, (0, 0) for a single view;
                `None` when all images are single views.
            image_masks: (V, N) share of each patch that is picture and not padding; needed when
                `config.padding_embedding` is set.

        Returns:
            `last_hidden_state` (V, N, C), and as `pooler_output` a list of (tokens, D), one per image.
        """
        patches = self.vision_tower(pixel_values)  # (V, N, C)
        if self.padding_embedding is not None:
            patches = patches + self._padding_vectors(*self.padding_embedding, image_masks)
        if image_grids is None or not image_grids.any():
            cells = self._single_view_cells(patches)  # (T, P, C)
            counts = [cells.shape[0] // patches.shape[0]] * patches.shape[0]
        else:
            index, counts = self._crop_cells(image_grids, patches.shape[0])
            cells = patches.flatten(0, 1)[index.to(patches.device)]  # (T, P, C)
        tokens = self.connector(cells)  # (T, D)
        images: Any = list(tokens.split(counts))  # as `generate` wants it: one tensor per image
        return BaseModelOutputWithPooling(last_hidden_state=patches, pooler_output=images)

    def _padding_vectors(self, whole: Tensor, partly: Tensor, image_masks: Tensor | None) -> Tensor:
        """(V, N, C): one learned vector on patches that are all padding, another on those partly so."""
        if image_masks is None:
            raise ValueError(
                "`image_masks` is missing: this model tells padding from picture (`padding_embedding`); "
                "pass on everything the processor returned."
            )
        all_padding = (image_masks == 0).unsqueeze(-1)
        part_padding = ((image_masks > 0) & (image_masks < 1)).unsqueeze(-1)
        return all_padding * whole + part_padding * partly

    def _single_view_cells(self, patches: Tensor) -> Tensor:
        """(V, N, C) patches of single views to (T, P, C) cells."""
        pool = self.config.pooling_size
        if pool == 1:
            return patches.flatten(0, 1).unsqueeze(1)
        side = self.config.patches_per_side
        cells = patches.unflatten(1, (side // pool, pool, side // pool, pool))  # (V, h, p, w, p, C)
        return cells.transpose(2, 3).flatten(3, 4).flatten(0, 2)

    def _crop_cells(self, image_grids: Tensor, views: int) -> tuple[Tensor, list[int]]:
        """The patches of each token (T, P), counted over all views, and the tokens of each image."""
        side, config = self.config.patches_per_side, self.config
        parts, first_view = [], 0
        for rows, cols in image_grids.tolist():
            index = crop_token_index(rows, cols, side, config.crop_margin_patches, config.pooling_size)
            parts.append(index + first_view * side**2)
            first_view += 1 + rows * cols
        if first_view != views:
            raise ValueError(
                f"`image_grids` describes {first_view} views but `pixel_values` holds {views}; "
                "pass on what the image processor returned for the same images."
            )
        return torch.cat(parts), [len(part) for part in parts]

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor] | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grids: Tensor | None = None,
        image_masks: Tensor | None = None,
        labels: Tensor | None = None,
        document_ids: Tensor | None = None,
        branch_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> MMVLMOutput:
        """Predict the next token at every place; see the class for the arguments.

        Raises:
            ValueError: Placeholders and image vectors differ in number, both or none of `input_ids` and
                `inputs_embeds`, pixels twice, packed rows with a cache.
        """
        inputs_embeds = self._embed(input_ids, inputs_embeds)
        images = (mm_encoder_outputs or {}).get("image")
        if pixel_values is not None:
            if images is not None:
                raise ValueError("Give `pixel_values` or `mm_encoder_outputs`, not both.")
            images = self.get_image_features(pixel_values, image_grids, image_masks)
        vectors = inputs_embeds.new_zeros(0, inputs_embeds.shape[-1])  # (T, D)
        if images is not None:
            vectors = torch.cat([*images.pooler_output]).to(inputs_embeds)  # ty: ignore[not-iterable]
        inputs_embeds = self._place_images(input_ids, inputs_embeds, vectors)
        if document_ids is not None:
            attention_mask = self._packed_mask(
                document_ids, branch_ids, position_ids, inputs_embeds, past_key_values
            )
            use_cache = False
        num_items = kwargs.pop("num_items_in_batch", None)
        with _inputs_of(self.get_output_embeddings()) as states:
            outputs = self.language_model(
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
                **kwargs,
            )
        return MMVLMOutput(
            loss=None if labels is None else self._loss(outputs.logits, labels, logits_to_keep, num_items),
            logits=outputs.logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=vectors if len(vectors) else None,
            last_hidden_state=states[0] if states else None,
        )

    def _embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`.")
        return self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds

    def _place_images(self, input_ids: Tensor | None, inputs_embeds: Tensor, vectors: Tensor) -> Tensor:
        """Put the image vectors (T, D) in the place of the placeholders."""
        token = self.config.image_token_id
        if not len(vectors) and inputs_embeds.shape[1] == 1:
            return inputs_embeds  # a step of decoding: nothing to place, and no reason to wait for the device
        if input_ids is None:
            pattern = self.get_input_embeddings()(torch.tensor(token, device=inputs_embeds.device))
            places = (inputs_embeds == pattern).all(-1)  # (B, L)
        else:
            places = input_ids == token
        if not torch.compiler.is_compiling() and (found := int(places.sum())) != len(vectors):
            raise ValueError(
                f"`input_ids` has {found} image tokens (id {token}) but the images yield {len(vectors)} "
                "vectors; process text and images in one call of the processor."
            )
        return inputs_embeds.masked_scatter(places.unsqueeze(-1), vectors)

    def _packed_mask(
        self,
        document_ids: Tensor,
        branch_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor,
        past_key_values: Cache | None,
    ) -> Tensor | dict[str, Tensor]:
        if position_ids is None:
            raise ValueError("Packed rows (`document_ids`) need `position_ids` that restart in each branch.")
        if past_key_values is not None:
            raise ValueError("Packed rows (`document_ids`) are for training; generate from unpacked rows.")
        if branch_ids is None:
            branch_ids = torch.zeros_like(document_ids)
        return packed_attention_mask(
            self.language_model.config, document_ids, branch_ids, position_ids, inputs_embeds.dtype
        )

    def _loss(
        self, logits: Tensor, labels: Tensor, logits_to_keep: int | Tensor, num_items: Tensor | int | None
    ) -> Tensor:
        targets = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]  # (B, L), the token that follows
        if isinstance(logits_to_keep, Tensor) and logits_to_keep.dtype == torch.bool:
            targets = targets[logits_to_keep]
        elif isinstance(logits_to_keep, Tensor):
            targets = targets[:, logits_to_keep]
        elif logits_to_keep:
            targets = targets[:, -logits_to_keep:]
        return self.loss_function(
            logits=logits,
            labels=None,
            vocab_size=logits.shape[-1],
            num_items_in_batch=num_items,
            shift_labels=targets.contiguous(),
        )
