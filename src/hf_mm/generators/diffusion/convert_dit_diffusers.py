"""Denoisers to and from `DiTTransformer2DModel`, diffusers' class for Peebles and Xie 2023.

That class has an embedder of time and class in every layer; ours has one for all. Those that were converted
from the original checkpoints hold the same weights in every layer; those that were trained with diffusers do
not any more. Its waves of time and one norm differ a little from the original's (`freq_shift`,
`mlp_norm_eps`): what is read from it keeps its numbers, not the original's.

Shapes: D width.
"""

from collections.abc import Mapping
from typing import Any

from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from torch import Tensor, nn

from .modeling_dit import MMDiTModel

__all__ = ["from_dit_transformer", "to_dit_transformer"]

DIFFUSERS_EMBEDDER = "norm1.emb"
# Outside the layers: ours, theirs.
DIFFUSERS_NAMES = {
    "patch_embed": "pos_embed.proj",
    "modulation_out": "proj_out_1",
    "proj_out": "proj_out_2",
}
# In every embedder.
DIFFUSERS_EMBEDDER_NAMES = {
    "time_embed.linear_1": "timestep_embedder.linear_1",
    "time_embed.linear_2": "timestep_embedder.linear_2",
    "class_embed": "class_embedder.embedding_table",
}
# In every layer.
DIFFUSERS_LAYER_NAMES = {
    "modulation": "norm1.linear",
    "attn.to_q": "attn1.to_q",
    "attn.to_k": "attn1.to_k",
    "attn.to_v": "attn1.to_v",
    "attn.to_out.0": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}
# What ours has no other value for.
DIFFUSERS_FIXED = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "dropout": 0.0,
    "norm_elementwise_affine": False,
}
# What theirs has no other value for.
DIFFUSERS_WRITABLE = {
    "text_dim": None,
    "qk_norm": False,
    "second_time": False,
    "freq_shift": 1.0,
    "norm_eps": 1e-6,
    "mlp_ratio": 4.0,
}


def from_dit_transformer(model: DiTTransformer2DModel) -> MMDiTModel:
    """The same denoiser as an `MMDiTModel`, with copies of the weights.

    Raises:
        ValueError: The embedders of its layers differ, or its config has what ours has not.
    """
    config: Any = model.config
    for name, value in DIFFUSERS_FIXED.items():
        if config[name] != value:
            raise ValueError(
                f"`{name}`={config[name]!r} of this DiTTransformer2DModel has no place in an MMDiTModel, "
                f"which has {value!r}; use it with diffusers."
            )
    theirs = model.state_dict()
    _check_embedders(theirs, config.num_layers)
    width = config.num_attention_heads * config.attention_head_dim
    ours = MMDiTModel(
        sample_size=config.sample_size,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        patch_size=config.patch_size,
        hidden_size=width,
        num_layers=config.num_layers,
        num_heads=config.num_attention_heads,
        num_classes=config.num_embeds_ada_norm,
        freq_shift=DIFFUSERS_WRITABLE["freq_shift"],
        mlp_norm_eps=config.norm_eps,
    )
    names = _diffusers_names(config.num_layers)
    ours.load_state_dict({name: theirs[places[0]] for name, places in names.items()})
    return _like(ours, model)


def to_dit_transformer(model: MMDiTModel) -> DiTTransformer2DModel:
    """The same denoiser as diffusers' own class, with copies of the weights.

    Raises:
        ValueError: That class cannot hold it.
    """
    config: Any = model.config
    for name, value in DIFFUSERS_WRITABLE.items():
        if config[name] != value:
            raise ValueError(
                f"`{name}`={config[name]!r} has no place in a DiTTransformer2DModel, which has {value!r}; "
                "use the model itself."
            )
    if config.num_classes is None or not isinstance(config.sample_size, int):
        raise ValueError(
            f"`num_classes`={config.num_classes} and `sample_size`={config.sample_size}: a "
            "DiTTransformer2DModel has classes, and pictures are squares; use the model itself."
        )
    theirs = DiTTransformer2DModel(
        sample_size=config.sample_size,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        patch_size=config.patch_size,
        attention_head_dim=config.hidden_size // config.num_heads,
        num_attention_heads=config.num_heads,
        num_layers=config.num_layers,
        num_embeds_ada_norm=config.num_classes,
        norm_eps=config.mlp_norm_eps,
    )
    weights, names = model.state_dict(), _diffusers_names(config.num_layers)
    theirs.load_state_dict({place: weights[name] for name, places in names.items() for place in places})
    return _like(theirs, model)


def _like(made: Any, model: Any) -> Any:
    # Not by `ModelMixin.to`, which warns whenever it is given a dtype.
    return nn.Module.to(made, model.device, model.dtype).train(model.training)


def _diffusers_names(layers: int) -> dict[str, list[str]]:
    """Of each weight of ours: its names in theirs."""
    parts = {name: [theirs] for name, theirs in DIFFUSERS_NAMES.items()}
    for name, theirs in DIFFUSERS_EMBEDDER_NAMES.items():
        parts[name] = [f"{_embedder(layer)}.{theirs}" for layer in range(layers)]
    for layer in range(layers):
        for name, theirs in DIFFUSERS_LAYER_NAMES.items():
            parts[f"blocks.{layer}.{name}"] = [f"transformer_blocks.{layer}.{theirs}"]
    kinds = {"class_embed": ("weight",)}
    return {
        f"{name}.{kind}": [f"{place}.{kind}" for place in places]
        for name, places in parts.items()
        for kind in kinds.get(name, ("weight", "bias"))
    }


def _check_embedders(weights: Mapping[str, Tensor], layers: int) -> None:
    first = {name: weight for name, weight in weights.items() if name.startswith(f"{_embedder(0)}.")}
    for layer in range(1, layers):
        for name, weight in first.items():
            other = name.replace(_embedder(0), _embedder(layer))
            if not weights[other].equal(weight):
                raise ValueError(
                    f"`{other}` differs from `{name}`: each layer of this DiTTransformer2DModel embeds time "
                    "and class in its own way, as after training with diffusers, and an MMDiTModel has one "
                    "embedder for all; only those converted from an original DiT can be read."
                )


def _embedder(layer: int) -> str:
    return f"transformer_blocks.{layer}.{DIFFUSERS_EMBEDDER}"
