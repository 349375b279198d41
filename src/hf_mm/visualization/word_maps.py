"""Where a model that reads text and patches together sees each word: by optimal transport, and by attention.

Plan of transport: Kim et al. 2021, "ViLT: Vision-and-Language Transformer Without Convolution or Region
Supervision", figure 4 (https://arxiv.org/abs/2102.03334). Attention: rollout of Abnar &
Zuidema 2020, "Quantifying Attention Flow in Transformers", section 3 (https://arxiv.org/abs/2005.00928).

Shapes: W words, T tokens of the text, N of them of words, G x F patches (rows x columns), M = G * F, D width,
L = T + 1 + M tokens of a pair: the text, the image's [CLS], its patches row by row.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..imaging.loading import load_rgb
from ..objectives.optimal_transport import cosine_cost, transport_plan
from .attention import attention_rollout
from .figures import blank_figure, show_heat, show_picture
from .vision_parts import attention_weights_kept

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "WordMaps",
    "stand_out",
    "word_attention",
    "word_map_figure",
    "word_transport",
    "words_and_tokens",
]

MODEL_TYPE = "mm_vilt"
COLUMNS = 5
# In standard deviations above the mean of a map: where the paper's figure begins to show, and is brightest.
SHOWN_FROM, SHOWN_TO = 1.0, 3.0


@dataclass(frozen=True)
class WordMaps:
    """How each word of a text lies on an image.

    Attributes:
        words: The W words, split at blanks.
        maps: (W, G, F) float32 on the CPU, the shares of the patches in each word; each word's sum is 1.
    """

    words: list[str]
    maps: Tensor


@dataclass(frozen=True)
class Pair:
    """A text and an image as a model takes them.

    Attributes:
        inputs: What the model takes, a batch of one.
        words: The W words, split at blanks.
        members: (W, T) shares of the tokens in each word, a row's sum is 1; special tokens are in none.
        grid: Rows and columns of patches, (G, F).
    """

    inputs: dict[str, Tensor]
    words: list[str]
    members: Tensor
    grid: tuple[int, int]


def word_transport(
    model: nn.Module,
    processor: Any,
    image: object,
    text: str,
    beta: float = 0.5,
    iterations: int = 1000,
) -> WordMaps:
    """To which patches each word goes, when all words go to all patches and it costs least.

    The plan is that of word-patch alignment, between the last states of the words and of the patches, at a
    cost of 1 - cosine. Training makes 50 iterations of it; the map is clearer after 1,000, as in the paper.

    Args:
        model: An `MMViltModel`, with or without a head, adapters included. It need not have been trained with
            word-patch alignment, but then its states have no reason to be near.
        processor: Its processor.
        image: Any picture, see `load_rgb`.
        text: One text; words are what stands between blanks.
        beta: See `transport_plan`.
        iterations: See `transport_plan`.

    Raises:
        ValueError: No such model, no word, or a text that is longer than the model reads.
    """
    encoder = _encoder(model)
    pair = _pair(encoder, processor, image, text)
    with torch.no_grad(), attention_weights_kept(encoder):
        states = encoder(**pair.inputs).last_hidden_state.float()  # (1, L, D)
    length = pair.members.shape[1]
    spoken = pair.members.any(dim=0)  # (T,)
    words, patches = states[:, :length][:, spoken], states[:, length + 1 :]  # (1, N, D), (1, M, D)
    every = torch.ones(1, words.shape[1] + patches.shape[1], dtype=torch.bool, device=states.device)
    rows, columns = every.split((words.shape[1], patches.shape[1]), dim=1)
    plan = transport_plan(cosine_cost(words, patches), rows, columns, beta, iterations)[0]  # (N, M)
    return _word_maps(pair, pair.members[:, spoken] @ plan.cpu())


def word_attention(
    model: nn.Module,
    processor: Any,
    image: object,
    text: str,
    method: Literal["rollout", "last"] = "rollout",
) -> WordMaps:
    """From which patches each word takes, of all that it takes from patches.

    Args:
        model: See `word_transport`.
        processor: Its processor.
        image: Any picture, see `load_rgb`.
        text: One text; words are what stands between blanks.
        method: "rollout" through all blocks, see `attention_rollout`, or the weights of the "last" block,
            averaged over its heads.

    Raises:
        ValueError: An unknown `method`; else see `word_transport`.
    """
    if method not in ("rollout", "last"):
        raise ValueError(f"`method`={method!r} must be 'rollout' or 'last'.")
    encoder = _encoder(model)
    pair = _pair(encoder, processor, image, text)
    with torch.no_grad(), attention_weights_kept(encoder):
        attentions = encoder(**pair.inputs, output_attentions=True).attentions
    last = attentions[-1].float().mean(dim=1)
    taken = (attention_rollout(attentions) if method == "rollout" else last)[0]  # (L, L)
    length = pair.members.shape[1]
    return _word_maps(pair, pair.members @ taken[:length, length + 1 :].cpu())


def stand_out(maps: Tensor) -> Tensor:
    """What stands out of each map, as in figure 4 of the paper.

    Args:
        maps: (W, G, F).

    Returns:
        (W, G, F), 0 where a patch is less than one standard deviation above the mean of its map, 1 from three
        on, and between them in proportion. A flat map has nothing that stands out.
    """
    flat = maps.flatten(1)  # (W, M)
    mean, spread = flat.mean(dim=1, keepdim=True), flat.std(dim=1, keepdim=True, correction=0)
    # What is equal but for rounding must not be blown up.
    scores = (flat - mean) / spread.clamp(min=1e-5 * float(flat.abs().max()) or 1.0)
    shown = (scores.clamp(SHOWN_FROM, SHOWN_TO) - SHOWN_FROM) / (SHOWN_TO - SHOWN_FROM)
    return shown.view_as(maps)


def word_map_figure(picture: np.ndarray, found: WordMaps, title: str = "") -> "Figure":
    """The picture, and for each word the patches that stand out, see `stand_out`.

    Args:
        picture: (Y, X, 3) uint8, whole: the image processor of the model cuts nothing away.
        found: As `word_transport` and `word_attention` return; all maps share one scale.
        title: Of the figure.

    Returns:
        A figure of 1 + W axes.
    """
    count = 1 + len(found.words)
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure = blank_figure(columns * 2.4, rows * 2.4 * picture.shape[0] / picture.shape[1] + 0.4 * rows)
    figure.suptitle(title, parse_math=False)
    show_picture(figure.add_subplot(rows, columns, 1), picture, "Input")
    heats = stand_out(found.maps)
    for number, (word, heat) in enumerate(zip(found.words, heats, strict=True)):
        show_heat(figure.add_subplot(rows, columns, 2 + number), picture, heat.numpy(), word, 1.0)
    return figure


def _encoder(model: nn.Module) -> PreTrainedModel:
    """The bare model, whose patches keep their order."""
    models = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    # A head has the model type of what it is on; that has embeddings of its own.
    found = [part for part in models if part.config.model_type == MODEL_TYPE and hasattr(part, "embeddings")]
    if len(found) != 1:
        types = ", ".join(dict.fromkeys(part.config.model_type for part in models)) or "none of transformers"
        raise ValueError(
            f"{type(model).__name__} is no model of type {MODEL_TYPE} (found: {types}), which reads words "
            "and patches together and keeps the order of patches; load a checkpoint of transformers' ViLT by "
            "`MMViltModel.from_pretrained`, and CLIP's by `word_relevance`."
        )
    return found[0]


def words_and_tokens(tokenizer: Any, text: str, most: int) -> tuple[list[str], list[int], Tensor]:
    """What stands between blanks in a text, its tokens, and which of them are in which word.

    Args:
        tokenizer: A fast one.
        text: One text.
        most: Tokens that the model reads.

    Returns:
        W words; ids of T tokens, special ones included; (W, T) shares of the tokens in each word, a row's sum
        is 1, special tokens are in none.

    Raises:
        ValueError: There is no word, the text is too long, or the tokenizer keeps nothing of a word.
    """
    words = text.split()
    if not words:
        raise ValueError(f"`text`={text!r} has no word; give at least one.")
    text = " ".join(words)
    tokens = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    count = len(tokens["input_ids"])
    if count > most:
        raise ValueError(f"`text` has {count} tokens, special ones included, and the model reads {most}.")
    ends = np.cumsum([len(word) + 1 for word in words])  # of each word, behind its blank
    members = torch.zeros(len(words), count)
    for place, ((start, end), special) in enumerate(
        zip(tokens["offset_mapping"], tokens["special_tokens_mask"], strict=True)
    ):
        if not special:  # the blank before a word may be its token's, or a token
            start = end - len(text[start:end].lstrip())
            members[np.searchsorted(ends, start, side="right"), place] = 1
    lost = [word for word, row in zip(words, members, strict=True) if not row.any()]
    if lost:
        raise ValueError(f"`text` has {lost[0]!r}, of which the tokenizer keeps nothing; leave it out.")
    return words, tokens["input_ids"], members / members.sum(dim=1, keepdim=True)


def _pair(encoder: PreTrainedModel, processor: Any, image: object, text: str) -> Pair:
    most = encoder.config.max_position_embeddings
    words, tokens, members = words_and_tokens(processor.tokenizer, text, most)
    images = getattr(processor, "image_processor", processor)
    picture = images(images=[Image.fromarray(load_rgb(image))], return_tensors="pt")
    height, width = picture["pixel_values"].shape[-2:]
    inputs = {
        "input_ids": torch.tensor([tokens], device=encoder.device),
        "attention_mask": torch.ones(1, len(tokens), dtype=torch.long, device=encoder.device),
        "pixel_values": picture["pixel_values"].to(encoder.device, encoder.dtype),
        "pixel_mask": picture["pixel_mask"].to(encoder.device),
    }
    side = encoder.config.patch_size
    return Pair(inputs, words, members, (height // side, width // side))


def _word_maps(pair: Pair, shares: Tensor) -> WordMaps:
    """(W, M) shares of any sum, as maps."""
    shares = shares / shares.sum(dim=1, keepdim=True)
    return WordMaps(pair.words, shares.unflatten(1, pair.grid))
