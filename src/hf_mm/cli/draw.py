"""`hf-mm draw`: pictures by any saved generator: GAN, transformer over codes, autoencoder, diffusion."""

import argparse
import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["main"]

COUNTS = ("num_images_per_prompt", "batch_size")
"""How pipelines call the number of pictures, the first one that they have."""
OPTIONS = {
    "prompt": "prompt",
    "classes": "class_labels",
    "negative_prompt": "negative_prompt",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
}
"""What an option of the command is called by pipelines."""
FLAGS = {"classes": "class"}
INDEX, LORA_FILE = "model_index.json", "pytorch_lora_weights.safetensors"
COLUMNS = 8
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
DPI = 150


def main(argv: Sequence[str]) -> int:
    """Write a grid of pictures, and what else is asked for, and print the names; returns the exit status.

    Raises:
        ValueError: The pipeline does not take what is asked for.
    """
    args = _parser().parse_args(argv)

    from ..hub.saving import atomic_write
    from ..visualization.sample_grids import sample_grid

    pipeline = _load(args.model, args.lora, bool(args.strip or args.words))
    call = _call(pipeline, args)
    asked = call.get("prompt") or call.get("class_labels") or []
    _check_looks(pipeline, args, asked)
    images = pipeline(**call, **_chance(pipeline, args.seed, max(len(asked), 1) * args.count)).images
    labels = [str(one) for one in asked]
    page = sample_grid(images, args.count if labels else min(args.count, COLUMNS), row_labels=labels or None)
    figures: dict[str, Any] = {args.out: page}
    firsts = [args.seed + number * args.count for number in range(max(len(asked), 1))]
    if args.strip:
        figures[args.strip] = _strip(pipeline, call, firsts, labels, args.frames)
    if args.words:
        figures[args.words] = _words(pipeline, dict(call), args.seed)
    for path, figure in figures.items():
        with atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=DPI) if path == args.words else figure.save(temporary)
    print("\n".join(figures))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf-mm draw", description=__doc__, allow_abbrev=False)
    parser.add_argument("model", help="a saved pipeline: folder or Hub id")
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--prompt", nargs="+", metavar="TEXT", help="a row of pictures for each text")
    asked.add_argument(
        "--class", nargs="+", dest="classes", metavar="NAME", help="a row for each class, by name or number"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="where the grid goes, such as grid.png")
    parser.add_argument("--count", type=int, default=8, help="pictures of each text or class, or of all (8)")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture; the next ones count on")
    parser.add_argument("--steps", type=int, help="of sampling, by default as the pipeline has it")
    parser.add_argument("--guidance", type=float, help="how strongly what is asked for is followed")
    parser.add_argument("--negative_prompt", metavar="TEXT", help="what pictures shall not show")
    parser.add_argument("--lora", metavar="FOLDER", help="adapters for the denoiser")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="what else the pipeline takes: truncation=0.7, temperature=0.9, eta=1.0",
    )
    parser.add_argument(
        "--strip",
        metavar="FILE",
        help="diffusion: the first picture of each row, from noise on, step by step",
    )
    parser.add_argument("--frames", type=int, default=8, help="steps in the strip (8)")
    parser.add_argument("--words", metavar="FILE", help="diffusion: where each word of one prompt lies")
    return parser


def _load(model: str, lora: str | None, steps: bool) -> Any:
    """A pipeline with its adapters; Stable Diffusion as our own where its steps are looked at."""
    import torch
    from diffusers import DiffusionPipeline, StableDiffusionPipeline

    folder = Path(model)
    if folder.is_dir() and (folder / LORA_FILE).is_file() and not (folder / INDEX).is_file():
        raise ValueError(
            f"{model} has adapters, not a pipeline; draw by the model that they were trained on, with "
            f"`--lora {model}`."
        )
    if folder.is_dir() and not (folder / INDEX).is_file():
        raise ValueError(
            f"{model} is no saved pipeline: it has no model_index.json. Give the folder of a whole pipeline, "
            "not of one of its parts."
        )
    pipeline: Any = _fetched(model, "pipeline", DiffusionPipeline.from_pretrained)
    if steps and type(pipeline) is StableDiffusionPipeline:
        from .. import ImageDiffusionPipeline

        pipeline = ImageDiffusionPipeline.from_stable_diffusion(model)
    if lora is not None:
        if not hasattr(pipeline, "load_lora_weights"):
            raise ValueError(f"{_name(pipeline)} takes no adapters; leave `--lora` out.")
        if Path(lora).is_dir() and not any(Path(lora).glob("*.safetensors")):
            raise FileNotFoundError(f"{lora} has no adapters: there is no {LORA_FILE} in it.")
        _fetched(lora, "LoRA", pipeline.load_lora_weights)
    pipeline.set_progress_bar_config(disable=None)  # shown in a terminal only
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def _fetched(place: str, kind: str, load: Callable[[str], Any]) -> Any:
    """What is loaded from a folder or the Hub; whatever goes wrong there is said in one line."""
    if Path(place).exists():
        return load(place)
    try:
        return load(place)
    except Exception as error:  # the Hub's, of its network, of its cache
        raise FileNotFoundError(
            f"{place}: there is no such folder, and the Hub gives no such {kind}; give a saved one."
        ) from error


def _call(pipeline: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of the pipeline, but for its chance."""
    accepted = inspect.signature(pipeline.__call__).parameters
    if args.count < 1:
        raise ValueError(f"`--count`={args.count} must be at least 1.")
    call: dict[str, Any] = {}
    for option, name in OPTIONS.items():
        value = getattr(args, option)
        if value is None:
            continue
        if name not in accepted:
            raise ValueError(
                f"{_name(pipeline)} takes no `{name}`; leave `--{FLAGS.get(option, option)}` out."
            )
        call[name] = value
    if "class_labels" in call:
        names = _class_names(pipeline)
        call["class_labels"] = [
            int(label) if label.isdecimal() and label not in names else label for label in args.classes
        ]
    for setting in args.set:
        name, equals, value = setting.partition("=")
        if not equals or name not in accepted:
            known = ", ".join(one for one in accepted if one not in ("args", "kwargs"))
            raise ValueError(f"`--set {setting}` sets nothing that {_name(pipeline)} takes: {known}.")
        call[name] = _value(value)
    counts = [name for name in COUNTS if name in accepted]
    if not counts and args.count > 1:
        raise ValueError(f"{_name(pipeline)} takes none of {', '.join(COUNTS)}; ask for `--count 1`.")
    return call | ({counts[0]: args.count} if counts else {})


def _chance(pipeline: Any, seed: int, count: int) -> dict[str, Any]:
    """Seeds that count on from picture to picture."""
    if "seed" in inspect.signature(pipeline.__call__).parameters:
        return {"seed": seed}
    import torch

    return {"generator": [torch.Generator().manual_seed(seed + number) for number in range(count)]}


def _check_looks(pipeline: Any, args: argparse.Namespace, asked: Sequence[Any]) -> None:
    """Before minutes of drawing."""
    for option in ("out", "strip", "words"):
        path = getattr(args, option)
        if path and Path(path).suffix.lower() not in ENDINGS:
            raise ValueError(f"`--{option} {path}` does not end in one of {', '.join(ENDINGS)}.")
    if args.frames < 1:
        raise ValueError(f"`--frames`={args.frames} must be at least 1.")
    wished = [f"`--{name}`" for name in ("strip", "words") if getattr(args, name)]
    if wished and not hasattr(pipeline, "denoiser"):
        raise ValueError(
            f"{_name(pipeline)} does not denoise step by step, as ImageDiffusionPipeline does; leave "
            f"{' and '.join(wished)} out."
        )
    if args.words and (args.prompt is None or len(asked) != 1):
        raise ValueError(f"`--words` looks at one `--prompt`, got {len(args.prompt or ())}; give one.")


def _strip(pipeline: Any, call: dict[str, Any], seeds: list[int], labels: list[str], frames: int) -> Any:
    """Of the first picture of each row."""
    from ..visualization.denoising import denoising_strip, record_denoising

    film = record_denoising(pipeline, **call | {"num_images_per_prompt": 1, "seed": seeds})
    return denoising_strip(pipeline, film, frames, labels=labels or None)


def _words(pipeline: Any, call: dict[str, Any], seed: int) -> Any:
    """A figure of the first picture."""
    import numpy as np

    from ..visualization.drawn_words import drawn_word_attention
    from ..visualization.word_maps import word_map_figure

    (prompt,) = call.pop("prompt")
    drawn = drawn_word_attention(pipeline, prompt, **call | {"num_images_per_prompt": 1, "seed": seed})
    return word_map_figure(np.asarray(drawn.image.convert("RGB")), drawn.found, prompt)


def _class_names(pipeline: Any) -> set[str]:
    """Of a pipeline, or of its generator."""
    labels = pipeline.config.get("id2label") or {}
    generator = pipeline.components.get("generator")
    named = [] if generator is None else generator.config.get("class_names") or []
    return {str(name) for name in (*labels.values(), *named)}


def _value(text: str) -> Any:
    """A number, a truth value or a list, as JSON has it; else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _name(pipeline: Any) -> str:
    return type(pipeline).__name__
