"""Read and write VQ autoencoders in the layouts of other repositories: taming VQGAN and LlamaGen.

The names and shapes are those of the repositories' code. Files that their authors released were out of reach
where this was written: what is tested is the names, the shapes and the arithmetic, not their pictures.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...hub.pickled_weights import read_pickled_weights
from ...hub.saving import atomic_folder
from .convert_vq_layout import VQLayout, fields_of_vq_weights
from .convert_vq_llamagen import LLAMAGEN
from .convert_vq_taming import TAMING, taming_config
from .modeling_vq_autoencoder import MMVQAutoencoder

__all__ = ["load_original_vq", "save_original_vq", "to_original_vq_state_dict"]

VQ_LAYOUTS = (TAMING, LLAMAGEN)
VQ_SUFFIXES = (".ckpt", ".pt", ".pth")
RELEASED_SIZE = 256  # pixels: what all released models were trained on


def load_original_vq(path: str | Path, weights_only: bool = True, **fields: Any) -> MMVQAutoencoder:
    """Load a checkpoint of taming VQGAN or of a LlamaGen tokenizer; its names say which it is.

    Both were trained with a codebook learnt by gradients, so `quantizer` is "plain". taming trained with
    codebook and commitment weight exchanged; the weights here are those of the paper, 1.0 and 0.25.

    Args:
        path: The file, such as `last.ckpt` or `vq_ds16_c2i.pt`, or a folder with one such file in it or in
            its `checkpoints`.
        weights_only: Refuse files that hold more than numbers and plain data: such a file can run any
            program. Lightning's own checkpoints do; say `False` for one you trust.
        **fields: Of the config that shapes do not tell, such as `sample_size`, 256 by default; `quantizer`
            "ema" with `kmeans_iterations=0` to train on with moving averages.

    Returns:
        The model in evaluation mode.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds something else, weights are missing, or the folder has several files.
    """
    file = _weight_file(Path(path))
    layout, theirs = _read(file, weights_only)
    weights = layout.weights_from(theirs)
    try:
        told = fields_of_vq_weights(weights)
    except KeyError as error:
        raise ValueError(f"{file} has no weight that means `{error.args[0]}`; it is cut short.") from error
    config = {"sample_size": RELEASED_SIZE, "quantizer": "plain"} | told | dict(layout.told) | fields
    model = MMVQAutoencoder(**config).eval()
    _check_weights(weights, model.state_dict(), file)
    model.load_state_dict(weights, strict=False)
    return model


def to_original_vq_state_dict(model: MMVQAutoencoder, layout: str) -> dict[str, Tensor]:
    """The weights of a model under the names of another repository.

    A codebook of moving averages is written as what it is by then, a codebook.

    Args:
        model: With a codebook.
        layout: "taming" or "llamagen".

    Raises:
        ValueError: That repository's code cannot build such a model.
    """
    chosen = _layout_named(layout)
    chosen.check_config(model.config)
    weights = {name: weight for name, weight in model.state_dict().items() if "cluster_" not in name}
    weights["quantize.embedding.weight"] = model.quantize.codes().detach()
    return chosen.weights_to(weights)


def save_original_vq(model: MMVQAutoencoder, folder: str | Path, layout: str) -> None:
    """Write a model as a folder for another repository: `load_original_vq` reads it too.

    Args:
        model: With a codebook.
        folder: Gets `last.ckpt` and `model.yaml` (taming), or `vq.pt` (llamagen).
        layout: "taming" or "llamagen".

    Raises:
        ValueError: That repository's code cannot build such a model.
    """
    weights = to_original_vq_state_dict(model, layout)
    with atomic_folder(folder) as temporary:
        if layout == "taming":
            torch.save({"state_dict": weights}, temporary / "last.ckpt")
            text = json.dumps(taming_config(model.config), indent=2)  # which is YAML too
            (temporary / "model.yaml").write_text(text + "\n", encoding="utf-8")
        else:
            torch.save({"model": weights}, temporary / "vq.pt")


def _layout_named(name: str) -> VQLayout:
    for layout in VQ_LAYOUTS:
        if layout.model_type == name:
            return layout
    raise ValueError(f"`layout` must be 'taming' or 'llamagen', got {name!r}.")


def _weight_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = [
        file
        for folder in (path, path / "checkpoints")
        for file in sorted(folder.glob("*"))
        if file.suffix in VQ_SUFFIXES
    ]
    if not files:
        raise FileNotFoundError(f"{path} holds no file {', '.join('*' + suffix for suffix in VQ_SUFFIXES)}.")
    if len(files) > 1:
        names = ", ".join(str(file.relative_to(path)) for file in files)
        raise ValueError(f"{path} holds {names}; name the file that is meant.")
    return files[0]


def _read(file: Path, weights_only: bool) -> tuple[VQLayout, Mapping[str, Tensor]]:
    holders: Sequence[str] = tuple(dict.fromkeys(name for layout in VQ_LAYOUTS for name in layout.holders))
    weights = read_pickled_weights(file, weights_only, holders)
    for layout in VQ_LAYOUTS:
        if layout.mark in weights:
            if "quantize.embed.weight" in weights:
                raise ValueError(
                    f"{file} holds a Gumbel quantiser, which has no nearest code; it is not read."
                )
            return layout, weights
    raise ValueError(
        f"{file} is neither of taming (no `{TAMING.mark}`) nor of LlamaGen (no `{LLAMAGEN.mark}`); a folder "
        "of diffusers is read by `from_pretrained`."
    )


def _check_weights(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], file: Path) -> None:
    for name in sorted(weights.keys() & wanted.keys()):
        if weights[name].shape != wanted[name].shape:
            raise ValueError(
                f"{file}: `{name}` is {tuple(weights[name].shape)}, the widths of the encoder want "
                f"{tuple(wanted[name].shape)}; encoder and decoder must have the same."
            )
    missing = sorted(name for name in wanted if name not in weights and "cluster_" not in name)
    unexpected = sorted(name for name in weights if name not in wanted)
    for kind, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            raise ValueError(f"{file}: `{names[0]}` is {kind} ({len(names)} weights in all, by our names).")
