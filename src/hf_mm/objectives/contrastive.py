"""InfoNCE between images and texts: each has to pick its partner out of the batch.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", figure 3
(https://arxiv.org/abs/2103.00020). The streamed form keeps only the log-sum-exp of every row and column and
makes the logits anew, tile by tile, for the gradient; the idea of Dao et al. 2022, "FlashAttention", section
3.1 (https://arxiv.org/abs/2205.14135).

Shapes: N pairs, M texts, P width of the shared space, K hard negatives of an image.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy

from .similarity import check_pairs, pairwise_similarity, similarity_gradients, tiles

__all__ = ["check_info_nce", "cross_entropy_sum", "info_nce", "logit_sums", "own_similarity"]


def info_nce(
    image_features: Tensor,
    text_features: Tensor,
    scale: Tensor | float,
    *,
    similarity: str = "dot",
    label_smoothing: float = 0.0,
    hard_negatives: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """The mean of two cross-entropies: which text belongs to an image, and which image to a text.

    A batch of one has nothing to choose from: its loss is 0, and so is its gradient. Two pairs with the same
    caption are each other's false negatives: m pairs of one caption cannot get below ln m nats each, in both
    directions, and training pushes their images apart for nothing. Keep such twins in different batches.

    Args:
        image_features: (N, P), of length one where the cosine is meant; half precision is widened.
        text_features: (N, P), row i the partner of image i.
        scale: Factor on the similarities, the inverse of the temperature (not its logarithm).
        similarity: "dot" or "euclidean" (minus the distance).
        label_smoothing: Share of the target probability spread evenly over all candidates, 0 to 1.
        hard_negatives: (N, K, P), K further texts that an image has to turn down, each image its own.
        chunk_size: Compute by tiles of this side and never hold the N x N logits; same value, same gradients.
            512 or 1,024 suit a CPU, a few thousand a GPU. A batch that fits one tile takes the plain way.

    Returns:
        The loss in nats, a scalar, in float32 or, for such features, float64.

    Raises:
        ValueError: Shapes do not fit, the batch is empty, or an option is out of its range.
        TypeError: Features are no floating point numbers.
    """
    check_info_nce(
        image_features, text_features, scale, similarity, label_smoothing, hard_negatives, chunk_size
    )
    if not len(image_features):
        raise ValueError("`image_features` and `text_features` have no rows; skip empty batches.")
    if chunk_size is not None and chunk_size < len(image_features):
        return _streamed_info_nce(
            image_features, text_features, scale, similarity, label_smoothing, hard_negatives, chunk_size
        )
    logits = scale * pairwise_similarity(image_features, text_features, similarity)  # (N, N)
    targets = torch.arange(len(logits), device=logits.device)
    text_to_image = cross_entropy(logits.T, targets, label_smoothing=label_smoothing)
    if hard_negatives is not None:
        harder = scale * own_similarity(image_features, hard_negatives, similarity)
        logits = torch.cat([logits, harder], dim=1)  # (N, N + K)
    image_to_text = cross_entropy(logits, targets, label_smoothing=label_smoothing)
    return (image_to_text + text_to_image) / 2


def _streamed_info_nce(
    images: Tensor,
    texts: Tensor,
    scale: Tensor | float,
    similarity: str,
    label_smoothing: float,
    hard_negatives: Tensor | None,
    chunk_size: int,
) -> Tensor:
    sums = logit_sums(images, texts, 0, scale, similarity, chunk_size)
    harder = None if hard_negatives is None else scale * own_similarity(images, hard_negatives, similarity)
    return cross_entropy_sum(*sums, harder, label_smoothing, len(texts)) / (2 * len(texts))


def own_similarity(images: Tensor, candidates: Tensor, similarity: str) -> Tensor:
    """The similarity of every image to candidates of its own.

    Args:
        images: (N, P).
        candidates: (N, K, P).
        similarity: As `pairwise_similarity` takes it.

    Returns:
        (N, K).
    """
    return pairwise_similarity(images.unsqueeze(1), candidates, similarity).squeeze(1)


def cross_entropy_sum(
    over_texts: Tensor,
    over_images: Tensor,
    positives: Tensor,
    total: Tensor,
    harder: Tensor | None,
    label_smoothing: float,
    candidates: int,
) -> Tensor:
    """The cross-entropies of both directions, from what is left of the logits, added up over the pairs.

    Args:
        over_texts: (N,) log-sum-exp of each image's logits.
        over_images: (N,) log-sum-exp of the logits of each image's partner.
        positives: (N,) logits of the pairs.
        total: Sum of all the logits of the N images.
        harder: (N, K) logits of hard negatives, or `None`.
        label_smoothing: As `info_nce` takes it.
        candidates: How many images, and how many texts, there are to choose from.

    Returns:
        A scalar, 2 N times the loss when there are N candidates.
    """
    if harder is not None:
        over_texts = torch.logaddexp(over_texts, harder.logsumexp(1))
    target = (1 - label_smoothing) * positives
    loss = ((over_texts - target) + (over_images - target)).sum()
    if label_smoothing:
        of_image = total if harder is None else total + harder.sum()
        more = 0 if harder is None else harder.shape[1]
        loss = loss - label_smoothing * (of_image / (candidates + more) + total / candidates)
    return loss


def logit_sums(
    images: Tensor,
    texts: Tensor,
    first: int,
    scale: Tensor | float,
    similarity: str,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What cross-entropy needs to know of all logits.

    Args:
        images: (N, P).
        texts: (M, P), among them the partners of the images, in their order.
        first: Which text belongs to the first image.
        scale: Factor on the similarities.
        similarity: As `pairwise_similarity` takes it.
        chunk_size: Side of the tiles, or `None` to make the logits at once and keep them for the gradient.

    Returns:
        The log-sum-exp of each image's logits (N,), that of each text's (M,), the logits of the pairs (N,),
        and the sum of all logits.
    """
    if chunk_size is not None:
        scale = torch.as_tensor(scale, device=images.device)
        return _StreamedLogitSums.apply(images, texts, first, scale, similarity, chunk_size)
    logits = scale * pairwise_similarity(images, texts, similarity)  # (N, M)
    return logits.logsumexp(1), logits.logsumexp(0), logits.diagonal(first), logits.sum()


class _StreamedLogitSums(Function):
    """`logit_sums` by tiles, none of which outlives its turn."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, texts: Tensor, first: int, scale: Tensor, similarity: str, chunk_size: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dtype = torch.promote_types(torch.promote_types(images.dtype, texts.dtype), torch.float32)
        over_texts = images.new_full((len(images),), -torch.inf, dtype=dtype)
        over_images = images.new_full((len(texts),), -torch.inf, dtype=dtype)
        positives, total = torch.empty_like(over_texts), images.new_zeros((), dtype=dtype)
        for row, column in tiles(len(images), len(texts), chunk_size):
            logits = pairwise_similarity(images[row], texts[column], similarity).mul_(scale)
            over_texts[row] = torch.logaddexp(over_texts[row], logits.logsumexp(1))
            over_images[column] = torch.logaddexp(over_images[column], logits.logsumexp(0))
            crossing, diagonal = _partners(logits, first + row.start - column.start)
            positives[row][crossing] = diagonal
            total += logits.sum()
        ctx.save_for_backward(images, texts, scale, over_texts, over_images)
        ctx.first, ctx.similarity, ctx.chunk_size = first, similarity, chunk_size
        return over_texts, over_images, positives, total

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_texts: Tensor, of_images: Tensor, of_positives: Tensor, of_total: Tensor
    ) -> tuple[Tensor | None, ...]:
        images, texts, scale, over_texts, over_images = ctx.saved_tensors
        image_gradient = torch.zeros_like(images, dtype=over_texts.dtype)
        text_gradient = torch.zeros_like(texts, dtype=over_texts.dtype)
        scale_gradient = over_texts.new_zeros(())
        for row, column in tiles(len(images), len(texts), ctx.chunk_size):
            similarities = pairwise_similarity(images[row], texts[column], ctx.similarity)
            logits = similarities * scale
            # The derivative of a log-sum-exp is the softmax.
            slopes = (logits - over_texts[row].unsqueeze(1)).exp_().mul_(of_texts[row].unsqueeze(1))
            slopes += logits.sub_(over_images[column]).exp_().mul_(of_images[column])
            slopes += of_total
            crossing, diagonal = _partners(slopes, ctx.first + row.start - column.start)
            diagonal += of_positives[row][crossing]
            scale_gradient += (slopes * similarities).sum()
            of_rows, of_columns = similarity_gradients(
                slopes, similarities, images[row], texts[column], ctx.similarity
            )
            image_gradient[row] += of_rows
            text_gradient[column] += of_columns
        return (
            image_gradient.mul_(scale).to(images.dtype),
            text_gradient.mul_(scale).to(texts.dtype),
            None,
            scale_gradient.to(scale.dtype).reshape(scale.shape),
            None,
            None,
        )


def _partners(tile: Tensor, offset: int) -> tuple[slice, Tensor]:
    """Where the diagonal of the pairs crosses a tile, if at all: which of its rows, and a view of it."""
    diagonal = tile.diagonal(offset)
    start = max(0, -offset)
    return slice(start, start + len(diagonal)), diagonal


def check_info_nce(
    image_features: Tensor,
    text_features: Tensor,
    scale: Tensor | float,
    similarity: str,
    label_smoothing: float,
    hard_negatives: Tensor | None,
    chunk_size: int | None,
) -> None:
    """Refuse what `info_nce` cannot compute; the arguments are its own.

    Raises:
        ValueError: Shapes do not fit, or an option is out of its range.
        TypeError: Features are no floating point numbers.
    """
    check_pairs(image_features, text_features, similarity, chunk_size, scale=scale)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"`label_smoothing` must be between 0 and 1, got {label_smoothing}.")
    if hard_negatives is None:
        return
    pairs, width = image_features.shape
    shape = tuple(hard_negatives.shape)
    if len(shape) != 3 or shape[0] != pairs or shape[1] < 1 or shape[2] != width:
        raise ValueError(f"`hard_negatives` must be ({pairs}, K, {width}), K texts per image, got {shape}.")
