"""The words of a caption as targets of the vectors of its image, before a language model reads along.

A frozen language model of a hundred million weights needs thousands of captions before it heeds the vectors
of a new connector at all: until then their gradient says nothing of the image. So the vectors first learn to
be what such a model reads anyway, the embeddings of the caption's tokens: in order, and from the beginning
again where an image has more vectors than its caption has tokens. The language model does not run, which
makes a step many times cheaper.

Frome et al. 2013, "DeViSE: A Deep Visual-Semantic Embedding Model", regress images to embeddings of one word.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..models.vlm.modeling_vlm import MMVLMForConditionalGeneration

__all__ = ["WordAlignment", "word_regression_loss"]


def word_regression_loss(vectors: Sequence[Tensor], words: Sequence[Tensor], table: Tensor) -> Tensor:
    """Squared distance of vectors from embeddings, in units of the table's variance; the mean over images.

    It is smallest where each vector is the mean embedding of the tokens that captions have in its place.

    Args:
        vectors: Of each image (T, D), T image tokens.
        words: Of each image the ids (W,) of its caption, W at least 1.
        table: (V, D) embeddings of the language model; they get no gradient.

    Returns:
        A scalar; about 1 where all vectors are the mean of the table.

    Raises:
        ValueError: An image without a word.
    """
    table = table.detach()
    losses = []
    for number, (image, ids) in enumerate(zip(vectors, words, strict=True)):
        if not len(ids):
            raise ValueError(f"Image {number} of the batch has no word in its caption; leave its row out.")
        repeated = ids.repeat(-(-len(image) // len(ids)))[: len(image)]  # (T,)
        losses.append((image.float() - table[repeated].float()).square().mean())
    return torch.stack(losses).mean() / table.float().var()


class WordAlignment(nn.Module):
    """What `Trainer` is given to train the image side of a model on the words of captions.

    Each row of a batch has one image; its caption is all that is labelled in the row, but for special tokens.
    The loss is a mean over the images of a batch, whatever their number of tokens.

    Args:
        model: The model; of it `train_only(model, ["connector"])`, maybe "vision" too, is to be trained.
        special_ids: Tokens that are no words, such as `tokenizer.all_special_ids`.
    """

    special_ids: Tensor
    accepts_loss_kwargs = False  # a mean over images, not a sum over tokens

    def __init__(self, model: MMVLMForConditionalGeneration, special_ids: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("special_ids", torch.tensor(sorted(special_ids)), persistent=False)

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor,
        image_grids: Tensor | None = None,
        image_masks: Tensor | None = None,
        **inputs: Any,
    ) -> dict[str, Tensor]:
        """The loss of a batch of `VLMCollator`; what else is in the batch is not needed.

        Args:
            pixel_values: Views of the images, see `MMVLMForConditionalGeneration.get_image_features`.
            labels: (B, L), -100 where nothing is said.
            image_grids: As for `get_image_features`.
            image_masks: As for `get_image_features`.
            **inputs: Ignored.

        Raises:
            ValueError: Not one image in each row, or a row without words.
        """
        seen: Any = self.model.get_image_features(pixel_values, image_grids, image_masks)
        vectors = seen.pooler_output
        if len(vectors) != len(labels):
            raise ValueError(
                f"The batch has {len(vectors)} images in {len(labels)} rows; words are aligned with captions "
                "of one image each."
            )
        said = (labels >= 0) & ~torch.isin(labels, self.special_ids)
        words = [row[mask] for row, mask in zip(labels, said, strict=True)]
        table: Any = self.model.get_input_embeddings().weight
        return {"loss": word_regression_loss(vectors, words, table)}
