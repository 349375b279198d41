"""Configuration of the bag-of-words text encoder."""

from dataclasses import field

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ...hub.remote_code import RemoteCodeMixin

__all__ = ["MMBagOfWordsConfig"]


@strict
class MMBagOfWordsConfig(RemoteCodeMixin, PreTrainedConfig):
    """Sizes of a bag of words; the defaults are those of word2vec's published vectors.

    Args:
        vocab_size: Words, the padding and the unknown word included.
        hidden_size: Width D of a word vector.
        initializer_range: Standard deviation of the initial word vectors.
        pad_token_id: Never counted as a word.
        auto_map: Where the Auto classes find the family on the Hub.
    """

    model_type = "mm_bag_of_words"

    vocab_size: int = 30000
    hidden_size: int = 300
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    auto_map: dict[str, str] | None = field(
        default_factory=lambda: {"AutoModel": "modeling_bag_of_words.MMBagOfWordsModel"}
    )

    def validate_padding(self) -> None:
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"`pad_token_id`={self.pad_token_id} is not in the vocabulary of {self.vocab_size}; "
                "use `None` when the tokenizer has no padding token."
            )
