"""What a GAN is asked to draw: a class, a text, or nothing, as one vector for each picture.

Class vectors as in Mirza and Osindero 2014, "Conditional Generative Adversarial Nets"
(https://arxiv.org/abs/1411.1784); the text vector of a frozen encoder as in Reed et al. 2016, "Generative
Adversarial Text to Image Synthesis" (https://arxiv.org/abs/1605.05396).

Shapes: B pictures, L tokens of the longest text, T width of a text encoder, K width of the condition.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .blocks_gan import scaled_normal

__all__ = ["ConditionEmbedding", "check_conditions", "check_words", "pooled_text"]


class ConditionEmbedding(nn.Module):
    """Classes, words or text vectors to vectors of variance `gain` squared; with none of them, no vector.

    Args:
        num_classes: Classes to choose from.
        vocab_size: Words of the net's own small text embedding: the sum of a text's word vectors, divided by
            the root of their number.
        text_embed_dim: T, of a text encoder's pooled output, whose length is normalised.
        width: K.
        gain: Deviation of the numbers of a vector at the start.
    """

    def __init__(
        self,
        num_classes: int | None,
        vocab_size: int | None,
        text_embed_dim: int | None,
        width: int,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.kind = None
        if num_classes is not None:
            self.kind = "class_labels"
            self.classes = nn.Embedding(num_classes, width)
            nn.init.normal_(self.classes.weight, std=gain)
        elif vocab_size is not None:
            self.kind = "input_ids"
            self.words = nn.Embedding(vocab_size, width)
            nn.init.normal_(self.words.weight, std=gain)
        elif text_embed_dim is not None:
            self.kind = "text_embeds"
            self.project = nn.Linear(text_embed_dim, width, bias=False)
            scaled_normal(self.project.weight, gain)

    def forward(
        self,
        class_labels: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        text_embeds: Tensor | None = None,
    ) -> Tensor | None:
        """The vectors (B, K) of what this net is asked by; see `MMGANGenerator.forward`."""
        given = {"class_labels": class_labels, "input_ids": input_ids, "text_embeds": text_embeds}
        if self.kind is None:
            return None
        if given[self.kind] is None:
            others = [name for name, value in given.items() if value is not None]
            raise ValueError(f"This model is asked by `{self.kind}`, which are missing; got {others}.")
        if class_labels is not None and self.kind == "class_labels":
            return self.classes(class_labels)
        if input_ids is not None and self.kind == "input_ids":
            words = self.words(input_ids)  # (B, L, K)
            kept = words.new_ones(words.shape[:2]) if attention_mask is None else attention_mask.to(words)
            return (words * kept[..., None]).sum(1) / kept.sum(1, keepdim=True).clamp(min=1).sqrt()
        assert text_embeds is not None
        length = math.sqrt(self.project.in_features)
        return self.project(F.normalize(text_embeds, dim=-1) * length)


def check_conditions(
    num_classes: int | None,
    vocab_size: int | None,
    text_embed_dim: int | None,
    class_names: Sequence[str] | None = None,
) -> None:
    """Refuse more than one kind of condition, and names that are not those of the classes.

    Raises:
        ValueError: As said.
    """
    kinds = {"num_classes": num_classes, "vocab_size": vocab_size, "text_embed_dim": text_embed_dim}
    given = {name: value for name, value in kinds.items() if value is not None}
    if len(given) > 1 or any(value < 1 for value in given.values()):
        raise ValueError(
            f"A GAN is asked by one kind of condition of at least 1, got {given}; leave the others at `None`."
        )
    if class_names is not None and len(class_names) != (num_classes or 0):
        raise ValueError(
            f"`class_names` has {len(class_names)} names for `num_classes`={num_classes}; give one for each."
        )


def check_words(tokenizer: PreTrainedTokenizerBase | None, vocab_size: int | None) -> None:
    """Refuse a tokenizer with words that a net's own text embedding has not.

    Args:
        tokenizer: Of the texts; `None` where there are none yet.
        vocab_size: Words of the net; `None` where something else reads the texts.

    Raises:
        ValueError: As said.
    """
    if tokenizer is None or vocab_size is None:
        return
    last = max(tokenizer.get_vocab().values())
    if last >= vocab_size:
        raise ValueError(
            f"The tokenizer has ids up to {last}, but the generator has `vocab_size`={vocab_size}; use the "
            "tokenizer that it is made for."
        )


@torch.no_grad()
def pooled_text(
    text_encoder: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """One vector for each text: the projected one where the encoder has it, else its pooled output.

    Args:
        text_encoder: Any of transformers' with such an output.
        input_ids: (B, L) tokens.
        attention_mask: (B, L), 0 on padding.

    Returns:
        (B, T).

    Raises:
        ValueError: The encoder has neither.
    """
    outputs = text_encoder(input_ids=input_ids, attention_mask=attention_mask)
    for name in ("text_embeds", "pooler_output"):
        if outputs.get(name) is not None:
            return outputs[name]
    raise ValueError(
        f"{type(text_encoder).__name__} returns {list(outputs)}, neither `text_embeds` nor `pooler_output`; "
        "take an encoder with one vector for a text, such as CLIPTextModelWithProjection."
    )
