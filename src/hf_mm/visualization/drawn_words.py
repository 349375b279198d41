"""Where each word of a prompt lies on the picture that was drawn of it, by cross-attention.

Tang et al. 2023, "What the DAAM: Interpreting Stable Diffusion Using Cross Attention"
(https://arxiv.org/abs/2210.04885): the shares that places give to a word, over all steps, layers and heads,
each layer enlarged to the finest.

Shapes: B pictures, H heads, Q places that look, L tokens, W words, G x F places of the finest layer.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from ..generators.diffusion.text_states import text_context
from .denoising import TAKEN, seen_inputs
from .word_maps import WordMaps, words_and_tokens

__all__ = ["DrawnWords", "drawn_word_attention", "record_cross_attention"]

NO_LIMIT = 1 << 30


@dataclass(frozen=True)
class DrawnWords:
    """A picture and its words.

    Attributes:
        image: What was drawn.
        found: The words of the prompt and their maps, for `word_map_figure`.
    """

    image: Image.Image
    found: WordMaps


def drawn_word_attention(pipeline: Any, prompt: str, **call: Any) -> DrawnWords:
    """Draw a picture, and see which places look at which word.

    The picture is the same as without looking.

    Args:
        pipeline: An `ImageDiffusionPipeline` that reads texts.
        prompt: One text; words are what stands between blanks.
        **call: As the pipeline is called: `seed`, `num_inference_steps`, `guidance_scale`, ...

    Raises:
        ValueError: The denoiser reads no texts, several prompts or pictures, no word, a text that is longer
            than the context; else as the call.
    """
    if not isinstance(prompt, str) or call.get("num_images_per_prompt", 1) != 1 or set(TAKEN) & set(call):
        raise ValueError(
            f"`prompt`={prompt!r:.80}, with {sorted(call)}: one text and one picture are looked at, without "
            f"{', '.join(TAKEN)}."
        )
    most = None
    if pipeline.tokenizer is not None and pipeline.text_encoder is not None:
        most = text_context(pipeline.tokenizer, pipeline.text_encoder)
    with record_cross_attention(pipeline.denoiser) as maps, seen_inputs(pipeline.denoiser) as seen:
        words, _, members = words_and_tokens(pipeline.tokenizer, prompt, most or NO_LIMIT)
        image = pipeline(prompt, **call).images[0]
    height, width = seen[0].shape[2:]
    patch = pipeline.denoiser.config.get("patch_size")
    summed: dict[tuple[int, int], Tensor] = {}
    for shares in maps:
        grid = _grid(shares.shape[2], height, width, patch)
        one = shares[-1].float().mean(0)[-grid[0] * grid[1] :, : members.shape[1]]  # (Q, T) of what is wanted
        summed[grid] = summed.get(grid, torch.zeros(())) + (members @ one.cpu().T).unflatten(1, grid)
    finest = max(summed)
    layers = [interpolate(part[None], finest, mode="bilinear")[0] for part in summed.values()]
    found = torch.stack(layers).sum(0)  # (W, G, F)
    return DrawnWords(image, WordMaps(words, found / found.sum((1, 2), keepdim=True)))


@contextmanager
def record_cross_attention(denoiser: Any) -> Generator[list[Tensor]]:
    """Within it, each call adds the shares that places give to tokens, (B, H, Q, L) for each layer in order.

    Args:
        denoiser: `UNet2DConditionModel`, whose attention processors are put back afterwards, or
            `MMDiTModel`; in its joint attention Q are the tokens and, behind them, the places.

    Raises:
        ValueError: It reads no texts, or attends to them in a way that cannot be recorded.
    """
    if "text_dim" in denoiser.config:
        with denoiser.record_text_attention() as maps:
            yield maps
        return
    if denoiser.config.get("cross_attention_dim") is None:
        raise ValueError(f"{type(denoiser).__name__} reads no texts, so nothing looks at one.")
    processors = dict(denoiser.attn_processors)
    unknown = sorted({type(one).__name__ for one in processors.values() if "Added" in type(one).__name__})
    if unknown:
        raise ValueError(
            f"{type(denoiser).__name__} attends by {unknown}, which mixes text and picture before the shares "
            "are taken; only plain cross-attention can be recorded."
        )
    maps = []
    denoiser.set_attn_processor({name: _Recording(one, maps) for name, one in processors.items()})
    try:
        yield maps
    finally:
        denoiser.set_attn_processor(processors)


class _Recording:
    """Does what a processor of diffusers does, and keeps the shares where a text is looked at."""

    def __init__(self, processor: Any, maps: list[Tensor]) -> None:
        self.processor, self.maps = processor, maps

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        if encoder_hidden_states is not None:
            text = encoder_hidden_states
            if attn.norm_cross:
                text = attn.norm_encoder_hidden_states(text)
            mask = attn.prepare_attention_mask(attention_mask, text.shape[1], len(hidden_states))
            query, key = (
                attn.head_to_batch_dim(part) for part in (attn.to_q(hidden_states), attn.to_k(text))
            )
            shares = attn.get_attention_scores(query, key, mask)  # (B * H, Q, L)
            self.maps.append(shares.unflatten(0, (-1, attn.heads)).detach())
        return self.processor(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


def _grid(places: int, height: int, width: int, patch: int | None) -> tuple[int, int]:
    """Rows and columns of a layer."""
    if patch is not None:
        return height // patch, width // patch
    for factor in range(1, max(height, width) + 1):
        rows, columns = ceil(height / factor), ceil(width / factor)
        if rows * columns == places:
            return rows, columns
    raise ValueError(f"A layer has {places} places, which are no smaller copy of {height} x {width}.")
