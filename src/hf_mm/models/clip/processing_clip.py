"""Images and captions to what CLIP reads, by any image processor of one view and any tokenizer."""

import logging
from collections.abc import Mapping
from typing import Any

from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from ...hub.remote_code import RemoteCodeMixin
from ...layers.texts import check_kept_tokens, check_text_rows, check_tokenizer
from .image_processing_clip import MMCLIPImageProcessor

__all__ = ["MMCLIPProcessor"]

# Of transformers, with the fields of ours: they become ours, to the same pixels.
TAKEN_OVER = {"CLIPImageProcessor", "SiglipImageProcessor", "ViTImageProcessor"}
ENDLESS = 10**9  # a tokenizer says a larger limit when it knows none


class MMCLIPProcessor(RemoteCodeMixin, ProcessorMixin):
    """An image processor and a tokenizer as one.

    Captions are padded to the longest and cut to the context, with the tokens that the tokenizer puts around
    a text kept, so that the text tower finds its end. How many were cut is counted in `truncated_captions`
    and said once, as a warning. In the workers of a `DataLoader` each counts and says it for itself.

    Folders of transformers' `CLIPProcessor` are read too: `from_pretrained`.

    Args:
        image_processor: An `MMCLIPImageProcessor`; one of transformers' for CLIP, SigLIP or ViT becomes one.
            Others are taken as they are.
        tokenizer: Any tokenizer with a `pad_token`.
        max_length: Most tokens of a caption, the text tower's context; by default what the tokenizer says,
            and no limit if it says none (a bag of words).

    Raises:
        ValueError: The tokenizer has no `pad_token`, or `max_length` has no room for a caption.
    """

    text_kwargs = {"padding": True, "truncation": True, "return_tensors": "pt"}
    images_kwargs = {"return_tensors": "pt"}

    def __init__(
        self,
        image_processor: BaseImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None = None,
    ) -> None:
        super().__init__(_ours(image_processor), tokenizer)
        known = tokenizer.model_max_length
        self.max_length = max_length or (known if known < ENDLESS else None)
        check_tokenizer(tokenizer, self.max_length, "caption")
        self.truncated_captions = 0

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", *self.image_processor.model_input_names]

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
            images: Pictures of any kind, see `load_rgb`.
            text: One caption or a list of them; of another number than `images` if wanted.
            videos: None, here for the place of arguments in transformers' processors.
            audio: None, likewise.
            **kwargs: Options of the image processor and the tokenizer, such as `padding`, `max_length` and
                `return_tensors` ("pt" by default), flat or as `images_kwargs` and `text_kwargs`.

        Returns:
            `input_ids` and `attention_mask` (texts, length), `pixel_values` (images, 3, height, width).

        Raises:
            ValueError: There is nothing to process; a caption is empty, or no text; a picture cannot be read.
        """
        if videos is not None or audio is not None:
            raise ValueError(f"{type(self).__name__} takes images and text; got `videos` or `audio`.")
        if images is None and text is None:
            raise ValueError("Neither `images` nor `text` is given; give at least one of them.")
        options = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        data: dict[str, Any] = {}
        if text is not None:
            captions = [text] if isinstance(text, str) else list(text)
            data.update(self._encode(captions, **options["text_kwargs"]))
        if images is not None:
            data.update(self.image_processor(images, **options["images_kwargs"]))
        return BatchFeature(data)

    def _encode(self, captions: list[str], *, return_tensors: str | None, **options: Any) -> Mapping:
        """Tokens of captions, with those that are too long cut, and counted."""
        check_text_rows(captions, "caption")
        # A caption is one text: its token types would all be the default.
        options = {"max_length": self.max_length, "return_token_type_ids": False, **options}
        if options["max_length"] is None:
            options["truncation"] = False
        encoded = self.tokenizer(captions, **options, return_attention_mask=True)
        plain = options.get("add_special_tokens") is False
        around = 0 if plain else self.tokenizer.num_special_tokens_to_add()
        check_kept_tokens(encoded["attention_mask"], captions, around)
        if options["truncation"]:
            self._count_truncated(encoded.encodings, captions, options)
        return encoded.convert_to_tensors(return_tensors)

    def _count_truncated(self, encodings: list | None, captions: list[str], options: dict[str, Any]) -> None:
        if encodings is not None:
            cut = sum(bool(encoding.overflowing) for encoding in encodings)
        else:  # a tokenizer in Python keeps no account
            whole = self.tokenizer(captions, verbose=False)["input_ids"]
            cut = sum(len(ids) > options["max_length"] for ids in whole)
        if cut and not self.truncated_captions:
            logging.getLogger(__name__).warning(
                "%d of %d captions are longer than the context of %d tokens and were cut, their last tokens "
                "before the end left out. This is said once; `truncated_captions` goes on counting.",
                cut,
                len(captions),
                options["max_length"],
            )
        self.truncated_captions += cut


def _ours(image_processor: BaseImageProcessor) -> BaseImageProcessor:
    """One of transformers' that ours covers becomes ours; all others stay."""
    kind = type(image_processor)
    name = kind.__name__.removesuffix("Pil").removesuffix("Fast")
    if kind.__module__.split(".")[0] != "transformers" or name not in TAKEN_OVER:
        return image_processor
    return MMCLIPImageProcessor(**image_processor.to_dict())
