"""Where a model keeps what the pictures show: its vision tower, patch filters, positions and attention.

The one file here that knows how models are built, ours and transformers'.

Shapes: B images, C channels, D width, P patch side (P_y x P_x when not square), G x F patches (rows x
columns), N = G * F, H heads, L tokens: [CLS] and registers if any, then N patches row by row.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

__all__ = [
    "PatchAttention",
    "Query",
    "VisionParts",
    "attention_options",
    "attention_weights_kept",
    "patch_attention",
    "record_attention",
    "vision_parts",
]

Query = Literal["cls", "mean"]
"""What the image vector is read from: the [CLS] token, or the mean over the patches."""


@dataclass(frozen=True)
class Layout:
    """Paths inside a tower; `positions` is `None` where there is no table of them."""

    patches: str
    positions: str | None


# model type of the tower: where its parts are
LAYOUTS = {
    "mm_vit": Layout("embeddings.patches.projection", "embeddings.positions"),
    "mm_vilt": Layout("embeddings.patches.projection", "embeddings.positions"),
    "vit": Layout("embeddings.patch_embeddings.projection", "embeddings.position_embeddings"),
    "deit": Layout("embeddings.patch_embeddings.projection", "embeddings.position_embeddings"),
    "dinov2": Layout("embeddings.patch_embeddings.projection", "embeddings.position_embeddings"),
    "dinov2_with_registers": Layout(
        "embeddings.patch_embeddings.projection", "embeddings.position_embeddings"
    ),
    "dinov3_vit": Layout("embeddings.patch_embeddings", None),  # rotary
    "clip_vision_model": Layout("embeddings.patch_embedding", "embeddings.position_embedding.weight"),
    "siglip_vision_model": Layout("embeddings.patch_embedding", "embeddings.position_embedding.weight"),
}
STEM = "embeddings.patches.stem"  # of mm_vit

# Models that read the patches although their tower has a [CLS] token.
READ_PATCHES = {
    "CLIPForImageClassification",
    "LlavaForConditionalGeneration",
    "LlavaModel",
    "MMVLMForConditionalGeneration",
    "MMViTForMaskedImageModeling",
    "ViTForMaskedImageModeling",
}


@dataclass(frozen=True)
class VisionParts:
    """The vision tower of a model and what is in it.

    Attributes:
        encoder: The tower itself; takes `pixel_values`, of ViLT together with a text.
        patch_filters: (D, C, P_y, P_x), the rows of the patch projection W_e; behind a stem, C is its width.
        stem_filters: (S, C, Y, X) of the first convolution of a stem, `None` without one.
        positions: (G, F, D), the position table without [CLS] and its like; `None` without a table.
        query: What the image vector is read from, given that there is a [CLS] token.
    """

    encoder: PreTrainedModel
    patch_filters: Tensor
    stem_filters: Tensor | None
    positions: Tensor | None
    query: Query

    @property
    def images_alone(self) -> bool:
        """Whether the encoder takes images without a text."""
        return self.encoder.main_input_name == "pixel_values"


@dataclass(frozen=True)
class PatchAttention:
    """Attention weights of every block of a tower, and how its tokens lie on the image.

    Attributes:
        weights: (B, H, L, L) for each block, first to last.
        grid: Rows and columns of patches, (G, F).
        patch_size: Height and width of a patch in pixels.
        query: What the image vector is read from.
    """

    weights: tuple[Tensor, ...]
    grid: tuple[int, int]
    patch_size: tuple[int, int]
    query: Query

    def read(self, relevance: Tensor) -> Tensor:
        """What the image vector takes from each patch.

        Args:
            relevance: (B, L, L), a row for each token that takes.

        Returns:
            (B, G, F).
        """
        others = relevance.shape[-1] - self.grid[0] * self.grid[1]
        row = relevance[:, 0] if self.query == "cls" else relevance[:, others:].mean(dim=1)  # (B, L)
        return row[:, others:].unflatten(1, self.grid)


def vision_parts(model: nn.Module) -> VisionParts:
    """Find the vision tower of a model and its parts.

    Args:
        model: A vision transformer with or without a head, a CLIP model, a vision-language model, of ours or
            of transformers, adapters included.

    Raises:
        ValueError: No tower that is known here, or several.
    """
    models = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    # A classifier has the model type of its tower; the tower is the one with embeddings of its own.
    towers = [part for part in models if part.config.model_type in LAYOUTS and hasattr(part, "embeddings")]
    if len(towers) != 1:
        found = (
            ", ".join(dict.fromkeys(part.config.model_type for part in models)) or "no part of transformers"
        )
        raise ValueError(
            f"{type(model).__name__} has {len(towers)} vision towers that are known here, one is needed "
            f"(found: {found}); known are {', '.join(LAYOUTS)}."
        )
    tower = towers[0]
    layout = LAYOUTS[tower.config.model_type]
    has_stem = tower.config.model_type == "mm_vit" and tower.config.stem_channels is not None
    filters = attrgetter(f"{layout.patches}.weight")(tower).detach()
    stem = tower.get_submodule(STEM) if has_stem else None
    return VisionParts(
        encoder=tower,
        patch_filters=filters,
        stem_filters=next(part for part in stem.modules() if isinstance(part, nn.Conv2d)).weight.detach()
        if stem is not None
        else None,
        positions=_positions(tower, layout),
        query=_query(models, tower),
    )


def _positions(tower: PreTrainedModel, layout: Layout) -> Tensor | None:
    if layout.positions is None:
        return None
    table = attrgetter(layout.positions)(tower).detach().flatten(0, -2)  # (N and a few, D)
    grid = _grid(_pair(tower.config.image_size), _pair(tower.config.patch_size))
    return table[len(table) - grid[0] * grid[1] :].unflatten(0, grid)


def _query(models: list[PreTrainedModel], tower: PreTrainedModel) -> Query:
    """What the outermost model that has a say reads."""
    for part in models:
        if type(part).__name__ in READ_PATCHES:
            return "mean"
        if part.config.model_type == "mm_clip" and part.config.vision_pooling != "pooler":
            return part.config.vision_pooling
    if tower.config.model_type == "mm_vit" and tower.config.pooling == "mean":
        return "mean"
    return "cls"


@contextmanager
def attention_weights_kept(encoder: PreTrainedModel) -> Generator[None]:
    """Run the eager kernel, the only one with weights to show, without dropout; then all is as before."""
    kernel = encoder.config._attn_implementation
    training = [part for part in encoder.modules() if part.training]
    try:
        encoder.set_attn_implementation("eager")
        encoder.eval()
        yield
    finally:
        encoder.set_attn_implementation(kernel)
        for part in training:
            part.training = True


def record_attention(
    model: nn.Module,
    pixel_values: Tensor,
    query: Query | None = None,
    interpolate_pos_encoding: bool = False,
) -> PatchAttention:
    """The attention weights of every block for a batch of images.

    Args:
        model: See `vision_parts`.
        pixel_values: (B, C, Y, X), as the model's image processor makes them.
        query: What the image vector is read from; by default what the model does.
        interpolate_pos_encoding: Accept images of another size than the position table's.

    Raises:
        ValueError: A side is no whole number of patches, `query` asks for a [CLS] token that is not there, or
            the model reads images only together with a text.
    """
    parts = vision_parts(model)
    if not parts.images_alone:
        raise ValueError(
            f"{type(model).__name__} reads an image only together with a text; see `word_attention`."
        )
    weight = parts.patch_filters
    with torch.no_grad(), attention_weights_kept(parts.encoder):
        output = parts.encoder(
            pixel_values.to(weight.device, weight.dtype), **attention_options(interpolate_pos_encoding)
        )
    return patch_attention(parts, output.attentions, pixel_values, query)


def attention_options(interpolate_pos_encoding: bool) -> dict[str, bool]:
    """Keywords of the call: interpolation only when wanted, since not every tower has a word for it."""
    return {"output_attentions": True} | (
        {"interpolate_pos_encoding": True} if interpolate_pos_encoding else {}
    )


def patch_attention(
    parts: VisionParts, weights: tuple[Tensor, ...], pixel_values: Tensor, query: Query | None = None
) -> PatchAttention:
    """What a tower recorded for these pixels; see `record_attention`."""
    patch_size = _pair(parts.encoder.config.patch_size)
    height, width = pixel_values.shape[-2:]
    if height % patch_size[0] or width % patch_size[1]:  # some towers drop the rest without a word
        raise ValueError(
            f"`pixel_values` is {height}x{width} px, not a multiple of the "
            f"{patch_size[0]}x{patch_size[1]} px of a patch; resize or pad the image first."
        )
    grid = _grid((height, width), patch_size)
    has_cls = weights[0].shape[-1] > grid[0] * grid[1]
    if query == "cls" and not has_cls:
        raise ValueError(
            f"`query`='cls', but {parts.encoder.config.model_type} has no [CLS] token; use query=\"mean\"."
        )
    return PatchAttention(tuple(weights), grid, patch_size, query or (parts.query if has_cls else "mean"))


def _grid(size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    return size[0] // patch_size[0], size[1] // patch_size[1]


def _pair(side: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    return (side, side) if isinstance(side, int) else (side[0], side[1])
