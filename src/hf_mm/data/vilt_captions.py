"""Pictures and captions to the batches of image-to-text generation with ViLT.

Shapes: B rows, L tokens, Y x X pixels of the largest picture.
"""

from collections.abc import Callable, Sequence

from PIL import Image
from torch import Tensor

from ..models.vilt.processing_vilt import MMViltProcessor
from .caption_encoding import encode_captions
from .row_columns import batch_generator, caption_texts, draw_below, need_columns, read_images

__all__ = ["ViltCaptionCollator"]


class ViltCaptionCollator:
    """Makes a batch of texts to be written about pictures, for `MMViltForImageToText`.

    Each text is a prompt, which may be empty, and a caption that follows it. The model reads the prompt with
    the picture and learns to write the caption, to its end.

    Args:
        processor: Of the model.
        image_column: Pictures, as `load_rgb` reads them.
        caption_column: A text, or a list of texts of which one is drawn.
        prompt_column: A text before the caption, such as a question; `None` for none.
        augment: Called with each picture as PIL image, returns the one to train on.
        seed: Draw captions by it and by the batch alone; `None` draws from torch's own generator.
    """

    def __init__(
        self,
        processor: MMViltProcessor,
        image_column: str = "image",
        caption_column: str = "caption",
        prompt_column: str | None = None,
        augment: Callable[[Image.Image], Image.Image] | None = None,
        seed: int | None = None,
    ) -> None:
        self.processor = processor
        self.image_column = image_column
        self.caption_column = caption_column
        self.prompt_column = prompt_column
        self.augment = augment
        self.seed = seed

    def __call__(self, rows: Sequence[dict]) -> dict[str, Tensor]:
        """Inputs of the model.

        Returns:
            `input_ids`, `attention_mask` and `token_type_ids` (B, L), `prefix_mask` (B, L), 1 on the prompt
            and what begins a text, `labels` (B, L), the token at each place of the caption and of what ends
            it, -100 elsewhere; `pixel_values` (B, 3, Y, X) and `pixel_mask` (B, Y, X).

        Raises:
            ValueError: A row lacks a column or a caption, a text is too long, or a picture cannot be used.
            FileNotFoundError: An image file is missing.
        """
        columns = {"image_column": self.image_column, "caption_column": self.caption_column}
        if self.prompt_column is not None:
            columns["prompt_column"] = self.prompt_column
        need_columns(rows, **columns)
        captions = [caption_texts(row, self.caption_column, number) for number, row in enumerate(rows)]
        generator = batch_generator(self.seed, captions)
        texts = [of_row[draw_below(len(of_row), generator)] for of_row in captions]
        prompts = ["" if self.prompt_column is None else row[self.prompt_column] for row in rows]
        images = read_images(rows, self.image_column, self.augment, generator)
        return {**encode_captions(self.processor, prompts, texts), **self.processor(images=images)}
