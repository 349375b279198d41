"""Masked language modelling: hidden words are guessed from the rest, and from the image.

Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
section 3.1 (https://arxiv.org/abs/1810.04805); whole words beside an image: Kim et al. 2021, "ViLT", sections
3.2 and 3.3 (https://arxiv.org/abs/2102.03334). Which words to hide is decided where batches are made.

Shapes: D width, W words of the vocabulary; states come as (B, L, D), padded, or as (T, D), packed.
"""

from collections.abc import Callable

from torch import Tensor

from .batch_mean import IGNORED, labelled_cross_entropy

__all__ = ["check_place_labels", "masked_token_loss"]


def masked_token_loss(
    states: Tensor,
    head: Callable[[Tensor], Tensor],
    labels: Tensor,
    num_items_in_batch: Tensor | int | float | None = None,
) -> Tensor:
    """Cross-entropy of the hidden tokens, in nats; the head runs on them alone.

    Of 40 tokens about six are hidden, and the logits of all, over 30,000 words, would be the largest tensor
    of a training step.

    Args:
        states: (..., D) last hidden states of the text.
        head: From (K, D) states to (K, W) logits; half precision is widened.
        labels: (...) what stood at the hidden places, -100 at all others.
        num_items_in_batch: Hidden tokens in the whole batch of which this is a part; by default those here.

    Returns:
        A scalar, in float32 at least; an exact 0 with gradient 0 when nothing is hidden.

    Raises:
        ValueError: There is not one integer label for each state.
    """
    if labels.shape != states.shape[:-1] or labels.is_floating_point():
        raise ValueError(
            f"`labels` must be {tuple(states.shape[:-1])} tokens, one for each state, got "
            f"{tuple(labels.shape)} of {labels.dtype}."
        )
    hidden = (labels != IGNORED).flatten().nonzero().squeeze(1)  # (K,)
    logits = head(states.flatten(0, -2).index_select(0, hidden))  # (K, W)
    return labelled_cross_entropy(logits, labels.flatten().index_select(0, hidden), num_items_in_batch)


def check_place_labels(labels: Tensor, states: Tensor) -> None:
    """Refuse labels that are not one integer for each of (B, L, D) states.

    Raises:
        ValueError: Another shape or a floating dtype.
    """
    if labels.shape != states.shape[:2] or labels.is_floating_point():
        raise ValueError(
            f"`labels` must be {tuple(states.shape[:2])} integers, one for each place of the text and -100 "
            f"where there is none, got {tuple(labels.shape)} of {labels.dtype}."
        )
