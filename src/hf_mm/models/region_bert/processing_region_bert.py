"""Texts, the regions of pictures and their tags to what a vision-language BERT on regions reads.

Tags as a second segment behind the text: Li et al. 2020, "Oscar: Object-Semantics Aligned Pre-training for
Vision-Language Tasks", section 3 (https://arxiv.org/abs/2004.06165).

Shapes: B rows, L tokens of the longest text, R regions of the picture with most, r of one picture, F width of
a region's feature, I pictures of a row.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchEncoding, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from ...hub.remote_code import RemoteCodeMixin
from ...layers.texts import (
    check_text_rows,
    check_tokenizer,
    padded_prompts,
    prompt_tokens,
    tokens_around_text,
    tokens_of_texts,
)
from .regions_region_bert import padded_regions

__all__ = ["MMRegionProcessor"]

BERT_POSITIONS = 512


class MMRegionProcessor(RemoteCodeMixin, ProcessorMixin):
    """A tokenizer, and what the regions of pictures must be.

    Texts are padded to the longest. One with more tokens than the model has positions is an error, unless
    `truncation=True` asks to cut it; tags are never cut. Regions are padded to the picture with most.

    Args:
        tokenizer: Any tokenizer with a `pad_token`, usually BERT's.
        max_length: Most tokens of a text, special ones and tags included: `max_position_embeddings` of the
            model. By default 512, or what the tokenizer says if that is less.
        max_tags: Most tags of a picture that the model reads behind the text, the first ones of those that
            are given; 0 for models without tags.
        feature_size: Width of the features, `region_feature_size` of the model; by default any.
        detector: Name of the detector that the model was trained on; regions that name another are an error.

    Raises:
        TypeError: There is no tokenizer.
        ValueError: It has no `pad_token`, or a limit is out of its range.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None = None,
        max_tags: int = 0,
        feature_size: int | None = None,
        detector: str | None = None,
    ) -> None:
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise TypeError(
                f"`tokenizer` must be a tokenizer of transformers, got a {type(tokenizer).__name__}; load "
                "one by `AutoTokenizer.from_pretrained`."
            )
        super().__init__(tokenizer)
        self.max_length = max_length or min(BERT_POSITIONS, tokenizer.model_max_length)
        check_tokenizer(tokenizer, self.max_length)
        if max_tags < 0 or (feature_size is not None and feature_size < 1):
            raise ValueError(
                f"`max_tags`={max_tags} must be at least 0 and `feature_size`={feature_size} at least 1."
            )
        self.max_tags = max_tags
        self.feature_size = feature_size
        self.detector = detector

    @property
    def model_input_names(self) -> list[str]:
        text = ["input_ids", "attention_mask", "token_type_ids"]
        return [*text, "region_features", "region_boxes", "region_mask"]

    def __call__(
        self,
        text: str | list[str] | None = None,
        regions: Mapping[str, Any] | Sequence[Any] | None = None,
        tags: Sequence[Any] | None = None,
        box_format: str = "shares",
        return_tensors: str = "pt",
        **options: Any,
    ) -> BatchFeature:
        """Make a model's inputs.

        Args:
            text: One text or a list of them.
            regions: Of one picture or of each of a list: `boxes` (r, 4) as x1, y1, x2, y2, `features` (r, F),
                and where they are known `image_size` (width, height) in pixels, `tags` (words) and the name
                of the `detector`. Or a list of I pictures for each text, for models that compare them.
            tags: Words for each picture, a list of them for one picture or a list of lists; by default the
                `tags` of `regions`. They are read by processors with `max_tags`.
            box_format: Boxes are "shares" of width and height, or "pixels", which need `image_size`.
            return_tensors: "pt" or "np".
            **options: Of the tokenizer, such as `padding`, `truncation` and `max_length`.

        Returns:
            `input_ids`, `attention_mask` and `token_type_ids` (B, L), 1 on tags; `region_features` (B, R, F),
            `region_boxes` (B, R, 4) as shares and `region_mask` (B, R), or with lists of pictures (B, I, R,
            F), (B, I, R, 4) and (B, I, R).

        Raises:
            ValueError: There is nothing to process; a text is empty, no text or too long; a picture has no
                regions, or some that cannot be used; tags are missing, or come without a text or regions.
        """
        if text is None and regions is None:
            raise ValueError("Neither `text` nor `regions` is given; give at least one of them.")
        if return_tensors not in ("pt", "np"):
            raise ValueError(f"`return_tensors`={return_tensors!r} must be 'pt' or 'np'.")
        if tags is not None and (text is None or regions is None):
            missing = "text" if text is None else "regions"
            raise ValueError(
                f"`tags` are given without `{missing}`: they are read behind a text, beside the regions they "
                f"name; give `{missing}`, or leave the tags out."
            )
        data: dict[str, Any] = {}
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            check_text_rows(texts)
            words = self._tags(tags, regions, len(texts)) if self.max_tags or tags is not None else None
            data.update(self.encode_texts(texts, words, **options))
        if regions is not None:
            data.update(self.encode_regions(regions, box_format))
        if return_tensors == "np":
            data = {name: value.numpy() for name, value in data.items()}
        return BatchFeature(data)

    def encode_texts(
        self, texts: list[str], tags: Sequence[Sequence[str]] | None = None, **options: Any
    ) -> BatchEncoding:
        """The tokenizer's own answer to texts that have been checked, padded to the longest.

        Args:
            texts: B texts.
            tags: Words of each, put behind it as a second segment.
            **options: Of the tokenizer.

        Returns:
            `input_ids`, `attention_mask` and `token_type_ids` (B, L), with `word_ids` of each row where the
            tokenizer is fast.

        Raises:
            ValueError: A text is empty, no text or too long, or has no tags.
        """
        if tags is None:
            encoded = tokens_of_texts(self.tokenizer, texts, self.max_length, **options)
            encoded["token_type_ids"] = torch.zeros_like(encoded["input_ids"])
            return encoded
        check_text_rows(texts)
        second = [" ".join(_checked_tags(of_row, row)[: self.max_tags]) for row, of_row in enumerate(tags)]
        self._check_room(texts, second, options.get("max_length") or self.max_length)
        if options.get("truncation"):
            options["truncation"] = "only_first"
        encoded = tokens_of_texts(self.tokenizer, texts, self.max_length, pairs=second, **options)
        encoded["token_type_ids"] = _segments(encoded)
        return encoded

    def encode_regions(
        self, regions: Mapping[str, Any] | Sequence[Any], box_format: str = "shares"
    ) -> dict[str, Tensor]:
        """Regions alone, see `__call__`."""
        rows = [regions] if isinstance(regions, Mapping) else list(regions)
        if not rows:
            raise ValueError("`regions` holds no picture; leave the argument out where there is text alone.")
        several = not isinstance(rows[0], Mapping) and isinstance(rows[0], Sequence)
        names = [f"`regions` {row}" for row in range(len(rows))]
        checks = {"box_format": box_format, "feature_size": self.feature_size, "detector": self.detector}
        if not several:
            return padded_regions(rows, names, **checks)
        together = len(rows[0])
        for name, images in zip(names, rows, strict=True):
            if isinstance(images, Mapping) or len(images) != together:
                given = 1 if isinstance(images, Mapping) else len(images)
                raise ValueError(
                    f"{name} has {given} pictures and `regions` 0 has {together}; give each text as many as "
                    "the model compares."
                )
        flat = padded_regions(
            [image for images in rows for image in images],
            [f"{name}, picture {number}" for name in names for number in range(together)],
            **checks,
        )
        return {name: value.unflatten(0, (-1, together)) for name, value in flat.items()}

    def tags_of(self, regions: Sequence[Any]) -> list[list[str]]:
        """The tags that regions bring along, of each picture, or of all pictures of each row.

        Raises:
            ValueError: A picture has none.
        """
        return [_tags_of_picture(picture, row) for row, picture in enumerate(regions)]

    def prompts(
        self,
        regions: Mapping[str, Any] | Sequence[Any],
        text: str | list[str] | None = None,
        box_format: str = "shares",
    ) -> BatchFeature:
        """What a model that writes starts from: regions, each with the beginning of a text.

        Args:
            regions: Of B pictures, as in a call.
            text: One beginning for each picture, such as a question, or one for all; by default none.
            box_format: As in a call.

        Returns:
            As a call, without tags and the tokens that end a text, padded on the left.

        Raises:
            ValueError: Not as many texts as pictures, a text that leaves no room for a continuation, or
                regions that cannot be used.
        """
        found = self.encode_regions(regions, box_format)
        texts = padded_prompts(self.tokenizer, text, len(found["region_mask"]), self.max_length)
        return BatchFeature({**texts, **found})

    def prompt_ids(self, texts: list[str]) -> list[list[int]]:
        """Tokens of beginnings of texts: the special ones before a text, then its own, and none that ends it.

        Raises:
            ValueError: One leaves no room for another token.
        """
        return prompt_tokens(self.tokenizer, texts, self.max_length)

    def tokens_around(self) -> tuple[list[int], list[int]]:
        """The special tokens that the tokenizer puts before and after a text."""
        return tokens_around_text(self.tokenizer)

    def _check_room(self, texts: list[str], second: list[str], limit: int) -> None:
        """A token at least of each text must stay beside all tokens of its tags."""
        around = self.tokenizer.num_special_tokens_to_add(pair=True)
        plain = {"add_special_tokens": False, "verbose": False}
        rows = (self.tokenizer(part, **plain)["input_ids"] for part in (texts, second))
        for row, (words, tags) in enumerate(zip(*rows, strict=True)):
            if not words:
                raise ValueError(f"`text` {row} is {texts[row]!r}, of which the tokenizer keeps nothing.")
            if len(tags) + around >= limit:
                raise ValueError(
                    f"`tags` {row} have {len(tags)} tokens, and `max_length`={limit} leaves no room for a "
                    f"text beside them: {second[row][:60]!r}. Lower `max_tags`={self.max_tags}."
                )

    def _tags(self, tags: Sequence[Any] | None, regions: Any, count: int) -> list[Any]:
        """The words of each of `count` rows."""
        if not self.max_tags:
            raise ValueError(
                "`tags` are given and this processor reads none, `max_tags`=0; leave them out, or build it "
                "with `max_tags` for a model that was trained on tags."
            )
        if tags is None:
            if regions is None:
                raise ValueError(
                    f"The model reads up to `max_tags`={self.max_tags} tags of a picture behind a text; give "
                    "`regions` with `tags`."
                )
            tags = self.tags_of([regions] if isinstance(regions, Mapping) else list(regions))
        elif tags and isinstance(tags[0], str):
            tags = [tags]
        if len(tags) != count:
            raise ValueError(f"{len(tags)} lists of `tags` for {count} texts; give one for each.")
        return list(tags)


def _tags_of_picture(picture: Any, row: int) -> list[str]:
    pictures = [picture] if isinstance(picture, Mapping) else picture
    found = [part.get("tags") if isinstance(part, Mapping) else None for part in pictures]
    words = [of_picture for of_picture in found if of_picture is not None]
    if len(words) < len(found):
        raise ValueError(
            f"`regions` {row} has no `tags`, which the model reads (`max_tags` of the processor); give them "
            "there or as `tags`."
        )
    return [tag for of_picture in words for tag in of_picture]


def _checked_tags(tags: Any, row: int) -> list[str]:
    if (
        isinstance(tags, str)
        or not all(isinstance(tag, str) and tag.strip() for tag in tags)
        or not len(tags)
    ):
        raise ValueError(f"`tags` {row} is {tags!r:.80}; give a list of words, at least one.")
    return list(tags)


def _segments(encoded: BatchEncoding) -> Tensor:
    """(B, L) int64, 1 from the first token of the second text to the last token of all."""
    if not encoded.is_fast:
        return encoded["token_type_ids"]
    second = [
        [number == 1 for number in encoded.sequence_ids(row)] for row in range(len(encoded["input_ids"]))
    ]
    return (torch.tensor(second).long().cummax(1).values * encoded["attention_mask"]).long()
