"""Checkpoints of the authors' own code of the region BERTs: read into this family, and written.

One layout for each code; its module says what it is of, where its names stand and what could not be
verified. "volta" is the unified code of Bugliarello et al. 2021 (https://arxiv.org/abs/2011.15124), in
which all of these models exist again.
"""

import json
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import load_state_dict

from ...hub.interop import require_fields
from ...hub.pickled_weights import read_pickled_weights
from .configuration_region_bert import MMRegionBertConfig
from .convert_region_bert_original_lxmert import LXMERT_LAYOUT
from .convert_region_bert_original_visualbert import VISUALBERT_LAYOUT
from .convert_region_bert_oscar import OSCAR_LAYOUT
from .convert_region_bert_uniter import UNITER_LAYOUT
from .convert_region_bert_vilbert import VILBERT_LAYOUT
from .convert_region_bert_vl_bert import VL_BERT_LAYOUT
from .convert_region_bert_volta import VOLTA_LAYOUT
from .heads_region_bert import (
    MMRegionBertForImageAndTextRetrieval,
    MMRegionBertForImagesAndTextClassification,
    MMRegionBertForQuestionAnswering,
)
from .modeling_region_bert import MMRegionBertModel, MMRegionBertPreTrainedModel
from .original_layout_region_bert import BASE, OriginalLayout, plain_name
from .pretraining_region_bert import MMRegionBertForPreTraining
from .selection_region_bert import MMRegionBertForRegionSelection

__all__ = ["ORIGINAL_LAYOUTS", "load_original_region_bert", "to_original_region_bert_state_dict"]

ORIGINAL_LAYOUTS: dict[str, OriginalLayout] = {
    "uniter": UNITER_LAYOUT,
    "vl-bert": VL_BERT_LAYOUT,
    "vilbert": VILBERT_LAYOUT,
    "oscar": OSCAR_LAYOUT,
    "lxmert": LXMERT_LAYOUT,
    "visualbert": VISUALBERT_LAYOUT,
    "volta": VOLTA_LAYOUT,
}
# The head that says which class a file is of, the first that is there; pre-training, or the bare encoder,
# when it is none of them.
FINE_TUNED = {
    "answer_classifier": MMRegionBertForQuestionAnswering,
    "images_classifier": MMRegionBertForImagesAndTextClassification,
    "rank_output": MMRegionBertForImageAndTextRetrieval,
    "selection_output": MMRegionBertForRegionSelection,
}
# Heads of pre-training: the tasks that need them.
PRETRAINED = {
    "mlm_head": ("mlm",),
    "itm_head": ("itm", "wra"),
    "feature_head": ("mrfr",),
    "region_classifier": ("mrc", "mrc_kl"),
    "tag_head": ("tags",),
    "detector_head.decoders.object": ("object",),
    "detector_head.decoders.attribute": ("attribute",),
    "detector_head.decoders.smooth": ("smooth",),
    "answer_head": ("answer",),
}
# field: the rows of a weight that say it
CLASSES = {
    "num_region_classes": "region_classifier.decoder.weight",
    "num_object_classes": "detector_head.decoders.object.weight",
    "num_attribute_classes": "detector_head.decoders.attribute.weight",
    "num_tag_classes": "tag_head.weight",
}
CONFIG_FILES = ("config.json", "bert_config.json")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
WEIGHT_ENDINGS = (".bin", ".pt", ".pth", ".th", ".ckpt", ".model", ".safetensors")
# The head whose last layer has a row for each label.
LABELLED = {
    MMRegionBertForPreTraining: "answer_head",
    MMRegionBertForQuestionAnswering: "answer_classifier",
    MMRegionBertForImagesAndTextClassification: "images_classifier",
}
# Fields that change what the encoder does with its weights; authors' code has one value of each.
STRUCTURE = (
    "layers",
    "layer_groups",
    "layer_norm_eps",
    "qkv_bias",
    "region_location",
    "region_fusion",
    "region_projection_act",
    "region_norm_parts",
    "region_norm",
    "region_type",
    "region_type_table",
    "region_position",
    "region_token",
    "region_mask_token",
    "region_head_norm",
    "whole_image_region",
    "text_sees_image",
    "end_token",
    "pooling",
    "pooler_act",
)
# What authors' code also saves where nothing reads it; the vectors of hidden regions are for pre-training.
UNUSED_PARTS = tuple(f"{BASE}{part}" for part in ("pooler.", "region_embeddings.mask_"))
TABLE = f"{BASE}embeddings.tokens.weight"
PROJECTION = f"{BASE}region_embeddings.feature_projection.weight"
DECODER = "mlm_head.decoder.weight"


def load_original_region_bert(
    path: str | Path,
    layout: str | None = None,
    *,
    config: str | Path | None = None,
    model_class: type[MMRegionBertPreTrainedModel] | None = None,
    leave_out: Sequence[str] = (),
    weights_only: bool = True,
    **fields: Any,
) -> MMRegionBertPreTrainedModel:
    """Load a checkpoint of the authors' code of a region BERT.

    Args:
        path: The file of weights, or the folder of the one and its config.
        layout: Whose code: a key of `ORIGINAL_LAYOUTS`. By default the one whose names are in the file.
        config: Its JSON config, where this is not `config.json` or `bert_config.json` beside the weights.
            What neither it nor shapes tell is as in the paper.
        model_class: What to make of it. By default the class that the file's heads are of: of answers, of
            pairs of images, of ranking, of selecting regions, of pre-training, or the bare encoder. When a
            class is named, the heads of others are not read.
        leave_out: Patterns, such as `vil_prediction_gqa.*`, of weights that shall not be read, by their names
            without `module.`; every other one must have a place.
        weights_only: Refuse files that hold more than numbers and plain data: such a file can run any
            program. Say `False` for one you trust.
        **fields: Of our config, before all else; such as `id2label`, the answers in order.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is of no layout that is known, or weights are missing, left over or of another shape.
    """
    file = _weight_file(Path(path))
    stored = _plain(file, _read(file, weights_only))
    theirs = _read_config(file, config)
    chosen = _layout_of(file, layout, stored).of_config(theirs)
    weights = chosen.weights_from(
        {
            name: weight
            for name, weight in stored.items()
            if not any(fnmatch(name, each) for each in leave_out)
        }
    )
    for name in (TABLE, PROJECTION):
        if name not in weights:
            raise ValueError(
                f"{file}: `{_their_name(chosen, name)}` is not there, and nothing else says how wide the "
                f"model is; wanted the names of {chosen.model_type}."
            )
    kind = _class_of(weights) if model_class is None else model_class
    told = chosen.fields_from(theirs, weights)
    told |= _fields_of_heads(weights, MMRegionBertConfig(**told).task_weights, kind) | fields
    return _build(file, chosen, kind, MMRegionBertConfig(**told), weights, named=model_class is not None)


def to_original_region_bert_state_dict(
    model: MMRegionBertPreTrainedModel, layout: str, *, config: str | Path | None = None
) -> dict[str, Tensor]:
    """The weights of a model by the names of the authors' code.

    Args:
        model: Of a class that `load_original_region_bert` returns.
        layout: Whose code: a key of `ORIGINAL_LAYOUTS`.
        config: The JSON config of "volta" that the weights are for; others need none.

    Returns:
        Weights by their names; write them with `torch.save`.

    Raises:
        FileNotFoundError: There is no such `config`.
        ValueError: That code cannot express the model.
    """
    theirs = {} if config is None else _read_json(config)
    chosen = _known_layout(layout).of_config(theirs)
    prefix = BASE if isinstance(model, MMRegionBertModel) else ""
    weights = {prefix + name: weight for name, weight in model.state_dict().items()}
    again = MMRegionBertConfig(**chosen.fields_from(theirs, weights)).to_dict()
    require_fields(
        model.config, {name: again[name] for name in STRUCTURE}, f"the code of {chosen.model_type}"
    )
    return chosen.weights_to(weights)


def _known_layout(layout: str) -> OriginalLayout:
    if layout not in ORIGINAL_LAYOUTS:
        raise ValueError(f"`layout`={layout!r} is none of {sorted(ORIGINAL_LAYOUTS)}.")
    return ORIGINAL_LAYOUTS[layout]


def _layout_of(file: Path, layout: str | None, stored: Mapping[str, Tensor]) -> OriginalLayout:
    """The layout that is asked for, or the one whose names are there."""
    if layout is not None:
        return _known_layout(layout)
    for each in ORIGINAL_LAYOUTS.values():
        if each.is_of(stored):
            return each
    wanted = "; ".join(f"{name}: {', '.join(each.marks)}" for name, each in ORIGINAL_LAYOUTS.items())
    raise ValueError(
        f"{file} has `{next(iter(stored), 'nothing')}` and {len(stored)} names in all, not those of a layout "
        f"that is known ({wanted}). A folder of transformers is read by `from_pretrained`."
    )


def _weight_file(path: Path) -> Path:
    """The file of weights of a folder, or the file itself."""
    if not path.is_dir():
        return path
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return path / name
    files = sorted(file for file in path.iterdir() if file.suffix in WEIGHT_ENDINGS)
    if len(files) != 1:
        raise ValueError(
            f"{path} has {[file.name for file in files]} where one file of weights is wanted; give the file "
            "itself."
        )
    return files[0]


def _read(file: Path, weights_only: bool) -> dict[str, Tensor]:
    if file.suffix == ".safetensors" and file.is_file():
        return load_state_dict(file)
    return read_pickled_weights(file, weights_only)


def _plain(file: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by their plain names."""
    plain: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if plain_name(name) in plain:
            raise ValueError(f"{file}: two weights mean `{plain_name(name)}`; `{name}` is the second.")
        plain[plain_name(name)] = weight
    return plain


def _read_config(file: Path, config: str | Path | None) -> dict[str, Any]:
    """The config that is named, or one beside the weights; nothing where there is none."""
    if config is not None:
        return _read_json(config)
    beside = [file.parent / name for name in CONFIG_FILES if (file.parent / name).is_file()]
    return _read_json(beside[0]) if beside else {}


def _read_json(config: str | Path) -> dict[str, Any]:
    if not Path(config).is_file():
        raise FileNotFoundError(f"`config`={str(config)!r} is not there; wanted a JSON file.")
    return json.loads(Path(config).read_text(encoding="utf-8"))


def _class_of(weights: Mapping[str, Tensor]) -> type[MMRegionBertPreTrainedModel]:
    """The class that a file is of, by the heads that it has."""
    for head, model_class in FINE_TUNED.items():
        if _has(weights, head):
            return model_class
    pretrained = any(_has(weights, head) for head in PRETRAINED)
    return MMRegionBertForPreTraining if pretrained else MMRegionBertModel


def _fields_of_heads(
    weights: Mapping[str, Tensor], told: Mapping[str, float], model_class: type
) -> dict[str, Any]:
    """Fields that the heads of a file tell: classes, answers, tasks.

    Args:
        weights: By our names.
        told: `task_weights` so far.
        model_class: What is made of the file.
    """
    fields: dict[str, Any] = {name: len(weights[row]) for name, row in CLASSES.items() if row in weights}
    heads = [tasks for head, tasks in PRETRAINED.items() if _has(weights, head)]
    tasks = {task: told[task] for tasks in heads for task in tasks if task in told}
    tasks |= {tasks[0]: 1.0 for tasks in heads if not set(tasks) & set(told)}
    if tasks:
        fields |= {"task_weights": tasks, "task_rates": {}}
    head = LABELLED.get(model_class, "nothing")
    last = [name for name in weights if re.fullmatch(rf"{head}(\.\d+)?\.weight", name)]
    if last:
        fields["num_labels"] = len(weights[max(last)])
    if DECODER in weights:
        fields["tie_word_embeddings"] = torch.equal(weights[DECODER], weights[TABLE])
    return fields


def _build(
    file: Path,
    layout: OriginalLayout,
    model_class: type[MMRegionBertPreTrainedModel],
    config: MMRegionBertConfig,
    weights: dict[str, Tensor],
    named: bool,
) -> MMRegionBertPreTrainedModel:
    """The model, when every weight has a place in it and every place a weight.

    Args:
        file: Where they are from.
        layout: Whose names they had.
        model_class: Of the model.
        config: Of the model.
        weights: By our names.
        named: The caller chose the class, so that the heads of others are left out.
    """
    options: dict[str, Any] = {}
    prefix = BASE if model_class is MMRegionBertModel else ""
    if prefix:
        options["add_pooling_layer"] = f"{BASE}pooler.text.weight" in weights
    with torch.device("meta"):
        empty = model_class(config, **options)
    shapes = {prefix + name: weight.shape for name, weight in empty.state_dict().items()}
    given = {name: weight.shape for name, weight in weights.items()}
    if named:
        given = {n: shape for n, shape in given.items() if n in shapes or not _is_other_head(layout, n)}
    tied = {DECODER} if config.tie_word_embeddings else set()
    _check_names(file, layout, model_class.__name__, shapes, given, tied)
    weights = {name.removeprefix(prefix): weight for name, weight in weights.items() if name in shapes}
    loading: dict[str, Any] = {"config": config, "state_dict": weights, **options}
    model = model_class.from_pretrained(None, **loading)
    model.name_or_path = model.config.name_or_path = str(file)
    return model


def _is_other_head(layout: OriginalLayout, name: str) -> bool:
    """Whether one of our names is that of a head which the layout knows."""
    return not name.startswith(BASE) and layout.renamed(name, source=slice(0, 1), target=1) is not None


def _check_names(
    file: Path,
    layout: OriginalLayout,
    model_class: str,
    shapes: Mapping[str, torch.Size],
    given: Mapping[str, torch.Size],
    tied: set[str],
) -> None:
    """Refuse weights that are missing, left over or of another shape; all are named."""
    missing = sorted(set(shapes) - set(given) - tied)
    surplus = sorted(name for name in set(given) - set(shapes) if not name.startswith(UNUSED_PARTS))
    other = sorted(name for name in set(given) & set(shapes) if given[name] != shapes[name])
    if not missing + surplus + other:
        return
    found = [f"missing: {_told(layout, missing, shapes)}"] if missing else []
    found += [f"without a place: {_told(layout, surplus, given)}"] if surplus else []
    found += [
        f"of another shape: `{_their_name(layout, name)}` {tuple(given[name])}, wanted {tuple(shapes[name])}"
        for name in other
    ]
    raise ValueError(
        f"{file} as {model_class} in the layout of {layout.model_type}: {'; '.join(found)}. Name the "
        "`layout`, `config`, `model_class` or fields that it is of, or `leave_out` what is not wanted."
    )


def _told(layout: OriginalLayout, names: Sequence[str], shapes: Mapping[str, torch.Size]) -> str:
    return ", ".join(f"`{_their_name(layout, name)}` {tuple(shapes[name])}" for name in names)


def _their_name(layout: OriginalLayout, name: str) -> str:
    """One of our names in the layout; itself where that has none."""
    return layout.renamed(name, source=slice(0, 1), target=1) or name


def _has(weights: Mapping[str, Tensor], head: str) -> bool:
    return any(name.startswith(f"{head}.") for name in weights)
