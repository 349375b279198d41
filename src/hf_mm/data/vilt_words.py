"""Pictures and texts to the batches on which ViLT learns single words: hidden ones, and kinds of words.

Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
sections 3.1 and 5.3 (https://arxiv.org/abs/1810.04805); beside a picture, and hidden in whole words: Kim et
al. 2021, "ViLT", section 3.4 (https://arxiv.org/abs/2102.03334).

Shapes: B rows, L tokens, Y x X pixels of the largest picture.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchEncoding

from ..models.vilt.processing_vilt import MMViltProcessor
from .row_columns import batch_generator, need_columns, read_images
from .vilt_pretraining import ViltPretrainingCollator
from .word_masking import word_numbers

__all__ = ["ViltMaskedWordsCollator", "ViltWordLabelsCollator"]


class ViltMaskedWordsCollator:
    """Makes a batch of texts with hidden words beside their pictures, for `MMViltForMaskedLM`.

    Args:
        processor: Of the model; its tokenizer must be fast and have a `mask_token`.
        image_column: Pictures, as `load_rgb` reads them.
        caption_column: A text, or a list of texts of which one is drawn.
        word_share: Share of the tokens hidden, in whole words.
        truncation: Cut texts that are too long; otherwise they are an error.
        augment: Called with each picture as PIL image, returns the one to train on.
        seed: Draw by it and by the batch alone; `None` draws from torch's own generator.

    Raises:
        ValueError: A share that hides nothing, or a tokenizer without a mask.
    """

    def __init__(
        self,
        processor: MMViltProcessor,
        image_column: str = "image",
        caption_column: str = "caption",
        word_share: float = 0.15,
        truncation: bool = False,
        augment: Callable[[Image.Image], Image.Image] | None = None,
        seed: int | None = None,
    ) -> None:
        if not 0 < word_share < 1:
            raise ValueError(f"`word_share`={word_share} must be above 0 and below 1; BERT hides 0.15.")
        self.pairs = ViltPretrainingCollator(
            processor,
            image_column,
            caption_column,
            word_share=word_share,
            mismatch_share=0.0,
            truncation=truncation,
            augment=augment,
            seed=seed,
        )

    def __call__(self, rows: Sequence[dict]) -> dict[str, Tensor]:
        """Inputs of the model.

        Returns:
            `input_ids`, `attention_mask` and `token_type_ids` (B, L), words hidden; `labels` (B, L), the
            hidden tokens and -100 elsewhere; `pixel_values` (B, 3, Y, X) and `pixel_mask` (B, Y, X).

        Raises:
            ValueError: A row lacks a column or a caption, a text is too long, or a picture cannot be used.
            FileNotFoundError: An image file is missing.
        """
        batch = self.pairs(rows)
        batch["input_ids"], batch["labels"] = batch.pop("mlm_input_ids"), batch.pop("mlm_labels")
        return batch


class ViltWordLabelsCollator:
    """Makes a batch of texts whose words have labels beside a picture, for `MMViltForTokenClassification`.

    The label of a word goes to its first token; the others have none, as BERT has it for names.

    Args:
        processor: Of the model; its tokenizer must be fast.
        label2id: Number of each label, of the model's config; `None` if rows have numbers.
        image_column: Pictures, as `load_rgb` reads them.
        words_column: A list of words.
        labels_column: A list of labels, one for each word; -100 for a word that has none.
        every_token: Give the label of a word to all its tokens.
        truncation: Cut texts that are too long, with their labels; otherwise they are an error.
        augment: Called with each picture as PIL image, returns the one to train on.
        seed: What `augment` draws follows from it and from the batch alone; `None` for torch's own generator.
    """

    def __init__(
        self,
        processor: MMViltProcessor,
        label2id: Mapping[str, int] | None = None,
        image_column: str = "image",
        words_column: str = "words",
        labels_column: str = "labels",
        every_token: bool = False,
        truncation: bool = False,
        augment: Callable[[Image.Image], Image.Image] | None = None,
        seed: int | None = None,
    ) -> None:
        self.processor = processor
        self.label2id = label2id
        self.image_column = image_column
        self.words_column = words_column
        self.labels_column = labels_column
        self.every_token = every_token
        self.truncation = truncation
        self.augment = augment
        self.seed = seed

    def __call__(self, rows: Sequence[dict]) -> dict[str, Tensor]:
        """Inputs of the model.

        Returns:
            `input_ids`, `attention_mask`, `token_type_ids` and `labels` (B, L), -100 where a token has none;
            `pixel_values` (B, 3, Y, X) and `pixel_mask` (B, Y, X).

        Raises:
            ValueError: A row lacks a column, its labels are not one for each word or unknown, a word gives no
                token, a text is too long, or a picture cannot be used.
            FileNotFoundError: An image file is missing.
        """
        columns = {"image_column": self.image_column, "words_column": self.words_column}
        need_columns(rows, **columns, labels_column=self.labels_column)
        texts = [self._words(row, number) for number, row in enumerate(rows)]
        labels = [self._labels(row, number) for number, row in enumerate(rows)]
        encoded = self._encode(texts)
        images = read_images(rows, self.image_column, self.augment, batch_generator(self.seed, texts))
        numbers = word_numbers(encoded)  # (B, L)
        return {
            **{name: torch.as_tensor(encoded[name]) for name in INPUTS},
            **self.processor(images=images),
            "labels": self._spread(labels, numbers, texts),
        }

    def _encode(self, texts: list[list[str]]) -> BatchEncoding:
        tokenizer, most = self.processor.tokenizer, self.processor.max_length
        cut = {"truncation": True, "max_length": most} if self.truncation else {}
        options = {"padding": True, "return_token_type_ids": True, "return_attention_mask": True}
        encoded = tokenizer(texts, is_split_into_words=True, verbose=False, **options, **cut)
        lengths = [sum(mask) for mask in encoded["attention_mask"]]
        if max(lengths) > most:
            number = lengths.index(max(lengths))
            raise ValueError(
                f"Row {number} of the batch has {lengths[number]} tokens, and `max_length` is {most}: "
                f"{' '.join(texts[number])[:60]!r}. Shorten it, or pass `truncation=True` to cut it."
            )
        return encoded

    def _spread(self, labels: list[list[int]], numbers: Tensor, texts: list[list[str]]) -> Tensor:
        """(B, L) labels of tokens, of which (B, L) `numbers` says to which word they belong."""
        first = numbers != torch.nn.functional.pad(numbers[:, :-1], (1, 0), value=-1)
        counted = (numbers >= 0) & (first | self.every_token)
        spread = torch.full_like(numbers, -100)
        for row, of_words in enumerate(labels):
            seen = set(numbers[row].tolist())
            lost = [word for word in range(len(of_words)) if word not in seen]
            if lost and not self.truncation:
                raise ValueError(
                    f"Row {row} of the batch: word {lost[0]}, {texts[row][lost[0]]!r}, gives no token, so "
                    "its label has no place; leave it out."
                )
            spread[row, counted[row]] = torch.tensor(of_words)[numbers[row, counted[row]]]
        return spread

    def _words(self, row: dict, number: int) -> list[str]:
        words = row[self.words_column]
        if isinstance(words, list | tuple) and words and all(isinstance(word, str) for word in words):
            return list(words)
        raise ValueError(
            f"Row {number} of the batch has {words!r:.80} in {self.words_column!r}; give a list of words."
        )

    def _labels(self, row: dict, number: int) -> list[int]:
        labels, words = row[self.labels_column], row[self.words_column]
        if not isinstance(labels, list | tuple) or len(labels) != len(words):
            raise ValueError(
                f"Row {number} of the batch has {len(words)} words and the labels {labels!r:.80}; give one "
                "for each word, -100 for none."
            )
        return [self._number(label, number) for label in labels]

    def _number(self, label: object, row: int) -> int:
        if label == -100:
            return -100
        if self.label2id is not None and isinstance(label, str) and label in self.label2id:
            return self.label2id[label]
        if self.label2id is None and isinstance(label, int) and label >= 0:
            return label
        wanted = "a number" if self.label2id is None else f"one of {list(self.label2id)!r:.80}"
        raise ValueError(
            f"Row {row} of the batch has the label {label!r:.40}; give {wanted}, or -100 for none."
        )


INPUTS = ("input_ids", "attention_mask", "token_type_ids")
