"""What stands between encoder and decoder of a VQ autoencoder, in three kinds that share one output.

van den Oord et al. 2017, "Neural Discrete Representation Learning" (https://arxiv.org/abs/1711.00937): a
codebook learnt by gradients (section 3.2) or by moving averages (appendix A.1). Yu et al. 2022, "Vector-
quantized Image Modeling with Improved VQGAN", section 3.2 (https://arxiv.org/abs/2110.04627): vectors and
codes of length 1. Mentzer et al. 2023, "Finite Scalar Quantization" (https://arxiv.org/abs/2309.15505).

Shapes: B images, D width of a code, h x w places (rows x columns), N = B * h * w, K codes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from torch.nn.functional import embedding, normalize

from ...objectives.quantisation import (
    code_perplexity,
    code_statistics,
    codebook_loss,
    commitment_loss,
    finite_scalar_bound,
    finite_scalar_codes,
    finite_scalar_indices,
    kmeans_codes,
    moving_code_averages,
    nearest_codes,
    random_vectors,
    restarted_codes,
    straight_through,
    sum_over_processes,
)

__all__ = ["CodebookQuantiser", "FiniteScalarQuantiser", "MMVQEncoderOutput", "MovingAverageQuantiser"]

LENGTH_TOLERANCE = 1e-5
LEAST_COUNT = 1e-5  # with less than this a code has no average of its own and stays where it is


@dataclass
class MMVQEncoderOutput(BaseOutput):
    """What a quantiser makes of features.

    Args:
        latents: (B, D, h, w) the codes, in the dtype of the features and with their gradient.
        indices: (B, h, w) int64, which codes.
        loss: Scalar, the weighted sum of the two that follow: add it to the reconstruction loss.
        codebook_loss: Scalar, mean square that moves codes to features; 0 where no gradient does that.
        commitment_loss: Scalar, mean square that keeps features near their codes; 0 without a codebook.
        perplexity: Scalar, exp of the entropy of the use of codes in this batch, of this process.
        used_codes: Scalar, how many different codes this batch of this process uses.
    """

    latents: Tensor
    indices: Tensor
    loss: Tensor
    codebook_loss: Tensor
    commitment_loss: Tensor
    perplexity: Tensor
    used_codes: Tensor


class CodebookQuantiser(nn.Module):
    """The nearest of K learnt codes; gradients of the codebook loss move them.

    Args:
        num_codes: K.
        width: D.
        l2_normalized: Compare and use vectors and codes at length 1.
        codebook_weight: Of the codebook loss.
        commitment_weight: Of the commitment loss.
    """

    def __init__(
        self,
        num_codes: int,
        width: int,
        l2_normalized: bool = False,
        codebook_weight: float = 1.0,
        commitment_weight: float = 0.25,
    ) -> None:
        super().__init__()
        self.num_codes, self.width, self.l2_normalized = num_codes, width, l2_normalized
        self.codebook_weight, self.commitment_weight = codebook_weight, commitment_weight
        self.embedding = nn.Embedding(num_codes, width)
        self._first_codes()

    @torch.no_grad()
    def _first_codes(self) -> None:
        """As in `VQModel`, close to 0 on the scale of features, or anywhere on the sphere."""
        codes = self.embedding.weight.uniform_(-1 / self.num_codes, 1 / self.num_codes)
        if self.l2_normalized:
            codes.copy_(normalize(codes, dim=1))

    def codes(self) -> Tensor:
        """(K, D) the codes as they are used, in float32."""
        codes = self.embedding.weight.float()
        if not self.l2_normalized:
            return codes
        units = normalize(codes, dim=1)
        # Normalised once more, codes would change in the last bit: saved at length 1, they are used as saved.
        at_length_1 = (codes.norm(dim=1, keepdim=True) - 1).abs() < LENGTH_TOLERANCE
        return straight_through(units, torch.where(at_length_1, codes, units))

    def lookup(self, indices: Tensor) -> Tensor:
        """(B, h, w) indices to (B, D, h, w) codes in the dtype of the codebook."""
        codes = self.codes().to(self.embedding.weight.dtype)
        return embedding(indices, codes).movedim(-1, 1)

    def forward(self, features: Tensor) -> MMVQEncoderOutput:
        """(B, D, h, w) features to codes."""
        with torch.autocast(features.device.type, enabled=False):
            vectors = self.compared(features)  # (B, h, w, D)
            codes = self.codes()
            indices = nearest_codes(vectors.flatten(0, 2), codes).view(vectors.shape[:3])  # (B, h, w)
            chosen = embedding(indices, codes)  # (B, h, w, D)
            return self.output(features, vectors, chosen, indices, codebook_loss(vectors, chosen))

    def compared(self, features: Tensor) -> Tensor:
        """(B, D, h, w) features to (B, h, w, D) in float32, at length 1 where that is wanted."""
        vectors = features.movedim(1, -1).float()
        return normalize(vectors, dim=-1) if self.l2_normalized else vectors

    def output(
        self, features: Tensor, vectors: Tensor, chosen: Tensor, indices: Tensor, moving: Tensor
    ) -> MMVQEncoderOutput:
        """The losses and numbers of a choice of codes.

        Args:
            features: (B, D, h, w) as they came.
            vectors: (B, h, w, D) what was compared with the codes.
            chosen: (B, h, w, D) codes.
            indices: (B, h, w) their numbers.
            moving: Scalar, the codebook loss.
        """
        staying = commitment_loss(vectors, chosen)
        return MMVQEncoderOutput(
            latents=straight_through(vectors, chosen).movedim(-1, 1).to(features.dtype),
            indices=indices,
            loss=self.codebook_weight * moving + self.commitment_weight * staying,
            codebook_loss=moving,
            commitment_loss=staying,
            **_use_of_codes(indices, self.num_codes),
        )


class CodeTable(nn.Module):
    """Codes under the name that `nn.Embedding` gives them, but out of reach of optimizers."""

    weight: Tensor

    def __init__(self, num_codes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(num_codes, width))


class MovingAverageQuantiser(CodebookQuantiser):
    """The nearest of K codes, each the moving average of the vectors that chose it.

    The codebook learns in training mode with gradients enabled, and never else: a forward pass for a
    discriminator belongs under `no_grad`, so that a batch counts once. It learns in each forward pass, not in
    the optimizer's step: with accumulated gradients each small batch is a step of the averages, from fewer
    vectors, and its codes are those that the ones before it left. So accumulation is not one large batch
    here, unlike several processes; a `decay` nearer to 1 makes up for the larger number of steps.

    It starts as the k-means of the first small batch; later, codes that hardly any vector chooses start again
    at vectors of the batch. All processes see the sums over all of them, and draw from torch's generator, so
    that the codebook is the same everywhere.

    Args:
        num_codes: K.
        width: D.
        l2_normalized: Compare and use vectors and codes at length 1.
        commitment_weight: Of the commitment loss.
        decay: Share of the averages that a batch leaves as it is.
        restart_threshold: A code starts again below this share of the count of an average code; 0.0: never.
        kmeans_iterations: Of the start; 0 keeps the codes that are there, as for a codebook that was loaded.
    """

    cluster_size: Tensor
    cluster_sum: Tensor

    def __init__(
        self,
        num_codes: int,
        width: int,
        l2_normalized: bool = False,
        commitment_weight: float = 0.25,
        decay: float = 0.99,
        restart_threshold: float = 0.02,
        kmeans_iterations: int = 10,
    ) -> None:
        super().__init__(num_codes, width, l2_normalized, 0.0, commitment_weight)
        self.decay, self.restart_threshold, self.kmeans_iterations = (
            decay,
            restart_threshold,
            kmeans_iterations,
        )
        self.embedding = CodeTable(num_codes, width)
        self._first_codes()
        self.register_buffer("cluster_size", torch.zeros(num_codes))
        self.register_buffer("cluster_sum", torch.zeros(num_codes, width))
        self._started: bool | None = None  # not known; reading it off a GPU at each step would wait for it

    def forward(self, features: Tensor) -> MMVQEncoderOutput:
        """(B, D, h, w) features to the codes as they were before this batch."""
        learning = self.training and torch.is_grad_enabled()
        with torch.autocast(features.device.type, enabled=False):
            vectors = self.compared(features)  # (B, h, w, D)
            if learning:
                self._start(vectors.detach().flatten(0, 2))
            codes = self.codes()
            indices = nearest_codes(vectors.flatten(0, 2), codes).view(vectors.shape[:3])  # (B, h, w)
            chosen = embedding(indices, codes)  # (B, h, w, D)
            if learning:
                self._learn(vectors.detach().flatten(0, 2), indices.flatten())
            return self.output(features, vectors, chosen, indices, vectors.new_zeros(()))

    @torch.no_grad()
    def _start(self, vectors: Tensor) -> None:
        """Set the codebook and its averages by the first batch."""
        if self.cluster_sum.dtype != torch.float32:
            raise ValueError(
                f"The codebook is {self.cluster_sum.dtype}, too coarse for moving averages; keep the model "
                "in float32 and train it under autocast."
            )
        if self._started is None:
            self._started = bool((self.cluster_size > 0).any())
        if self._started:
            return
        if self.kmeans_iterations:
            _, size, total = kmeans_codes(vectors, self.num_codes, self.kmeans_iterations, self.l2_normalized)
        else:
            share = sum_over_processes(vectors.new_tensor(len(vectors) / self.num_codes))
            size, total = share.expand(self.num_codes), self.codes() * share
        self._set(size, total)
        self._started = True

    @torch.no_grad()
    def _learn(self, vectors: Tensor, indices: Tensor) -> None:
        """One step of the averages: (N, D) vectors that chose (N,) codes."""
        counts, sums = code_statistics(vectors, indices, self.num_codes)
        parts = [sums, counts[:, None]]
        if self.restart_threshold:
            parts.append(random_vectors(vectors, self.num_codes))
        packed = sum_over_processes(torch.cat(parts, dim=1))  # one message
        sums, counts, offered = packed.split([self.width, 1, packed.shape[1] - self.width - 1], dim=1)
        size, total = moving_code_averages(
            self.cluster_size, self.cluster_sum, counts.squeeze(1), sums, self.decay
        )
        if self.restart_threshold:
            size, total = restarted_codes(size, total, offered, self.restart_threshold)
        self._set(size, total)

    def _set(self, size: Tensor, total: Tensor) -> None:
        mean = total / size.clamp(min=LEAST_COUNT)[:, None]
        codes = torch.where(size[:, None] > LEAST_COUNT, mean, self.embedding.weight)
        self.embedding.weight.copy_(normalize(codes, dim=1) if self.l2_normalized else codes)
        self.cluster_size.copy_(size)
        self.cluster_sum.copy_(total)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._started = None
        super()._load_from_state_dict(*args, **kwargs)


class FiniteScalarQuantiser(nn.Module):
    """Each dimension rounded to one of a few levels: no codebook, nothing to learn, no code to die.

    Args:
        levels: Of each dimension; their product is the number of codes.
    """

    levels: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.num_codes, self.width = math.prod(levels), len(levels)
        self.register_buffer("levels", torch.tensor(levels), persistent=False)

    def codes(self) -> Tensor:
        """(K, D) all codes in float32."""
        return finite_scalar_codes(torch.arange(self.num_codes, device=self.levels.device), self.levels)

    def lookup(self, indices: Tensor) -> Tensor:
        """(B, h, w) indices to (B, D, h, w) codes in float32."""
        return finite_scalar_codes(indices, self.levels).movedim(-1, 1)

    def forward(self, features: Tensor) -> MMVQEncoderOutput:
        """(B, D, h, w) features to codes in [-1, 1]."""
        with torch.autocast(features.device.type, enabled=False):
            bounded = finite_scalar_bound(features.movedim(1, -1), self.levels)  # (B, h, w, D)
            codes = straight_through(bounded, bounded.round()) / (self.levels // 2)
            indices = finite_scalar_indices(codes.detach(), self.levels)  # (B, h, w)
            nothing = bounded.new_zeros(())
            return MMVQEncoderOutput(
                latents=codes.movedim(-1, 1).to(features.dtype),
                indices=indices,
                loss=nothing,
                codebook_loss=nothing,
                commitment_loss=nothing,
                **_use_of_codes(indices, self.num_codes),
            )


def _use_of_codes(indices: Tensor, num_codes: int) -> dict[str, Tensor]:
    flat = indices.flatten()
    counts, _ = code_statistics(flat.new_empty(len(flat), 0), flat, num_codes)
    return {"perplexity": code_perplexity(counts), "used_codes": (counts > 0).sum()}
