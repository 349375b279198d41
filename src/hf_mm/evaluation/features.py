"""Pictures and texts as vectors, batch by batch: what zero-shot, retrieval and probes compare.

Models are those that put both into one space: ours with `embed_images` and `embed_texts`, and those of
transformers with `get_image_features` and `get_text_features`, whose features are scaled to length 1 here.

Shapes: N rows, P width of the shared space, D width of a vision tower, C channels, Y x X places, L tokens.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from ..imaging.loading import load_rgb

if TYPE_CHECKING:  # pictures in a list need no data set
    from datasets import Dataset

__all__ = [
    "checked_texts",
    "compare",
    "encode_images",
    "encode_texts",
    "evaluating",
    "is_euclidean",
    "read_pictures",
    "undecoded",
    "vision_features",
]


def encode_images(
    model: Any, processor: Any, images: Iterable[Any], batch_size: int = 64, progress: bool = True
) -> Tensor:
    """Pictures as vectors of the space that the model shares between pictures and texts.

    Args:
        model: An `MMCLIPModel`, or transformers' `CLIPModel` and its like.
        processor: Its processor or image processor.
        images: Anything that `hf_mm.load_rgb` reads, each; a list, a column of a data set or a generator.
        batch_size: Pictures at a time.
        progress: Show a progress bar.

    Returns:
        (N, P) float32 on the CPU, ready for comparison: of length 1, unless the model compares distances.

    Raises:
        ValueError: There are none, or one cannot be read; it is named by its number, from 0.
        TypeError: `images` is one picture, or the model has no features of pictures.
    """
    return _encode(model, _image_embedder(model), _pixel_batches(processor, images, batch_size), progress)


def encode_texts(
    model: Any, processor: Any, texts: Iterable[str], batch_size: int = 256, progress: bool = True
) -> Tensor:
    """Texts as vectors of the space that the model shares between pictures and texts.

    What is longer than the model reads is cut by its processor.

    Args:
        model: See `encode_images`.
        processor: Its processor or tokenizer.
        texts: Captions, prompts.
        batch_size: Texts at a time.
        progress: Show a progress bar.

    Returns:
        (N, P) float32 on the CPU, see `encode_images`.

    Raises:
        ValueError: There are none, or one is empty; it is named by its number, from 0.
        TypeError: `texts` is one text, or holds something else, or the model has no features of texts.
    """
    texts = checked_texts(texts)
    tokenizer = getattr(processor, "tokenizer", processor)
    if tokenizer is processor:
        tokenize: Callable = tokenizer
    else:  # the processor may count what it cuts

        def tokenize(batch: list[str], **options: Any) -> Any:
            return processor(text=batch, **options)

    def batches() -> Iterator[dict[str, Tensor]]:
        for first in range(0, len(texts), _positive(batch_size)):
            part = texts[first : first + batch_size]
            tokens = tokenize(part, padding=True, truncation=True, return_tensors="pt")
            yield {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}

    return _encode(model, _text_embedder(model), _not_empty(batches(), "texts"), progress)


def vision_features(
    tower: Any,
    processor: Any,
    images: Iterable[Any],
    batch_size: int = 64,
    progress: bool = True,
    pooling: Literal["pooler", "cls", "mean"] = "pooler",
) -> Tensor:
    """Pictures as vectors of any vision tower, for probes and neighbours.

    Args:
        tower: A bare vision model of transformers or of ours, such as `model.vision_model` or `model.vit`.
        processor: Its processor or image processor.
        images: See `encode_images`.
        batch_size: Pictures at a time.
        progress: Show a progress bar.
        pooling: "pooler" takes `pooler_output`, and the mean over all positions where the tower has none;
            "cls" the first token and "mean" the mean over all positions of `last_hidden_state`. A
            `ViTModel` out of a classifier's checkpoint has a pooler that nobody trained: take "cls".

    Returns:
        (N, D) float32 on the CPU, as the tower gives them.

    Raises:
        ValueError: There are no pictures, or one cannot be read; it is named by its number, from 0.
        TypeError: The model is no bare tower.
    """
    if pooling not in ("pooler", "cls", "mean"):
        raise ValueError(f"`pooling` is {pooling!r}; it is 'pooler', 'cls' or 'mean'.")

    def embed(pixel_values: Tensor) -> Tensor:
        return _pooled(tower(pixel_values=pixel_values), pooling, type(tower).__name__)

    return _encode(tower, embed, _pixel_batches(processor, images, batch_size), progress)


def compare(model: Any, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
    """Similarities as the model has them as logits: its temperature is in them.

    Args:
        model: See `encode_images`.
        image_embeds: (N, P).
        text_embeds: (M, P).

    Returns:
        (N, M) float32 on the CPU.
    """
    image_embeds, text_embeds = image_embeds.to(model.device), text_embeds.to(model.device)
    with torch.no_grad():
        if hasattr(model, "similarity_logits"):
            logits = model.similarity_logits(image_embeds, text_embeds)
        else:
            logits = model.logit_scale.exp() * image_embeds @ text_embeds.T
    return logits.float().cpu()


def is_euclidean(model: Any) -> bool:
    """Whether the model compares by distance; those of transformers never do."""
    return hasattr(model, "similarity_logits") and model.config.similarity == "euclidean"


def checked_texts(texts: Iterable[str]) -> list[str]:
    """The texts in a list, each a string with something in it; see `encode_texts` for what it raises."""
    if isinstance(texts, str):
        raise TypeError(f"`texts` is the text {texts[:40]!r}; give a list of texts.")
    texts = list(texts)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text {number} is a {type(text).__name__}, not a string.")
        if not text.strip():
            raise ValueError(f"text {number} is {text!r}; there is nothing in it to compare, leave it out.")
    return texts


def read_pictures(images: Iterable[Any]) -> Iterator[Image.Image]:
    """Each picture as RGB, one by one; see `encode_images` for what it takes and raises."""
    if isinstance(images, str | Path | bytes | dict | Image.Image):
        raise TypeError(f"`images` is one picture, a {type(images).__name__}; give a list of pictures.")
    return _pictures(images)


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Without dropout and gradients; afterwards every module is in the mode in which it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def undecoded(rows: "Dataset | Sequence[dict]") -> "Dataset | Sequence[dict]":
    """The same rows with images as they are stored; each is read once, when it is encoded."""
    if not isinstance(rows, Sequence):
        for column, feature in rows.features.items():
            if type(feature).__name__ == "Image":
                rows = rows.cast_column(column, type(feature)(decode=False))
    return rows


def _encode(model: Any, embed: Callable, batches: Iterable[dict[str, Tensor]], progress: bool) -> Tensor:
    found = []
    with evaluating(model):
        for batch in tqdm(batches, desc="encode", unit="batch", disable=not progress):
            inputs = {
                name: part.to(model.device, model.dtype if part.is_floating_point() else None)
                for name, part in batch.items()
            }
            found.append(embed(**inputs).float().cpu())
    return torch.cat(found)  # (N, P)


def _image_embedder(model: Any) -> Callable[..., Tensor]:
    if hasattr(model, "embed_images"):
        return model.embed_images
    if hasattr(model, "get_image_features"):
        return lambda **inputs: normalize(model.get_image_features(**inputs).pooler_output.float(), dim=-1)
    raise TypeError(
        f"{type(model).__name__} has neither `embed_images` nor `get_image_features`; give a model of "
        "pictures and texts, or take `vision_features`."
    )


def _text_embedder(model: Any) -> Callable[..., Tensor]:
    if hasattr(model, "embed_texts"):
        return model.embed_texts
    if hasattr(model, "get_text_features"):
        return lambda **inputs: normalize(model.get_text_features(**inputs).pooler_output.float(), dim=-1)
    raise TypeError(
        f"{type(model).__name__} has neither `embed_texts` nor `get_text_features`; give a model of pictures "
        "and texts."
    )


def _pooled(outputs: Any, pooling: str, name: str) -> Tensor:
    """One vector per picture out of what a tower returns."""
    vectors = outputs.get("pooler_output") if pooling == "pooler" else None
    if vectors is not None:
        return vectors.flatten(1)  # (N, D); a ResNet pools to (N, D, 1, 1)
    states = outputs.get("last_hidden_state")
    if states is None:
        raise TypeError(
            f"{name} returns {list(outputs)}, no vector of the picture; give the bare tower, such as "
            "`model.base_model` or `model.vision_model`."
        )
    if states.ndim == 4:
        if pooling == "cls":
            raise ValueError(f"{name} is convolutional and has no first token; take `pooling='mean'`.")
        return states.mean(dim=(2, 3))  # (N, D, Y, X) to (N, D)
    return states[:, 0] if pooling == "cls" else states.mean(dim=1)


def _pixel_batches(processor: Any, images: Iterable[Any], batch_size: int) -> Iterable[dict[str, Tensor]]:
    pictures = read_pictures(images)

    def batches() -> Iterator[dict[str, Tensor]]:
        for batch in _in_batches(pictures, _positive(batch_size)):
            yield {"pixel_values": processor(images=batch, return_tensors="pt")["pixel_values"]}

    return _not_empty(batches(), "images")


def _pictures(images: Iterable[Any]) -> Iterator[Image.Image]:
    """What fails is named, also where a data set decodes on its way here."""
    rows = iter(images)
    for number in count():
        try:
            image = next(rows)
        except StopIteration:
            return
        except Exception as error:  # what a broken file raises depends on where it broke
            raise ValueError(f"image {number} cannot be read ({type(error).__name__}: {error}).") from error
        yield Image.fromarray(load_rgb(image, f"image {number}"))


def _in_batches(rows: Iterator[Any], size: int) -> Iterator[list[Any]]:
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _not_empty(batches: Iterator[Any], name: str) -> Iterator[Any]:
    first = next(batches, None)
    if first is None:
        raise ValueError(f"`{name}` is empty; give at least one.")
    yield first
    yield from batches


def _positive(batch_size: int) -> int:
    if batch_size < 1:
        raise ValueError(f"`batch_size` is {batch_size}; it must be at least 1.")
    return batch_size
