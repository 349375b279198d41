"""Checkpoints of open_clip (https://github.com/mlfoundations/open_clip) into this family, and written.

The weights have the names of OpenAI's code, see `convert_openai.py`. What shapes do not tell (activation,
heads, where a text is read) stands in `open_clip_config.json`, or nowhere: then it must be said. A wrong
activation raises nothing and costs accuracy (https://github.com/mlfoundations/open_clip/issues/771), so it is
never guessed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from transformers import PreTrainedConfig
from transformers.utils.hub import cached_file

from ...hub.saving import atomic_folder
from .convert_openai import OPENAI_CHECKPOINT, build_clip, check_towers, fields_of_weights, read_weights
from .modeling_clip import MMCLIPModel

__all__ = ["load_open_clip", "to_open_clip"]

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TOWER_PARTS = {"vision_cfg": "vision_config", "text_cfg": "text_config"}
# Fields that the shapes of the weights tell too, as (part, theirs): ours; "" is the whole.
SHAPE_FIELDS = {
    ("", "embed_dim"): "projection_dim",
    ("vision_cfg", "image_size"): "image_size",
    ("vision_cfg", "patch_size"): "patch_size",
    ("vision_cfg", "width"): "hidden_size",
    ("vision_cfg", "layers"): "num_hidden_layers",
    ("text_cfg", "context_length"): "max_position_embeddings",
    ("text_cfg", "vocab_size"): "vocab_size",
    ("text_cfg", "width"): "hidden_size",
    ("text_cfg", "layers"): "num_hidden_layers",
}
# Fields that are read besides, or that do not change what a trained model answers.
OTHER_FIELDS = {
    "": {
        "vision_cfg",
        "text_cfg",
        "quick_gelu",
        "custom_text",
        "init_logit_scale",
        "init_logit_bias",
        "nonscalar_logit_scale",
    },
    "vision_cfg": {
        "head_width",
        "mlp_ratio",
        "norm_kwargs",
        "patch_dropout",
        "output_tokens",
        "attn_pooler_queries",
        "attn_pooler_heads",
    },
    "text_cfg": {
        "heads",
        "mlp_ratio",
        "norm_kwargs",
        "pool_type",
        "eos_id",
        "pad_id",
        "hf_tokenizer_name",
        "tokenizer_mode",
        "tokenizer_kwargs",
        "output_tokens",
    },
}
# All other fields must be off; these say that by a word.
OFF_WORDS = {
    "pool_type": "tok",
    "pos_embed_type": "learnable",
    "proj_type": "linear",
    "block_type": "default",
}
# Where a text is read.
TEXT_POOLS = {"argmax": "highest_id", "eos": "first_eos"}
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # values of `PIL.Image.Resampling`


def load_open_clip(
    source: str | Path,
    config: str | Path | Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> MMCLIPModel:
    """Load a CLIP of two transformers that open_clip trained or published.

    Args:
        source: A file of weights (`.safetensors`, `.bin`, or `.pt` of a training run), or a folder or Hub id
            that holds one under the name that open_clip gives it.
        config: What `open_clip.get_model_config` gives, with `quick_gelu` in it, or a file of it. By default
            the `open_clip_config.json` beside the weights.
        dtype: Of the model.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: There are no weights.
        ValueError: Nobody says which activation the weights were trained with, the config is of another model
            than the weights, or it asks for what mm_clip does not have.
    """
    path, beside = _files(source)
    model_cfg = _model_config(path, beside, config)
    weights = OPENAI_CHECKPOINT.weights_from(read_weights(path))
    fields = fields_of_weights(weights, str(path))
    _check_config(model_cfg, fields)
    act = "quick_gelu" if model_cfg.get("quick_gelu") else "gelu"
    vision_cfg, text_cfg = model_cfg["vision_cfg"], model_cfg["text_cfg"]
    vision, text = fields["vision_config"], fields["text_config"]
    vision["num_attention_heads"] = vision["hidden_size"] // vision_cfg.get("head_width", 64)
    text["num_attention_heads"] = text_cfg.get("heads", 8)
    text["end_of_text"] = TEXT_POOLS[text_cfg.get("pool_type", "argmax")]
    text["pad_token_id"] = text_cfg.get("pad_id", 0)
    if text["end_of_text"] == "first_eos":
        text["eos_token_id"] = text_cfg.get("eos_id", 2)
    for tower, part in ((vision, vision_cfg), (text, text_cfg)):
        tower |= {
            "hidden_act": act,
            "layer_norm_eps": float((part.get("norm_kwargs") or {}).get("eps", 1e-5)),
        }
    if "logit_bias" in weights:
        fields["objective"] = "sigmoid"
    return build_clip(fields, weights, str(source), dtype)


def to_open_clip(model: MMCLIPModel, folder: str | Path, image_processor: Any = None) -> None:
    """Write a model as a folder that open_clip loads: `create_model("local-dir:FOLDER")`.

    open_clip tokenises with CLIP's own vocabulary; for another one add `hf_tokenizer_name` to `text_cfg` in
    the `open_clip_config.json` that is written.

    Args:
        model: A CLIP of two transformers.
        folder: Created when absent.
        image_processor: Says how pictures are prepared; without it open_clip takes OpenAI's mean and
            deviation.

    Raises:
        ValueError: open_clip cannot express the model or the image processor.
    """
    fields = {"model_cfg": _model_config_of(model.config)}
    if image_processor is not None:
        fields["preprocess_cfg"] = _preprocess_config_of(image_processor)
    weights = OPENAI_CHECKPOINT.weights_to(model.state_dict())
    with atomic_folder(folder) as temporary:
        pattern = WEIGHTS_FILES[0].replace(".", "{suffix}.")
        save_torch_state_dict(weights, temporary, filename_pattern=pattern, max_shard_size="1TB")
        (temporary / CONFIG_FILE).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _files(source: str | Path) -> tuple[str, str | None]:
    """The file of weights and, when there is one, the config beside it."""
    if Path(source).is_file():
        beside = Path(source).parent / CONFIG_FILE
        return str(source), str(beside) if beside.is_file() else None
    for name in WEIGHTS_FILES:
        path = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        if path is not None:
            beside = cached_file(source, CONFIG_FILE, _raise_exceptions_for_missing_entries=False)
            return path, beside
    raise FileNotFoundError(
        f"{source} holds no weights of open_clip; wanted one of {', '.join(WEIGHTS_FILES)}."
    )


def _model_config(
    path: str, beside: str | None, given: str | Path | Mapping[str, Any] | None
) -> dict[str, Any]:
    """The `model_cfg` that is given or lies beside the weights."""
    if given is None and beside is None:
        raise ValueError(
            f"{path} has no {CONFIG_FILE} beside it, and weights do not tell their activation: a wrong one "
            "gives wrong numbers without an error. Pass `config=open_clip.get_model_config(NAME)` of the "
            "NAME that they were trained as, with `quick_gelu` set: True for OpenAI's weights and names that "
            "end in -quickgelu."
        )
    content = given if given is not None else beside
    if not isinstance(content, Mapping):
        content = json.loads(Path(str(content)).read_text(encoding="utf-8"))
    model_cfg = dict(content.get("model_cfg", content))
    lacking = [part for part in ("vision_cfg", "text_cfg") if part not in model_cfg]
    if lacking:
        raise ValueError(
            f"`config` has {sorted(model_cfg)} but no `{lacking[0]}`; wanted the content of an {CONFIG_FILE} "
            "or of a file in open_clip's `model_configs`."
        )
    if given is not None and "quick_gelu" not in model_cfg:
        raise ValueError(
            "`config` does not say `quick_gelu`; set it to True for OpenAI's weights and names that end in "
            "-quickgelu, else to False: a wrong one gives wrong numbers without an error."
        )
    return model_cfg


def _check_config(model_cfg: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    """Refuse a config of another model than the weights, and what mm_clip does not have."""
    for part, known in OTHER_FIELDS.items():
        section = model_cfg[part] if part else model_cfg
        ours = fields[TOWER_PARTS[part]] if part else fields
        for name, value in section.items():
            where = f"`{part}.{name}`={value!r}" if part else f"`{name}`={value!r}"
            if (part, name) in SHAPE_FIELDS:
                found = ours[SHAPE_FIELDS[part, name]]
                if value != found:
                    raise ValueError(
                        f"{where} of the config is {found} by the shapes of the weights; give the config "
                        "that they were trained with."
                    )
            elif name not in known and value not in (None, False, OFF_WORDS.get(name)):
                raise ValueError(f"{where} has no counterpart in mm_clip; run this model with open_clip.")
    for part in TOWER_PARTS:
        odd = set(model_cfg[part].get("norm_kwargs") or {}) - {"eps"}
        if odd:
            raise ValueError(
                f"`{part}.norm_kwargs` has {sorted(odd)}, mm_clip has `eps` only; run this model with "
                "open_clip."
            )
    pool = model_cfg["text_cfg"].get("pool_type", "argmax")
    if pool not in TEXT_POOLS:
        raise ValueError(
            f"`text_cfg.pool_type`={pool!r} has no counterpart in mm_clip, which has "
            f"{' and '.join(TEXT_POOLS)}; run this model with open_clip."
        )


def _model_config_of(config: PreTrainedConfig) -> dict[str, Any]:
    """The `model_cfg` of a model of ours."""
    what = "open_clip"
    check_towers(config, what)
    vision, text = config.vision_config, config.text_config
    acts = {vision.hidden_act, text.hidden_act}
    if len(acts) > 1 or not acts <= {"gelu", "quick_gelu"}:
        raise ValueError(
            f"`hidden_act` {vision.hidden_act!r} of the image tower and {text.hidden_act!r} of the text "
            "tower cannot be exported, open_clip has 'gelu' or 'quick_gelu' in both; share the folder "
            "itself, it loads with `trust_remote_code=True`."
        )
    vision_cfg = {
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "head_width": vision.hidden_size // vision.num_attention_heads,
        **_block_config_of(vision),
    }
    text_cfg = {
        "context_length": text.max_position_embeddings,
        "vocab_size": text.vocab_size,
        "heads": text.num_attention_heads,
        **_block_config_of(text),
    }
    if text.end_of_text == "first_eos" and text.eos_token_id != text.vocab_size - 1:
        text_cfg |= {"pool_type": "eos", "eos_id": text.eos_token_id}  # else it is also the highest
    model_cfg = {"embed_dim": config.projection_dim, "quick_gelu": acts == {"quick_gelu"}}
    if config.logit_bias_init_value is not None:
        model_cfg["init_logit_bias"] = config.logit_bias_init_value
    return model_cfg | {"vision_cfg": vision_cfg, "text_cfg": text_cfg}


def _block_config_of(tower: PreTrainedConfig) -> dict[str, Any]:
    width, hidden = tower.hidden_size, tower.intermediate_size
    ratio = hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width
    fields = {"width": width, "layers": tower.num_hidden_layers, "mlp_ratio": ratio}
    return fields if tower.layer_norm_eps == 1e-5 else fields | {"norm_kwargs": {"eps": tower.layer_norm_eps}}


def _preprocess_config_of(processor: Any) -> dict[str, Any]:
    """The `preprocess_cfg` of an image processor."""
    if processor.resample not in INTERPOLATIONS:
        raise ValueError(
            f"`resample`={processor.resample} cannot be exported, open_clip has 2 (bilinear) and 3 (bicubic) "
            "only; leave `image_processor` out and describe it yourself."
        )
    mean, std = (
        [value] * 3 if isinstance(value, int | float) else list(value)
        for value in (processor.image_mean, processor.image_std)
    )
    return {
        "mean": mean,
        "std": std,
        "interpolation": INTERPOLATIONS[processor.resample],
        "resize_mode": "shortest" if processor.size.get("shortest_edge") else "squash",
    }
