"""Images and texts to what ViLT reads, by its image processor and any fast or slow tokenizer."""

from typing import Any

import numpy as np
from torch import Tensor
from transformers import BatchEncoding, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from ...hub.remote_code import RemoteCodeMixin
from ...layers.texts import (
    check_tokenizer,
    padded_prompts,
    prompt_tokens,
    tokens_around_text,
    tokens_of_texts,
)
from .image_processing_vilt import MMViltImageProcessor

__all__ = ["MMViltProcessor"]

TEXT_POSITIONS = 40  # of ViLT as published


class MMViltProcessor(RemoteCodeMixin, ProcessorMixin):
    """An image processor and a tokenizer as one.

    Texts are padded to the longest. One with more tokens than the model has positions is an error, unless
    `truncation=True` asks to cut it. Folders of transformers' `ViltProcessor` are read too:
    `from_pretrained`.

    Args:
        image_processor: An `MMViltImageProcessor`; transformers' for ViLT becomes one. Others are taken as
            they are.
        tokenizer: Any tokenizer with a `pad_token`, usually BERT's.
        max_length: Most tokens of a text, special ones included: `max_position_embeddings` of the model. By
            default 40, or what the tokenizer says if that is less.

    Raises:
        ValueError: The tokenizer has no `pad_token`, or `max_length` has no room for a text.
    """

    text_kwargs = {"padding": True, "truncation": False, "return_tensors": "pt"}
    images_kwargs = {"return_tensors": "pt"}

    def __init__(
        self,
        image_processor: BaseImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None = None,
    ) -> None:
        super().__init__(_as_vilt(image_processor), tokenizer)
        self.max_length = max_length or min(TEXT_POSITIONS, tokenizer.model_max_length)
        check_tokenizer(tokenizer, self.max_length)

    @property
    def model_input_names(self) -> list[str]:
        text = ["input_ids", "attention_mask", "token_type_ids"]
        return [*text, *self.image_processor.model_input_names]

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        videos: None = None,
        audio: None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Make a model's inputs.

        Args:
            images: Pictures of any kind, see `load_rgb`. Or a list of I pictures for each text, for models
                that compare them.
            text: One text or a list of them.
            videos: None, here for the place of arguments in transformers' processors.
            audio: None, likewise.
            **kwargs: Options of the image processor and the tokenizer, such as `padding`, `truncation`,
                `max_length` and `return_tensors` ("pt" by default), flat or as `images_kwargs` and
                `text_kwargs`.

        Returns:
            `input_ids`, `attention_mask` and `token_type_ids` (texts, length); `pixel_values` (images, 3,
            height, width) and `pixel_mask` (images, height, width), or with lists of pictures (texts, I, 3,
            height, width) and (texts, I, height, width).

        Raises:
            ValueError: There is nothing to process; a text is empty, no text, or too long; a picture cannot
                be read or used; or the lists of pictures differ in length.
        """
        if videos is not None or audio is not None:
            raise ValueError(f"{type(self).__name__} takes images and text; got `videos` or `audio`.")
        if images is None and text is None:
            raise ValueError("Neither `images` nor `text` is given; give at least one of them.")
        options = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        data: dict[str, Any] = {}
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            data.update(self.encode_texts(texts, **options["text_kwargs"]))
        if images is not None:
            pixels = self.image_processor(images, **options["images_kwargs"])
            together = _images_each(images)
            data.update({name: _grouped(value, together) for name, value in pixels.items()})
        return BatchFeature(data)

    def encode_texts(
        self, texts: list[str], *, return_tensors: str | None = "pt", **options: Any
    ) -> BatchEncoding:
        """The tokenizer's own answer to texts that have been checked, padded to the longest.

        Args:
            texts: B texts.
            return_tensors: "pt", "np", or `None` for lists.
            **options: Of the tokenizer.

        Returns:
            `input_ids`, `attention_mask` and `token_type_ids` (B, length), with `word_ids` of each row where
            the tokenizer is fast.

        Raises:
            ValueError: A text is empty, no text, or too long.
        """
        return tokens_of_texts(
            self.tokenizer, texts, self.max_length, return_tensors=return_tensors, **options
        )

    def prompts(self, images: Any, text: str | list[str] | None = None) -> BatchFeature:
        """What `generate` of `MMViltForImageToText` starts from: images, each with the beginning of a text.

        Args:
            images: B pictures of any kind, see `load_rgb`.
            text: One beginning for each picture, such as a question, or one for all; by default none.

        Returns:
            As a call, without the tokens that end a text, padded on the left.

        Raises:
            ValueError: Not as many texts as pictures, a text that leaves no room for a continuation, or a
                picture that cannot be used.
        """
        pixels = self.image_processor(images, return_tensors="pt")
        count = len(pixels["pixel_values"])
        return BatchFeature({**padded_prompts(self.tokenizer, text, count, self.max_length), **pixels})

    def prompt_ids(self, texts: list[str]) -> list[list[int]]:
        """Tokens of beginnings of texts: the special ones before a text, then its own, and none that ends it.

        Raises:
            ValueError: One leaves no room for another token.
        """
        return prompt_tokens(self.tokenizer, texts, self.max_length)

    def tokens_around(self) -> tuple[list[int], list[int]]:
        """The special tokens that the tokenizer puts before and after a text."""
        return tokens_around_text(self.tokenizer)


def _as_vilt(image_processor: BaseImageProcessor) -> BaseImageProcessor:
    """That of transformers for ViLT becomes ours; all others stay."""
    kind = type(image_processor)
    name = kind.__name__.removesuffix("Pil").removesuffix("Fast")
    if kind.__module__.split(".")[0] != "transformers" or name != "ViltImageProcessor":
        return image_processor
    return MMViltImageProcessor(**image_processor.to_dict())


def _images_each(images: Any) -> int | None:
    """How many pictures there are for each text, if they come in lists."""
    if not isinstance(images, list | tuple) or not any(isinstance(part, list | tuple) for part in images):
        return None
    counts = [len(part) if isinstance(part, list | tuple) else 1 for part in images]
    for index, count in enumerate(counts):
        if count != counts[0]:
            raise ValueError(
                f"`images` {index} has {count} pictures and `images` 0 has {counts[0]}; give each text as "
                "many as the model compares."
            )
    return counts[0]


def _grouped(values: Tensor | np.ndarray, together: int | None) -> Tensor | np.ndarray:
    """(B * I, ...) to (B, I, ...)."""
    return values if together is None else values.reshape(-1, together, *values.shape[1:])
