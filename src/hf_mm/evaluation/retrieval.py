"""How well texts find their pictures and pictures their texts: R@K and the median rank, both ways.

As Karpathy and Fei-Fei 2015, "Deep Visual-Semantic Alignments", table 1 (https://arxiv.org/abs/1412.2306): a
picture with several texts is found by the first of them, and its other texts do not stand in the way.

Equal similarities: of a model that gives one vector to all, every answer is a tie, and must not count as
found. So the right one stands behind all wrong ones that are as similar ("worst", the default), or where it
would stand on average if they were shuffled ("mean"). Similarities closer than 1e-6 of the largest possible
are equal: that much differs a text that is encoded in another batch. A text that two pictures share is such a
tie: by default neither picture has it at rank 1. Where that is no fault, take "mean".

Shapes: N pictures, M texts, P width of the shared space, Q questions, A answers to find them among.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .features import encode_images, encode_texts, is_euclidean

__all__ = [
    "TIE",
    "check_ties",
    "checked_captions",
    "checked_owner",
    "first_ranks",
    "image_text_retrieval",
    "rank_metrics",
    "retrieval_chance",
    "retrieval_metrics",
]

RECALL_AT = (1, 5, 10)
TIE = 1e-6
CHUNK = 2**23  # similarities at a time, 32 MiB


def image_text_retrieval(
    model: Any,
    processor: Any,
    images: Iterable[Any],
    captions: Sequence[str | Sequence[str]],
    batch_size: int = 64,
    progress: bool = True,
    ties: Literal["worst", "mean"] = "worst",
) -> dict[str, float]:
    """`retrieval_metrics` of a model on pictures and their captions.

    Args:
        model: See `encode_images`.
        processor: Its processor.
        images: N pictures.
        captions: For each picture a caption or several.
        batch_size: Pictures, and texts, at a time.
        progress: Show progress bars.
        ties: See `retrieval_metrics`.

    Raises:
        ValueError: A picture has no caption, or not as many pictures as captions.
    """
    texts, image_of_text = checked_captions(captions)
    image_embeds = encode_images(model, processor, images, batch_size, progress)
    if len(image_embeds) != len(captions):
        raise ValueError(
            f"{len(captions)} captions for {len(image_embeds)} images; give one or a list for each."
        )
    return retrieval_metrics(
        image_embeds,
        encode_texts(model, processor, texts, batch_size, progress),
        image_of_text,
        similarity="euclidean" if is_euclidean(model) else "dot",
        ties=ties,
    )


def retrieval_metrics(
    image_embeds: Tensor,
    text_embeds: Tensor,
    image_of_text: Sequence[int] | Tensor | None = None,
    similarity: Literal["dot", "euclidean"] = "dot",
    ties: Literal["worst", "mean"] = "worst",
    recall_at: Sequence[int] = RECALL_AT,
) -> dict[str, float]:
    """Retrieval among all pictures and all texts, never holding all similarities at once.

    Args:
        image_embeds: (N, P).
        text_embeds: (M, P).
        image_of_text: (M,) the picture that each text belongs to; by default text i to picture i.
        similarity: "dot" (the cosine, of vectors of length 1) or "euclidean", minus the distance.
        ties: Where the right one stands among equals: "worst", behind the wrong ones, or "mean".
        recall_at: Ranks K.

    Returns:
        `image_to_text_R@K` for each K, a share of 1, and `image_to_text_median_rank`, the best being 1;
        and the same for `text_to_image`.

    Raises:
        ValueError: Shapes or counts do not fit, a picture has no text, or a vector holds NaN or infinity.
    """
    _check_embeds(image_embeds, text_embeds, similarity, ties)
    owner = checked_owner(image_of_text, len(image_embeds), len(text_embeds))
    pictures, own = image_embeds.detach().cpu().float(), torch.arange(len(image_embeds))
    texts = text_embeds.detach().cpu().float()
    euclidean, worst = similarity == "euclidean", ties == "worst"
    ranks = {
        "image_to_text": _ranks(pictures, own, texts, owner, euclidean, worst),
        "text_to_image": _ranks(texts, owner, pictures, own, euclidean, worst),
    }
    return rank_metrics(ranks, recall_at)


def retrieval_chance(
    images: int,
    image_of_text: Sequence[int] | Tensor | None = None,
    recall_at: Sequence[int] = RECALL_AT,
) -> dict[str, float]:
    """What random similarities get on average, under the names of `retrieval_metrics`.

    Args:
        images: N.
        image_of_text: (M,) the picture that each text belongs to; by default text i to picture i.
        recall_at: Ranks K.

    Raises:
        ValueError: A picture has no text, or a text belongs to none.
    """
    texts = images if image_of_text is None else len(image_of_text)
    owner = checked_owner(image_of_text, images, texts)
    results = {}
    for way, right, answers in (
        ("image_to_text", owner.bincount(minlength=images), texts),
        ("text_to_image", torch.ones(texts, dtype=torch.long), images),
    ):
        within = _chance_within(right, answers)
        results |= {f"{way}_R@{k}": float(within[min(k, answers) - 1]) for k in recall_at}
        half = 0.5 + 1e-9 * torch.tensor([-1, 1], dtype=torch.float64)  # both middles, should it be met
        results[f"{way}_median_rank"] = float((torch.searchsorted(within, half) + 1).double().mean())
    return results


def rank_metrics(ranks: dict[str, Tensor], recall_at: Sequence[int] = RECALL_AT) -> dict[str, float]:
    """`WAY_R@K` for each K and `WAY_median_rank` of the (Q,) ranks of each way."""
    results = {}
    for way, found in ranks.items():
        results |= {f"{way}_R@{k}": float((found <= k).double().mean()) for k in recall_at}
        results[f"{way}_median_rank"] = float(found.quantile(0.5))
    return results


def first_ranks(
    scores_of: Callable[[slice], Tensor], wanted: Tensor, kinds: Tensor, tie: float, worst: bool
) -> Tensor:
    """(Q,) ranks, from 1, of the first answer whose kind is wanted, among those that are not.

    Args:
        scores_of: The scores (rows, A) of some questions, asked for a piece at a time.
        wanted: (Q,) kinds.
        kinds: (A,).
        tie: Scores that differ by no more are equal.
        worst: Behind equals, rather than among them.
    """
    order = kinds.argsort(stable=True)  # answers of one kind, side by side
    counts = kinds.bincount(minlength=int(wanted.max()) + 1)
    starts = counts.cumsum(0) - counts
    ranks = []
    rows = max(1, CHUNK // len(kinds))
    for first in range(0, len(wanted), rows):
        part = slice(first, first + rows)
        scores, kind = scores_of(part), wanted[part]  # (rows, A)
        places = torch.arange(int(counts[kind].max()))
        real = places < counts[kind, None]  # (rows, R), of up to R right answers
        right = order[(starts[kind, None] + places).clamp(max=len(order) - 1)]
        found = scores.gather(1, right).masked_fill(~real, -torch.inf)
        best = found.amax(dim=1, keepdim=True)
        ahead = (scores > best + tie).sum(dim=1, dtype=torch.int32)  # six times as fast as int64
        equal = (found >= best - tie).sum(dim=1)
        wrong = (scores >= best - tie).sum(dim=1, dtype=torch.int32) - ahead - equal
        ranks.append(1 + ahead + (wrong if worst else wrong / (equal + 1)))
    return torch.cat(ranks).double()


def _ranks(
    questions: Tensor, wanted: Tensor, answers: Tensor, kinds: Tensor, euclidean: bool, worst: bool
) -> Tensor:
    """`first_ranks` of vectors (Q, P) that look for vectors (A, P)."""
    lengths = answers.square().sum(dim=-1)  # (A,)
    reach = float(questions.norm(dim=-1).max() * lengths.max().sqrt())

    def scores_of(part: slice) -> Tensor:
        scores = questions[part] @ answers.T  # (rows, A)
        if euclidean:  # the order of minus the squared distance; what all answers share is left out
            scores = 2 * scores - lengths
        return scores

    return first_ranks(scores_of, wanted, kinds, TIE * (2 * reach if euclidean else reach), worst)


def _chance_within(right: Tensor, answers: int) -> Tensor:
    """(A,) probability, for K from 1 to A, that one of the right answers is among K random ones of A.

    1 - C(A - r, K) / C(A, K), the mean over the numbers r of right answers.
    """
    k = torch.arange(1, answers + 1, dtype=torch.float64)
    within = torch.zeros(answers, dtype=torch.float64)
    for count, times in zip(*right.unique(return_counts=True), strict=True):
        left = answers - count - k  # wrong answers that are not among the K
        missed = (
            torch.lgamma(answers - count.double() + 1)
            - torch.lgamma(left.clamp(min=0) + 1)
            - torch.lgamma(torch.tensor(answers + 1.0, dtype=torch.float64))
            + torch.lgamma(answers - k + 1)
        ).exp()
        within += times * (1 - missed.where(left >= 0, 0.0))
    return within / len(right)


def _check_embeds(image_embeds: Tensor, text_embeds: Tensor, similarity: str, ties: str) -> None:
    if similarity not in ("dot", "euclidean"):
        raise ValueError(f"`similarity` is {similarity!r}; it is 'dot' or 'euclidean'.")
    check_ties(ties)
    for name, embeds in (("image_embeds", image_embeds), ("text_embeds", text_embeds)):
        if embeds.ndim != 2 or not len(embeds):
            raise ValueError(
                f"`{name}` must be (rows, width) with a row at least, got {tuple(embeds.shape)}."
            )
        broken = (~embeds.isfinite().all(dim=1)).nonzero()
        if len(broken):
            raise ValueError(
                f"`{name}` holds NaN or infinity in row {int(broken[0])}; is the model's loss finite?"
            )
    if image_embeds.shape[1] != text_embeds.shape[1]:
        raise ValueError(
            f"`image_embeds` are {image_embeds.shape[1]} wide and `text_embeds` {text_embeds.shape[1]}; "
            "take both from one model, after its projections."
        )


def check_ties(ties: str) -> None:
    """Refuse what `ties` cannot be."""
    if ties not in ("worst", "mean"):
        raise ValueError(f"`ties` is {ties!r}; it is 'worst' or 'mean'.")


def checked_captions(captions: Sequence[str | Sequence[str]]) -> tuple[list[str], list[int]]:
    """The M captions of all pictures one after the other, and the number of the picture of each."""
    groups = [[group] if isinstance(group, str) else list(group) for group in captions]
    for number, group in enumerate(groups):
        if not group:
            raise ValueError(f"image {number} has no caption; leave it out.")
    texts = [text for group in groups for text in group]
    return texts, [number for number, group in enumerate(groups) for _ in group]


def checked_owner(image_of_text: Sequence[int] | Tensor | None, images: int, texts: int) -> Tensor:
    """(M,) the picture of each text."""
    if image_of_text is None:
        if images != texts:
            raise ValueError(f"{texts} texts for {images} images; say in `image_of_text` which is whose.")
        return torch.arange(images)
    owner = torch.as_tensor(image_of_text, dtype=torch.long).cpu()
    if owner.shape != (texts,):
        raise ValueError(f"`image_of_text` must be ({texts},), one for each text, got {tuple(owner.shape)}.")
    wrong = ((owner < 0) | (owner >= images)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(f"text {row} belongs to image {int(owner[row])}, not in 0..{images - 1}.")
    alone = (owner.bincount(minlength=images) == 0).nonzero()
    if len(alone):
        raise ValueError(f"image {int(alone[0])} has no text; leave it out.")
    return owner
