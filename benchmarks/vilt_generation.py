"""ViLT-B/32 writes about images: with keys and values kept, and without, in one process, taking turns.

    python benchmarks/vilt_generation.py --out vilt_generation.json

Images of 384x512 px, prompts of 4 tokens, 20 tokens written whatever they are; random weights. Tokens a
second are what is written over the CPU time of the process, divided by the number of its threads; medians of
alternating calls. Both have to write the same.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from hf_mm import MMViltConfig, MMViltForImageToText

PROMPT, NEW = 4, 20
SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
}


def build(small: bool) -> Any:
    """The model, with weights large enough for words to differ from place to place."""
    torch.manual_seed(0)
    config = MMViltConfig(initializer_range=0.1 if small else 0.04, **(SMALL if small else {}))
    model = MMViltForImageToText(config).eval()
    model.generation_config.eos_token_id = None
    return model


def prompts(rows: int) -> dict[str, torch.Tensor]:
    """Images and the beginnings of texts about them."""
    chance = torch.Generator().manual_seed(0)
    return {
        "input_ids": torch.randint(1000, 30000, (rows, PROMPT), generator=chance),
        "pixel_values": torch.randn(rows, 3, 384, 512, generator=chance),
    }


def measure(model: Any, rows: int, beams: int, rounds: int) -> dict[str, float]:
    """Tokens a second of both, and how much faster one is."""
    taken: dict[bool, list[float]] = {True: [], False: []}
    texts = {}
    for _ in range(rounds):
        for use_cache, seconds in taken.items():
            start = time.process_time()
            options = {"do_sample": False, "num_beams": beams, "max_new_tokens": NEW}
            texts[use_cache] = model.generate(**prompts(rows), **options, use_cache=use_cache)
            seconds.append((time.process_time() - start) / torch.get_num_threads())
    if not torch.equal(texts[True], texts[False]):
        raise RuntimeError("The texts differ with and without a cache.")
    speed = {use_cache: rows * NEW / statistics.median(seconds) for use_cache, seconds in taken.items()}
    return {"kept": speed[True], "anew": speed[False], "faster_by": speed[True] / speed[False]}


def main() -> None:
    """Measure, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4], help="images of a batch")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4], help="1 writes greedily")
    parser.add_argument("--small", action="store_true", help="a tiny model, to see that this runs")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, table = build(args.small), {}
    for rows in args.rows:
        for beams in args.beams:
            found = table[f"{rows} images, {beams} beams"] = measure(model, rows, beams, args.rounds)
            print(
                f"{rows} images, {beams} beams: {found['kept']:6.1f} tokens/s, without a cache "
                f"{found['anew']:6.1f}, {found['faster_by']:.1f}x"
            )
    if args.out:
        versions = {"transformers": transformers.__version__, "torch": torch.__version__}
        facts = {"versions": versions, "threads": args.threads, "tokens_a_second": table}
        args.out.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
