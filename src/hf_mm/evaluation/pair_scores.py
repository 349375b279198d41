"""Scores of pictures and texts by a model that reads a pair at once, and so must be run for each pair.

Kim et al. 2021, "ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision", section
4.4 (https://arxiv.org/abs/2102.03334).

What does not depend on the other side is done once: texts are tokenised once, and one that occurs many times
is scored once; each picture is read, resized and, where the model has `embed_patches`, cut into embedded
patches once, and forgotten when its pairs are scored.

Shapes: N pictures, M texts, U different texts, S pairs of a batch, L tokens.
"""

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from tqdm.auto import tqdm

from .features import checked_texts, evaluating, read_pictures

__all__ = ["check_finite", "score_pairs"]

TEXT = ("input_ids", "attention_mask", "token_type_ids")


class Part(NamedTuple):
    """A picture and texts to score with it.

    Attributes:
        picture: What the model takes of the picture, a batch of one.
        texts: (S,) numbers of texts.
    """

    picture: dict[str, Tensor]
    texts: Tensor


def score_pairs(
    model: Any,
    processor: Any,
    images: Iterable[Any],
    texts: Iterable[str],
    candidates: Tensor | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> Tensor:
    """How well each text fits each picture, by a model that reads both together.

    What is longer than the model reads is cut.

    Args:
        model: An `MMViltForImageAndTextRetrieval`, or transformers' `ViltForImageAndTextRetrieval`.
        processor: Its processor, of pictures and texts.
        images: N pictures, see `encode_images`; read one by one.
        texts: M texts.
        candidates: (N, M) booleans, true at the pairs to score; by default all.
        batch_size: Pairs at a time, S.
        progress: Show a progress bar of pairs.

    Returns:
        (N, M) float32 logits on the CPU; -inf at pairs that are no candidates.

    Raises:
        ValueError: There is nothing to score, a picture cannot be read, a text is empty, `candidates` do not
            fit, the model has no head that scores a pair, or a score is NaN or infinite.
        TypeError: `images` is one picture, or `texts` one text.
    """
    texts = checked_texts(texts)
    if not texts:
        raise ValueError("`texts` is empty; give at least one.")
    if batch_size < 1:
        raise ValueError(f"`batch_size` is {batch_size}; it must be at least 1.")
    if candidates is not None:
        candidates = _checked_candidates(candidates, images, len(texts))
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    column = torch.tensor([numbers[text] for text in texts])  # (M,) of the U different texts
    wanted = None if candidates is None else _any_of(candidates, column, len(numbers))  # (N, U)
    tokens = _tokens(model, processor, list(numbers))
    order = tokens["attention_mask"].sum(dim=1).argsort(stable=True)  # short texts side by side
    total = int(wanted.sum()) if wanted is not None else _length(images, len(numbers))
    scores = []
    with evaluating(model), tqdm(desc="score", unit="pair", total=total, disable=not progress) as bar:
        parts = _parts(model, processor, images, order, wanted)
        for batch in _batches(parts, batch_size):
            scores.append(_score(model, tokens, batch))
            bar.update(len(scores[-1]))
    if wanted is None:
        wanted = torch.ones(sum(map(len, scores)) // len(order), len(order), dtype=torch.bool)
    scored = torch.cat(scores)
    scores.clear()  # of N x M numbers no more than two copies at a time
    found = torch.full(wanted.shape, -torch.inf)
    found[wanted[:, order]] = scored  # row by row, as they were scored
    del scored
    found = found[:, order.argsort()[column]]  # (N, M)
    check_finite(found if candidates is None else found.masked_fill(~candidates, 0.0))
    return found if candidates is None else found.masked_fill(~candidates, -torch.inf)


def check_finite(scores: Tensor) -> None:
    """Refuse scores (rows, columns) that cannot be compared."""
    broken = (~scores.isfinite()).nonzero()
    if len(broken):
        row, place = broken[0].tolist()
        raise ValueError(
            f"The score in row {row}, column {place} is {float(scores[row, place])}; is the "
            "model's loss finite?"
        )


def _tokens(model: Any, processor: Any, texts: list[str]) -> dict[str, Tensor]:
    """(U, L) each."""
    longest = model.config.max_position_embeddings
    tokens = processor(text=texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
    return {name: tokens[name] for name in TEXT if name in tokens}


def _parts(
    model: Any, processor: Any, images: Iterable[Any], order: Tensor, wanted: Tensor | None
) -> Iterator[Part]:
    """Each picture with all its texts, in this order of texts."""
    count = 0
    for picture in read_pictures(images):
        if wanted is not None and count == len(wanted):
            raise ValueError(
                f"`candidates` has {count} rows, but there are more images; give a row for each."
            )
        texts = order if wanted is None else order[wanted[count, order]]
        if len(texts):
            yield Part(_picture_inputs(model, processor, picture), texts)
        count += 1
    if not count:
        raise ValueError("`images` is empty; give at least one.")
    if wanted is not None and count < len(wanted):
        raise ValueError(f"`candidates` has {len(wanted)} rows for {count} images; give a row for each.")


def _batches(parts: Iterable[Part], size: int) -> Iterator[list[Part]]:
    """The same pairs, `size` of them at a time."""
    batch, room = [], size
    for picture, texts in parts:
        while len(texts):
            batch.append(Part(picture, texts[:room]))
            texts, room = texts[room:], room - len(batch[-1].texts)
            if not room:
                yield batch
                batch, room = [], size
    if batch:
        yield batch


def _picture_inputs(model: Any, processor: Any, picture: Any) -> dict[str, Tensor]:
    """What the model takes of one picture, with all done that no text has a part in."""
    images = getattr(processor, "image_processor", processor)
    inputs = images(images=[picture], return_tensors="pt")
    pixels, mask = inputs["pixel_values"].to(model.device, model.dtype), inputs["pixel_mask"].to(model.device)
    embedder = _patch_embedder(model)
    if embedder is None:
        return {"pixel_values": pixels, "pixel_mask": mask}
    return {"patch_embeds": embedder.embed_patches(pixels), "pixel_mask": mask}


def _score(model: Any, tokens: Mapping[str, Tensor], batch: list[Part]) -> Tensor:
    """(S,) logits on the CPU."""
    chosen = torch.cat([part.texts for part in batch])
    used = tokens["attention_mask"][chosen].any(dim=0).nonzero().flatten()  # wherever the padding is
    inputs = {name: rows[chosen, used[0] : used[-1] + 1].to(model.device) for name, rows in tokens.items()}
    owner = torch.tensor([place for place, part in enumerate(batch) for _ in part.texts], device=model.device)
    pictures = {name: _side_by_side([part.picture[name] for part in batch]) for name in batch[0].picture}
    if _patch_embedder(model) is None:
        inputs |= {name: rows[owner] for name, rows in pictures.items()}
    else:
        inputs |= pictures | {"image_index": owner}
    logits = model(**inputs).logits
    if logits.shape != (len(chosen), 1):
        raise ValueError(
            f"{type(model).__name__} gives logits {tuple(logits.shape)} for {len(chosen)} pairs, one score "
            "for each is needed; give a model with a head that ranks, such as MMViltForImageAndTextRetrieval."
        )
    return logits.squeeze(1).float().cpu()


def _patch_embedder(model: Any) -> Any:
    """The part that embeds patches for many texts at once, if there is one; adapters may lie around it."""
    return next((part for part in model.modules() if hasattr(part, "embed_patches")), None)


def _side_by_side(pictures: list[Tensor]) -> Tensor:
    """Batches of one, (1, ...) each, as one batch, with zeros behind what is smaller than the largest."""
    sizes = torch.tensor([picture.shape for picture in pictures])
    missing = (sizes.amax(dim=0) - sizes).flip(-1)  # `pad` begins at the last dimension
    behind = torch.stack([torch.zeros_like(missing), missing], dim=-1).flatten(1).tolist()
    return torch.cat([pad(picture, amounts) for picture, amounts in zip(pictures, behind, strict=True)])


def _any_of(candidates: Tensor, column: Tensor, count: int) -> Tensor:
    """(N, U) whether any of the texts that are alike is a candidate."""
    wanted = torch.zeros(len(candidates), count, dtype=torch.int32)
    return wanted.index_add_(1, column, candidates.int()) > 0


def _checked_candidates(candidates: Tensor, images: Iterable[Any], texts: int) -> Tensor:
    if candidates.ndim != 2 or candidates.shape[1] != texts or candidates.dtype != torch.bool:
        raise ValueError(
            f"`candidates` must be (images, {texts}) booleans, got {tuple(candidates.shape)} of "
            f"{candidates.dtype}."
        )
    if not candidates.any():
        raise ValueError("`candidates` is false everywhere; there is no pair to score.")
    if isinstance(images, Sized) and len(images) != len(candidates):
        raise ValueError(
            f"`candidates` has {len(candidates)} rows for {len(images)} images; give a row for each."
        )
    return candidates.cpu()


def _length(images: Iterable[Any], texts: int) -> int | None:
    return len(images) * texts if isinstance(images, Sized) else None
