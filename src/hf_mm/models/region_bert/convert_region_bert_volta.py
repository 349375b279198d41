"""VOLTA's unified models: UNITER, ViLBERT, LXMERT and VisualBERT in one layout.

Bugliarello et al. 2021, "Multimodal Pretraining Unmasked" (https://arxiv.org/abs/2011.15124); names as in
`volta` of https://github.com/e-bug/volta, sizes and sublayers from its `config/*.json`, one of which
belongs to each file of weights. There a model is a list of sublayers, attention and MLPs, and
`tt_attn_sublayers`, `tv_attn_sublayers` and so on say which stream asks which in each of them; here it is a
list of blocks. Names and shapes were read in that code; no released weights could be loaded to verify them.

Not here: its VL-BERT, whose last region is [END] and the image in one; attention of text to regions alone;
its classifiers of tasks (`clfs_dict`), whose hidden layer has a width of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .original_layout_region_bert import (
    BASE,
    OriginalLayout,
    Rows,
    attention_rows,
    check_one_activation,
    mlp_rows,
    transform_rows,
    word_head_rows,
    word_rows,
)

__all__ = ["VOLTA_LAYOUT", "VoltaBlocks"]

LAYER, IMAGES = "bert.encoder.layer", f"{BASE}region_embeddings"
ALL = frozenset(("tt", "tv", "vt", "vv"))
ALONE, ACROSS = frozenset(("tt", "vv")), frozenset(("tv", "vt"))
# What a stream's names begin with.
STREAMS = {"tt": ("text", ""), "vv": ("region", "v_")}
# `image_embeddings` there: the preset here, and the rows of its embeddings.
EMBEDDINGS: dict[str, tuple[str, Rows]] = {
    "uniter": (
        "uniter",
        (
            (f"{IMAGES}.feature_projection.*", "bert.embeddings.image_embeddings.*"),
            (f"{IMAGES}.feature_norm.*", "bert.embeddings.image_layer_norm.*"),
            (f"{IMAGES}.location_projection.*", "bert.embeddings.image_location_embeddings.*"),
            (f"{IMAGES}.location_norm.*", "bert.embeddings.image_location_layer_norm.*"),
            (f"{IMAGES}.norm.*", "bert.embeddings.v_LayerNorm.*"),
        ),
    ),
    "vilbert": (
        "vilbert",
        (
            (f"{IMAGES}.feature_projection.*", "bert.v_embeddings.image_embeddings.*"),
            (f"{IMAGES}.location_projection.*", "bert.v_embeddings.image_location_embeddings.*"),
            (f"{IMAGES}.norm.*", "bert.v_embeddings.LayerNorm.*"),
        ),
    ),
    "lxmert": (
        "lxmert",
        (
            (f"{IMAGES}.feature_projection.*", "bert.v_embeddings.image_embeddings.*"),
            (f"{IMAGES}.feature_norm.*", "bert.v_embeddings.ImgLayerNorm.*"),
            (f"{IMAGES}.location_projection.*", "bert.v_embeddings.image_location_embeddings.*"),
            (f"{IMAGES}.location_norm.*", "bert.v_embeddings.LocLayerNorm.*"),
        ),
    ),
    "visualbert": (
        "visualbert",
        (
            (f"{IMAGES}.feature_projection.*", "bert.embeddings.projection.*"),
            (f"{IMAGES}.token_types.weight", "bert.embeddings.token_type_embeddings_visual.weight"),
            (f"{IMAGES}.positions.weight", "bert.embeddings.position_embeddings_visual.weight"),
        ),
    ),
}
TARGETS = "cls.imagePredictions"
POOLINGS = {"mul": "product", "sum": "sum", "text": "text", "none": "text"}
# Losses on hidden regions, by their number there.
REGION_TASKS = {"0": "mrc_kl", "3": "object", "4": "attribute", "5": "smooth", "6": "mrc"}


@dataclass
class VoltaBlocks:
    """The sublayers of a config put together to blocks.

    Attributes:
        config: Theirs.
        layers: Kinds of blocks, first to last.
        rows: Of the names of their weights.
        twins: Sublayers whose streams share their weights, which then have two names each.
    """

    config: Mapping[str, Any]
    layers: list[str] = field(default_factory=list)
    rows: list[tuple[str, ...]] = field(default_factory=list)
    twins: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "VoltaBlocks":
        """Read all sublayers.

        Raises:
            ValueError: They do not make blocks of this family.
        """
        blocks = cls(config)
        number, depth = 0, 1 + max(max(config[f"{kind}_sublayers"], default=-1) for kind in SUBLAYERS)
        while number < depth:
            number = blocks._add(number)
        return blocks

    def _add(self, number: int) -> int:
        """The block that begins with a sublayer; the number of the first one behind it."""
        asks, shared = self._asks(number), number in self.config["shared_sublayers"]
        if asks == ALL and shared:
            self._need_mlp(number + 1, ALONE, shared=True)
            self._one_stream("joint", "", number)
            self.twins += [number, number + 1]
        elif asks and asks <= ALONE and (not shared or len(asks) == 1):
            self._need_mlp(number + 1, asks)
            for kind, mark in (STREAMS[each] for each in sorted(asks)):
                self._one_stream(kind, mark, number)
        elif asks == ACROSS and shared and self._asks(number + 1) == ALONE:
            self._need_mlp(number + 2, ALONE)
            self._cross(number)
            return number + 3
        elif asks == ACROSS and not shared:
            self._need_mlp(number + 1, ALONE)
            self._co(number)
        else:
            raise ValueError(
                f"Sublayer {number} has attention {sorted(asks)}{' with shared weights' if shared else ''}, "
                "which with the sublayers behind it is no block of this family. Blocks are: all four ways, "
                "shared, then an MLP; `tt`, `vv` or both, then an MLP; `tv` and `vt`, then an MLP; `tv` and "
                "`vt`, shared, then `tt` and `vv`, then an MLP."
            )
        return number + 2

    def _asks(self, number: int) -> frozenset[str]:
        """Which stream asks which in a sublayer: "tv" is text regions; nothing where it is an MLP."""
        return frozenset(way for way in ALL if number in self.config[f"{way}_attn_sublayers"])

    def _need_mlp(self, number: int, streams: frozenset[str], shared: bool = False) -> None:
        has = {way for way in ALONE if number in self.config[f"{way[0]}_ff_sublayers"]}
        together = number in self.config["shared_sublayers"] and len(has) > 1
        if has != streams or together != shared:
            raise ValueError(
                f"Sublayer {number} is wanted to be an MLP of {sorted(way[0] for way in streams)}"
                f"{' with shared weights' if shared else ''}, it is one of {sorted(way[0] for way in has)}"
                f"{' with shared weights' if together else ''}."
            )

    def _name(self, kind: str) -> str:
        """Our name of the next block of a kind."""
        self.layers.append(kind)
        return f"{BASE}{kind}_blocks.{self.layers.count(kind) - 1}"

    def _one_stream(self, kind: str, mark: str, number: int) -> None:
        ours = self._name(kind)
        self.rows += _attention(f"{ours}.attention", number, mark) + _mlp(f"{ours}.mlp", number + 1, mark)

    def _cross(self, number: int) -> None:
        ours = self._name("cross")
        self.rows += _attention(f"{ours}.cross_attention", number, "", f"{ours}.cross_norm")
        for stream, mark in (("text", ""), ("regions", "v_")):
            self.rows += _attention(f"{ours}.{stream}.attention", number + 1, mark)
            self.rows += _mlp(f"{ours}.{stream}.mlp", number + 2, mark)
        self.twins.append(number)

    def _co(self, number: int) -> None:
        ours = self._name("co")
        for stream, mark, other in (("text", "", "v_"), ("region", "v_", "")):
            query, *keys_and_values, output, norm = _attention(f"{ours}.{stream}_attention", number, mark)
            own, asked = f"attention_self.{mark}", f"attention_self.{other}"
            turned = [(name, theirs.replace(own, asked)) for name, theirs in keys_and_values]
            self.rows += [query, *turned, output, norm, *_mlp(f"{ours}.{stream}_mlp", number + 1, mark)]


SUBLAYERS = (*(f"{way}_attn" for way in sorted(ALL)), "t_ff", "v_ff")


def _attention(ours: str, number: int, mark: str, norm: str = "") -> list[tuple[str, ...]]:
    inner, outer = (f"{LAYER}.{number}.attention_{part}" for part in ("self", "output"))
    return list(attention_rows(ours, inner, outer, mark, norm))


def _mlp(ours: str, number: int, mark: str) -> list[tuple[str, ...]]:
    return list(mlp_rows(ours, f"{LAYER}.{number}.intermediate", f"{LAYER}.{number}.output", mark))


class VoltaLayout(OriginalLayout):
    """See `OriginalLayout`. Their alignment label 1 means that text and image do not match.

    Args:
        theirs: The config of one model; its names mean nothing without it.
    """

    model_type = "e-bug/volta"
    marks = ("bert.encoder.layer.0.attention_self.query.weight",)
    swapped = ("itm_head.weight", "itm_head.bias")

    def __init__(self, theirs: Mapping[str, Any] | None = None) -> None:
        if theirs is not None:
            kind = theirs["image_embeddings"]
            if kind not in EMBEDDINGS:
                raise ValueError(
                    f"`image_embeddings`={kind!r} has no counterpart here; there are {sorted(EMBEDDINGS)}."
                )
            self.preset, embeddings = EMBEDDINGS[kind]
            blocks = VoltaBlocks.of(theirs)
            self.layers = blocks.layers
            self.names = (
                *word_rows("bert.embeddings"),
                *embeddings,
                *blocks.rows,
                (f"{BASE}pooler.text.*", "bert.t_pooler.dense.*"),
                (f"{BASE}pooler.regions.*", "bert.v_pooler.dense.*"),
                *word_head_rows("cls.predictions"),
                ("itm_head.*", "cls.bi_seq_relationship.*"),
                *_region_head_rows(theirs),
                ("answer_head.*", "cls.qaPredictions.logit_fc.*"),
            )
            self.twins = {str(number) for number in blocks.twins}
            self.unused = (
                *(f"{LAYER}.{number}.*.v_*" for number in blocks.twins),
                "bert.embeddings.image_token_type_embeddings.weight",
                "*position_ids",
            )

    def of_config(self, theirs: Mapping[str, Any]) -> OriginalLayout:
        """See `OriginalLayout`.

        Raises:
            ValueError: There is no config, or one of a model that has no counterpart here.
        """
        missing = [name for name in NEEDED if name not in theirs]
        if missing:
            raise ValueError(
                f"VOLTA's config must say `{missing[0]}`; put the JSON file of its `config` folder that the "
                "weights were made with beside them as `config.json`, or name it as `config`."
            )
        return VoltaLayout(theirs)

    def weights_to(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `ForeignCheckpoint`. What streams share is written under both names."""
        weights = super().weights_to(ours)
        for name, weight in list(weights.items()):
            *front, part, last = name.removeprefix(f"{LAYER}.").split(".")
            if name.startswith(LAYER) and front[0] in self.twins:
                weights[".".join([LAYER, *front, f"v_{part}", last])] = weight
        return weights

    def fields_from(self, theirs: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """See `OriginalLayout`.

        Raises:
            ValueError: A value that has no counterpart here.
        """
        for name, wanted in FIXED.items():
            if theirs.get(name, wanted[0]) not in wanted:
                raise ValueError(
                    f"`{name}`={theirs[name]!r} has no counterpart here; wanted one of {wanted}."
                )
        check_one_activation(theirs)
        tasks = {
            REGION_TASKS[each]: float(weight)
            for each, weight in theirs["visual_target_weights"].items()
            if each in REGION_TASKS
        }
        return super().fields_from(theirs, weights) | {
            "region_num_attention_heads": theirs["v_num_attention_heads"],
            "cross_num_attention_heads": _cross_heads(theirs),
            "whole_image_region": theirs.get("add_global_imgfeat") == "first",
            "region_mask_token": False,
            "pooling": POOLINGS[theirs["fusion_method"]],
            "pooler_act": "relu",
            "task_weights": {"mlm": 1.0, "itm": 1.0, "answer": float(theirs.get("qa_task_weight", 1.0))}
            | tasks,
        }

    def layers_from(self, theirs: Mapping[str, Any], counts: Mapping[str, int]) -> list[str]:
        """See `OriginalLayout`."""
        return self.layers


def _cross_heads(theirs: Mapping[str, Any]) -> int:
    """Heads of attention between the streams.

    Raises:
        ValueError: They differ, or other attention has heads of its own.
    """
    own = theirs["sublayer2num_attention_heads"]
    across = [n for n in theirs["tv_attn_sublayers"] if n not in theirs["tt_attn_sublayers"]]
    heads = {own.get(str(n), theirs["num_attention_heads"]) for n in across}
    if len(heads) > 1 or not set(own) <= {str(n) for n in across} or theirs["sublayer2v_num_attention_heads"]:
        raise ValueError(
            f"`sublayer2num_attention_heads`={own} and `sublayer2v_num_attention_heads`="
            f"{theirs['sublayer2v_num_attention_heads']} must be one number for the sublayers between the "
            f"streams, {across}, and none for others."
        )
    return heads.pop() if heads else theirs["num_attention_heads"]


def _region_head_rows(theirs: Mapping[str, Any]) -> Rows:
    """What guesses hidden regions: classes, or objects, attributes and features by one transform."""
    named = {"3": "object", "4": "attribute", "5": "smooth"}
    together = set(named) & set(theirs["visual_target_weights"])
    head = "detector_head" if together else "region_classifier"
    classes = [("region_classifier.decoder.*", f"{TARGETS}.decoder_dict.{each}.*") for each in ("0", "6")]
    ours = [(f"{head}.decoders.{task}.*", f"{TARGETS}.decoder_dict.{each}.*") for each, task in named.items()]
    transform = transform_rows(
        f"{head}.transform", f"{TARGETS}.transform.dense", f"{TARGETS}.transform.LayerNorm"
    )
    return (*transform, *(ours if together else classes))


NEEDED = ("image_embeddings", *(f"{kind}_sublayers" for kind in SUBLAYERS), "shared_sublayers")
# Fields there, and the values that this family can express; the first is what their absence means.
FIXED = {
    "fusion_method": ("mul", "sum", "text", "none"),
    "add_global_imgfeat": (None, "first"),
    "bert_model": ("bert-base-uncased", "bert-base-cased", "bert-base-multilingual-cased"),
    "layer_norm_eps": (1e-12,),
}
VOLTA_LAYOUT = VoltaLayout()
