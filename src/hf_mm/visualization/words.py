"""Words and patches: which words make an image and a text similar to CLIP, and where in the image each is.

Words by occlusion (Zeiler & Fergus 2014, https://arxiv.org/abs/1311.2901, with words in the place of
patches). Patches by gradient times attention: Chefer et al. 2021, "Generic Attention-model Explainability for
Interpreting Bi-Modal and Encoder-Decoder Transformers", equations 5 and 6
(https://arxiv.org/abs/2103.15679).

Shapes: W words, B images, H heads, L tokens, G x F patches, E width of the common space.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..imaging.loading import load_rgb
from .figures import blank_figure, show_heat
from .vision_parts import (
    PatchAttention,
    attention_options,
    attention_weights_kept,
    patch_attention,
    vision_parts,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["WordRelevance", "gradient_rollout", "word_figure", "word_relevance"]

CLIP_TYPES = ("clip", "mm_clip")
COLUMNS = 5


@dataclass(frozen=True)
class WordRelevance:
    """Which words matter to the similarity s of an image and a text, and where each is seen.

    Attributes:
        words: The W words, split at blanks.
        similarity: s of the image and the whole text: the cosine, or minus the distance where the model
            compares by it; without temperature.
        importance: (W,) s minus s of the text without this word; negative for a word that does not fit.
        patches: (W, G, F) relevance of each patch for this difference, at least 0.
        whole: (G, F) relevance of each patch for s itself.
    """

    words: list[str]
    similarity: float
    importance: Tensor
    patches: Tensor
    whole: Tensor


def gradient_rollout(attentions: Sequence[Tensor], target: Tensor) -> Tensor:
    """Relevance of each token for a number, through self-attention: R = I, then R += mean(A * dA)+ @ R.

    The weights A of a block are multiplied by the gradient of the target by them; what is negative is cut
    off, then the heads are averaged.

    Args:
        attentions: (B, H, L, L) for each block, first to last, of which `target` was computed.
        target: A scalar; its graph is kept.

    Returns:
        (B, L, L) float32; row i is for output token i, the 1 of its own token included.
    """
    gradients = torch.autograd.grad(target, list(attentions), retain_graph=True)
    relevance = torch.eye(attentions[0].shape[-1], device=attentions[0].device)
    for weights, gradient in zip(attentions, gradients, strict=True):
        passed = (weights * gradient).detach().float().clamp(min=0).mean(dim=1)  # (B, L, L)
        relevance = relevance + passed @ relevance
    return relevance


def word_relevance(model: Any, processor: Any, image: object, text: str) -> WordRelevance:
    """Which words matter to the similarity of an image and a text, and which patches matter for each word.

    A word matters as much as the similarity falls when it is left out; the only word of a text is measured
    against the empty text. The patches for a word are those that
    carry this difference, s(image, text) - s(image, text without the word), by `gradient_rollout`: what the
    word adds to the words around it, not what it would match alone.

    Args:
        model: A CLIP model of ours or of transformers, its vision tower with patches.
        processor: Its processor, of images and texts.
        image: Any picture, see `load_rgb`.
        text: One text; words are what stands between blanks.

    Raises:
        ValueError: No CLIP model, no word, or a word left out leaves the text tower nothing to read.
    """
    if model.config.model_type not in CLIP_TYPES:
        raise ValueError(
            f"{type(model).__name__} compares no image with a text; words need a model of type "
            f"{' or '.join(CLIP_TYPES)}."
        )
    words = text.split()
    if not words:
        raise ValueError(f"`text`={text!r} has no word; give at least one.")
    parts = vision_parts(model)
    weight = parts.patch_filters
    texts = [" ".join(words), *(" ".join(words[:i] + words[i + 1 :]) for i in range(len(words)))]
    text_vectors = _text_vectors(model, processor, texts, weight.device)  # (1 + W, E)
    pixel_values = processor(images=load_rgb(image), return_tensors="pt")["pixel_values"]
    pixel_values = pixel_values.to(weight.device, weight.dtype).requires_grad_()  # weights may be frozen
    with torch.enable_grad(), attention_weights_kept(parts.encoder):
        output = model.get_image_features(pixel_values, **attention_options(False))
        attention = patch_attention(parts, output.attentions, pixel_values)
        similarities = _similarities(model, output.pooler_output, text_vectors)  # (1 + W,)
        targets = [similarities[0], *(similarities[0] - similarities[1:])]
        maps = [_relevance_map(attention, target) for target in targets]
    found = similarities.detach().float().cpu()
    return WordRelevance(words, float(found[0]), found[0] - found[1:], torch.stack(maps[1:]), maps[0])


def word_figure(picture: np.ndarray, relevance: WordRelevance) -> "Figure":
    """The picture, the importance of each word as bars, and a heat map for each word.

    Args:
        picture: (Y, X, 3) uint8, what the model saw, see `seen_images`.
        relevance: As `word_relevance` returns; the maps of all words share one scale, so that a word without
            a place in the picture stays dark.

    Returns:
        A figure of 2 + W axes.
    """
    words, count = relevance.words, len(relevance.words)
    columns = min(COLUMNS, max(count, 3))
    rows = 1 + -(-count // columns)
    figure = blank_figure(columns * 2.2, rows * 2.4 + 0.3)
    grid = figure.add_gridspec(rows, columns)
    heat = relevance.whole.numpy()
    show_heat(figure.add_subplot(grid[0, 0]), picture, heat, f"all: {relevance.similarity:.3f}")
    bars = figure.add_subplot(grid[0, 1:])
    bars.bar(range(count), relevance.importance.numpy())
    bars.axhline(0, color="black", linewidth=0.8)
    bars.yaxis.tick_right()  # on the left the numbers would push the columns of pictures apart
    bars.set_xticks(range(count), words, rotation=30 if count > COLUMNS else 0, parse_math=False)
    bars.set_title("Fall of the similarity without the word", fontsize="medium")
    most = float(relevance.patches.max())
    for number, (word, place) in enumerate(zip(words, relevance.patches, strict=True)):
        axes = figure.add_subplot(grid[1 + number // columns, number % columns])
        show_heat(axes, picture, place.numpy(), word, most)
    return figure


def _text_vectors(model: Any, processor: Any, texts: list[str], device: torch.device) -> Tensor:
    """(T, E), as they come from the projection; of these texts the last may be empty."""
    batches = [
        processor(text=[text for text in texts if text], padding=True, truncation=True, return_tensors="pt")
    ]
    if not texts[-1]:  # refused as a caption, but what the only word is measured against
        batches.append(processor.tokenizer([""], return_tensors="pt"))
        if not batches[1]["input_ids"].numel():
            raise ValueError(
                f"`text`={texts[0]!r} is one word, and without it the text tower has nothing to read; "
                "give two words or more."
            )
    vectors = []
    for batch in batches:
        inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask") if name in batch}
        with torch.no_grad():
            vectors.append(model.get_text_features(**inputs).pooler_output)
    return torch.cat(vectors)


def _similarities(model: Any, image_vectors: Tensor, text_vectors: Tensor) -> Tensor:
    """(T,) similarities of one image (1, E) and texts (T, E), as the model compares, without temperature."""
    if model.config.model_type == "mm_clip" and model.config.similarity == "euclidean":
        return -torch.linalg.vector_norm(image_vectors - text_vectors, dim=-1)
    return torch.nn.functional.cosine_similarity(image_vectors, text_vectors, dim=-1)


def _relevance_map(attention: PatchAttention, target: Tensor) -> Tensor:
    """(G, F), without what each token is to itself from the start."""
    relevance = gradient_rollout(attention.weights, target)
    own = torch.eye(relevance.shape[-1], device=relevance.device)
    return attention.read(relevance - own)[0].cpu()
