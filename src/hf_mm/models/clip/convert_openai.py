"""CLIP in the layout of OpenAI's own code, which open_clip kept: read into this family, and written.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision"
(https://arxiv.org/abs/2103.00020); names as in `clip/model.py` of https://github.com/openai/CLIP. Query, key
and value are one matrix there, projections stand transposed, and all sizes follow from the shapes: a file
holds weights alone. The activation is quick_gelu and a text is read at its highest token id.
"""

import math
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_utils import load_state_dict

from ...hub.interop import ForeignCheckpoint, require_fields
from ..clip_text.convert_clip_text import CLIPTextCheckpoint
from ..vit.convert_clip_vision import CLIPVisionCheckpoint, add_leading_axes, drop_leading_axes
from .configuration_clip import MMCLIPConfig
from .convert_clip import CLIPCheckpoint, require_tower
from .modeling_clip import MMCLIPModel

__all__ = [
    "OPENAI_CHECKPOINT",
    "OpenAICheckpoint",
    "build_clip",
    "check_towers",
    "fields_of_weights",
    "load_openai_clip",
    "read_weights",
    "to_openai_state_dict",
]

HEAD_WIDTH = 64  # of every model of OpenAI's
# our name, the name in a transformer; `qkv_proj` is put together and taken apart around the table
BLOCK_NAMES = (
    ("blocks.{}.attention_norm.*", "resblocks.{}.ln_1.*"),
    ("blocks.{}.attention.qkv_proj.*", "resblocks.{}.attn.in_proj_*"),
    ("blocks.{}.attention.o_proj.*", "resblocks.{}.attn.out_proj.*"),
    ("blocks.{}.mlp_norm.*", "resblocks.{}.ln_2.*"),
    ("blocks.{}.mlp.fc1.*", "resblocks.{}.mlp.c_fc.*"),
    ("blocks.{}.mlp.fc2.*", "resblocks.{}.mlp.c_proj.*"),
)
TEXT_NAMES = (
    ("text_model.embeddings.tokens.weight", "token_embedding.weight"),
    ("text_model.embeddings.positions.weight", "positional_embedding"),
    *((f"text_model.{ours}", f"transformer.{theirs}") for ours, theirs in BLOCK_NAMES),
    ("text_model.norm.*", "ln_final.*"),
    ("text_projection.weight", "text_projection"),
)
VISION_NAMES = (
    ("vision_model.embeddings.cls_token", "visual.class_embedding"),
    ("vision_model.embeddings.positions", "visual.positional_embedding"),
    ("vision_model.embeddings.patches.projection.weight", "visual.conv1.weight"),
    ("vision_model.embeddings.norm.*", "visual.ln_pre.*"),
    *((f"vision_model.{ours}", f"visual.transformer.{theirs}") for ours, theirs in BLOCK_NAMES),
    ("vision_model.norm.*", "visual.ln_post.*"),
    ("visual_projection.weight", "visual.proj"),
)
TRANSPOSED = ("text_projection.weight", "visual_projection.weight")
SCALARS = ("logit_scale", "logit_bias")  # of one number in a row where open_clip is told so
QKV = ("q_proj", "k_proj", "v_proj")
# What a file in this layout holds instead, when it is of another architecture.
OTHERS = {
    "visual.layer1.0.conv1.weight": "a ModifiedResNet image tower (RN50 and its kin)",
    "visual.trunk.": "an image tower of timm",
    "text.transformer.embeddings.": "a text tower of transformers",
    "text_decoder.": "a text decoder (CoCa)",
}


class OpenAICheckpoint(ForeignCheckpoint):
    """The weights; a name may also stand behind `text.` (open_clip's custom text tower)."""

    model_type = "openai/CLIP"
    classes = {}
    names = (
        *((ours, theirs, f"text.{theirs}") for ours, theirs in TEXT_NAMES),
        *VISION_NAMES,
        ("logit_scale", "logit_scale"),
        ("logit_bias", "logit_bias"),
    )
    unused = ("input_resolution", "context_length", "vocab_size", "attn_mask", "text.attn_mask")

    def weights_from(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `ForeignCheckpoint`."""
        weights: dict[str, Tensor] = {}
        for name, weight in add_leading_axes(super().weights_from(theirs)).items():
            if ".qkv_proj." in name:
                parts = zip(QKV, weight.chunk(3), strict=True)  # (3 * D, ...) to three (D, ...)
                weights |= {name.replace("qkv_proj", part): matrix.clone() for part, matrix in parts}
            elif name in TRANSPOSED:
                weights[name] = weight.T.contiguous()  # (D, P) to (P, D)
            else:
                weights[name] = weight.reshape(()) if name in SCALARS else weight
        return weights

    def weights_to(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `ForeignCheckpoint`."""
        weights: dict[str, Tensor] = {}
        for name, weight in drop_leading_axes(ours).items():
            if ".q_proj." in name:
                fused = torch.cat([ours[name.replace("q_proj", part)] for part in QKV])
                weights[name.replace("q_proj", "qkv_proj")] = fused
            elif ".k_proj." not in name and ".v_proj." not in name:
                weights[name] = weight.T.contiguous() if name in TRANSPOSED else weight
        return super().weights_to(weights)


def load_openai_clip(path: str | Path, dtype: torch.dtype = torch.float32) -> MMCLIPModel:
    """Load a checkpoint of OpenAI's, such as `ViT-B-32.pt`, or one that their code fine-tuned from it.

    Args:
        path: A TorchScript archive, as OpenAI gives them out, or a file of `torch.save(model.state_dict())`;
            names behind `module.` are read too.
        dtype: Of the model; OpenAI's files mix float16 and float32.

    Returns:
        The model, in evaluation mode, without dropout. Its text is to be tokenised by CLIP's tokenizer.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds another model, or weights are missing.
    """
    weights = OPENAI_CHECKPOINT.weights_from(read_weights(path))
    fields = fields_of_weights(weights, str(path))
    vision, text = fields["vision_config"], fields["text_config"]
    for tower in (vision, text):
        if tower["hidden_size"] % HEAD_WIDTH:
            raise ValueError(
                f"{path} has a tower {tower['hidden_size']} wide, OpenAI's code has heads of {HEAD_WIDTH}; "
                "read it with `load_open_clip`, whose `config` says how many there are."
            )
        tower |= {"hidden_act": "quick_gelu", "num_attention_heads": tower["hidden_size"] // HEAD_WIDTH}
    text["end_of_text"] = "highest_id"
    return build_clip(fields, weights, str(path), dtype)


def to_openai_state_dict(model: MMCLIPModel) -> dict[str, Tensor]:
    """The weights of a model as OpenAI's `build_model` and `load_state_dict` take them.

    Args:
        model: A CLIP of OpenAI's architecture: two transformers of heads of 64, quick_gelu.

    Returns:
        Weights by OpenAI's names; write them with `torch.save`.

    Raises:
        ValueError: OpenAI's code cannot express the model.
    """
    what = "OpenAI's CLIP"
    check_towers(model.config, what)
    require_fields(model.config, {"objective": "softmax"}, what)
    for tower in (model.config.vision_config, model.config.text_config):
        width = tower.hidden_size
        wanted = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "intermediate_size": 4 * width}
        require_fields(tower, wanted | {"num_attention_heads": width // HEAD_WIDTH}, what)
    require_fields(model.config.vision_config, {"num_channels": 3}, what)
    text = model.config.text_config
    if text.eos_token_id != text.vocab_size - 1:
        require_fields(text, {"end_of_text": "highest_id"}, what)
    return OPENAI_CHECKPOINT.weights_to(model.state_dict())


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Weights by name, of a safetensors file, a TorchScript archive, a state dict or a training checkpoint.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; wanted a file of weights.")
    if path.suffix == ".safetensors":
        weights: Any = load_state_dict(str(path))
    elif _is_torchscript(path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # OpenAI's files will not change
            weights = dict(torch.jit.load(str(path), map_location="cpu").state_dict())
    else:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(weights, dict):
        weights = weights.get("state_dict", weights)  # beside epoch and optimizer
    if not isinstance(weights, dict) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise ValueError(f"{path} holds no weights by name; save `model.state_dict()`.")
    return {name.removeprefix("module."): weight for name, weight in weights.items()}


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def fields_of_weights(weights: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """The fields of `MMCLIPConfig` that the shapes of the weights tell.

    Args:
        weights: By our names, as far as they are known.
        source: Where they are from, for the messages.

    Raises:
        ValueError: They are of another architecture.
    """
    needed = [ours for ours, _ in (*TEXT_NAMES, *VISION_NAMES) if "{}" not in ours and "*" not in ours]
    missing = [name for name in needed if name not in weights]
    if missing:
        for begin, what in OTHERS.items():
            if any(name.startswith(begin) for name in weights):
                raise ValueError(
                    f"{source} holds {what}, mm_clip reads CLIP's own two transformers only; use a ViT "
                    "checkpoint (ViT-B/32, ViT-L/14, ...), or run this one with open_clip."
                )
        raise ValueError(
            f"{source} has no weight that means `{missing[0]}`; wanted the names of OpenAI's CLIP "
            "(`visual.conv1.weight`, `token_embedding.weight`, ...). A folder of transformers is read by "
            "`MMCLIPModel.from_pretrained`."
        )
    patches = weights["vision_model.embeddings.patches.projection.weight"]  # (D, C, P, P)
    positions = weights["vision_model.embeddings.positions"]  # (1, 1 + N, D)
    vocabulary, width = weights["text_model.embeddings.tokens.weight"].shape
    return {
        "projection_dim": len(weights["text_projection.weight"]),
        "vision_config": {
            "model_type": "mm_vit",
            **CLIPVisionCheckpoint.fixed,
            **_block_fields(weights, "vision_model"),
            "hidden_size": patches.shape[0],
            "num_channels": patches.shape[1],
            "patch_size": patches.shape[-1],
            "image_size": patches.shape[-1] * math.isqrt(positions.shape[1] - 1),
        },
        "text_config": {
            "model_type": "mm_clip_text",
            **CLIPTextCheckpoint.fixed,
            **_block_fields(weights, "text_model"),
            "hidden_size": width,
            "vocab_size": vocabulary,
            "max_position_embeddings": len(weights["text_model.embeddings.positions.weight"]),
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
            "pad_token_id": 0,
        },
    }


def _block_fields(weights: Mapping[str, Tensor], tower: str) -> dict[str, Any]:
    hidden = [weight for name, weight in weights.items() if _is_fc1(name, tower)]  # (4 * D, D) each
    return {
        "num_hidden_layers": len(hidden),
        "intermediate_size": hidden[0].shape[0] if hidden else 0,
        "layer_norm_eps": 1e-5,
    }


def _is_fc1(name: str, tower: str) -> bool:
    return name.startswith(f"{tower}.blocks.") and name.endswith(".mlp.fc1.weight")


def build_clip(
    fields: Mapping[str, Any], weights: dict[str, Tensor], source: str, dtype: torch.dtype
) -> MMCLIPModel:
    """A model of these fields and weights, every one of which must find its place.

    Raises:
        ValueError: A weight is missing or left over.
    """
    config = MMCLIPConfig(**fields)
    options: dict[str, Any] = {"config": config, "state_dict": weights, "output_loading_info": True}
    loaded: Any = MMCLIPModel.from_pretrained(None, dtype=dtype, **options)
    model, report = loaded
    for kind in ("missing", "unexpected"):
        names = sorted(report[f"{kind}_keys"])
        if names:
            raise ValueError(
                f"{source}: `{names[0]}` is {kind} ({len(names)} weights in all, by our names); wanted "
                "exactly the weights of OpenAI's CLIP."
            )
    model.name_or_path = model.config.name_or_path = source
    return model


def check_towers(config: PreTrainedConfig, what: str) -> None:
    """Refuse to export what neither OpenAI's code nor open_clip has.

    Raises:
        ValueError: The first field that differs.
    """
    for name, checkpoint in {
        "vision_config": CLIPVisionCheckpoint,
        "text_config": CLIPTextCheckpoint,
    }.items():
        require_fields(require_tower(config, name, what), checkpoint.fixed, what)
    fixed = {name: value for name, value in CLIPCheckpoint.fixed.items() if name != "objective"}
    require_fields(config, fixed, what)


OPENAI_CHECKPOINT = OpenAICheckpoint()
