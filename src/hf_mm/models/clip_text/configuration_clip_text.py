"""Configuration of CLIP's text transformer."""

from dataclasses import field
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ...hub.remote_code import RemoteCodeMixin

__all__ = ["MMCLIPTextConfig"]


@strict
class MMCLIPTextConfig(RemoteCodeMixin, PreTrainedConfig):
    """Sizes and switches of the text transformer; the defaults are those of CLIP ViT-B/32.

    Args:
        vocab_size: Rows of the token table.
        max_position_embeddings: Most tokens of a text, its start and end tokens included.
        hidden_size: Width D of the tokens; a multiple of `num_attention_heads`.
        num_hidden_layers: Transformer blocks.
        num_attention_heads: Heads per block.
        intermediate_size: Width of the hidden layer of the MLP.
        hidden_act: Its activation, a key of `transformers.activations.ACT2FN`: "quick_gelu" in OpenAI's
            checkpoints, "gelu" in most of LAION's. A model run with the other one fails silently.
        hidden_dropout: Dropout probability after embeddings, attention and MLP.
        attention_dropout: Dropout probability of attention weights.
        qkv_bias: Add a bias to the query, key and value projections.
        layer_norm_eps: Added to the variance in every layer norm.
        initializer_range: Standard deviation of the initial token vectors; all else follows from the sizes.
        end_of_text: Where the text's vector is read: at the first `eos_token_id` ("first_eos"), or at the
            highest token id ("highest_id"), as OpenAI's code does and as checkpoints converted before
            transformers 4.31 need it, whose `eos_token_id` is a wrong 2.
        bos_token_id: Begins every text.
        eos_token_id: Ends every text.
        pad_token_id: Fills rows behind the end.
        auto_map: Where the Auto classes find the family on the Hub.
    """

    model_type = "mm_clip_text"

    vocab_size: int = 49408
    max_position_embeddings: int = 77
    hidden_size: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    hidden_act: str = "quick_gelu"
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    end_of_text: Literal["first_eos", "highest_id"] = "first_eos"
    bos_token_id: int | None = 49406
    eos_token_id: int | None = 49407
    pad_token_id: int | None = 49407
    auto_map: dict[str, str] | None = field(
        default_factory=lambda: {"AutoModel": "modeling_clip_text.MMCLIPTextModel"}
    )

    def validate_heads(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size`={self.hidden_size} must be a multiple of "
                f"`num_attention_heads`={self.num_attention_heads}."
            )

    def validate_end_of_text(self) -> None:
        if self.end_of_text == "first_eos" and self.eos_token_id is None:
            raise ValueError(
                '`end_of_text`="first_eos" needs an `eos_token_id`: the id of the tokenizer\'s end token.'
            )
