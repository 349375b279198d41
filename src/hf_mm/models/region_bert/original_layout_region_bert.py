"""What the layouts of the authors' own checkpoints have in common: rows of names, sizes told by shapes.

All of them are BERTs (Devlin et al. 2019, https://arxiv.org/abs/1810.04805) with the names of
https://github.com/huggingface/pytorch-pretrained-BERT. The layout of one code is an `OriginalLayout`; our
names in it are those of a model with a head.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from ...hub.interop import ForeignCheckpoint
from .convert_region_bert_stock import BERT_WORD_NAMES, bert_block_names
from .presets_region_bert import PRESETS

__all__ = [
    "BASE",
    "OriginalLayout",
    "Rows",
    "attention_rows",
    "block_rows",
    "check_one_activation",
    "mlp_rows",
    "plain_name",
    "transform_rows",
    "word_head_rows",
    "word_rows",
]

Rows = tuple[tuple[str, ...], ...]

BASE = "region_bert."  # before our names of the encoder in a model with a head
WRAPPERS = re.compile(r"(?<![^.])(lxrt_encoder\.model|module)\.")  # what training puts around a model
OLD_NORMS = {"gamma": "weight", "beta": "bias"}
KINDS = ("joint", "text", "region", "cross", "co")
# What shapes tell: a field, a weight of the encoder, an axis of it. The first row that is there counts.
SHAPES = (
    ("vocab_size", "embeddings.tokens.weight", 0),
    ("hidden_size", "embeddings.tokens.weight", 1),
    ("max_position_embeddings", "embeddings.positions.weight", 0),
    ("type_vocab_size", "embeddings.token_types.weight", 0),
    ("intermediate_size", "joint_blocks.0.mlp.fc1.weight", 0),
    ("intermediate_size", "text_blocks.0.mlp.fc1.weight", 0),
    ("intermediate_size", "cross_blocks.0.text.mlp.fc1.weight", 0),
    ("intermediate_size", "co_blocks.0.text_mlp.fc1.weight", 0),
    ("region_hidden_size", "region_embeddings.feature_projection.weight", 0),
    ("region_feature_size", "region_embeddings.feature_projection.weight", 1),
    ("region_intermediate_size", "joint_blocks.0.mlp.fc1.weight", 0),
    ("region_intermediate_size", "region_blocks.0.mlp.fc1.weight", 0),
    ("region_intermediate_size", "cross_blocks.0.regions.mlp.fc1.weight", 0),
    ("region_intermediate_size", "co_blocks.0.region_mlp.fc1.weight", 0),
    ("cross_hidden_size", "co_blocks.0.text_attention.q_proj.weight", 0),
    ("cross_hidden_size", "embeddings.tokens.weight", 1),
    ("pooler_size", "pooler.text.weight", 0),
    ("pooler_size", "embeddings.tokens.weight", 1),
)
LOCATIONS_BY_SIZE = {4: "box4", 5: "box5", 6: "box6", 7: "box7"}
PAPER_WIDTH, PAPER_HEADS = 768, 12  # of every stream whose preset says nothing else


def plain_name(name: str) -> str:
    """A name without what training puts around a model, and with a norm's parts as of today."""
    front, dot, last = WRAPPERS.sub("", name).rpartition(".")
    return front + dot + OLD_NORMS.get(last, last)


class OriginalLayout(ForeignCheckpoint):
    """How the code of a paper names its weights and fields.

    Attributes:
        preset: The model's name here; its fields hold where neither config nor shapes speak.
        marks: Names of weights; files of this layout have all of them, those of others do not.
        swapped: Our names of weights whose two rows stand the other way round there: first that of a match.
        told: Fields in which the authors' code is not like the preset.
    """

    classes: Mapping[str, str] = {}
    fields: Mapping[str, str] = {
        "num_attention_heads": "num_attention_heads",
        "region_num_attention_heads": "num_attention_heads",
        "cross_num_attention_heads": "num_attention_heads",
        "hidden_act": "hidden_act",
        "hidden_dropout": "hidden_dropout_prob",
        "attention_dropout": "attention_probs_dropout_prob",
        "initializer_range": "initializer_range",
    }
    preset: str
    marks: tuple[str, ...]
    swapped: tuple[str, ...] = ()
    told: Mapping[str, Any] = {}

    def is_of(self, names: Collection[str]) -> bool:
        """Whether a file with weights of these plain names is of this layout."""
        return all(mark in names for mark in self.marks)

    def of_config(self, theirs: Mapping[str, Any]) -> "OriginalLayout":
        """The layout of one model, where its config says what the names mean."""
        return self

    def weights_from(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `ForeignCheckpoint`."""
        weights = super().weights_from({plain_name(name): weight for name, weight in theirs.items()})
        return {name: weight.flip(0) if name in self.swapped else weight for name, weight in weights.items()}

    def weights_to(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `ForeignCheckpoint`."""
        swapped = {name: weight.flip(0) if name in self.swapped else weight for name, weight in ours.items()}
        return super().weights_to(swapped)

    def fields_from(self, theirs: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """The fields of our config: those of the preset, what shapes tell, what their config says.

        Args:
            theirs: Their config; empty where there is none.
            weights: By our names.
        """
        fields = PRESETS[self.preset] | dict(self.told) | sizes_told(weights)
        fields |= heads_by_width(PRESETS[self.preset], fields)
        fields |= {ours: theirs[name] for ours, name in self.fields.items() if name in theirs}
        fields["layers"] = self.layers_from(theirs, {kind: count_blocks(weights, kind) for kind in KINDS})
        return fields

    def layers_from(self, theirs: Mapping[str, Any], counts: Mapping[str, int]) -> list[str]:
        """`layers` of our config, of so many blocks of each kind: one stream, where a layout says no more."""
        return ["joint"] * counts["joint"]


def sizes_told(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Fields that the shapes of an encoder's weights, by our names, tell."""
    fields: dict[str, Any] = {}
    for field, name, axis in SHAPES:
        if BASE + name in weights:
            fields.setdefault(field, weights[BASE + name].shape[axis])
    located = weights.get(f"{BASE}region_embeddings.location_projection.weight")
    if located is not None and located.shape[1] in LOCATIONS_BY_SIZE:
        fields["region_location"] = LOCATIONS_BY_SIZE[located.shape[1]]
    return fields


def heads_by_width(preset: Mapping[str, Any], sizes: Mapping[str, Any]) -> dict[str, int]:
    """Heads of each stream, as wide as those of the paper."""
    heads = {}
    for stream in ("", "region_", "cross_"):
        width = preset.get(f"{stream}hidden_size", PAPER_WIDTH)
        head = width // preset.get(f"{stream}num_attention_heads", PAPER_HEADS)
        heads[f"{stream}num_attention_heads"] = max(1, sizes[f"{stream}hidden_size"] // head)
    return heads


def check_one_activation(theirs: Mapping[str, Any]) -> None:
    """Refuse a config whose streams have different activations.

    Raises:
        ValueError: They do.
    """
    text, regions = theirs.get("hidden_act"), theirs.get("v_hidden_act", theirs.get("hidden_act"))
    if text != regions:
        raise ValueError(
            f"`v_hidden_act`={regions!r} is not `hidden_act`={text!r}; both streams have one activation here."
        )


def count_blocks(weights: Mapping[str, Tensor], kind: str) -> int:
    """Blocks of one kind, by our names of their weights."""
    numbers = (re.match(rf"{re.escape(BASE)}{kind}_blocks\.(\d+)\.", name) for name in weights)
    return len({number[1] for number in numbers if number})


def word_rows(theirs: str, norm: str = "LayerNorm") -> Rows:
    """BERT's embeddings of words."""
    ours = f"{BASE}embeddings"
    return (
        (f"{ours}.tokens.weight", f"{theirs}.word_embeddings.weight"),
        (f"{ours}.positions.weight", f"{theirs}.position_embeddings.weight"),
        (f"{ours}.token_types.weight", f"{theirs}.token_type_embeddings.weight"),
        (f"{ours}.norm.*", f"{theirs}.{norm}.*"),
    )


def attention_rows(ours: str, mixing: str, output: str, mark: str = "", norm: str = "") -> Rows:
    """Attention and the norm behind it.

    Args:
        ours: Name of our attention.
        mixing: Where their projections are.
        output: Where their last projection and norm are.
        mark: Stands before the names in both.
        norm: Name of our norm, where it is not that of the attention with `_norm` behind it.
    """
    return (
        (f"{ours}.q_proj.*", f"{mixing}.{mark}query.*"),
        (f"{ours}.k_proj.*", f"{mixing}.{mark}key.*"),
        (f"{ours}.v_proj.*", f"{mixing}.{mark}value.*"),
        (f"{ours}.o_proj.*", f"{output}.{mark}dense.*"),
        (f"{norm or ours + '_norm'}.*", f"{output}.{mark}LayerNorm.*"),
    )


def mlp_rows(ours: str, first: str, second: str, mark: str = "") -> Rows:
    """An MLP and the norm behind it, whose layers are in `first` and `second` there."""
    return (
        (f"{ours}.fc1.*", f"{first}.{mark}dense.*"),
        (f"{ours}.fc2.*", f"{second}.{mark}dense.*"),
        (f"{ours}_norm.*", f"{second}.{mark}LayerNorm.*"),
    )


def block_rows(ours: str, theirs: str) -> Rows:
    """A block of BERT."""
    return bert_block_names(f"{ours}.", f"{theirs}.")


def transform_rows(ours: str, dense: str, norm: str) -> Rows:
    """A dense layer and, behind its activation, a norm."""
    return (f"{ours}.dense.*", f"{dense}.*"), (f"{ours}.norm.*", f"{norm}.*")


def word_head_rows(theirs: str) -> Rows:
    """What guesses a hidden word."""
    return tuple(
        (ours, *(name.replace("cls.predictions", theirs) for name in names))
        for ours, *names in BERT_WORD_NAMES
    )
