"""Words and regions as tokens, in all the ways of the vision-language BERTs.

Bugliarello et al. 2021, "Multimodal Pretraining Unmasked", section 3.1 (https://arxiv.org/abs/2011.15124).

Shapes: B rows, W text tokens, I images, R places for regions, M regions, N tokens of the region stream, F
width of features, D width of text tokens, E width of region tokens.
"""

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from ...layers.onednn_linear import OneDNNLinear
from .configuration_region_bert import MMRegionBertConfig
from .layout_region_bert import RegionBertLayout, RegionPlaces
from .locations_region_bert import locations_of

__all__ = ["RegionEmbeddings", "RegionTextEmbeddings"]


class RegionTextEmbeddings(nn.Module):
    """Token vectors plus learned positions and segments, and what the model sees, normalised."""

    def __init__(self, config: MMRegionBertConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_types = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self, words: Tensor, position_ids: Tensor, token_type_ids: Tensor, seen: Tensor | None
    ) -> Tensor:
        """Words, (W,) ids or (W, D) vectors, at (W,) places in (W,) segments, with (W, D) images: (W, D)."""
        vectors = words if words.is_floating_point() else self.tokens(words)
        vectors = vectors + self.token_types(token_type_ids) + self.positions(position_ids)
        if seen is not None:
            vectors = vectors + seen
        return self.dropout(self.norm(vectors))


class RegionEmbeddings(nn.Module):
    """Features and boxes of regions, projected, normalised and put together.

    Args:
        config: Sizes and switches.
        use_mask_token: Have learned vectors for hidden regions, where `config.region_mask_token`.
    """

    def __init__(self, config: MMRegionBertConfig, use_mask_token: bool = True) -> None:
        super().__init__()
        self.config = config
        width, eps = config.region_hidden_size, config.layer_norm_eps
        together, parts = config.region_fusion == "concat", config.region_norm_parts
        located = config.region_location_size > 0 and not together
        features = config.region_feature_size + (config.region_location_size if together else 0)
        self.input_dropout = nn.Dropout(config.region_input_dropout)
        self.feature_projection = OneDNNLinear(features, width)
        act = config.region_projection_act
        self.act = nn.Identity() if act is None else ACT2FN[act]
        self.location_projection = nn.Linear(config.region_location_size, width) if located else None
        self.feature_norm = nn.LayerNorm(width, eps=eps) if parts else None
        self.location_norm = nn.LayerNorm(width, eps=eps) if parts and located else None
        self.text_norm = nn.LayerNorm(width, eps=eps) if parts and config.text_sees_image else None
        self.token = nn.Parameter(torch.zeros(width)) if config.region_token else None
        self.end_token = nn.Parameter(torch.zeros(width)) if config.end_token else None
        masks = config.region_mask_token and use_mask_token
        self.mask_feature = nn.Parameter(torch.zeros(config.region_feature_size)) if masks else None
        self.mask_token = nn.Parameter(torch.zeros(width)) if masks and config.region_token else None
        own = config.region_type is not None and config.region_type_table == "own"
        self.token_types = nn.Embedding(config.type_vocab_size, width) if own else None
        own = config.region_position == "own"
        self.positions = nn.Embedding(config.max_position_embeddings, width) if own else None
        self.norm = nn.LayerNorm(width, eps=eps) if config.region_norm == "own" else None
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        features: Tensor,
        boxes: Tensor | None,
        image_features: Tensor | None,
        masked: Tensor | None,
        given: RegionPlaces,
        layout: RegionBertLayout,
        text: RegionTextEmbeddings,
    ) -> tuple[Tensor, Tensor | None]:
        """All tokens of the region stream, side by side.

        Args:
            features: (I, R, F).
            boxes: (I, R, 4) shares of the image; may be `None` where no location is told.
            image_features: (I, F) of the whole images; `None` for the mean of the visible regions.
            masked: (I, R) bool, true where a region is hidden.
            given: What is padding.
            layout: Of the rows.
            text: Embeddings of text, whose tables and norm regions may share.

        Returns:
            (N, E), and (I, D) vectors of the whole images for the tokens of text, `None` where these see
            none.

        Raises:
            ValueError: Regions are hidden, and there is no vector that stands for them.
        """
        if masked is not None and self.config.region_mask_token and self.mask_feature is None:
            raise ValueError(
                "`masked_regions`: this head has no vector that stands for hidden regions; hide them in "
                "`MMRegionBertForPreTraining` or the bare model, or leave them visible."
            )
        config, weight = self.config, text.tokens.weight
        features = features.to(weight.dtype)
        hidden = None if masked is None else masked.flatten()[layout.image_places].bool()  # (M,)
        chosen = self._hide(features.flatten(0, 1)[layout.image_places], hidden)  # (M, F)
        places = None if boxes is None else boxes.to(weight.dtype).flatten(0, 1)[layout.image_places]
        images = 0
        if config.whole_image_region:
            images = len(features)
            whole = _mean_of_visible(features, given, masked) if image_features is None else image_features
            chosen = torch.cat((whole.to(weight.dtype), chosen))  # (I + M, F)
            if places is not None:
                places = torch.cat((places.new_tensor((0.0, 0.0, 1.0, 1.0)).expand(images, -1), places))
        vectors, seen = self._project(chosen, places, images)
        vectors = self._mark(vectors, hidden, images)
        if layout.sources is not None:
            vectors = vectors[layout.sources]  # (N, E)
        return self.dropout(self._place(vectors, layout, text)), seen

    def _hide(self, chosen: Tensor, hidden: Tensor | None) -> Tensor:
        if hidden is None:
            return chosen
        instead = torch.zeros_like(chosen[:1]) if self.mask_feature is None else self.mask_feature
        return torch.where(hidden.unsqueeze(1), instead, chosen)

    def _project(self, features: Tensor, boxes: Tensor | None, images: int) -> tuple[Tensor, Tensor | None]:
        """(I + M, F) and (I + M, 4) to (I + M, E), and the vectors of whole images for text."""
        config, seen = self.config, None
        if boxes is not None and config.region_location != "none":
            boxes = locations_of(boxes, config.region_location, config.region_sinusoids)
        if config.region_fusion == "concat":
            assert boxes is not None
            features = torch.cat((features, boxes), dim=1)
        vectors = self.act(self.feature_projection(self.input_dropout(features)))
        if config.text_sees_image:
            seen = vectors[:images] if self.text_norm is None else self.text_norm(vectors[:images])
        if self.feature_norm is not None:
            vectors = self.feature_norm(vectors)
        if self.location_projection is not None:
            located = self.location_projection(boxes)
            vectors = vectors + (located if self.location_norm is None else self.location_norm(located))
            if config.region_fusion == "mean":
                vectors = vectors / 2
        return vectors, seen

    def _mark(self, vectors: Tensor, hidden: Tensor | None, images: int) -> Tensor:
        """Add [IMG], or what stands for it at hidden regions, and append [END]."""
        if self.token is not None:
            token = self.token.expand(len(vectors), -1)
            if hidden is not None and self.mask_token is not None:
                hidden = torch.cat((hidden.new_zeros(images), hidden))
                token = torch.where(hidden.unsqueeze(1), self.mask_token, token)
            vectors = vectors + token
        return vectors if self.end_token is None else torch.cat((vectors, self.end_token.unsqueeze(0)))

    def _place(self, vectors: Tensor, layout: RegionBertLayout, text: RegionTextEmbeddings) -> Tensor:
        """Add position and segment, and normalise: (N, E) to (N, E)."""
        config = self.config
        if config.region_type is not None:
            table = text.token_types if self.token_types is None else self.token_types
            vectors = vectors + table.weight[config.region_type]
        if self.positions is not None:
            vectors = vectors + self.positions.weight[0]
        elif config.region_position == "after_text":
            number = layout.text_ends[layout.region_tokens_rows]  # (N,)
            vectors = vectors + text.positions(number if layout.is_end is None else number + layout.is_end)
        if config.region_norm == "text":
            return text.norm(vectors)
        return vectors if self.norm is None else self.norm(vectors)


def _mean_of_visible(features: Tensor, given: RegionPlaces, masked: Tensor | None) -> Tensor:
    """(I, F) means of the features of regions that are neither padding nor hidden; 0 where all are."""
    visible = given.regions if masked is None else given.regions & ~masked.bool()  # (I, R)
    shares = visible.to(features.dtype) / visible.sum(dim=1, keepdim=True).clamp(min=1)
    return (shares.unsqueeze(1) @ features).squeeze(1)
