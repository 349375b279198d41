"""How well a model expects pictures it has never seen: the likelihood of their codes.

It says nothing about what a tokenizer lost, so it compares models over one tokenizer only. A bound on the
likelihood of the pixels themselves it is not: many rows of codes may stand for one picture.

Shapes: B rows, T tokens of a condition, L codes of a picture, K codes.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .raster_decoding import code_nats

__all__ = ["code_likelihood", "frequency_nats"]


@torch.no_grad()
def code_likelihood(pipe: Any, batches: Iterable[Mapping[str, Tensor]], dimensions: int) -> dict[str, float]:
    """The mean negative log likelihood of pictures' codes.

    Args:
        pipe: A `VQAutoregressivePipeline`, its transformer in `eval()` mode.
        batches: Of `codes` (B, L) and `prefixes` (B, T).
        dimensions: Numbers of a picture, channels x height x width.

    Returns:
        `nats_per_code` and `bits_per_code`; `bits_per_dimension`: the bits of a picture's codes over its
        numbers; `nats_per_code_without_condition`: what the empty condition gives; `uniform_nats_per_code`:
        log K, what a model gives that knows nothing.

    Raises:
        ValueError: There are no batches.
    """
    device, vocabulary = pipe.transformer.device, pipe.vocabulary
    sums, codes = torch.zeros(2, dtype=torch.float64), 0
    for batch in batches:
        rows = batch["codes"].to(device)
        nothing = vocabulary.null_prefixes(len(rows))
        for place, prefixes in enumerate((batch["prefixes"], nothing)):
            nats = code_nats(pipe.transformer, prefixes.to(device), rows, vocabulary.num_codes)
            sums[place] += nats.double().sum().cpu()
        codes += rows.numel()
    if not codes:
        raise ValueError("`batches` is empty; there are no codes to expect.")
    given, blind = (sums / codes).tolist()
    bits = given / math.log(2)
    return {
        "nats_per_code": given,
        "bits_per_code": bits,
        "bits_per_dimension": bits * pipe.code_count / dimensions,
        "nats_per_code_without_condition": blind,
        "uniform_nats_per_code": math.log(vocabulary.num_codes),
    }


def frequency_nats(train: Tensor, held_out: Tensor, num_codes: int) -> float:
    """Nats per code of a model that only knows how frequent each code is in training: a baseline.

    Args:
        train: Codes, of any shape; each is counted once more than it occurs.
        held_out: Codes, of any shape.
        num_codes: K.
    """
    counts = torch.bincount(train.flatten().long(), minlength=num_codes).double() + 1
    return float(-(counts / counts.sum()).log()[held_out.flatten().long()].mean())
