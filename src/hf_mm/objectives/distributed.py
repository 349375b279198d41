"""Contrastive objectives of a batch that lies on several processes.

Features gathered with their gradient, as in Radford et al. 2021 (https://arxiv.org/abs/2103.00020), section
2.5; only the own rows of the logits in each process, as in Chen et al. 2023, "DisCo-CLIP"
(https://arxiv.org/abs/2304.08480); texts sent round in a ring, as in Zhai et al. 2023, "Sigmoid Loss for
Language Image Pre-Training", section 3.3 (https://arxiv.org/abs/2303.15343).

Shapes: W processes, n pairs of this process, N of all, P width of the shared space, K hard negatives.
"""

from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .contrastive import check_info_nce, cross_entropy_sum, info_nce, logit_sums, own_similarity
from .exchange import BatchShares, InFlight, gather_rows, log_sum_exp_over_processes, mean_over_processes
from .sigmoid import differentiable_parts, found_gradients, sigmoid_sum, sigmoid_sums
from .similarity import check_pairs

__all__ = ["distributed_info_nce", "distributed_sigmoid_loss"]


def distributed_info_nce(
    image_features: Tensor,
    text_features: Tensor,
    scale: Tensor | float,
    *,
    similarity: str = "dot",
    label_smoothing: float = 0.0,
    hard_negatives: Tensor | None = None,
    chunk_size: int | None = None,
    exchange: str = "gather",
    group: "distributed.ProcessGroup | None" = None,
) -> Tensor:
    """`info_nce` of the batch that all processes hold together.

    Gradients, averaged over processes as DistributedDataParallel does, are those of one process with the
    whole batch, also where processes hold unequal numbers of pairs (or none). Every process has to call it,
    with the same options.

    Args:
        image_features: (n, P), the images of this process.
        text_features: (n, P), their partners.
        scale: As `info_nce` takes it.
        similarity: As `info_nce` takes it.
        label_smoothing: As `info_nce` takes it.
        hard_negatives: (n, K, P), for the images of this process.
        chunk_size: As `info_nce` takes it.
        exchange: "gather": every process gathers all features and computes all N x N logits; simple, and W
            times the same work. "local": only texts are gathered, every process computes the n x N logits of
            its own images, and one number per text is exchanged to complete the sums.
        group: The processes that share the batch; `None` for all.

    Returns:
        With "gather" the loss of the whole batch, with "local" a share whose mean over processes it is.

    Raises:
        ValueError: Shapes do not fit, all processes are empty, or an option is out of its range.
        TypeError: Features are no floating point numbers.
    """
    if exchange not in ("gather", "local"):
        raise ValueError(f"`exchange` must be 'gather' or 'local', got {exchange!r}.")
    check_info_nce(
        image_features, text_features, scale, similarity, label_smoothing, hard_negatives, chunk_size
    )
    shares = _shares(image_features, group)
    texts = gather_rows(text_features, shares)  # (N, P)
    if exchange == "gather" or shares.processes == 1:
        return info_nce(
            gather_rows(image_features, shares),
            texts,
            scale,
            similarity=similarity,
            label_smoothing=label_smoothing,
            hard_negatives=None if hard_negatives is None else gather_rows(hard_negatives, shares),
            chunk_size=chunk_size,
        )
    return _own_rows_of_info_nce(
        image_features, texts, scale, similarity, label_smoothing, hard_negatives, chunk_size, shares
    )


def _own_rows_of_info_nce(
    images: Tensor,
    texts: Tensor,
    scale: Tensor | float,
    similarity: str,
    label_smoothing: float,
    hard_negatives: Tensor | None,
    chunk_size: int | None,
    shares: BatchShares,
) -> Tensor:
    """The share of this process, from its (n, P) images and all (N, P) texts."""
    over_texts, over_images, positives, total = logit_sums(
        images, texts, shares.own.start, scale, similarity, chunk_size
    )
    over_images = log_sum_exp_over_processes(over_images, shares)[shares.own]  # (n,)
    harder = None if hard_negatives is None else scale * own_similarity(images, hard_negatives, similarity)
    sums = (over_texts, over_images, positives, total)
    loss = cross_entropy_sum(*sums, harder, label_smoothing, shares.rows)
    return loss * shares.processes / (2 * shares.rows)


def distributed_sigmoid_loss(
    image_features: Tensor,
    text_features: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    *,
    similarity: str = "dot",
    chunk_size: int | None = None,
    exchange: str = "gather",
    group: "distributed.ProcessGroup | None" = None,
) -> Tensor:
    """`sigmoid_loss` of the batch that all processes hold together.

    Every process compares its own images with all texts, n x N pairs, and finds their gradients along with
    the loss. Averaged over processes, as DistributedDataParallel does, they are those of one process with
    the whole batch, also where processes hold unequal numbers of pairs (or none). Every process has to call
    it, with the same options.

    Args:
        image_features: (n, P), the images of this process.
        text_features: (n, P), their partners.
        scale: As `sigmoid_loss` takes it.
        bias: As `sigmoid_loss` takes it.
        similarity: As `sigmoid_loss` takes it.
        chunk_size: As `sigmoid_loss` takes it; `None` for one tile per exchange.
        exchange: "gather": the texts of all processes in each. "ring": only those of one at a time, handed on
            from process to process together with their gradient, while the next are already on their way.
        group: The processes that share the batch; `None` for all.

    Returns:
        The loss of the whole batch, on every process.

    Raises:
        ValueError: Shapes do not fit, all processes are empty, or an option is out of its range.
        TypeError: Features are no floating point numbers.
    """
    if exchange not in ("gather", "ring"):
        raise ValueError(f"`exchange` must be 'gather' or 'ring', got {exchange!r}.")
    check_pairs(image_features, text_features, similarity, chunk_size, scale=scale, bias=bias)
    shares = _shares(image_features, group)
    chunk_size = shares.rows if chunk_size is None else chunk_size
    if exchange == "gather":
        texts, first = gather_rows(text_features, shares), shares.own.start
        pairs = sigmoid_sum(image_features, texts, scale, bias, first, similarity, chunk_size)
    else:
        parts, wanted = differentiable_parts(image_features, text_features, scale, bias)
        pairs = _RingSigmoid.apply(*parts, similarity, chunk_size, shares, wanted)
    return mean_over_processes(pairs * shares.processes / shares.rows, shares)


def _shares(image_features: Tensor, group: "distributed.ProcessGroup | None") -> BatchShares:
    shares = BatchShares.of(image_features, group)
    if not shares.rows:
        raise ValueError("No process has any pairs; skip empty batches.")
    return shares


class _RingSigmoid(Function):
    """`sigmoid_sum` of own images with all texts; the gradient of a text travels with it and comes home."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        texts: Tensor,
        scale: Tensor,
        bias: Tensor,
        similarity: str,
        chunk_size: int,
        shares: BatchShares,
        wanted: bool,
    ) -> Tensor:
        dtype = torch.promote_types(torch.promote_types(images.dtype, texts.dtype), torch.float32)
        of_images, of_numbers = torch.zeros_like(images, dtype=dtype), images.new_zeros(3, dtype=dtype)
        visitors = texts.new_zeros(max(shares.sizes), texts.shape[1])
        visitors[: len(texts)] = texts
        of_visitors = torch.zeros_like(visitors, dtype=dtype)
        for step in range(shares.processes):
            followers = InFlight(visitors, shares) if step + 1 < shares.processes else None
            size = shares.sizes[(shares.rank - step) % shares.processes]
            first = size if step else 0  # partners meet at the first step only
            sums = sigmoid_sums(images, visitors[:size], scale, bias, first, similarity, chunk_size, wanted)
            of_images += sums.of_images
            of_numbers += torch.stack([sums.loss, sums.of_scale, sums.of_bias])
            of_visitors[:size] += sums.of_texts
            if wanted and shares.processes > 1:
                of_visitors = InFlight(of_visitors, shares).arrived()
            if followers is not None:
                visitors = followers.arrived()
        ctx.inputs = [(part.dtype, part.shape) for part in (images, texts, scale, bias)]
        ctx.save_for_backward(of_images, of_visitors[: len(texts)], *of_numbers[1:])
        return of_numbers[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return (*found_gradients(ctx, gradient), None, None, None, None)
