"""The vision-language BERTs on image regions: one encoder, whose configuration says which of them it is.

Bugliarello et al. 2021, "Multimodal Pretraining Unmasked: A Meta-Analysis and a Unified Framework of
Vision-and-Language BERTs" (https://arxiv.org/abs/2011.15124).

Padding is not computed: blocks run on the tokens of all rows side by side, only attention sees rows. So texts
of any length with any number of regions cost what they hold.

Shapes: B rows, L places of a text, I images, R places for regions, V = R and one for the whole image where a
model has it, F width of features, D width of text tokens, E width of region tokens, P width of the pooled
vector, W text tokens and N region tokens of all rows, H heads, S places of text and regions together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ...hub.interop import ForeignLoadingMixin
from ...hub.saving import AtomicSaveMixin
from ...layers.attention import Attention
from ...layers.post_norm import PostNormBlock
from ...layers.texts import check_word_rows
from .blocks_region_bert import BothWaysAttention, CoBlock, CrossBlock, region_block, text_block
from .cache_region_bert import NOTHING_KEPT, RegionBertCache
from .configuration_region_bert import MMRegionBertConfig
from .convert_region_bert_lxmert import LXMERT_CHECKPOINT
from .convert_region_bert_visual_bert import VISUAL_BERT_CHECKPOINT
from .embeddings_region_bert import RegionEmbeddings, RegionTextEmbeddings
from .ends_region_bert import ends_of, run_ends
from .inputs_region_bert import check_region_inputs
from .layout_region_bert import RegionBertLayout, RegionPlaces, lay_out_all_places, lay_out_tokens
from .masks_region_bert import real_places, seats_behind, seats_in_rows, seats_side_by_side
from .seats_region_bert import RegionSeats

__all__ = ["MMRegionBertModel", "MMRegionBertPreTrainedModel", "RegionBertOutput", "weights_beside"]

# output asked for by Hugging Face's flag: the streams it is recorded of
RECORDED_STREAMS = {
    "output_hidden_states": ("output_hidden_states", "output_region_hidden_states"),
    "output_attentions": (
        "output_attentions",
        "output_region_attentions",
        "output_cross_attentions",
        "output_region_cross_attentions",
    ),
}


def weights_beside(*own: str) -> list[str]:
    """Patterns of the weights of other heads of the family, which loading leaves out in silence.

    A part that is no encoder is named `pooler` or ends in `_head`, `_output`, `_classifier` or `_decoder`.
    What stands for hidden regions counts among them.

    Args:
        own: Names of the parts that the head has itself.
    """
    others = "".join(rf"(?!{name}\.)" for name in own)
    parts = rf"(^|\.){others}(pooler|\w+_(head|output|classifier|decoder))\."
    return [parts, r"\.mask_(feature|token)$"]


@dataclass
class RegionBertOutput(ModelOutput):
    """What a region BERT makes of texts and regions.

    Attributes:
        last_hidden_state: (B, L, D) of text; 0 at padding.
        region_last_hidden_state: (B, V, E) of regions; 0 at padding. `own_regions` of the model leaves out
            the whole image.
        pooler_output: (B, P).
        hidden_states: Of text, before the first block and after each: (B, L, D); those of "joint" blocks are
            (B, S, D), regions behind text.
        region_hidden_states: (B, V or V + 1, E) after each block but "joint" ones; [END] is the last where a
            model has it.
        attentions: Of text to text, or of all to all in "joint" blocks: (B, H, L, L) or (B, H, S, S).
        region_attentions: Of regions to regions.
        cross_attentions: Of text to regions.
        region_cross_attentions: Of regions to text.
    """

    last_hidden_state: Tensor | None = None
    region_last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    region_hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    region_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    region_cross_attentions: tuple[Tensor, ...] | None = None


class RegionBertPooler(nn.Module):
    """A vector of text and image: the state of [CLS], and in some models that of the first region."""

    def __init__(self, config: MMRegionBertConfig) -> None:
        super().__init__()
        self.pooling = config.pooling
        both = config.pooling != "text"
        self.text = nn.Linear(config.hidden_size, config.pooler_size)
        self.regions = nn.Linear(config.region_hidden_size, config.pooler_size) if both else None
        self.act = ACT2FN[config.pooler_act]

    def forward(self, first_text: Tensor, first_region: Tensor) -> Tensor:
        """(B, D) and (B, E) to (B, P)."""
        text = self.act(self.text(first_text))
        if self.regions is None:
            return text
        regions = self.act(self.regions(first_region))
        return text * regions if self.pooling == "product" else text + regions


class MMRegionBertPreTrainedModel(AtomicSaveMixin, ForeignLoadingMixin, PreTrainedModel):
    """What Hugging Face needs to know of every model of this family."""

    config: MMRegionBertConfig
    config_class = MMRegionBertConfig
    base_model_prefix = "region_bert"
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    foreign_checkpoints = (LXMERT_CHECKPOINT, VISUAL_BERT_CHECKPOINT)
    _no_split_modules = ["RegionEmbeddings", "RegionTextEmbeddings", "PostNormBlock", "CrossBlock", "CoBlock"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {
        "hidden_states": [
            OutputRecorder(PostNormBlock, layer_name="joint_blocks"),
            OutputRecorder(PostNormBlock, layer_name="text_blocks"),
            OutputRecorder(CrossBlock),
            OutputRecorder(CoBlock),
        ],
        "region_hidden_states": [
            OutputRecorder(PostNormBlock, layer_name="region_blocks"),
            OutputRecorder(CrossBlock, index=1),
            OutputRecorder(CoBlock, index=1),
        ],
        "attentions": [
            OutputRecorder(Attention, index=1, layer_name="joint_blocks"),
            OutputRecorder(Attention, index=1, layer_name="text_blocks"),
            OutputRecorder(Attention, index=1, layer_name="text.attention"),
        ],
        "region_attentions": [
            OutputRecorder(Attention, index=1, layer_name="region_blocks"),
            OutputRecorder(Attention, index=1, layer_name="regions.attention"),
        ],
        "cross_attentions": [
            OutputRecorder(BothWaysAttention, index=1),
            OutputRecorder(Attention, index=1, layer_name="text_attention"),
        ],
        "region_cross_attentions": [
            OutputRecorder(BothWaysAttention, index=2),
            OutputRecorder(Attention, index=1, layer_name="region_attention"),
        ],
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # linear, embedding, layer norm
        if isinstance(module, RegionEmbeddings):
            std = self.config.initializer_range
            for vector in (module.token, module.mask_token, module.end_token, module.mask_feature):
                if vector is not None:
                    init.normal_(vector, std=std)
            for norm in (module.feature_norm, module.location_norm, module.text_norm):
                if norm is not None:
                    init.constant_(norm.weight, self.config.region_norm_init)


class MMRegionBertModel(MMRegionBertPreTrainedModel):
    """The bare encoder.

    Args:
        config: Sizes and switches.
        add_pooling_layer: Give a vector of text and image, `pooler_output`.
        use_mask_token: Have what stands for hidden regions, where `config.region_mask_token`; heads that hide
            none have no use for it.
    """

    _keys_to_ignore_on_load_unexpected = weights_beside("pooler")

    def __init__(
        self, config: MMRegionBertConfig, add_pooling_layer: bool = True, use_mask_token: bool = True
    ) -> None:
        super().__init__(config)
        self.embeddings = RegionTextEmbeddings(config)
        self.region_embeddings = RegionEmbeddings(config, use_mask_token)
        self.order = numbered_layers(config)  # (kind, number among its kind) of each block
        for kind, make in BLOCKS.items():
            count = len({number for other, number in self.order if other == kind})
            self.add_module(f"{kind}_blocks", nn.ModuleList(make(config) for _ in range(count)))
        self.pooler = RegionBertPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.tokens = value  # ty: ignore[invalid-assignment]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        region_features: Tensor | None = None,
        region_boxes: Tensor | None = None,
        region_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        masked_regions: Tensor | None = None,
        region_index: Tensor | None = None,
        image_features: Tensor | None = None,
        prefix_mask: Tensor | None = None,
        only_pooled: bool = False,
        past_key_values: RegionBertCache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> RegionBertOutput:
        """Encode texts, each with the regions of an image.

        Args:
            input_ids: (B, L) token ids.
            attention_mask: (B, L), 0 on padding, which may stand on either side of a text.
            token_type_ids: (B, L) segments of a text, such as 1 on object tags; all 0 when `None`.
            region_features: (I, R, F) of a detector.
            region_boxes: (I, R, 4) left, top, right, bottom as shares of width and height. Not needed, and
                not looked at, where `region_location` is "none".
            region_mask: (I, R), 1 on regions, 0 on padding, in any order; without it nothing is padding.
            inputs_embeds: (B, L, D) vectors of the words, instead of `input_ids`.
            masked_regions: (I, R), true where a region is hidden: a learned vector or zeros stand for its
                feature, and the mean of the whole image leaves it out.
            region_index: (B,) whose regions go with each text; the first with the first and so on by default,
                and then I is B.
            image_features: (I, F) of the whole images, in models with `whole_image_region`.
            prefix_mask: (B, L), 1 on the text, a token at least, that all see as they see the regions. What
                follows sees also what stands before it and is seen by nobody else. All is prefix by default.
            only_pooled: Give `pooler_output` alone, without what it is not made of: in the last block other
                tokens than [CLS] are only read, not computed anew.
            past_key_values: Keeps keys and values; once filled, (B, S) words that follow are given alone.
            **kwargs: `output_hidden_states`, `output_attentions` (eager kernel only); with them, and under
                `torch.compile`, padding is computed and hidden.

        Returns:
            States of text and regions, and a vector of both.

        Raises:
            ValueError: A text longer than the position table, without a token or with padding inside; an
                image without a region; features of another width; shapes that do not go together.
        """
        if past_key_values is not None and past_key_values.filled:
            return self._read_on(input_ids, token_type_ids, past_key_values)
        masks = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        masks, sizes = masks | {"prefix_mask": prefix_mask}, self.text_sizes
        words = check_word_rows(input_ids, inputs_embeds, masks, *sizes)
        regions = (region_features, region_boxes, region_mask, masked_regions, region_index, image_features)
        given = check_region_inputs(self.config, words, attention_mask, *regions)
        layout = lay_out_all_places(given) if torch.compiler.is_compiling() else lay_out_tokens(given)
        visible = (region_features, region_boxes, image_features, masked_regions)
        text, tokens = self._embed(words, token_type_ids, visible, given, layout)
        kept, recorded = past_key_values, self._recorded(kwargs)
        return self._encode(text, tokens, layout, prefix_mask, only_pooled, kept, **recorded)

    def _read_on(
        self, words: Tensor | None, token_type_ids: Tensor | None, kept: RegionBertCache
    ) -> RegionBertOutput:
        """The states, (B, S, D), of (B, S) words that follow what was read."""
        assert words is not None
        positions, _ = kept.go_on(words.shape[1])  # (B, S)
        segments = torch.zeros_like(words) if token_type_ids is None else token_type_ids
        text = self.embeddings(words.flatten(), positions.flatten(), segments.flatten(), None)
        text = text.unflatten(0, words.shape)  # (B, S, D)
        seats = seats_behind(self.config, text, kept)
        for (kind, block), of_block in zip(self._blocks_of(), kept.blocks, strict=True):
            if kind in ("text", "joint"):
                mask = seats.text_mask if kind == "text" else seats.joint_mask
                text = block(text, attention_mask=mask, kept=of_block.own)
            elif kind != "region":
                text = block.read_on(text, seats, of_block)
        return RegionBertOutput(text)

    @property
    def text_sizes(self) -> tuple[int, int]:
        """Width of words, and how many a text may have."""
        return self.config.hidden_size, self.config.max_text_tokens

    def _recorded(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Hugging Face's flags of outputs, spelled out for every stream."""
        flags = {flag: kwargs.get(flag, getattr(self.config, flag)) for flag in RECORDED_STREAMS}
        asked = {name: flags[flag] for flag, streams in RECORDED_STREAMS.items() for name in streams}
        return {**kwargs, **asked}

    def _embed(
        self,
        words: Tensor,
        token_type_ids: Tensor | None,
        visible: tuple[Any, Tensor | None, Tensor | None, Tensor | None],
        given: RegionPlaces,
        layout: RegionBertLayout,
    ) -> tuple[Tensor, Tensor]:
        """(W, D) and (N, E) tokens of text and regions."""
        tokens, seen = self.region_embeddings(*visible, given, layout, self.embeddings)
        if seen is not None:
            seen = seen[given.images[layout.text_tokens_rows]]  # (W, D)
        words = words.flatten(0, 1)[layout.text_places]  # (W,) or (W, D)
        segments = torch.zeros_like(layout.text_places)
        if token_type_ids is not None:
            segments = token_type_ids.flatten()[layout.text_places]
        return self.embeddings(words, layout.text_positions, segments, seen), tokens

    @capture_outputs(tie_last_hidden_states=False)
    def _encode(
        self,
        text: Tensor,
        regions: Tensor,
        layout: RegionBertLayout,
        prefix_mask: Tensor | None,
        only_pooled: bool,
        kept: RegionBertCache | None,
        **kwargs: Any,
    ) -> RegionBertOutput:
        """The blocks, on tokens side by side or, where states are to be seen or kept, on rows."""
        prefix = None if prefix_mask is None else prefix_mask.flatten()[layout.text_places].bool()
        records = any(kwargs.get(flag) not in (False, None) for flag in RECORDED_STREAMS)
        for streams in RECORDED_STREAMS.values():
            kwargs = {name: value for name, value in kwargs.items() if name not in streams}
        if torch.compiler.is_compiling() or records or kept is not None:
            if kept is not None:  # with the places of the output, to be found again
                kept.begin(torch.cat(real_places(layout), dim=1), layout.text_output.length)
            seats = seats_in_rows(self.config, layout, text, prefix)
            text, regions = layout.text_output.unpack(text), layout.region_output.unpack(regions)
            text, regions = self._run(text, regions, seats, None, kept=kept, **kwargs)
            text, regions = layout.text_output.pack(text), layout.region_output.pack(regions)
        else:
            seats = seats_side_by_side(self.config, layout, text, prefix)
            if only_pooled and self.pooler is not None and prefix is None:
                ends = ends_of(self.config, layout, text)
                text, regions = self._run(text, regions, seats, layout, ends.whole, **kwargs)
                blocks = self._blocks_of(ends.last)
                first = run_ends(blocks, text, regions, seats, ends, layout, **kwargs)
                return RegionBertOutput(pooler_output=self.pooler(*first))
            text, regions = self._run(text, regions, seats, layout, **kwargs)
        pooled = None
        if self.pooler is not None:
            pooled = self.pooler(text[layout.first_text], regions[layout.first_region])
        if only_pooled:
            return RegionBertOutput(pooler_output=pooled)
        states = layout.text_output.unpack(text)  # (B, L, D)
        region_states = layout.region_output.unpack(regions)  # (B, V or V + 1, E)
        if layout.real_texts is not None and layout.real_regions is not None:
            states = states * layout.real_texts.unsqueeze(2)
            region_states = region_states * layout.real_regions.unsqueeze(2)
        if self.config.end_token:
            region_states = region_states[:, :-1]
        return RegionBertOutput(states, region_states, pooled)

    def _blocks_of(self, places: Sequence[int] | None = None) -> list[tuple[str, Any]]:
        """Kind and block at these places of `config.layers`; all of them when `None`."""
        order = self.order if places is None else [self.order[place] for place in places]
        return [(kind, self.get_submodule(f"{kind}_blocks.{number}")) for kind, number in order]

    def _run(
        self,
        text: Tensor,
        regions: Tensor,
        seats: RegionSeats,
        layout: RegionBertLayout | None,
        places: Sequence[int] | None = None,
        kept: RegionBertCache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Blocks in their order; text and regions are one tensor from one "joint" block to the next."""
        joint: Tensor | None = None
        words = text.shape[-2]
        blocks = self._blocks_of(places)
        keeps = [NOTHING_KEPT] * len(blocks) if kept is None else kept.blocks
        for (kind, block), of_block in zip(blocks, keeps, strict=True):
            if kind == "joint":
                joint = _together(text, regions, layout) if joint is None else joint
                own = {"packed_rows": seats.joint, "kept": of_block.own}
                joint = block(joint, attention_mask=seats.joint_mask, **own, **kwargs)
                continue
            if joint is not None:
                text, regions = _apart(joint, words, layout)
                joint = None
            if kind == "text":
                own = {"packed_rows": seats.texts, "kept": of_block.own}
                text = block(text, attention_mask=seats.text_mask, **own, **kwargs)
            elif kind == "region":
                mask = seats.region_mask
                regions = block(regions, attention_mask=mask, packed_rows=seats.regions, **kwargs)
            else:
                text, regions = block(text, regions, seats, kept=of_block, **kwargs)
        return (text, regions) if joint is None else _apart(joint, words, layout)

    def own_regions(self, states: Tensor) -> Tensor:
        """(B, V, ...) states to (B, R, ...): those of the given regions, without the whole image."""
        return states[:, self.config.extra_regions :]


def numbered_layers(config: MMRegionBertConfig) -> list[tuple[str, int]]:
    """Kind of each block, and its number among the blocks of its kind; shared blocks have the same."""
    groups = range(len(config.layers)) if config.layer_groups is None else config.layer_groups
    known: dict[str, list[int]] = {kind: [] for kind in BLOCKS}
    order = []
    for kind, group in zip(config.layers, groups, strict=True):
        if group not in known[kind]:
            known[kind].append(group)
        order.append((kind, known[kind].index(group)))
    return order


def _together(text: Tensor, regions: Tensor, layout: RegionBertLayout | None) -> Tensor:
    """Text and regions as one sequence."""
    return torch.cat((text, regions), dim=1) if layout is None else layout.join(text, regions)


def _apart(joint: Tensor, words: int, layout: RegionBertLayout | None) -> tuple[Tensor, Tensor]:
    """Text and regions of a joint sequence."""
    return (joint[:, :words], joint[:, words:]) if layout is None else layout.part(joint)


BLOCKS: Mapping[str, Any] = {
    "joint": text_block,
    "text": text_block,
    "region": region_block,
    "cross": CrossBlock,
    "co": CoBlock,
}
