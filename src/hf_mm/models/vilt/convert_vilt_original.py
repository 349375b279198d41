"""ViLT in the layout of its authors' own code: read into this family, and written.

Kim et al. 2021, "ViLT" (https://arxiv.org/abs/2102.03334); names as in `vilt/modules` of
https://github.com/dandelin/ViLT. Checkpoints are those of PyTorch Lightning: weights under `state_dict`.
Query, key and value are one matrix there, and the layer norms have two different eps.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...hub.interop import ForeignCheckpoint, require_fields
from ...hub.pickled_weights import read_pickled_weights
from .configuration_vilt import MMViltConfig
from .heads_vilt import (
    MMViltForImageAndTextRetrieval,
    MMViltForImagesAndTextClassification,
    MMViltForQuestionAnswering,
)
from .modeling_vilt import MMViltModel, MMViltPreTrainedModel
from .pretraining_vilt import MMViltForPreTraining

__all__ = ["ORIGINAL_VILT", "OriginalViltCheckpoint", "load_original_vilt", "to_original_vilt_state_dict"]

VILT_HEAD_WIDTH = 64  # of the published models
VILT_QKV = ("q_proj", "k_proj", "v_proj")
ORIGINAL_FIXED = {"layer_norm_eps": 1e-6, "text_layer_norm_eps": 1e-12, "hidden_act": "gelu"}
# The head that says which class a file is of, the first that is there; pre-training when it is none of them.
ORIGINAL_HEADS = {
    "answer_classifier": MMViltForQuestionAnswering,
    "images_classifier": MMViltForImagesAndTextClassification,
    "rank_output": MMViltForImageAndTextRetrieval,
}
PRETRAINING_HEADS = {"mlm_head": "mlm", "itm_head": "itm", "mpp_head": "mpp"}


class OriginalViltCheckpoint(ForeignCheckpoint):
    """The weights; our names are those of a model with a head."""

    model_type = "dandelin/ViLT"
    classes = {}
    names = (
        ("vilt.embeddings.text.tokens.weight", "text_embeddings.word_embeddings.weight"),
        ("vilt.embeddings.text.positions.weight", "text_embeddings.position_embeddings.weight"),
        ("vilt.embeddings.text.token_types.weight", "text_embeddings.token_type_embeddings.weight"),
        ("vilt.embeddings.text.norm.*", "text_embeddings.LayerNorm.*"),
        ("vilt.embeddings.modalities.weight", "token_type_embeddings.weight"),
        ("vilt.embeddings.cls_token", "transformer.cls_token"),
        ("vilt.embeddings.mask_token", "transformer.mask_token"),
        ("vilt.embeddings.positions", "transformer.pos_embed"),
        ("vilt.embeddings.patches.projection.*", "transformer.patch_embed.proj.*"),
        ("vilt.blocks.{}.attention_norm.*", "transformer.blocks.{}.norm1.*"),
        ("vilt.blocks.{}.attention.qkv_proj.*", "transformer.blocks.{}.attn.qkv.*"),
        ("vilt.blocks.{}.attention.o_proj.*", "transformer.blocks.{}.attn.proj.*"),
        ("vilt.blocks.{}.mlp_norm.*", "transformer.blocks.{}.norm2.*"),
        ("vilt.blocks.{}.mlp.fc1.*", "transformer.blocks.{}.mlp.fc1.*"),
        ("vilt.blocks.{}.mlp.fc2.*", "transformer.blocks.{}.mlp.fc2.*"),
        ("vilt.norm.*", "transformer.norm.*"),
        ("vilt.pooler.dense.*", "pooler.dense.*"),
        ("mlm_head.transform.dense.*", "mlm_score.transform.dense.*"),
        ("mlm_head.transform.norm.*", "mlm_score.transform.LayerNorm.*"),
        ("mlm_head.decoder.weight", "mlm_score.decoder.weight"),
        ("mlm_head.decoder.bias", "mlm_score.bias"),
        ("itm_head.*", "itm_score.fc.*"),
        ("mpp_head.transform.dense.*", "mpp_score.transform.dense.*"),
        ("mpp_head.transform.norm.*", "mpp_score.transform.LayerNorm.*"),
        ("mpp_head.decoder.*", "mpp_score.decoder.*"),
        ("rank_output.*", "rank_output.*"),
        ("answer_classifier.*", "vqa_classifier.*"),
        ("images_classifier.*", "nlvr2_classifier.*"),
    )
    unused = ("*position_ids", "mpfr_score.*", "transformer.head.*")

    def weights_from(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `ForeignCheckpoint`."""
        weights: dict[str, Tensor] = {}
        for name, weight in super().weights_from(theirs).items():
            if ".qkv_proj." in name:
                parts = zip(VILT_QKV, weight.chunk(3), strict=True)  # (3 * D, ...) to three (D, ...)
                weights |= {name.replace("qkv_proj", part): matrix.clone() for part, matrix in parts}
            else:
                weights[name] = weight
        return weights

    def weights_to(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `ForeignCheckpoint`."""
        weights: dict[str, Tensor] = {}
        for name, weight in ours.items():
            if ".q_proj." in name:
                fused = torch.cat([ours[name.replace("q_proj", part)] for part in VILT_QKV])
                weights[name.replace("q_proj", "qkv_proj")] = fused
            elif ".k_proj." not in name and ".v_proj." not in name:
                weights[name] = weight
        return super().weights_to(weights)


def load_original_vilt(path: str | Path, weights_only: bool = True, **fields: Any) -> MMViltPreTrainedModel:
    """Load a checkpoint of the authors' code, such as `vilt_200k_mlm_itm.ckpt`.

    Args:
        path: What Lightning or `torch.save` wrote: weights by name, or a dictionary with them as
            `state_dict`.
        weights_only: Refuse files that hold more than numbers and plain data: such a file can run any
            program. Say `False` for one you trust.
        **fields: Of the config that shapes do not tell: `id2label`, the answers in order; `image_mean`.

    Returns:
        The model that the file's heads are of, in evaluation mode: of answers, of pairs of images, of
        ranking, of pre-training, or the bare encoder.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds something else, or weights are missing.
    """
    weights = ORIGINAL_VILT.weights_from(read_pickled_weights(Path(path), weights_only))
    needed = [ours for ours, _ in ORIGINAL_VILT.names[:9] if "*" not in ours and "mask_token" not in ours]
    missing = [name for name in needed if name not in weights]
    if missing:
        raise ValueError(
            f"{path} has no weight that means `{missing[0]}`; wanted the names of ViLT's own code "
            "(`transformer.pos_embed`, `text_embeddings.word_embeddings.weight`, ...). A folder of "
            "transformers is read by `from_pretrained`."
        )
    model_class, told = _fields_of(weights)
    config = MMViltConfig(**(told | fields))
    if model_class is MMViltModel:
        weights = {name.removeprefix("vilt."): weight for name, weight in weights.items()}
    options: dict[str, Any] = {"config": config, "state_dict": weights, "output_loading_info": True}
    loaded: Any = model_class.from_pretrained(None, **options)
    model, report = loaded
    for kind in ("missing", "unexpected"):
        names = sorted(report[f"{kind}_keys"])
        if names:
            raise ValueError(
                f"{path}: `{names[0]}` is {kind} ({len(names)} weights in all, by our names); wanted the "
                f"weights of ViLT's own code for {model_class.__name__}."
            )
    model.name_or_path = model.config.name_or_path = str(path)
    return model


def to_original_vilt_state_dict(model: MMViltPreTrainedModel) -> dict[str, Tensor]:
    """The weights of a model as the authors' `ViLTransformerSS` takes them.

    Args:
        model: Of the classes that `load_original_vilt` returns.

    Returns:
        Weights by their names; write them with `torch.save({"state_dict": weights}, path)`.

    Raises:
        ValueError: Their code cannot express the model.
    """
    width = model.config.hidden_size
    require_fields(
        model.config, ORIGINAL_FIXED | {"num_attention_heads": width // VILT_HEAD_WIDTH}, "ViLT's code"
    )
    prefix = "vilt." if isinstance(model, MMViltModel) else ""
    return ORIGINAL_VILT.weights_to({prefix + name: weight for name, weight in model.state_dict().items()})


def _fields_of(weights: Mapping[str, Tensor]) -> tuple[type[MMViltPreTrainedModel], dict[str, Any]]:
    """The class that a file is of, and the fields of its config that the shapes tell."""
    patches = weights["vilt.embeddings.patches.projection.weight"]  # (D, C, P, P)
    side = math.isqrt(weights["vilt.embeddings.positions"].shape[1] - 1)
    hidden = [
        weight for name, weight in weights.items() if name.endswith(".mlp.fc1.weight")
    ]  # (4 * D, D) each
    width = patches.shape[0]
    fields: dict[str, Any] = ORIGINAL_FIXED | {
        "hidden_size": width,
        "num_channels": patches.shape[1],
        "patch_size": patches.shape[-1],
        "image_size": patches.shape[-1] * side,
        "num_hidden_layers": len(hidden),
        "intermediate_size": hidden[0].shape[0] if hidden else 4 * width,
        "num_attention_heads": width // VILT_HEAD_WIDTH,
        "vocab_size": len(weights["vilt.embeddings.text.tokens.weight"]),
        "max_position_embeddings": len(weights["vilt.embeddings.text.positions.weight"]),
        "type_vocab_size": len(weights["vilt.embeddings.text.token_types.weight"]),
        "modality_type_vocab_size": len(weights["vilt.embeddings.modalities.weight"]),
        "tie_word_embeddings": "mlm_head.decoder.weight" not in weights,
    }
    for head, model_class in ORIGINAL_HEADS.items():
        if f"{head}.weight" in weights:
            return model_class, fields
        if f"{head}.3.weight" in weights:
            labels, inside = weights[f"{head}.3.weight"].shape
            images = {"num_images": inside // width} if head == "images_classifier" else {}
            return model_class, fields | {"num_labels": labels} | images
    tasks = {task: 1.0 for head, task in PRETRAINING_HEADS.items() if _has(weights, head)}
    tasks |= {"wpa": 0.1} if "itm" in tasks else {}
    return (MMViltForPreTraining, fields | {"task_weights": tasks}) if tasks else (MMViltModel, fields)


def _has(weights: Mapping[str, Tensor], head: str) -> bool:
    return any(name.startswith(f"{head}.") for name in weights)


ORIGINAL_VILT = OriginalViltCheckpoint()
