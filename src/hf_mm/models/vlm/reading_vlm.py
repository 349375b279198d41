"""Going on from tokens that a vision-language model has read, for one row or for many at once.

Shapes: B rows, L tokens, N tokens to read, W words, V vectors of an image, D width of the language model.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ...imaging.loading import load_rgb
from .chat_vlm import filler_id
from .processing_vlm import MMVLMProcessor
from .read_tokens_vlm import ReadTokens, common_length

__all__ = ["Reader", "SeenImages"]


@dataclass(frozen=True)
class SeenImages:
    """Images, the tokens that each takes in a prompt, and the vectors (V, D) that stand in their places."""

    pixels: tuple[np.ndarray, ...] = ()
    layouts: tuple[list[int], ...] = ()
    vectors: tuple[Tensor, ...] = ()

    @property
    def bounds(self) -> list[int]:
        """How many vectors the first 0, 1, 2, ... images have."""
        return list(accumulate(map(len, self.vectors), initial=0))


class Reader:
    """A model that reads and answers rows of tokens, each of which may begin with what was read before.

    Args:
        model: An `MMVLMForConditionalGeneration`, with adapters or without.
        processor: Its processor.
    """

    def __init__(self, model: Any, processor: MMVLMProcessor) -> None:
        self.model, self.processor = model, processor

    @contextmanager
    def at_rest(self) -> Generator[None]:
        """Without dropout and without gradients; afterwards the model is in the mode it was in."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train(was_training)

    def see(self, seen: SeenImages, images: Any) -> SeenImages:
        """The same images and more.

        Raises:
            ValueError: An image cannot be read, or the processor is another model's.
        """
        images = [] if images is None else images if isinstance(images, list | tuple) else [images]
        if not len(images):
            return seen
        pixels = [load_rgb(image, f"`images`[{i}]") for i, image in enumerate(images)]
        layouts = [self.processor.image_tokens(picture) for picture in pixels]
        inputs = self.processor.image_processor(pixels, return_tensors="pt").to(self.model.device)
        vectors = self.model.get_image_features(**inputs).pooler_output
        for layout, found in zip(layouts, vectors, strict=True):
            if (written := layout.count(self.processor.image_token_id)) != len(found):
                raise ValueError(
                    f"The processor writes {written} tokens for an image of which the model makes "
                    f"{len(found)} vectors; use the processor that was saved with the model."
                )
        return SeenImages((*seen.pixels, *pixels), (*seen.layouts, *layouts), (*seen.vectors, *vectors))

    def nothing(self) -> ReadTokens:
        """A row of which nothing is read yet."""
        return ReadTokens(self.model.config.text_config)

    def read(self, state: ReadTokens, ids: list[int], seen: SeenImages) -> ReadTokens:
        """Read on, up to the end of `ids`, of which `state` holds the beginning; returns `state`."""
        token, bidirectional = self.processor.image_token_id, self.model.config.bidirectional_images
        if bidirectional and token in ids[len(state.tokens) :]:
            state = state.become(self.nothing())  # images look at each other: none is read before the last
        new = ids[len(state.tokens) :]
        if not new:
            return state
        inputs: dict[str, Any] = {"input_ids": torch.tensor([new], device=self.model.device)}
        bounds = seen.bounds
        first = bounds.index(state.tokens.count(token))
        last = bounds.index(ids.count(token))
        if last > first:
            vectors: Any = list(seen.vectors[first:last])
            inputs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=vectors)}
        if bidirectional and last > first:
            types = [[int(i in self.processor.unlabelled_ids) for i in new]]
            inputs["mm_token_type_ids"] = torch.tensor(types, device=self.model.device)
        self.model(**inputs, past_key_values=state.cache, use_cache=True, logits_to_keep=1)
        state.tokens = list(ids)
        return state

    def beginning(self, state: ReadTokens, rows: Sequence[list[int]], seen: SeenImages) -> ReadTokens:
        """A copy of `state` with what all `rows` have in common with it, and each of them has more."""
        length = min(min(common_length(state.tokens, row), len(row) - 1) for row in rows)
        made = state.copy()
        return made if made.crop(length) else self.read(self.nothing(), state.tokens[:length], seen)

    def batches(
        self, state: ReadTokens, rows: Sequence[list[int]], size: int, new: int
    ) -> Iterator[list[int]]:
        """Which rows to read together: those of like length, and without padding where it would do harm.

        A sliding window counts padding as it counts words, so that once it is full it would end elsewhere.

        Args:
            state: Where they start.
            rows: All of them.
            size: Most rows of a batch.
            new: Tokens to be written after each.

        Raises:
            ValueError: Batches of no rows.
        """
        if size < 1:
            raise ValueError(f"`batch_size`={size} must be at least 1.")
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        longest = max(map(len, rows), default=0) + new
        if state.window is None or longest <= state.window:
            groups = [order]
        else:
            groups = [list(group) for _, group in groupby(order, key=lambda row: len(rows[row]))]
        for group in groups:
            yield from (group[first : first + size] for first in range(0, len(group), size))

    def logits(self, start: ReadTokens, rows: Sequence[list[int]], keep: int) -> Tensor:
        """Logits of the last `keep` tokens of rows that begin with `start`, (B, keep, W)."""
        known = len(start.tokens)
        ids, mask = self._padded(start, rows)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return self.model(
            input_ids=ids[:, known:],
            attention_mask=mask,
            position_ids=positions[:, known:],
            past_key_values=start.expanded(len(rows)),
            use_cache=True,
            logits_to_keep=keep,
        ).logits

    def generate(
        self,
        start: ReadTokens,
        rows: Sequence[list[int]],
        options: dict[str, Any],
        keep: bool = False,
    ) -> list[list[int]]:
        """What the model says after rows that begin with `start`.

        Args:
            start: What they have in common.
            rows: Whole prompts.
            options: Of the model's `generate`.
            keep: Leave the one row and its answer in `start`; of several sequences none is kept.

        Returns:
            The tokens of each answer, with those that end it.
        """
        ids, mask = self._padded(start, rows)
        settings = {"do_sample": False, **options}
        defaults = settings.get("generation_config") or self.model.generation_config
        copies = max(
            settings.get(name) or getattr(defaults, name) or 1
            for name in ("num_beams", "num_return_sequences")
        )
        alone = keep and len(rows) * copies == 1
        told = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=start.cache if alone else start.expanded(len(rows) * copies),
            pad_token_id=filler_id(self.processor.tokenizer) or 0,
            **settings,
        )
        told = told[:, ids.shape[1] :]
        answers = told[:: len(told) // len(rows)].tolist()  # the first of several sequences is the best
        if alone:
            start.tokens = (rows[0] + answers[0])[: start.cache.get_seq_length()]
        return answers

    def _padded(self, start: ReadTokens, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Tokens and mask (B, L), the padding between what is read and what is not."""
        known, length = len(start.tokens), max(map(len, rows))
        gaps = [length - len(row) for row in rows]
        filler = filler_id(self.processor.tokenizer) or 0
        ids = [row[:known] + [filler] * gap + row[known:] for gap, row in zip(gaps, rows, strict=True)]
        mask = [[1] * known + [0] * gap + [1] * (length - known - gap) for gap in gaps]
        return torch.tensor(ids, device=self.model.device), torch.tensor(mask, device=self.model.device)
