"""The sigmoid loss between images and texts: each pair, on its own, either belongs together or does not.

Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", algorithm 1 and section 3.3
(https://arxiv.org/abs/2303.15343).

Shapes: N pairs, M texts, P width of the shared space.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid, softplus

from .similarity import check_pairs, pairwise_similarity, similarity_gradients, tiles

__all__ = [
    "SigmoidSums",
    "differentiable_parts",
    "found_gradients",
    "sigmoid_loss",
    "sigmoid_sum",
    "sigmoid_sums",
]


def sigmoid_loss(
    image_features: Tensor,
    text_features: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    *,
    similarity: str = "dot",
    chunk_size: int | None = None,
) -> Tensor:
    """The binary cross-entropy of all N x N pairs, added up and divided by N.

    Defined for a batch of one too (its only pair belongs together). A caption that two images of the batch
    share is partner and stranger at once: neither image can get below 2 ln 2 nats for it.

    Args:
        image_features: (N, P), of length one where the cosine is meant; half precision is widened.
        text_features: (N, P), row i the partner of image i.
        scale: Factor on the similarities (not its logarithm); the paper begins with 10.
        bias: Added to the logits; the paper begins with -10, as nearly all pairs do not belong together.
        similarity: "dot" or "euclidean" (minus the distance).
        chunk_size: Compute by tiles of this side and never hold the N x N logits; same value, same
            gradients, which are found along with the loss and kept, in float32, until they are asked for.

    Returns:
        The loss in nats, a scalar, in float32 or, for such features, float64.

    Raises:
        ValueError: Shapes do not fit, the batch is empty, or an option is out of its range.
        TypeError: Features are no floating point numbers.
    """
    check_pairs(image_features, text_features, similarity, chunk_size, scale=scale, bias=bias)
    if not len(image_features):
        raise ValueError("`image_features` and `text_features` have no rows; skip empty batches.")
    if chunk_size is not None:
        pairs = sigmoid_sum(image_features, text_features, scale, bias, 0, similarity, chunk_size)
        return pairs / len(image_features)
    logits = scale * pairwise_similarity(image_features, text_features, similarity) + bias  # (N, N)
    signs = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    return -logsigmoid(signs * logits).sum() / len(logits)


def sigmoid_sum(
    images: Tensor,
    texts: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    first: int,
    similarity: str,
    chunk_size: int,
) -> Tensor:
    """The binary cross-entropy of N images with M texts, added up, by tiles.

    Args:
        images: (N, P).
        texts: (M, P).
        scale: Factor on the similarities.
        bias: Added to the logits.
        first: Which text belongs to the first image; the second image's is the next, and so on. M if the
            texts of these images are not among those.
        similarity: As `pairwise_similarity` takes it.
        chunk_size: Side of the tiles.

    Returns:
        A scalar.
    """
    parts, wanted = differentiable_parts(images, texts, scale, bias)
    return _TiledSigmoid.apply(*parts, first, similarity, chunk_size, wanted)


class SigmoidSums(NamedTuple):
    """What `sigmoid_sums` adds up; the gradients are those of `loss`, all zero unless wanted."""

    loss: Tensor
    of_images: Tensor
    of_texts: Tensor
    of_scale: Tensor
    of_bias: Tensor


def sigmoid_sums(
    images: Tensor,
    texts: Tensor,
    scale: Tensor,
    bias: Tensor,
    first: int,
    similarity: str,
    chunk_size: int,
    wanted: bool,
) -> SigmoidSums:
    """`sigmoid_sum` with its gradients, for use where autograd does not look.

    A pair needs to know of no other, so that one pass over the tiles finds both.

    Args:
        images: (N, P).
        texts: (M, P).
        scale: A scalar.
        bias: A scalar.
        first: As `sigmoid_sum` takes it.
        similarity: As `pairwise_similarity` takes it.
        chunk_size: Side of the tiles.
        wanted: Whether to find the gradients.

    Returns:
        The sum and the gradients, (N, P), (M, P) and two scalars, in float32 at least.
    """
    dtype = torch.promote_types(torch.promote_types(images.dtype, texts.dtype), torch.float32)
    of_images, of_texts = torch.zeros_like(images, dtype=dtype), torch.zeros_like(texts, dtype=dtype)
    loss, of_scale, of_bias = images.new_zeros(3, dtype=dtype).unbind()
    for row, column in tiles(len(images), len(texts), chunk_size):
        similarities = pairwise_similarity(images[row], texts[column], similarity)
        logits = (similarities * scale).add_(bias)
        partners = first + row.start - column.start  # on this diagonal, if it crosses the tile
        logits.diagonal(partners).neg_()
        loss += softplus(logits).sum()
        if not wanted:
            continue
        slopes = logits.sigmoid_()
        slopes.diagonal(partners).neg_()
        of_scale += (slopes * similarities).sum()
        of_bias += slopes.sum()
        of_rows, of_columns = similarity_gradients(
            slopes, similarities, images[row], texts[column], similarity
        )
        of_images[row] += of_rows
        of_texts[column] += of_columns
    return SigmoidSums(loss, of_images.mul_(scale), of_texts.mul_(scale), of_scale, of_bias)


class _TiledSigmoid(Function):
    """`sigmoid_sum`, whose gradients wait for the factor that backward brings."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        texts: Tensor,
        scale: Tensor,
        bias: Tensor,
        first: int,
        similarity: str,
        chunk_size: int,
        wanted: bool,
    ) -> Tensor:
        sums = sigmoid_sums(images, texts, scale, bias, first, similarity, chunk_size, wanted)
        ctx.inputs = [(part.dtype, part.shape) for part in (images, texts, scale, bias)]
        ctx.save_for_backward(*sums[1:])
        return sums.loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return (*found_gradients(ctx, gradient), None, None, None, None)


def differentiable_parts(
    images: Tensor, texts: Tensor, scale: Tensor | float, bias: Tensor | float
) -> tuple[list[Tensor], bool]:
    """All four as tensors, and whether anyone will ask for a gradient."""
    numbers = [torch.as_tensor(number, device=images.device) for number in (scale, bias)]
    parts = [images, texts, *numbers]
    return parts, torch.is_grad_enabled() and any(part.requires_grad for part in parts)


def found_gradients(ctx: Any, gradient: Tensor) -> list[Tensor]:
    """Those that forward left in `ctx`, times `gradient`, in the types and shapes of `ctx.inputs`."""
    return [
        (gradient * of_part).to(dtype).reshape(shape)
        for of_part, (dtype, shape) in zip(ctx.saved_tensors, ctx.inputs, strict=True)
    ]
