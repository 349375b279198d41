"""Which pairs of a contrastive batch spoilt its loss."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["spoilt_pairs"]

NAMED = 5  # pairs that a message names


def spoilt_pairs(
    batches: Sequence[Mapping[str, Any]], images: Tensor, texts: Tensor, processor: Any = None
) -> str:
    """Name the pairs whose pixels, or else whose features, are not finite.

    Args:
        batches: The small batches, with `pixel_values` and `input_ids`.
        images: (N, P) features of all their images.
        texts: (N, P) features of all their texts.
        processor: Reads captions back (`batch_decode`), if it can; pairs are numbered otherwise.

    Returns:
        A sentence; an empty string when all are finite.
    """
    fine = [torch.isfinite(batch["pixel_values"]).flatten(1).all(1).cpu() for batch in batches]
    pixels, features = torch.cat(fine), (torch.isfinite(images) & torch.isfinite(texts)).all(1).cpu()
    what, whole = ("features", features) if pixels.all() else ("pixels", pixels)
    spoilt = (~whole).nonzero().flatten().tolist()
    if not spoilt:
        return ""
    captions = _captions(batches, processor)
    names = [f"{row} ({captions[row]!r})" if captions else str(row) for row in spoilt[:NAMED]]
    more = f" and {len(spoilt) - NAMED} more" if len(spoilt) > NAMED else ""
    return f"The {what} of {len(spoilt)} of {len(whole)} pairs are not finite: {', '.join(names)}{more}."


def _captions(batches: Sequence[Mapping[str, Any]], processor: Any) -> list[str]:
    decode = getattr(processor, "batch_decode", None)
    if decode is None:
        return []
    return [text for batch in batches for text in decode(batch["input_ids"], skip_special_tokens=True)]
