"""Pictures and captions to the batches of ViLT's pre-training.

Kim et al. 2021, "ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision", section
3.3 (https://arxiv.org/abs/2102.03334): words to guess, pairs to tell from pairs that do not belong together,
and patches to guess.

Shapes: B pairs, L tokens, N patches of the largest grid.
"""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from ..imaging.loading import image_identity
from ..models.vilt.processing_vilt import MMViltProcessor
from .mismatches import random_mismatches, untrue_pairs
from .row_columns import batch_generator, caption_texts, draw_below, need_columns, read_images
from .word_masking import mask_whole_words, ordinary_ids, word_numbers

__all__ = [
    "ViltPretrainingCollator",
    "patch_counts",
    "ragged_patch_masks",
]


class ViltPretrainingCollator:
    """Makes a batch of pairs with what `MMViltForPreTraining` is asked about them.

    A picture has one caption or several, of which one is drawn. A text is only ever paired with the picture
    of another row if it is none of the captions of that row and the pictures differ: give all captions that
    are true of a picture, and mismatched pairs are never true ones.

    Args:
        processor: Of the model; its tokenizer must be fast and have a `mask_token` if words are hidden.
        image_column: Pictures, as `load_rgb` reads them.
        caption_column: A text, or a list of texts.
        word_share: Share of the tokens hidden, in whole words; 0 to leave this task out.
        mismatch_share: Share of the texts that get the picture of another row; 0 to leave this task out.
        patch_share: Share of the patches hidden; 0, the default, leaves this task out.
        patch_size: Side of a patch in pixels, of the model's config.
        truncation: Cut texts that are too long; otherwise they are an error.
        augment: Called with each picture as PIL image, returns the one to train on.
        seed: Draw what follows from it and from the captions of the batch: the same batch gives the same
            draw, in any worker or resumed run, so that evaluations can be compared. `None` draws from torch's
            own generator.

    Raises:
        ValueError: A share that is none, or a tokenizer without a mask.
    """

    def __init__(
        self,
        processor: MMViltProcessor,
        image_column: str = "image",
        caption_column: str = "caption",
        word_share: float = 0.15,
        mismatch_share: float = 0.5,
        patch_share: float = 0.0,
        patch_size: int = 32,
        truncation: bool = False,
        augment: Callable[[Image.Image], Image.Image] | None = None,
        seed: int | None = None,
    ) -> None:
        shares = {"word_share": word_share, "mismatch_share": mismatch_share, "patch_share": patch_share}
        for name, share in shares.items():
            if not 0 <= share < 1:
                raise ValueError(f"`{name}`={share} must be from 0, for no such task, to less than 1.")
        if word_share and processor.tokenizer.mask_token_id is None:
            raise ValueError(
                "The tokenizer has no `mask_token` to hide words with; add one, or set `word_share=0`."
            )
        self.processor = processor
        self.image_column = image_column
        self.caption_column = caption_column
        self.word_share = word_share
        self.mismatch_share = mismatch_share
        self.patch_share = patch_share
        self.patch_size = patch_size
        self.truncation = truncation
        self.augment = augment
        self.seed = seed
        self.replacements = ordinary_ids(processor.tokenizer)

    def __call__(self, rows: Sequence[dict]) -> dict[str, Tensor]:
        """Inputs of the model.

        Returns:
            `input_ids`, `attention_mask` and `token_type_ids` (B, L), `pixel_values` (B, 3, Y, X) and
            `pixel_mask` (B, Y, X). With hidden words `mlm_input_ids` and `mlm_labels` (B, L), -100 on visible
            tokens. With mismatched pairs `itm_image_index` (B,), the picture of each text, and `itm_labels`
            (B,), 1 where they belong together. With hidden patches `bool_masked_patches` (B, N), those of
            each picture row by row of its own grid.

        Raises:
            ValueError: A row lacks a column or a caption, a text is too long, or a picture cannot be used.
            FileNotFoundError: An image file is missing.
        """
        need_columns(rows, image_column=self.image_column, caption_column=self.caption_column)
        captions = [caption_texts(row, self.caption_column, number) for number, row in enumerate(rows)]
        generator = batch_generator(self.seed, captions)
        texts = [of_row[draw_below(len(of_row), generator)] for of_row in captions]
        encoded = self.processor.encode_texts(texts, truncation=self.truncation)
        images = read_images(rows, self.image_column, self.augment, generator)
        batch = {**encoded, **self.processor(images=images)}
        if self.word_share:
            batch["mlm_input_ids"], batch["mlm_labels"] = mask_whole_words(
                batch["input_ids"],
                word_numbers(encoded),
                self.processor.tokenizer.mask_token_id,
                self.replacements,
                self.word_share,
                generator=generator,
            )
        if self.mismatch_share:
            pictures = [image_identity(row[self.image_column]) for row in rows]
            wrong = untrue_pairs(texts, captions, lambda one, other: pictures[one] != pictures[other])
            batch["itm_image_index"], batch["itm_labels"] = random_mismatches(
                wrong, self.mismatch_share, generator
            )
        if self.patch_share:
            counts = patch_counts(batch["pixel_mask"], self.patch_size)
            batch["bool_masked_patches"] = ragged_patch_masks(counts, self.patch_share, generator)
        return batch


def patch_counts(pixel_mask: Tensor, patch_size: int) -> Tensor:
    """How many patches each picture of a padded batch has.

    Args:
        pixel_mask: (B, Y, X), 1 on the picture, which begins at the top left.
        patch_size: Side of a patch in pixels.

    Returns:
        (B,) int64.

    Raises:
        ValueError: A picture is no whole number of patches high or wide.
    """
    sides = torch.stack((pixel_mask[:, :, 0].sum(dim=1), pixel_mask[:, 0].sum(dim=1)), dim=1)  # (B, 2)
    odd = (sides % patch_size).any(dim=1).nonzero()
    if len(odd):
        number = int(odd[0])
        height, width = sides[number].tolist()
        raise ValueError(
            f"image {number} is {height}x{width} px, not a multiple of `patch_size`={patch_size}; use the "
            "processor and the patch size of one model."
        )
    return (sides // patch_size).prod(dim=1)


def ragged_patch_masks(counts: Tensor, share: float, generator: torch.Generator | None = None) -> Tensor:
    """Hide patches chosen at random, the same share of each picture.

    Args:
        counts: (B,) int64, patches of each picture.
        share: Hidden share, between 0 and 1; rounded to whole patches, at least one.
        generator: Source of chance; by default torch's own.

    Returns:
        (B, N) bool, N the most patches of a picture: true where a patch is hidden, never beyond the last one.
    """
    beyond = torch.arange(int(counts.max())) >= counts[:, None]  # (B, N)
    rank = (
        torch.rand(beyond.shape, generator=generator).masked_fill(beyond, 2.0).argsort(dim=1).argsort(dim=1)
    )
    return rank < (share * counts).round().clamp(min=1)[:, None]
