"""What the converters of transformers' vision-language BERTs share: names, and what may be exported."""

from collections.abc import Collection, Mapping
from copy import deepcopy
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from ...hub.interop import ForeignCheckpoint, require_fields
from .configuration_region_bert import MMRegionBertConfig

__all__ = [
    "BERT_FIELDS",
    "BERT_TEXT_NAMES",
    "BERT_WORD_NAMES",
    "StockBertCheckpoint",
    "bert_block_names",
    "copied",
]

# our field: theirs
BERT_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "hidden_act": "hidden_act",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "initializer_range": "initializer_range",
    "max_position_embeddings": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "pad_token_id": "pad_token_id",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "tie_word_embeddings": "tie_word_embeddings",
    # of every config of transformers
    "id2label": "id2label",
    "label2id": "label2id",
    "problem_type": "problem_type",
    "dtype": "dtype",
}
SHARES = ("hidden_dropout", "attention_dropout", "initializer_range", "layer_norm_eps")
# Of the other streams, which have the sizes of the text.
STREAM_FIELDS = {
    "region_hidden_size": "hidden_size",
    "region_num_attention_heads": "num_attention_heads",
    "region_intermediate_size": "intermediate_size",
    "cross_hidden_size": "hidden_size",
    "cross_num_attention_heads": "num_attention_heads",
    "pooler_size": "hidden_size",
}
BERT_TEXT_NAMES = (
    ("embeddings.tokens.weight", "embeddings.word_embeddings.weight"),
    ("embeddings.positions.weight", "embeddings.position_embeddings.weight"),
    ("embeddings.token_types.weight", "embeddings.token_type_embeddings.weight"),
    ("embeddings.norm.*", "embeddings.LayerNorm.*"),
    ("pooler.text.*", "pooler.dense.*"),
)
BERT_WORD_NAMES = (
    ("mlm_head.transform.dense.*", "cls.predictions.transform.dense.*"),
    ("mlm_head.transform.norm.*", "cls.predictions.transform.LayerNorm.*"),
    ("mlm_head.decoder.weight", "cls.predictions.decoder.weight"),
    ("mlm_head.decoder.bias", "cls.predictions.bias", "cls.predictions.decoder.bias"),
)
OLD_NORM_NAMES = {".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"}
WORD_BIASES = (
    "cls.predictions.bias",
    "cls.predictions.decoder.bias",
)  # one weight, which some files hold twice
OUR_TOKENS, OUR_WORDS = "region_bert.embeddings.tokens.weight", "mlm_head.decoder.weight"
# Fields of heads: our class that looks at them.
HEAD_FIELDS = {
    "classifier": ("MMRegionBertForQuestionAnswering", "MMRegionBertForImagesAndTextClassification"),
    "answer_state": ("MMRegionBertForQuestionAnswering",),
    "answers_as_distribution": ("MMRegionBertForQuestionAnswering",),
    "images_together": ("MMRegionBertForImagesAndTextClassification",),
}
# Fields that do not change what a model says of its inputs, or that no head over there looks at.
NOT_COMPARED = frozenset(
    {
        "auto_map",
        "bos_token_id",
        "eos_token_id",
        "mask_token_id",
        "mask_together",
        "num_attribute_classes",
        "num_images",
        "num_object_classes",
        "num_region_classes",
        "num_tag_classes",
        "pad_token_id",
        "region_head_norm",
        "region_norm_init",
        "region_sinusoids",
        "task_rates",
        "task_schedule",
        "task_weights",
    }
)


def bert_block_names(ours: str, theirs: str, attention: str = "attention.") -> tuple[tuple[str, str], ...]:
    """The names of one kind of BERT's blocks.

    Args:
        ours: Before our names, with a dot at the end.
        theirs: Before their names of the MLP, with what divides.
        attention: Before their names of self-attention, after `theirs`.
    """
    inner, outer = f"{theirs}{attention}self.", f"{theirs}{attention}output."
    return (
        (f"{ours}attention.q_proj.*", f"{inner}query.*"),
        (f"{ours}attention.k_proj.*", f"{inner}key.*"),
        (f"{ours}attention.v_proj.*", f"{inner}value.*"),
        (f"{ours}attention.o_proj.*", f"{outer}dense.*"),
        (f"{ours}attention_norm.*", f"{outer}LayerNorm.*"),
        (f"{ours}mlp.fc1.*", f"{theirs}intermediate.dense.*"),
        (f"{ours}mlp.fc2.*", f"{theirs}output.dense.*"),
        (f"{ours}mlp_norm.*", f"{theirs}output.LayerNorm.*"),
    )


class StockBertCheckpoint(ForeignCheckpoint):
    """A vision-language BERT of transformers.

    Attributes:
        head_fields: Our fields that the heads there leave no choice of; they hold for heads alone.
        task_fields: Our fields of pre-training as it is done there.
    """

    prefix = "region_bert."
    head_fields: Mapping[str, Any] = {}
    task_fields: Mapping[str, Any] = {}

    def config_from(self, theirs: dict, weights: Collection[str], model_class: type) -> dict:
        """See `ForeignCheckpoint`. What theirs does not say of special tokens is as BERT has it."""
        fields = super().config_from(theirs, weights, model_class)
        fields |= {name: float(fields[name]) for name in SHARES if name in fields}  # `0` in older files
        fields |= {ours: fields[of_text] for ours, of_text in STREAM_FIELDS.items() if of_text in fields}
        return {**fields, **self.head_fields, **self.task_fields}

    def config_to(self, ours: PreTrainedConfig, model_class: type) -> dict:
        """See `ForeignCheckpoint`. What comes back from theirs must be what was given."""
        theirs = super().config_to(ours, model_class) | self.sizes_to(ours)
        again = MMRegionBertConfig(**self.config_from(theirs, (), model_class)).to_dict()
        own = model_class.__name__
        idle = NOT_COMPARED | {name for name, heads in HEAD_FIELDS.items() if own not in heads}
        names = set(MMRegionBertConfig.__annotations__) - idle
        wanted = {name: again[name] for name in sorted(names)}
        require_fields(ours, wanted, f"transformers' {self.classes.get(own, self.model_type)}")
        return theirs

    def sizes_to(self, ours: Any) -> dict:
        """Fields of theirs that the table `fields` does not give."""
        return {}

    def processor_to(self, processor: Any) -> Any:
        """See `ForeignCheckpoint`. Of ours the tokenizer: over there regions are given as they are."""
        if type(processor).__name__ != "MMRegionProcessor":
            return super().processor_to(processor)
        tokenizer = deepcopy(processor.tokenizer)
        tokenizer.model_max_length = processor.max_length  # where theirs keeps it
        return tokenizer

    def weights_from(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `ForeignCheckpoint`. Reads the oldest names of norms, and biases that are there twice."""
        doubled = set(WORD_BIASES) <= set(theirs)
        named = {}
        for name, weight in theirs.items():
            for old, new in OLD_NORM_NAMES.items():
                name = name.removesuffix(old) + new if name.endswith(old) else name
            if not (doubled and name == WORD_BIASES[1]):
                named[name] = weight
        return super().weights_from(named)

    def weights_to(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `ForeignCheckpoint`. A table that is shared is written as that of the tokens."""
        shared = OUR_WORDS in ours and ours[OUR_WORDS].data_ptr() == ours[OUR_TOKENS].data_ptr()
        return super().weights_to({n: weight for n, weight in ours.items() if not shared or n != OUR_WORDS})


def copied(weights: Mapping[str, Tensor], source: str, target: str) -> dict[str, Tensor]:
    """The weights of a part under the names of another part: one head of theirs is that of several of ours.

    Each model takes its own and leaves out in silence what belongs to another head.
    """
    return {
        target + name.removeprefix(source): weight
        for name, weight in weights.items()
        if name.startswith(source)
    }
