"""One picture code by code: `VQAutoregressivePipeline` against transformers' `generate`, the same codes.

    python benchmarks/autoregressive.py --out autoregressive.json
    python benchmarks/autoregressive.py --sizes small  # or: large

Llamas over 512 and 4,096 codes with random weights, which both rivals read from one model, in float32; they
write all codes of a picture in turns. "guided" reads the empty condition beside the class, as `generate` does
with `guidance_scale`. Drawn codes begin with the same seed. Columns: milliseconds per code, medians over the
rounds, in wall time or, with `--cpu`, in time of the process; the ratio to the peer, above 1 is faster; and
how many of the codes are the peer's. `generate` is called at its best: it gets ids and a mask, keeps a
dynamic cache, and rules out by `suppress_tokens` what is no code.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import VQModel
from transformers import LlamaConfig, LlamaForCausalLM

from hf_mm import VQAutoregressivePipeline, environment

CLASSES = 10
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "codes": 512,
        "side": 8,
        "llama": {
            "hidden_size": 128,
            "intermediate_size": 352,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
        },
    },
    "large": {
        "codes": 4096,
        "side": 16,
        "llama": {
            "hidden_size": 512,
            "intermediate_size": 1376,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
        },
    },
}
WORKS = {
    "greedy": {"temperature": 0.0, "guidance_scale": 1.0},
    "drawn": {"temperature": 1.0, "guidance_scale": 1.0},
    "guided": {"temperature": 1.0, "guidance_scale": 2.0},
}


def build(size: dict[str, Any]) -> VQAutoregressivePipeline:
    """A pipeline with random weights, large enough that some codes are likelier than others."""
    torch.manual_seed(0)
    codes, side = size["codes"], size["side"]
    config = LlamaConfig(
        vocab_size=codes + CLASSES + 1,
        max_position_embeddings=1 + side * side,
        initializer_range=0.05,
        **size["llama"],
    )
    config.bos_token_id = config.eos_token_id = None
    vqvae = VQModel(num_vq_embeddings=codes, norm_num_groups=8, block_out_channels=(8,), sample_size=side)
    classes = {number: str(number) for number in range(CLASSES)}
    pipe = VQAutoregressivePipeline(vqvae.eval(), LlamaForCausalLM(config).eval(), None, classes, side, side)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def peer_codes(model: LlamaForCausalLM, pipe: VQAutoregressivePipeline, work: dict[str, float]) -> list[int]:
    """By transformers."""
    vocabulary = pipe.vocabulary
    prefixes, nothing = vocabulary.class_prefixes([1]), vocabulary.null_prefixes(1)
    options: dict[str, Any] = {"max_new_tokens": pipe.code_count, "top_k": 0}
    options["suppress_tokens"] = list(range(vocabulary.num_codes, vocabulary.size))
    options["do_sample"] = work["temperature"] > 0
    if work["guidance_scale"] != 1:
        options |= {"guidance_scale": work["guidance_scale"], "negative_prompt_ids": nothing}
    torch.manual_seed(0)
    return model.generate(prefixes, attention_mask=torch.ones_like(prefixes), **options)[0, 1:].tolist()


def own_codes(pipe: VQAutoregressivePipeline, work: dict[str, float]) -> list[int]:
    """By the pipeline."""
    return pipe(class_labels=1, seed=0, output_type="codes", **work).images.flatten().tolist()


def rivals(size: dict[str, Any], work: dict[str, float]) -> dict[str, Callable[[], list[int]]]:
    """The peer, the pipeline as it is, and laid out for inference; each with a model of its own."""
    peer, plain, fast = (build(size) for _ in range(3))
    fast.optimize_for_inference()
    return {
        "transformers": lambda: peer_codes(peer.transformer, peer, work),
        "hf_mm": lambda: own_codes(plain, work),
        "hf_mm, optimized": lambda: own_codes(fast, work),
    }


def measure(writers: dict[str, Callable[[], list[int]]], rounds: int, cpu: bool) -> list[dict[str, Any]]:
    """Let the rivals write in turns; the first round warms up."""
    clock = time.process_time if cpu else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in writers}
    written: dict[str, list[int]] = {}
    for turn in range(rounds + 1):
        for name, write in writers.items():
            start = clock()
            written[name] = write()
            if turn:
                times[name].append(1000 * (clock() - start) / len(written[name]))
    medians = {name: statistics.median(found) for name, found in times.items()}
    expected = written["transformers"]
    return [
        {
            "rival": name,
            "milliseconds": median,
            "ratio": medians["transformers"] / median,
            "same codes": sum(one == other for one, other in zip(written[name], expected, strict=True)),
            "of codes": len(expected),
        }
        for name, median in medians.items()
    ]


def main() -> None:
    """Run all sizes and works, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu", action="store_true", help="time of the process, not wall time")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    table = {}
    for size in args.sizes:
        weights = sum(weight.numel() for weight in build(SIZES[size]).transformer.parameters())
        for name, work in WORKS.items():
            workload = f"{name}, {weights / 1e6:.1f} M weights"
            table[workload] = measure(rivals(SIZES[size], work), args.rounds, args.cpu)
            print(workload)
            for row in table[workload]:
                print(
                    f"  {row['rival']:17} {row['milliseconds']:6.2f} ms a code {row['ratio']:5.2f}x   "
                    f"same codes {row['same codes']} of {row['of codes']}",
                    flush=True,
                )
    if args.out:
        clock = "process" if args.cpu else "wall"
        facts = {
            "environment": environment(),
            "threads": args.threads,
            "time": clock,
            "rounds": args.rounds,
            "workloads": table,
        }
        args.out.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
