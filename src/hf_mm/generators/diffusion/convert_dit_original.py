"""Read and write denoisers in the layout of https://github.com/facebookresearch/DiT.

Peebles and Xie 2023, "Scalable Diffusion Models with Transformers" (https://arxiv.org/abs/2212.09748). The
names, shapes and arithmetic are those of the repository's code. Files that its authors released were out of
reach where this was written.

Shapes: D width, C channels, P patch side, N patches.
"""

from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...hub.pickled_weights import read_pickled_weights
from ...hub.saving import atomic_write
from .modeling_dit import MMDiTModel

__all__ = ["load_original_dit", "save_original_dit", "to_original_dit_state_dict"]

ORIGINAL_HOLDERS = ("ema", "model", "state_dict")
# The heads of the published sizes S, B, L and XL, by width: shapes do not tell them.
ORIGINAL_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
# Outside the layers: ours, theirs.
ORIGINAL_NAMES = {
    "patch_embed": "x_embedder.proj",
    "time_embed.linear_1": "t_embedder.mlp.0",
    "time_embed.linear_2": "t_embedder.mlp.2",
    "class_embed": "y_embedder.embedding_table",
    "modulation_out": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
# In every layer; queries, keys and values are one matrix there.
ORIGINAL_LAYER_NAMES = {
    "modulation": "adaLN_modulation.1",
    "attn.to_out.0": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
ORIGINAL_QKV = ("to_q", "to_k", "to_v")
# What the repository's code has no other value for.
ORIGINAL_WRITABLE = {
    "text_dim": None,
    "qk_norm": False,
    "second_time": False,
    "freq_shift": 0.0,
    "norm_eps": 1e-6,
    "mlp_norm_eps": 1e-6,
}


def load_original_dit(path: str | Path, weights_only: bool = True, **fields: Any) -> MMDiTModel:
    """Load a checkpoint of the original DiT.

    Args:
        path: The file, such as `DiT-XL-2-256x256.pt`, or a checkpoint of its `train.py`, of which the
            averages are read.
        weights_only: Refuse files that hold more than numbers and plain data: such a file can run any
            program. Checkpoints of `train.py` do; say `False` for one you trust.
        **fields: Of the config that shapes do not tell: `num_heads`, where the width is none of the published
            sizes.

    Returns:
        The model in evaluation mode. Its `sample_size` is that of the latents: 32 for pictures of 256 px.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds something else, weights are missing, or the heads must be given.
    """
    file = Path(path)
    theirs = read_pickled_weights(file, weights_only, ORIGINAL_HOLDERS)
    try:
        config = _original_fields(theirs) | fields
    except KeyError as error:
        raise ValueError(
            f"{file} has no `{error.args[0]}`: it is no whole checkpoint of the original DiT; a folder of "
            "diffusers is read by `from_pretrained`."
        ) from error
    if "num_heads" not in config:
        raise ValueError(
            f"{file} is {config['hidden_size']} wide, which is none of the published sizes; pass `num_heads`."
        )
    model = MMDiTModel(**config).eval()
    _check_positions(theirs["pos_embed"], model, file)
    names = _original_names(config["num_layers"])
    missing = [name for name in names if name not in theirs]
    unexpected = sorted(theirs.keys() - names.keys() - {"pos_embed"})
    for kind, found in (("missing", missing), ("unexpected", unexpected)):
        if found:
            raise ValueError(f"{file}: `{found[0]}` is {kind} ({len(found)} weights in all).")
    weights = {
        name: part
        for source, places in names.items()
        for name, part in zip(places, theirs[source].chunk(len(places)), strict=True)
    }
    model.load_state_dict(weights)
    return model


def to_original_dit_state_dict(model: MMDiTModel) -> dict[str, Tensor]:
    """The weights of a model under the names of the original repository.

    Raises:
        ValueError: That repository's code cannot build such a model.
    """
    config: Any = model.config
    for name, value in ORIGINAL_WRITABLE.items():
        if config[name] != value:
            raise ValueError(
                f"`{name}`={config[name]!r} cannot be written, the original DiT has {value!r} only."
            )
    if config.num_classes is None or not isinstance(config.sample_size, int):
        raise ValueError(
            f"`num_classes`={config.num_classes} and `sample_size`={config.sample_size} cannot be written: "
            "the original DiT has classes, and its pictures are squares."
        )
    if config.out_channels not in (config.in_channels, 2 * config.in_channels):
        raise ValueError(
            f"`out_channels`={config.out_channels} cannot be written, the original DiT has as many as "
            f"`in_channels`={config.in_channels}, or twice as many with a learned variance."
        )
    weights = model.state_dict()
    written = {
        theirs: torch.cat([weights[name] for name in places])
        for theirs, places in _original_names(config.num_layers).items()
    }
    return {"pos_embed": model.positions} | written


def save_original_dit(model: MMDiTModel, path: str | Path) -> None:
    """Write a model as a file for the original repository: `load_original_dit` reads it too.

    Args:
        model: With classes and without texts.
        path: The file, usually `*.pt`.

    Raises:
        ValueError: That repository's code cannot build such a model.
    """
    weights = to_original_dit_state_dict(model)
    with atomic_write(path) as temporary:
        torch.save(weights, temporary)


def _original_names(layers: int) -> dict[str, list[str]]:
    """Of each weight of theirs: the weights of ours that it is made of, one above the other."""
    parts = {theirs: [name] for name, theirs in ORIGINAL_NAMES.items()}
    for layer in range(layers):
        for name, theirs in ORIGINAL_LAYER_NAMES.items():
            parts[f"blocks.{layer}.{theirs}"] = [f"blocks.{layer}.{name}"]
        parts[f"blocks.{layer}.attn.qkv"] = [f"blocks.{layer}.attn.{part}" for part in ORIGINAL_QKV]
    kinds = {ORIGINAL_NAMES["class_embed"]: ("weight",)}
    return {
        f"{theirs}.{kind}": [f"{name}.{kind}" for name in places]
        for theirs, places in parts.items()
        for kind in kinds.get(theirs, ("weight", "bias"))
    }


def _original_fields(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What shapes say of the config.

    Raises:
        KeyError: A weight that says it is missing.
    """
    width, channels, side, _ = weights["x_embedder.proj.weight"].shape
    layers = {int(name.split(".")[1]) for name in weights if name.startswith("blocks.")}
    fields = {
        "sample_size": isqrt(weights["pos_embed"].shape[1]) * side,
        "in_channels": channels,
        "out_channels": len(weights["final_layer.linear.bias"]) // side**2,
        "patch_size": side,
        "hidden_size": width,
        "num_layers": len(layers),
        "mlp_ratio": len(weights["blocks.0.mlp.fc1.bias"]) / width,
        "num_classes": len(weights["y_embedder.embedding_table.weight"]) - 1,
    }
    return fields | ({"num_heads": ORIGINAL_HEADS[width]} if width in ORIGINAL_HEADS else {})


def _check_positions(stored: Tensor, model: MMDiTModel, file: Path) -> None:
    """Refuse positions that are not those that ours computes."""
    computed: Any = model.positions
    if stored.shape != computed.shape or (stored.float() - computed).abs().max() > 1e-3:
        raise ValueError(
            f"{file}: `pos_embed` {tuple(stored.shape)} is not the sines and cosines of a square grid of "
            f"patches, {tuple(computed.shape)}; learnt positions are not read."
        )
