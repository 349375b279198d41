"""The model card of a text-to-image run: what learnt what, how to draw with it, what its pictures show."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.pixel_rows import PixelRows
from ..evaluation.drawn_attributes import attribute_table
from .phased_card import GeneratorCard

__all__ = ["text_to_image_card", "with_drawn_pages"]

TASK, SPLIT = "text-to-image", "prompts"
UNKNOWN = "It knows no other words and things than these."
CREDITS = {"openmoji": "Training pictures: OpenMoji, CC BY-SA 4.0."}
PAGES = """

A row of pictures for each text:

![Drawn pictures](grid.png)"""
ATTRIBUTES = "\n\nPictures that show the colour, shape, place and size of their text, in percent:\n\n"


def text_to_image_card(
    objective: Any,
    train: PixelRows,
    name: str,
    source: str,
    drawing: Mapping[str, Any],
    base: str | None = None,
    lora_rank: int = 0,
) -> GeneratorCard:
    """What is known before anything is drawn.

    Args:
        objective: A `DiffusionObjective`.
        train: What it learns from, with texts.
        name: Of the model.
        source: Of the pictures: a name, a folder, of which the last part is written, or a Hub id.
        drawing: Arguments that pictures are drawn with.
        base: Folder or Hub id of the model that it goes on from; `None` from nothing.
        lora_rank: Of adapters, which alone are saved then.

    Raises:
        ValueError: The pictures have no texts.
    """
    if not train.texts:
        raise ValueError("`train` has no texts; give the rows that the model learns from.")
    shown = Path(source).name if Path(source).is_dir() else source
    way = "from nothing" if base is None else f"on from {base}"
    way += f", by adapters of rank {lora_rank}," if lora_rank else ""
    space = "pixels" if objective.vae is None else "latents"
    text = (
        f"Draws what a text asks for: {type(objective.denoiser).__name__} in {space}, trained {way} on "
        f"{len(train):,} pictures of {shown} with {train.image_size} px, and their texts. "
    )
    text += UNKNOWN if base is None else f"Its licence is that of {base}."
    text += f" {CREDITS[source]}" if source in CREDITS else ""
    options = [f"{name}={value!r}" for name, value in drawing.items() if name != "chunk_size"]
    asked = ", ".join([repr(train.texts[0][0]), *options])
    more: dict[str, Any] = {"license": "other"} if base is not None else {}
    if base is not None and not Path(base).is_dir():
        more["metadata"] = {"base_model": base}
    if lora_rank:
        more |= {"tags": ("lora",), "base": base}
    call = f"image = pipeline({asked}).images[0]"
    return GeneratorCard(name, text, shown, SPLIT, task=TASK, call=call, **more)


def with_drawn_pages(
    card: GeneratorCard, attributes: Mapping[str, Any] | None = None
) -> tuple[GeneratorCard, dict[str, float]]:
    """The card with `grid.png`, and the table of what the pictures show.

    Args:
        card: Of `text_to_image_card`.
        attributes: Results of `drawn_attribute_results` by "drawn" and "real pictures"; `None` for none.

    Returns:
        The card, and the shares of drawn pictures that show what was asked for, as metrics for it.
    """
    text, metrics = card.description + PAGES, {}
    if attributes:
        text += ATTRIBUTES + attribute_table(attributes)
        for judge in [judge for judge in ("pixels", "answers") if judge in attributes["drawn"]]:
            found = attributes["drawn"][judge]["accuracy"]
            metrics |= {f"{name} by {judge}": share for name, share in found.items()}
    return replace(card, description=text), metrics
