"""Configuration of the vision-language BERTs on image regions: a model is a setting of it, not a fork."""

from dataclasses import field
from typing import Any, Self

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ...hub.remote_code import RemoteCodeMixin
from .presets_region_bert import preset_fields

__all__ = ["LAYER_KINDS", "LOCATIONS", "TASKS_OF_REGION_BERT", "MMRegionBertConfig"]

TASKS_OF_REGION_BERT = (
    "mlm",
    "itm",
    "wra",
    "mrfr",
    "smooth",
    "mrc",
    "mrc_kl",
    "object",
    "attribute",
    "tags",
    "answer",
    "caption",
)
LAYER_KINDS = ("joint", "text", "region", "cross", "co")
LOCATIONS = {"none": 0, "box4": 4, "box5": 5, "box6": 6, "box7": 7}  # numbers of each; sinusoids have any
# field: what it may be
CHOICES = {
    "region_location": (*LOCATIONS, "sinusoid"),
    "region_fusion": ("sum", "mean", "concat"),
    "region_norm": ("none", "own", "text"),
    "region_type_table": ("text", "own"),
    "region_position": ("none", "after_text", "own"),
    "pooling": ("text", "product", "sum"),
    "classifier": ("mlp", "linear", "transform"),
    "answer_state": ("pooled", "before_end"),
    "task_schedule": ("sum", "draw"),
}


@strict
class MMRegionBertConfig(RemoteCodeMixin, PreTrainedConfig):
    """Sizes and switches of a vision-language BERT on image regions; the defaults are UNITER-base.

    `MMRegionBertConfig.preset(name)` is the configuration of a published model.

    Args:
        vocab_size: Rows of the token table.
        hidden_size: Width D of the text tokens; a multiple of `num_attention_heads`.
        num_attention_heads: Heads of the self-attention of text, and of text and regions together.
        intermediate_size: Width of the hidden layer of the MLP of text.
        hidden_act: Its activation, and that of regions, a key of `transformers.activations.ACT2FN`.
        hidden_dropout: Dropout probability after embeddings, attention and MLP.
        attention_dropout: Dropout probability of attention weights.
        qkv_bias: Add a bias to the query, key and value projections.
        layer_norm_eps: Added to the variance in all layer norms.
        initializer_range: Standard deviation of the initial weights.
        max_position_embeddings: Most tokens of a text, special ones and tags included.
        type_vocab_size: Segments that `token_type_ids` tell apart, and `region_type`.
        pad_token_id: Fills rows behind the end of a text.
        bos_token_id: Begins a text; [CLS] of BERT.
        eos_token_id: Ends a text and each segment; [SEP] of BERT.
        mask_token_id: Stands for a hidden token.
        tie_word_embeddings: The heads that predict words use the token table.
        region_hidden_size: Width of the region tokens; `hidden_size` where they meet text in one block.
        region_num_attention_heads: Heads of the self-attention of regions.
        region_intermediate_size: Width of the hidden layer of the MLP of regions.
        cross_hidden_size: Width of the queries and keys of "co" blocks.
        cross_num_attention_heads: Heads of "cross" and "co" blocks.
        layers: The blocks, first to last. "joint": text and regions as one sequence. "text", "region": one of
            them alone. "cross": attention from text to regions and from regions to text with one set of
            weights, then self-attention and MLP of each (LXMERT). "co": the same with weights for each
            direction and without self-attention (ViLBERT).
        layer_groups: A number for each block; those of the same kind and number are one block with one set of
            weights. `None`: every block has its own.
        region_feature_size: Width F of the detector's features.
        region_location: What is told of a box x1, y1, x2, y2 (shares of the image): "none"; "box4", these;
            "box5", also the area; "box6", also width and height; "box7", also width, height, area;
            "sinusoid", sines and cosines of centre, width and height.
        region_sinusoids: Frequencies of "sinusoid"; each gives eight numbers.
        region_fusion: "sum" of the projections of feature and location, half of it ("mean"), or one
            projection of both side by side ("concat").
        region_projection_act: Activation behind the projection of "concat"; `None` for none.
        region_input_dropout: Dropout probability of what is projected.
        region_norm_parts: A layer norm behind each projection.
        region_norm: A layer norm of the region token: "none", its "own", or that of "text".
        region_norm_init: Initial weight of the layer norms behind the projections.
        region_type: Row of the table of segments that is added; `None` for none.
        region_type_table: Whether that table is the "text"'s or regions have their "own".
        region_position: Position that is added, the same for all regions of a text: "none"; "after_text", the
            one behind the text's last; "own", the first row of a table of their own.
        region_token: A learned vector is added to every region, [IMG] of VL-BERT.
        region_mask_token: Learned vectors stand for the features of hidden regions, else zeros.
        whole_image_region: The first region is the whole image; its feature is the mean of the visible
            regions' unless it is given.
        text_sees_image: The projected feature of the whole image is added to every text token.
        end_token: A learned token stands behind the regions, [END] of VL-BERT.
        pooler_size: Width P of the vector of text and image.
        pooler_act: Activation of the pooler.
        pooling: "text": from the state of [CLS]. "product", "sum": of that vector and that of the first
            region (ViLBERT).
        classifier: What classifies answers and images: "mlp", dense layer, gelu, norm and dense layer;
            "linear", one dense layer; "transform", BERT's transform and a dense layer.
        answer_state: What answers are read from: the "pooled" vector, or the state of the token "before_end",
            the last but one of the text.
        answers_as_distribution: Scores of answers are probabilities, not each the truth of its answer.
        images_together: The regions of all images of a text stand side by side in one pass.
        num_images: Images that one text of `MMRegionBertForImagesAndTextClassification` speaks of.
        region_head_norm: A layer norm in the head of the classes of hidden regions.
        num_region_classes: Classes of the detector, background included.
        num_object_classes: Classes of objects of LXMERT's detector.
        num_attribute_classes: Classes of attributes of LXMERT's detector.
        num_tag_classes: What is told of tags: replaced or not (2), or also the text (3).
        task_weights: What each loss of `MMRegionBertForPreTraining` counts. It has heads for the tasks that
            are named.
        task_rates: How often each task is drawn by the schedule "draw"; equally often when empty.
        task_schedule: "sum" of all tasks in every step, or "draw" one for each batch.
        mask_together: Words and regions are hidden in the same pass; else one of them at a time.
        auto_map: Where the Auto classes find every head of the family on the Hub.
    """

    model_type = "mm_region_bert"
    keys_to_ignore_at_inference = [f"{task}_loss" for task in TASKS_OF_REGION_BERT]  # numbers without rows

    vocab_size: int = 28996
    hidden_size: int = 768
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    pad_token_id: int | None = 0
    bos_token_id: int | None = 101
    eos_token_id: int | None = 102
    mask_token_id: int | None = 103
    tie_word_embeddings: bool = True
    region_hidden_size: int = 768
    region_num_attention_heads: int = 12
    region_intermediate_size: int = 3072
    cross_hidden_size: int = 768
    cross_num_attention_heads: int = 12
    layers: list[str] = field(default_factory=lambda: ["joint"] * 12)
    layer_groups: list[int] | None = None
    region_feature_size: int = 2048
    region_location: str = "box7"
    region_sinusoids: int = 256
    region_fusion: str = "sum"
    region_projection_act: str | None = None
    region_input_dropout: float = 0.0
    region_norm_parts: bool = True
    region_norm: str = "own"
    region_norm_init: float = 1.0
    region_type: int | None = 1
    region_type_table: str = "text"
    region_position: str = "none"
    region_token: bool = False
    region_mask_token: bool = True
    whole_image_region: bool = False
    text_sees_image: bool = False
    end_token: bool = False
    pooler_size: int = 768
    pooler_act: str = "tanh"
    pooling: str = "text"
    classifier: str = "mlp"
    answer_state: str = "pooled"
    answers_as_distribution: bool = False
    images_together: bool = False
    num_images: int = 2
    region_head_norm: bool = True
    num_region_classes: int = 1601
    num_object_classes: int = 1600
    num_attribute_classes: int = 400
    num_tag_classes: int = 2
    task_weights: dict[str, float] = field(
        default_factory=lambda: {"mlm": 1.0, "itm": 1.0, "wra": 0.1, "mrfr": 1.0, "mrc_kl": 1.0}
    )
    task_rates: dict[str, float] = field(
        default_factory=lambda: {"mlm": 2.0, "itm": 2.0, "mrfr": 1.0, "mrc_kl": 1.0}
    )
    task_schedule: str = "draw"
    mask_together: bool = False
    auto_map: dict[str, str] | None = field(
        default_factory=lambda: {"AutoModel": "modeling_region_bert.MMRegionBertModel"}
    )

    @classmethod
    def preset(cls, name: str, depth: int | None = None, **changes: Any) -> Self:
        """The configuration of a published model, or of a smaller or larger one of its kind.

        Args:
            name: "lxmert", "vilbert", "vl-bert", "uniter", "oscar" or "visualbert".
            depth: Blocks of a one-stream model, 12 in the papers; the kinds of a two-stream model shrink and
                grow in the same proportion, to one block each at the least.
            **changes: Fields to set. `hidden_size`, `num_attention_heads` and `intermediate_size` hold for
                regions, cross-attention and pooler too where these are not named.

        Raises:
            ValueError: No preset has this name, or `depth` and `layers` are both given.
        """
        return cls(**preset_fields(name, depth, changes))

    @property
    def num_hidden_layers(self) -> int:
        """Blocks that text passes."""
        return sum(kind != "region" for kind in self.layers)

    @property
    def max_text_tokens(self) -> int:
        """Most tokens of a text: as many as there are positions, less those that regions take behind it."""
        behind = 1 + self.end_token if self.region_position == "after_text" else 0
        return self.max_position_embeddings - behind

    @property
    def region_location_size(self) -> int:
        """Numbers that tell where a region is."""
        if self.region_location == "sinusoid":
            return 8 * self.region_sinusoids
        return LOCATIONS[self.region_location]

    @property
    def extra_regions(self) -> int:
        """Places before those of the given regions in `region_last_hidden_state`: that of the whole image."""
        return int(self.whole_image_region)

    def validate_choices(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}`={getattr(self, name)!r} must be one of {list(choices)}.")

    def validate_layers(self) -> None:
        unknown = sorted(set(self.layers) - set(LAYER_KINDS))
        if unknown:
            raise ValueError(f"`layers` names {unknown}; the kinds of blocks are {list(LAYER_KINDS)}.")
        if self.layer_groups is not None and len(self.layer_groups) != len(self.layers):
            raise ValueError(
                f"`layer_groups` has {len(self.layer_groups)} numbers for {len(self.layers)} `layers`; give "
                "one for each."
            )

    def validate_heads(self) -> None:
        for stream in ("", "region_", "cross_"):
            width, heads = f"{stream}hidden_size", f"{stream}num_attention_heads"
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(
                    f"`{width}`={getattr(self, width)} must be a multiple of "
                    f"`{heads}`={getattr(self, heads)}."
                )

    def validate_streams(self) -> None:
        meet = sorted({"joint", "cross"} & set(self.layers))
        if meet and self.region_hidden_size != self.hidden_size:
            raise ValueError(
                f"`region_hidden_size`={self.region_hidden_size} must be `hidden_size`={self.hidden_size}: "
                f"text and regions share weights in {meet} blocks."
            )
        if "cross" in self.layers and self.cross_hidden_size != self.hidden_size:
            raise ValueError(
                f"`cross_hidden_size`={self.cross_hidden_size} must be `hidden_size`={self.hidden_size} in "
                '"cross" blocks.'
            )
        if self.text_sees_image and not self.whole_image_region:
            raise ValueError(
                "`text_sees_image`=True needs `whole_image_region`=True: the feature is that of the whole "
                "image."
            )

    def validate_regions(self) -> None:
        of_text = [
            name
            for name, value in (
                ("region_norm", self.region_norm),
                ("region_type_table", self.region_type_table if self.region_type is not None else "none"),
                ("region_position", self.region_position),
            )
            if value in ("text", "after_text")
        ]
        if (of_text or self.text_sees_image) and self.region_hidden_size != self.hidden_size:
            raise ValueError(
                f"`region_hidden_size`={self.region_hidden_size} must be `hidden_size`={self.hidden_size} "
                f"where regions use the tables of text: {of_text or ['text_sees_image']}."
            )
        if self.region_type is not None and not 0 <= self.region_type < self.type_vocab_size:
            raise ValueError(
                f"`region_type`={self.region_type} is not below `type_vocab_size`={self.type_vocab_size}."
            )
        if self.region_fusion == "concat" and self.region_location == "none":
            raise ValueError(
                '`region_fusion`="concat" needs a location; use "sum" with `region_location`="none".'
            )
        if self.region_projection_act is not None and self.region_fusion != "concat":
            raise ValueError(
                f"`region_projection_act`={self.region_projection_act!r} stands behind the projection of "
                f'`region_fusion`="concat", not of {self.region_fusion!r}.'
            )

    def validate_tasks(self) -> None:
        for name in ("task_weights", "task_rates"):
            unknown = sorted(set(getattr(self, name)) - set(TASKS_OF_REGION_BERT))
            if unknown:
                raise ValueError(f"`{name}` names {unknown}; the tasks are {list(TASKS_OF_REGION_BERT)}.")
        if "wra" in self.task_weights and "itm" not in self.task_weights:
            raise ValueError(
                f'`task_weights`={self.task_weights} has "wra" without "itm", whose pairs it needs; name '
                "both."
            )
        if "wra" in self.task_weights and self.region_hidden_size != self.hidden_size:
            raise ValueError(
                f'`task_weights`={self.task_weights} has "wra", which compares words and regions: '
                f"`region_hidden_size`={self.region_hidden_size} must be `hidden_size`={self.hidden_size}."
            )
        if self.num_tag_classes not in (2, 3):
            raise ValueError(f"`num_tag_classes`={self.num_tag_classes} must be 2 or 3.")
