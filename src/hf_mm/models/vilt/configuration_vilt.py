"""Configuration of the Vision-and-Language Transformer family."""

from dataclasses import field

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ...hub.remote_code import RemoteCodeMixin

__all__ = ["MMViltConfig"]

TASKS_OF_VILT = ("mlm", "itm", "wpa", "mpp")


@strict
class MMViltConfig(RemoteCodeMixin, PreTrainedConfig):
    """Sizes and switches of a Vision-and-Language Transformer; the defaults are ViLT-B/32.

    Args:
        vocab_size: Rows of the token table.
        max_position_embeddings: Most tokens of a text, special ones included.
        type_vocab_size: Segments that `token_type_ids` tell apart.
        modality_type_vocab_size: Rows of the table of modalities: text, image, further images. Comparing
            `num_images` images needs `num_images` + 1; see `resize_modality_types` of the models.
        image_size: Side of the square of pixels that the position table is made for; images of any other size
            get it resampled to their own grid.
        patch_size: Side of a patch, in pixels; divides `image_size`.
        num_channels: Channels of the input image.
        image_mean: Of each channel, as the image processor subtracts it; masked patch prediction finds the
            colours by it.
        image_std: Of each channel, as the image processor divides by it.
        max_patches: Most patches of an image while training: of more, so many are drawn at random. In
            evaluation all are kept. `None` keeps all always.
        num_images: Images that one text of `MMViltForImagesAndTextClassification` speaks of.
        hidden_size: Width D of the tokens; a multiple of `num_attention_heads`.
        num_hidden_layers: Transformer blocks.
        num_attention_heads: Heads per block.
        intermediate_size: Width of the hidden layer of the MLP.
        hidden_act: Its activation, a key of `transformers.activations.ACT2FN`.
        hidden_dropout: Dropout probability after embeddings, attention and MLP.
        attention_dropout: Dropout probability of attention weights.
        qkv_bias: Add a bias to the query, key and value projections.
        layer_norm_eps: Added to the variance in the layer norms of the blocks and after them. transformers
            has 1e-12 here, the original code 1e-6.
        text_layer_norm_eps: The same, in the embeddings of text and in the heads that begin as BERT's does.
        initializer_range: Standard deviation of the initial weights.
        pad_token_id: Fills rows behind the end of a text.
        bos_token_id: Begins a text; [CLS] of BERT.
        eos_token_id: Ends a text; [SEP] of BERT.
        mask_token_id: Stands for a hidden token.
        tie_word_embeddings: The heads that predict words use the token table.
        task_weights: What each loss of `MMViltForPreTraining` counts: masked words ("mlm"), matching ("itm"),
            alignment of words and patches in the pairs of matching ("wpa"), colours of masked patches
            ("mpp"). It has heads for the tasks that are named.
        auto_map: Where the Auto classes find every head of the family on the Hub.
    """

    model_type = "mm_vilt"
    keys_to_ignore_at_inference = [f"{task}_loss" for task in TASKS_OF_VILT]  # numbers without rows

    vocab_size: int = 30522
    max_position_embeddings: int = 40
    type_vocab_size: int = 2
    modality_type_vocab_size: int = 2
    image_size: int = 384
    patch_size: int = 32
    num_channels: int = 3
    image_mean: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    image_std: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    max_patches: int | None = None
    num_images: int = 2
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-12
    text_layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    bos_token_id: int | None = 101
    eos_token_id: int | None = 102
    mask_token_id: int | None = 103
    tie_word_embeddings: bool = True
    task_weights: dict[str, float] = field(default_factory=lambda: {"mlm": 1.0, "itm": 1.0, "wpa": 0.1})
    auto_map: dict[str, str] | None = field(
        default_factory=lambda: {"AutoModel": "modeling_vilt.MMViltModel"}
    )

    @property
    def grid_size(self) -> int:
        """Patches per side of the square that the position table is made for."""
        return self.image_size // self.patch_size

    def validate_patches(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"`image_size`={self.image_size} must be a multiple of `patch_size`={self.patch_size}."
            )
        if self.max_patches is not None and self.max_patches < 1:
            raise ValueError(
                f"`max_patches`={self.max_patches} must be at least 1; use `None` to keep all patches."
            )

    def validate_heads(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size`={self.hidden_size} must be a multiple of "
                f"`num_attention_heads`={self.num_attention_heads}."
            )

    def validate_images(self) -> None:
        if self.num_images < 1:
            raise ValueError(f"`num_images`={self.num_images} must be at least 1.")
        if self.modality_type_vocab_size < 2:
            raise ValueError(
                f"`modality_type_vocab_size`={self.modality_type_vocab_size} must be at least 2: one row for "
                "text, one for images."
            )
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            if len(values) != self.num_channels:
                raise ValueError(
                    f"`{name}`={values} must have one number for each of `num_channels`={self.num_channels}."
                )

    def validate_tasks(self) -> None:
        unknown = sorted(set(self.task_weights) - set(TASKS_OF_VILT))
        if unknown:
            raise ValueError(f"`task_weights` names {unknown}; the tasks are {list(TASKS_OF_VILT)}.")
        if "wpa" in self.task_weights and "itm" not in self.task_weights:
            raise ValueError(
                f'`task_weights`={self.task_weights} has "wpa" without "itm", whose pairs it needs; '
                "name both."
            )
