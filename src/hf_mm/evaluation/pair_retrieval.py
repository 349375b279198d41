"""Retrieval by the scores of pairs, and re-ranking of what a faster model has found.

As every pair costs a pass of a model that reads both sides together, one with a vector for each picture and
each text, such as CLIP, chooses the few that are worth it: Li et al. 2021, "Align before Fuse", section 5
(https://arxiv.org/abs/2107.07651).

Shapes: N pictures, M texts, Q questions, A answers.
"""

from collections.abc import Callable, Iterable, Sequence, Sized
from typing import Any, Literal

import torch
from torch import Tensor

from .pair_scores import check_finite, score_pairs
from .retrieval import TIE, check_ties, checked_captions, checked_owner, first_ranks, rank_metrics

__all__ = ["pair_metrics", "pair_retrieval", "rerank"]

RECALL_AT = (1, 5, 10)
GAP = 0.01  # between re-ranked answers and those behind them, as a share of the largest score


def rerank(similarity: Tensor, k: int, scorer: Callable[[Tensor], Tensor]) -> Tensor:
    """Order the k most similar answers of each question anew, the rest behind them as they were.

    Args:
        similarity: (Q, A), such as `compare` gives for CLIP; its transpose for the other way.
        k: Answers of each question to score again.
        scorer: Takes (Q, A) booleans, true at pairs to score, and returns their scores (Q, A); what it
            returns elsewhere is not read. Such as `lambda pairs: score_pairs(model, processor, images,
            texts, pairs)`.

    Returns:
        (Q, A) float32: the scores of the k, and lower numbers in the order of `similarity` for the others.

    Raises:
        ValueError: `similarity` is no table of finite numbers, `k` is below 1, or scores have another shape.
    """
    similarity = _checked_scores(similarity, "similarity")
    candidates = _top(similarity, k)
    return _candidates_first(similarity, scorer(candidates), candidates)


def pair_metrics(
    image_to_text: Tensor,
    image_of_text: Sequence[int] | Tensor | None = None,
    text_to_image: Tensor | None = None,
    ties: Literal["worst", "mean"] = "worst",
    recall_at: Sequence[int] = RECALL_AT,
) -> dict[str, float]:
    """What `retrieval_metrics` measures, from the scores of all pairs.

    Args:
        image_to_text: (N, M).
        image_of_text: (M,) the picture that each text belongs to; by default text i to picture i.
        text_to_image: (M, N) for the other way, when it was re-ranked by itself; by default the transpose.
        ties: Where the right one stands among equals: "worst", behind the wrong ones, or "mean".
        recall_at: Ranks K.

    Returns:
        `image_to_text_R@K`, `image_to_text_median_rank`, and the same for `text_to_image`.

    Raises:
        ValueError: Shapes or counts do not fit, a picture has no text, or a score is NaN or infinite.
    """
    check_ties(ties)
    image_to_text = _checked_scores(image_to_text, "image_to_text")
    images, texts = image_to_text.shape
    owner, own = checked_owner(image_of_text, images, texts), torch.arange(images)
    back = image_to_text.T if text_to_image is None else _checked_scores(text_to_image, "text_to_image")
    if back.shape != (texts, images):
        raise ValueError(
            f"`text_to_image` must be ({texts}, {images}), a row for each text, got {tuple(back.shape)}."
        )
    ways = {"image_to_text": (image_to_text, own, owner), "text_to_image": (back, owner, own)}
    ranks = {
        way: first_ranks(scores.__getitem__, wanted, kinds, TIE * float(scores.abs().max()), ties == "worst")
        for way, (scores, wanted, kinds) in ways.items()
    }
    return rank_metrics(ranks, recall_at)


def pair_retrieval(
    model: Any,
    processor: Any,
    images: Iterable[Any],
    captions: Sequence[str | Sequence[str]],
    batch_size: int = 64,
    progress: bool = True,
    similarity: Tensor | None = None,
    k: int | None = None,
    ties: Literal["worst", "mean"] = "worst",
    recall_at: Sequence[int] = RECALL_AT,
) -> dict[str, float]:
    """`pair_metrics` of a model on pictures and their captions, among all pairs or those chosen before.

    Args:
        model: See `score_pairs`.
        processor: Its processor.
        images: N pictures.
        captions: For each picture a caption or several, M in all.
        batch_size: Pairs at a time.
        progress: Show a progress bar.
        similarity: (N, M) of another model, captions one after the other: the model then scores the `k` most
            similar texts of each picture and pictures of each text only, see `rerank`.
        k: How many.
        ties: See `pair_metrics`.
        recall_at: Ranks K.

    Raises:
        ValueError: A picture has no caption, counts or shapes do not fit, or one of `similarity` and `k` is
            given without the other; else see `score_pairs`.
    """
    check_ties(ties)
    texts, image_of_text = checked_captions(captions)
    _check_count(len(captions), images)
    if (similarity is None) != (k is None):
        raise ValueError(
            f"`similarity` is {'not ' if similarity is None else ''}given and `k` is {k}; give both to have "
            "the most similar re-ranked, or none to score all pairs."
        )
    if similarity is None or k is None:
        scores = score_pairs(model, processor, images, texts, None, batch_size, progress)
        if len(scores) != len(captions):
            raise ValueError(
                f"{len(captions)} captions for {len(scores)} images; give one or a list for each."
            )
        return pair_metrics(scores, image_of_text, None, ties, recall_at)
    similarity = _checked_scores(similarity, "similarity")
    if similarity.shape != (len(captions), len(texts)):
        raise ValueError(
            f"`similarity` must be ({len(captions)}, {len(texts)}), images by captions, got "
            f"{tuple(similarity.shape)}."
        )
    of_images, of_texts = _top(similarity, k), _top(similarity.T, k).T
    scores = score_pairs(model, processor, images, texts, of_images | of_texts, batch_size, progress)
    forth = _candidates_first(similarity, scores, of_images)
    back = _candidates_first(similarity.T, scores.T, of_texts.T)
    return pair_metrics(forth, image_of_text, back, ties, recall_at)


def _top(similarity: Tensor, k: int) -> Tensor:
    """(Q, A) booleans, true at the k largest of each row."""
    if k < 1:
        raise ValueError(f"`k` is {k}; at least one answer of each question must be scored.")
    largest = similarity.topk(min(k, similarity.shape[1]), dim=1).indices
    return torch.zeros_like(similarity, dtype=torch.bool).scatter_(1, largest, True)


def _candidates_first(similarity: Tensor, scores: Tensor, candidates: Tensor) -> Tensor:
    """(Q, A) scores of candidates; behind the lowest of a row the others, by similarity.

    Similarities are brought to the scale of the scores, so that what counts as a tie stays one.
    """
    if scores.shape != similarity.shape:
        raise ValueError(
            f"The scorer must return {tuple(similarity.shape)} scores, one for each pair, got "
            f"{tuple(scores.shape)}."
        )
    scores = scores.detach().cpu().float()
    check_finite(scores.masked_fill(~candidates, 0.0))
    unit = scores.masked_fill(~candidates, 0.0).abs().max()
    unit = unit if unit > 0 else torch.ones(())
    lowest = scores.masked_fill(~candidates, torch.inf).amin(dim=1, keepdim=True)  # (Q, 1)
    below = similarity.max() - similarity
    span = below.max().clamp(min=torch.finfo(below.dtype).tiny)
    return scores.where(candidates, lowest - unit * (GAP + below / span))


def _checked_scores(scores: Tensor, name: str) -> Tensor:
    if scores.ndim != 2 or not scores.numel():
        raise ValueError(f"`{name}` must be a table with a score for each pair, got {tuple(scores.shape)}.")
    scores = scores.detach().cpu().float()
    broken = (~scores.isfinite()).nonzero()
    if len(broken):
        row, place = broken[0].tolist()
        raise ValueError(
            f"`{name}` is {float(scores[row, place])} in row {row}, column {place}; every pair needs a "
            "number (those that were not scored get one from `rerank`)."
        )
    return scores


def _check_count(captions: int, images: Iterable[Any]) -> None:
    """Before hours of scoring, where it can be known."""
    if isinstance(images, Sized) and len(images) != captions:
        raise ValueError(f"{captions} captions for {len(images)} images; give one or a list for each.")
