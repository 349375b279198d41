"""Codebooks: the nearest code, what pulls codes and features together, and how codes are learnt from counts.

van den Oord et al. 2017, "Neural Discrete Representation Learning", section 3.2 and appendix A.1
(https://arxiv.org/abs/1711.00937): straight-through gradient, codebook and commitment loss, moving averages.
Dhariwal et al. 2020, "Jukebox", section 3.1 (https://arxiv.org/abs/2005.00341): restarts of unused codes.
Mentzer et al. 2023, "Finite Scalar Quantization", section 3 (https://arxiv.org/abs/2309.15505).

Shapes: N vectors (all places of all images), D width of a code, K codes, L levels of one FSQ dimension.
"""

import torch
from torch import Tensor, distributed
from torch.nn.functional import mse_loss, normalize

__all__ = [
    "code_perplexity",
    "code_statistics",
    "codebook_loss",
    "commitment_loss",
    "finite_scalar_bound",
    "finite_scalar_codes",
    "finite_scalar_indices",
    "kmeans_codes",
    "moving_code_averages",
    "nearest_codes",
    "random_vectors",
    "restarted_codes",
    "straight_through",
    "sum_over_processes",
]

# Distances held at a time: on a CPU what its caches hold, which made the search twice as fast; else 256 MiB.
CACHED_DISTANCES, MOST_DISTANCES = 2**20, 2**26
FINITE_SCALAR_EPS = 1e-3  # the outermost levels are reached at finite features


def nearest_codes(vectors: Tensor, codes: Tensor) -> Tensor:
    """Index of the code with the smallest Euclidean distance to each vector.

    By |e|^2 - 2 z e, one matrix product: |z|^2 is the same for all codes. In float32, whatever autocast
    says: in bfloat16 near codes cannot be told apart. Among codes at the same distance the first one counts.

    Args:
        vectors: (N, D).
        codes: (K, D).

    Returns:
        (N,) int64. For vectors and codes of length 1 it is the code with the largest cosine.
    """
    with torch.no_grad(), torch.autocast(vectors.device.type, enabled=False):
        vectors, codes = vectors.float(), codes.float()
        squares = codes.square().sum(dim=1)  # (K,)
        most = CACHED_DISTANCES if vectors.device.type == "cpu" else MOST_DISTANCES
        rows = max(1, most // len(codes))
        parts = [
            torch.addmm(squares, part, codes.T, alpha=-2).argmin(dim=1)  # (rows, K) to (rows,)
            for part in vectors.split(rows)
        ]
    return torch.cat(parts)


def straight_through(features: Tensor, quantised: Tensor) -> Tensor:
    """`quantised` to the last bit, with the gradient of `features`: rounding counts as the identity.

    Args:
        features: What was quantised, any shape.
        quantised: Of the same shape; gets no gradient.
    """
    return quantised.detach() + (features - features.detach())


def codebook_loss(features: Tensor, quantised: Tensor) -> Tensor:
    """Mean square that moves the codes to the features: no gradient to `features`.

    Args:
        features: Any shape.
        quantised: The chosen codes, of the same shape, with the gradient of the codebook.

    Returns:
        A scalar.
    """
    return mse_loss(quantised, features.detach())


def commitment_loss(features: Tensor, quantised: Tensor) -> Tensor:
    """Mean square that keeps the features near their codes: no gradient to the codebook.

    Args:
        features: Any shape.
        quantised: The chosen codes, of the same shape.

    Returns:
        A scalar.
    """
    return mse_loss(features, quantised.detach())


def code_perplexity(counts: Tensor) -> Tensor:
    """The exponential of the entropy of the use of the codes: K when all are used alike, 1 when only one is.

    Args:
        counts: (K,) how often each code was chosen.

    Returns:
        A scalar in float32; 1 without any counts.
    """
    shares = counts.float() / counts.sum().clamp(min=1)
    return torch.special.entr(shares).sum().exp()


def code_statistics(vectors: Tensor, indices: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """How many vectors chose each code, and their sums.

    Args:
        vectors: (N, D).
        indices: (N,) the chosen codes.
        num_codes: K.

    Returns:
        Counts (K,) and sums (K, D), in float32.
    """
    counts = vectors.new_zeros(num_codes, dtype=torch.float32)
    counts.index_add_(0, indices, counts.new_ones(len(indices)))  # `bincount` would wait for a GPU
    sums = vectors.new_zeros(num_codes, vectors.shape[1], dtype=torch.float32)
    return counts, sums.index_add_(0, indices, vectors.float())


def random_vectors(vectors: Tensor, count: int) -> Tensor:
    """Vectors of the batch in random order, again from the first when there are too few.

    Draws from torch's generator of the device. With several processes each of them offers what it has to
    every W-th row, and all of them get the same result.

    Args:
        vectors: (N, D) of this process, at least one.
        count: How many to draw, K.

    Returns:
        (K, D) in float32, the share of this process; the sum over processes is the draw.
    """
    order = torch.randperm(len(vectors), device=vectors.device)
    rows, processes = torch.arange(count, device=vectors.device), _processes()
    drawn = vectors.float()[order[rows // processes % len(vectors)]]
    return drawn if processes == 1 else drawn * (rows % processes == distributed.get_rank())[:, None]


def moving_code_averages(
    size: Tensor, total: Tensor, counts: Tensor, sums: Tensor, decay: float
) -> tuple[Tensor, Tensor]:
    """One step of the moving averages of counts and sums (appendix A.1 of the VQ-VAE).

    Args:
        size: (K,) average count of each code.
        total: (K, D) average sum of the vectors of each code.
        counts: (K,) of this batch.
        sums: (K, D) of this batch.
        decay: Share of the old averages, 0 to 1. A code is `total / size`.

    Returns:
        The new `size` and `total`.
    """
    return torch.lerp(counts, size, decay), torch.lerp(sums, total, decay)


def restarted_codes(size: Tensor, total: Tensor, offered: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Give codes that hardly any vector chooses a new start at a vector of the batch.

    A code that starts again has the count of an average code, so that it has time to find vectors.

    Args:
        size: (K,) average count of each code.
        total: (K, D) average sum of its vectors.
        offered: (K, D) vectors, one for each code.
        threshold: A code is dead below this share of the count that each would have if all were used alike.

    Returns:
        The new `size` and `total`.
    """
    fair = size.mean()
    dead = size < threshold * fair
    return torch.where(dead, fair, size), torch.where(dead[:, None], offered * fair, total)


def kmeans_codes(
    vectors: Tensor, num_codes: int, iterations: int, unit_length: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Lloyd's k-means over the vectors of all processes, from randomly drawn vectors.

    A code that loses all vectors moves to a vector drawn anew. The same seed gives the same codes.

    Args:
        vectors: (N, D) of this process, at least one.
        num_codes: K.
        iterations: How often codes are moved to the mean of their vectors.
        unit_length: Keep codes at length 1, for vectors of length 1.

    Returns:
        Codes (K, D), and the counts (K,) and sums (K, D) of the vectors nearest to them.
    """
    codes = sum_over_processes(random_vectors(vectors, num_codes))
    for _ in range(iterations):
        counts, sums = code_statistics(vectors, nearest_codes(vectors, codes), num_codes)
        packed = torch.cat([sums, counts[:, None], random_vectors(vectors, num_codes)], dim=1)
        width = vectors.shape[1]
        sums, counts, offered = sum_over_processes(packed).split([width, 1, width], dim=1)
        codes = torch.where(counts > 0, sums / counts.clamp(min=1), offered)
        codes = normalize(codes, dim=1) if unit_length else codes
    counts, sums = code_statistics(vectors, nearest_codes(vectors, codes), num_codes)
    return codes, sum_over_processes(counts), sum_over_processes(sums)


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of `values` over all processes, without gradient; `values` themselves when there is one."""
    if _processes() == 1:
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total


def _processes() -> int:
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if ready else 1


def finite_scalar_bound(features: Tensor, levels: Tensor) -> Tensor:
    """Squash each dimension so that rounding it gives exactly its number of levels (FSQ, appendix A.1).

    Args:
        features: (..., D).
        levels: (D,) integers, at least 2; L values from -(L // 2) up, an even L has one more below 0.

    Returns:
        (..., D) in float32; its values round to whole numbers in -(L // 2) to (L - 1) // 2.
    """
    half = (levels - 1) * (1 + FINITE_SCALAR_EPS) / 2  # (D,), + as - leaves no solution for L = 2
    offset = (levels % 2 == 0) * 0.5
    return torch.tanh(features.float() + torch.atanh(offset / half)) * half - offset


def finite_scalar_indices(codes: Tensor, levels: Tensor) -> Tensor:
    """The number of a code; the first dimension counts fastest.

    Args:
        codes: (..., D) of the values that `finite_scalar_codes` gives.
        levels: (D,) integers.

    Returns:
        (...) int64 in 0 to the product of the levels, exclusive.
    """
    digits = (codes.float() * (levels // 2)).round().long() + levels // 2
    return (digits * _place_values(levels)).sum(dim=-1)


def finite_scalar_codes(indices: Tensor, levels: Tensor) -> Tensor:
    """The code of a number: undoes `finite_scalar_indices`.

    Args:
        indices: (...) integers in 0 to the product of the levels, exclusive.
        levels: (D,) integers.

    Returns:
        (..., D) in float32, whole numbers divided by L // 2, so in [-1, 1].
    """
    digits = indices[..., None] // _place_values(levels) % levels
    return (digits - levels // 2) / (levels // 2)


def _place_values(levels: Tensor) -> Tensor:
    """(D,) what a step of one dimension is worth: 1, L1, L1 * L2, ..."""
    return levels.cumprod(dim=0) // levels
