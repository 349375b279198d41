"""Which words belong to which regions of a picture, for a BERT on regions: by attention, and by transport.

Attention from text to regions as in Cao et al. 2020, "Behind the Scene: Revealing the Secrets of Pre-trained
Vision-and-Language Models" (https://arxiv.org/abs/2005.07310). Plan of transport: word-region alignment of
Chen et al. 2020, "UNITER", section 3.2 and figure 2 (https://arxiv.org/abs/1909.11740).

Shapes: W words, T tokens of the text, N of them of words, L tokens with the tags behind, R regions, V those
that the model sees: a whole image first and [END] behind them, where it has such. Y x X pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..imaging.loading import load_rgb
from ..objectives.optimal_transport import cosine_cost, transport_plan
from .figures import HEAT, blank_figure, show_picture
from .vision_parts import attention_weights_kept
from .word_maps import words_and_tokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "WordRegions",
    "draw_regions",
    "word_region_attention",
    "word_region_figure",
    "word_region_transport",
]

MODEL_TYPE = "mm_region_bert"
COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")
DARK, LIGHT, HALF = "#1f2328", "#ffffff", 140  # of a label's text; grey levels


@dataclass(frozen=True)
class WordRegions:
    """How the words of a text lie on the regions of a picture.

    Attributes:
        words: The W words, split at blanks.
        shares: (W, R) float32 on the CPU, the shares of the regions in each word; each word's sum is 1.
        boxes: (R, 4) shares of the picture.
    """

    words: list[str]
    shares: Tensor
    boxes: Tensor

    def word_of_each_region(self) -> list[str]:
        """The word that has the largest share of each region."""
        return [self.words[number] for number in self.shares.argmax(dim=0).tolist()]


def word_region_attention(
    model: nn.Module,
    processor: Any,
    regions: Mapping[str, Any],
    text: str,
    method: Literal["last", "mean"] = "last",
) -> WordRegions:
    """From which regions each word takes, of all that it takes from regions.

    Args:
        model: An `MMRegionBertModel`, with or without a head, adapters included.
        processor: Its processor.
        regions: Of one picture, as `MMRegionProcessor` takes them, boxes as shares.
        text: One text; words are what stands between blanks.
        method: The weights of the "last" block in which text looks at regions, averaged over its heads; or
            the "mean" over all such blocks.

    Raises:
        ValueError: An unknown `method`, no such model, no word, or a text that is longer than the model
            reads.
    """
    if method not in ("last", "mean"):
        raise ValueError(f"`method`={method!r} must be 'last' or 'mean'.")
    encoder = _encoder(model)
    words, members, inputs = _inputs(encoder, processor, regions, text)
    with torch.no_grad(), attention_weights_kept(encoder):
        outputs = encoder(**inputs, output_attentions=True)
    length = inputs["input_ids"].shape[1]
    looks = [part[0].float().mean(dim=0) for part in outputs.cross_attentions or ()]  # (L, V) each
    if not looks:
        joint = [part[0].float().mean(dim=0) for part in outputs.attentions if part.shape[-1] > length]
        looks = [part[:length, length:] for part in joint]
    if not looks:
        raise ValueError(f"No block of `layers`={encoder.config.layers} lets text look at regions.")
    count = inputs["region_features"].shape[1]
    first = encoder.config.extra_regions
    look = looks[-1] if method == "last" else torch.stack(looks).mean(dim=0)
    look = look[: members.shape[1], first : first + count].cpu()  # (T, R)
    return _word_regions(words, members @ look, inputs)


def word_region_transport(
    model: nn.Module,
    processor: Any,
    regions: Mapping[str, Any],
    text: str,
    beta: float = 0.5,
    iterations: int = 1000,
) -> WordRegions:
    """To which regions each word goes, when all words go to all regions and it costs least.

    The plan is that of word-region alignment, between the last states of words and of regions, at a cost of
    1 - cosine. Training makes 50 iterations of it.

    Args:
        model: See `word_region_attention`. It need not have been trained with word-region alignment, but then
            its states have no reason to be near.
        processor: Its processor.
        regions: Of one picture.
        text: One text; words are what stands between blanks.
        beta: See `transport_plan`.
        iterations: See `transport_plan`.

    Raises:
        ValueError: As `word_region_attention`; or states of words and regions are of another width.
    """
    encoder = _encoder(model)
    widths = encoder.config.hidden_size, encoder.config.region_hidden_size
    if widths[0] != widths[1]:
        raise ValueError(
            f"Words are {widths[0]} wide and regions {widths[1]}, which cannot be compared; use "
            "`word_region_attention`."
        )
    words, members, inputs = _inputs(encoder, processor, regions, text)
    with torch.no_grad(), attention_weights_kept(encoder):
        outputs = encoder(**inputs)
    spoken = members.any(dim=0)  # (T,)
    states = outputs.last_hidden_state[:, : len(spoken)].float().cpu()[:, spoken]  # (1, N, D)
    seen: Any = encoder
    seen = seen.own_regions(outputs.region_last_hidden_state).float().cpu()  # (1, R, D)
    rows, columns = (torch.ones(1, part.shape[1], dtype=torch.bool) for part in (states, seen))
    plan = transport_plan(cosine_cost(states, seen), rows, columns, beta, iterations)[0]  # (N, R)
    return _word_regions(words, members[:, spoken] @ plan, inputs)


def draw_regions(
    image: object,
    boxes: Any,
    labels: Sequence[str] | None = None,
    colors: Sequence[str] | None = None,
    least_px: int = 480,
) -> Image.Image:
    """A copy of a picture with boxes on it and what each shows, large enough to be read.

    Args:
        image: Any picture, see `load_rgb`.
        boxes: (R, 4) shares of the picture: x1, y1, x2, y2.
        labels: A text for each box, such as a predicted class or the word that attends to it; none by
            default. An empty one is not drawn.
        colors: Of each box, by default in turn.
        least_px: A picture whose longer side is below is enlarged, by a whole factor, up to at least this.

    Returns:
        An RGB image.

    Raises:
        ValueError: There are not as many labels or colours as boxes, or boxes are no shares.
    """
    boxes = torch.as_tensor(boxes).float().reshape(-1, 4)
    for name, given in (("labels", labels), ("colors", colors)):
        if given is not None and len(given) != len(boxes):
            raise ValueError(
                f"`{name}` has {len(given)} entries for {len(boxes)} `boxes`; give one for each."
            )
    if len(boxes) and not (boxes.min() >= 0 and boxes.max() <= 1):
        raise ValueError(
            f"`boxes` must be shares of the image in 0..1, got {boxes.min():.4g} to {boxes.max():.4g}; "
            "divide by width and height."
        )
    picture = Image.fromarray(load_rgb(image))
    factor = max(1, -(-least_px // max(picture.size)))
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)
    line, size_px = max(2, max(picture.size) // 240), max(12, max(picture.size) // 34)
    font, draw = ImageFont.load_default(size=size_px), ImageDraw.Draw(picture)
    places = [_in_pixels(box, picture) for box in boxes.tolist()]
    inks = [COLORS[number % len(COLORS)] for number in range(len(places))] if colors is None else colors
    for place, ink in zip(places, inks, strict=True):
        draw.rectangle(place, outline=ink, width=line)
    taken: list[tuple[float, float, float, float]] = []
    for place, ink, text in zip(places, inks, labels or [""] * len(places), strict=True):
        if text:
            _draw_label(draw, picture.size, place, text, ink, font, taken)
    return picture


def word_region_figure(
    picture: np.ndarray, found: WordRegions, names: Sequence[str] | None = None, title: str = ""
) -> "Figure":
    """The picture with boxes and the word of each, and beside it the shares of all words and regions.

    Args:
        picture: (Y, X, 3) uint8.
        found: As `word_region_attention` and `word_region_transport` return.
        names: Of the regions, such as their predicted classes or tags; by default their numbers, from 1.
        title: Of the figure.

    Returns:
        A figure of two axes.

    Raises:
        ValueError: There are not as many `names` as regions.
    """
    count = len(found.boxes)
    names = [str(number) for number in range(1, count + 1)] if names is None else list(names)
    if len(names) != count:
        raise ValueError(f"`names` has {len(names)} entries for {count} regions; give one for each.")
    figure = blank_figure(5 + max(3.0, 0.45 * count), max(4.0, 0.35 * len(found.words) + 1.6))
    figure.suptitle(title, parse_math=False)
    left, right = figure.subplots(1, 2, width_ratios=(5, max(3.0, 0.45 * count)))
    labels = [f"{name}: {word}" for name, word in zip(names, found.word_of_each_region(), strict=True)]
    show_picture(left, np.asarray(draw_regions(picture, found.boxes, labels)), "Each region and its word")
    heat = right.imshow(found.shares.numpy(), cmap=HEAT, vmin=0, aspect="auto")
    right.set_xticks(range(count), names, rotation=90 if max(map(len, names)) > 2 else 0, parse_math=False)
    right.set_yticks(range(len(found.words)), found.words, parse_math=False)
    for label, number in zip(right.get_xticklabels(), range(count), strict=True):
        label.set_color(COLORS[number % len(COLORS)])
    right.set_title("Share of each region in each word", fontsize="medium")
    figure.colorbar(heat, ax=right)
    return figure


def _encoder(model: nn.Module) -> PreTrainedModel:
    """The bare model."""
    models = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    # A head has the model type of what it is on; that has embeddings of its own.
    kind = [part for part in models if part.config.model_type == MODEL_TYPE]
    found = [part for part in kind if hasattr(part, "region_embeddings")]
    if len(found) != 1:
        types = ", ".join(dict.fromkeys(part.config.model_type for part in models)) or "none of transformers"
        raise ValueError(
            f"{type(model).__name__} is no model of type {MODEL_TYPE} (found: {types}), which reads words "
            "and regions; of patches see `word_attention`. transformers' LXMERT and VisualBERT load by "
            "`MMRegionBertModel.from_pretrained`."
        )
    return found[0]


def _inputs(
    encoder: PreTrainedModel, processor: Any, regions: Mapping[str, Any], text: str
) -> tuple[list[str], Tensor, dict[str, Tensor]]:
    """The words, (W, T) shares of the tokens in each, and what the model takes."""
    words, tokens, members = words_and_tokens(
        processor.tokenizer, text, encoder.config.max_position_embeddings
    )
    inputs = processor(text=[" ".join(words)], regions=[regions])
    # With tags, [SEP] and they stand behind.
    assert inputs["input_ids"][0, : len(tokens) - 1].tolist() == tokens[:-1]
    device, dtype = encoder.device, encoder.dtype
    return (
        words,
        members,
        {name: part.to(device, dtype if part.is_floating_point() else None) for name, part in inputs.items()},
    )


def _word_regions(words: list[str], shares: Tensor, inputs: Mapping[str, Tensor]) -> WordRegions:
    """(W, R) shares of any sum, as those of words."""
    boxes = inputs["region_boxes"][0].float().cpu()
    return WordRegions(words, shares / shares.sum(dim=1, keepdim=True), boxes)


def _in_pixels(box: Sequence[float], picture: Image.Image) -> tuple[float, float, float, float]:
    width, height = picture.width - 1, picture.height - 1
    return box[0] * width, box[1] * height, box[2] * width, box[3] * height


def _draw_label(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    place: tuple[float, float, float, float],
    text: str,
    ink: str,
    font: Any,
    taken: list[tuple[float, float, float, float]],
) -> None:
    """A text on a ground of the box's colour, above the box or, where that is taken, further down."""
    x1, y1, x2, y2 = draw.textbbox((0, 0), text, font=font)
    width, height = x2 - x1 + 6, y2 - y1 + 6
    left = min(max(0, place[0]), max(0, size[0] - width))
    top = min(max(0, place[1] - height), size[1] - height)
    steps = [top + step * height for step in range(int((size[1] - top) // height))]
    free = [y for y in steps if not any(_meet((left, y, left + width, y + height), other) for other in taken)]
    top = free[0] if free else top
    ground = (left, top, left + width, top + height)
    taken.append(ground)
    draw.rectangle(ground, fill=ink)
    red, green, blue = ImageColor.getrgb(ink)[:3]
    dark = 0.299 * red + 0.587 * green + 0.114 * blue > HALF
    draw.text((left + 3 - x1, top + 3 - y1), text, fill=DARK if dark else LIGHT, font=font)


def _meet(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
