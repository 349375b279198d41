"""Answers to questions about images, by generation: the same in any batch, and resumed where it was stopped.

Shapes: B rows of a batch, L tokens.
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..imaging.loading import image_identity
from ..models.vlm.chat_vlm import filler_id, lacks_special_tokens, put_images_in
from ..models.vlm.processing_vlm import MMVLMProcessor, user_message
from .answers_file import AnswersFile, digest_of_image, digest_of_prompt, digest_of_text, digest_of_weights
from .features import evaluating, undecoded

if TYPE_CHECKING:  # asking a model needs no data set
    from datasets import Dataset

__all__ = ["generate_answers"]


def generate_answers(
    model: Any,
    processor: MMVLMProcessor,
    rows: "Dataset | Sequence[dict]",
    batch_size: int = 64,
    max_new_tokens: int = 16,
    progress: bool = True,
    cached_images: int = 1024,
    answers_file: str | Path | None = None,
    **options: Any,
) -> list[str]:
    """Ask a model about images and return what it says, one text per row.

    Rows of like length are answered together, with padding on the left, and an image that many rows share is
    encoded once. In float32 neither changes an answer; in half precision a token that is nearly as likely as
    another may change with the batch.

    Args:
        model: An `MMVLMForConditionalGeneration`, with adapters or without.
        processor: Its processor.
        rows: `image` or a list of `images`, and `question` or, for longer conversations, `messages` that
            end with the user's turn.
        batch_size: Rows at a time.
        max_new_tokens: Longest answer.
        progress: Show a progress bar.
        cached_images: Encoded images to keep at hand.
        answers_file: Write answers into this file batch by batch, one JSON object per line. When it is there
            already, the rows that it answers are not asked again: a run that was killed goes on, at the loss
            of one batch at most.
        options: Of `generate`, such as `num_beams`; greedy by default.

    Returns:
        Answers without special tokens and surrounding white space, in the order of `rows`.

    Raises:
        ValueError: A row lacks its image or its question, it is named; or `answers_file` has answers of
            another model, to other questions or with other options.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` is {batch_size}; it must be at least 1.")
    prompts, images = _prompts(processor, rows)
    options = {"do_sample": False, "max_new_tokens": max_new_tokens, **options}
    settings = {name: repr(value) for name, value in sorted(options.items())}
    file = None if answers_file is None else _open(answers_file, model, processor, settings, prompts, images)
    answers = {} if file is None else file.answers
    order = sorted(set(range(len(prompts))) - set(answers), key=lambda row: len(prompts[row]))
    encode = _ImageEncoder(model, processor, cached_images)
    bar = tqdm(total=len(prompts), initial=len(answers), desc="answers", unit="row", disable=not progress)
    with evaluating(model), bar:
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            vectors = encode([image for row in batch for image in images[row]])
            texts = _answer(model, processor, [prompts[row] for row in batch], vectors, options)
            answers.update(zip(batch, texts, strict=True))
            if file is not None:
                file.append(batch)
            bar.update(len(batch))
    return [answers[row] for row in range(len(prompts))]


def _answer(
    model: Any, processor: MMVLMProcessor, prompts: list[list[int]], vectors: Any, options: dict
) -> list[str]:
    """What is said after each of some prompts, whose images have become `vectors`, one tensor each."""
    inputs = _left_padded(processor, prompts, model.device)
    if vectors:
        inputs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=vectors)}
    if model.config.bidirectional_images:
        image_ids = torch.tensor(sorted(processor.unlabelled_ids), device=model.device)
        inputs["mm_token_type_ids"] = torch.isin(inputs["input_ids"], image_ids).long()  # (B, L)
    tokens = model.generate(**inputs, **options)
    tokens = tokens[:, inputs["input_ids"].shape[1] :]
    tokens = tokens[:: len(tokens) // len(prompts)]  # the first of several sequences is the best
    return [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]


def _open(
    path: str | Path,
    model: Any,
    processor: MMVLMProcessor,
    settings: dict[str, str],
    prompts: list[list[int]],
    images: list[list],
) -> AnswersFile:
    """The file of answers, and the ones in it that belong to these rows."""
    settings = {
        "weights": digest_of_weights(model),
        "image_processor": digest_of_text(processor.image_processor.to_json_string()),
        **settings,
    }
    known: dict[object, str] = {}
    for pictures in images:
        for picture in pictures:
            identity = image_identity(picture)
            if identity not in known:
                known[identity] = digest_of_image(picture)
    digests = [
        digest_of_prompt(prompt, [known[image_identity(picture)] for picture in pictures])
        for prompt, pictures in zip(prompts, images, strict=True)
    ]
    return AnswersFile(path, settings, digests)


class _ImageEncoder:
    """Images to the vectors that a language model reads, the latest kept."""

    def __init__(self, model: Any, processor: MMVLMProcessor, capacity: int) -> None:
        self.model, self.processor, self.capacity = model, processor, capacity
        self.kept: OrderedDict[object, Tensor] = OrderedDict()

    @torch.no_grad()
    def __call__(self, images: list) -> list[Tensor]:
        keys = [image_identity(image) for image in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self.kept}
        if new:
            pixels = self.processor.image_processor(list(new.values()), return_tensors="pt").to(
                self.model.device
            )
            vectors = self.model.get_image_features(**pixels).pooler_output
            self.kept.update(zip(new, vectors, strict=True))
        found = [self.kept[key] for key in keys]
        for key in keys:
            self.kept.move_to_end(key)
        while len(self.kept) > self.capacity:
            self.kept.popitem(last=False)
        return found


def _prompts(
    processor: MMVLMProcessor, rows: "Dataset | Sequence[dict]"
) -> tuple[list[list[int]], list[list]]:
    """The tokens of each prompt and its images; equal questions are rendered once."""
    texts: dict[object, list[int]] = {}
    prompts, images = [], []
    for number, row in enumerate(undecoded(rows)):
        pictures = row["images"] if row.get("images") is not None else [row.get("image")]
        if any(picture is None for picture in pictures):
            raise ValueError(f"Row {number} has no `image` or `images`, only {sorted(row)}.")
        if row.get("messages") is None and row.get("question") is None:
            raise ValueError(f"Row {number} has no `question` or `messages`, only {sorted(row)}.")
        messages = row.get("messages") or [user_message(row["question"], len(pictures))]
        key = (row["question"], len(pictures)) if row.get("messages") is None else number
        if key not in texts:
            texts[key] = _tokens(processor, messages)
        layouts = [
            processor.image_tokens(image, f"Row {number}, image {i}") for i, image in enumerate(pictures)
        ]
        try:
            prompts.append(put_images_in(texts[key], texts[key], layouts, processor.image_token_id)[0])
        except ValueError as error:
            raise ValueError(f"Row {number}: {error}") from error
        images.append(list(pictures))
    return prompts, images


def _tokens(processor: MMVLMProcessor, messages: list[dict]) -> list[int]:
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    tokenizer = processor.tokenizer
    return tokenizer.encode(text, add_special_tokens=lacks_special_tokens(tokenizer, text))


def _left_padded(processor: MMVLMProcessor, prompts: list[list[int]], device: torch.device) -> dict[str, Any]:
    filler = filler_id(processor.tokenizer) or 0
    length = max(map(len, prompts))
    gaps = [length - len(prompt) for prompt in prompts]
    ids = [[filler] * gap + prompt for gap, prompt in zip(gaps, prompts, strict=True)]
    mask = [[0] * gap + [1] * (length - gap) for gap in gaps]
    return {
        "input_ids": torch.tensor(ids, device=device),  # (B, L)
        "attention_mask": torch.tensor(mask, device=device),  # (B, L)
        "pad_token_id": filler,
    }
