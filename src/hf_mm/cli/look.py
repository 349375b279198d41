"""`hf-mm look`: pictures of what a vision transformer sees."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

__all__ = ["main"]

# How the name of a saved class ends: the Auto class that loads it whole. Of any other the bare model will do.
HEADS = {
    "ForImageClassification": "AutoModelForImageClassification",
    "ForMaskedImageModeling": "AutoModelForMaskedImageModeling",
    "ForConditionalGeneration": "AutoModelForImageTextToText",
}
DPI = 150


def main(argv: Sequence[str]) -> int:
    """Write the pictures and print their names; returns the exit status.

    Raises:
        ValueError: The model has no vision transformer, or nothing of it reads `--text`.
    """
    parser = argparse.ArgumentParser(prog="hf-mm look", description=__doc__)
    parser.add_argument(
        "model",
        help="folder or Hub id of a vision transformer, CLIP, ViLT, vision-language model, or of an adapter",
    )
    parser.add_argument("images", nargs="+", metavar="image", help="path or address of an image")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the pictures go")
    parser.add_argument(
        "--text",
        help="of CLIP or ViLT: where in the first image its words are, and of CLIP which of them match",
    )
    args = parser.parse_args(argv)

    import torch
    from transformers import AutoImageProcessor

    from ..hub.saving import atomic_folder
    from ..imaging.loading import load_images

    pictures = load_images(args.images)
    model = _load(args.model, args.text is not None)
    processor = AutoImageProcessor.from_pretrained(args.model)
    # One view of each picture: the first, where an image processor also cuts crops.
    views = [processor(images=picture, return_tensors="pt")["pixel_values"][:1] for picture in pictures]
    sizes = {tuple(view.shape[-2:]) for view in views}
    if len(sizes) > 1:
        raise ValueError(
            f"The pictures become {len(sizes)} sizes, {sorted(sizes)} px; look at one at a time."
        )
    figures = dict(_figures(model, processor, torch.cat(views)))
    if args.text is not None:
        figures |= _word_figures(args.model, model, pictures[0], args.text)
    with atomic_folder(args.out) as temporary:
        for name, figure in figures.items():
            figure.savefig(temporary / f"{name}.png", dpi=DPI)
    print("\n".join(str(Path(args.out, f"{name}.png")) for name in figures))
    return 0


def _load(name: str, with_text: bool) -> Any:
    """The saved model in evaluation mode."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(_base(name))
    saved_as = (config.architectures or [""])[0]
    heads = [auto for ending, auto in HEADS.items() if saved_as.endswith(ending)]
    auto = getattr(transformers, heads[0] if heads else "AutoModel")
    model, loading = auto.from_pretrained(name, output_loading_info=True)
    missing = [weight for weight in loading["missing_keys"] if "text" in weight]
    if with_text and missing:
        raise ValueError(
            f"{name} was saved as {saved_as}, without a text tower ({missing[0]} is missing); "
            "leave out `--text`."
        )
    return model.eval()


def _base(name: str) -> str:
    """The model that an adapter belongs to, or the model itself."""
    if not Path(name, "adapter_config.json").exists():
        return name
    from peft import PeftConfig

    return str(PeftConfig.from_pretrained(name).base_model_name_or_path)


def _figures(model: Any, processor: Any, pixel_values: "Tensor") -> Iterator[tuple[str, "Figure"]]:
    """By the names of their files: filters, positions if there is a table, attention of images alone."""
    from ..visualization import attention, attention_distance, filters, positions
    from ..visualization.figures import seen_images
    from ..visualization.vision_parts import record_attention, vision_parts

    parts = vision_parts(model)
    if parts.stem_filters is None:
        yield "filters", filters.filter_figure(filters.filter_components(model))
    else:
        title = "First filters of the convolutional stem"
        yield "filters", filters.filter_figure(filters.stem_filters(model), title)
    if parts.positions is not None:
        yield "positions", positions.position_figure(positions.position_similarity(model))
    if not parts.images_alone:
        return
    maps = {
        "Rollout": attention.input_attention(model, pixel_values, "rollout"),
        "Last block": attention.input_attention(model, pixel_values, "last"),
    }
    seen = list(seen_images(pixel_values, processor))
    yield "input_attention", attention.attention_figure(seen, maps)
    distances = attention_distance.attention_distance(model, pixel_values)
    recorded = record_attention(model, pixel_values[:1])
    uniform = attention_distance.uniform_distance(recorded.grid, recorded.patch_size)
    yield "attention_distance", attention_distance.distance_figure(distances, uniform)


def _word_figures(name: str, model: Any, picture: Any, text: str) -> "dict[str, Figure]":
    from transformers import AutoProcessor

    from ..visualization.figures import seen_images
    from ..visualization.word_maps import word_attention, word_map_figure, word_transport
    from ..visualization.words import word_figure, word_relevance

    processor = AutoProcessor.from_pretrained(name)
    images = getattr(processor, "image_processor", processor)
    seen = seen_images(images(picture, return_tensors="pt")["pixel_values"], images)[0]
    if model.config.model_type != "mm_vilt":
        return {"word_relevance": word_figure(seen, word_relevance(model, processor, picture, text))}
    attention = word_attention(model, processor, picture, text)
    transport = word_transport(model, processor, picture, text)
    return {
        "word_attention": word_map_figure(seen, attention, "Patches that a word attends to"),
        "word_transport": word_map_figure(seen, transport, "Patches that a word is moved to"),
    }
