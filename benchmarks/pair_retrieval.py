"""All pairs of some images and captions scored by ViLT-B/32: against transformers' own, of the same weights.

    python benchmarks/pair_retrieval.py --out pair_retrieval.json

The peer is `transformers.ViltForImageAndTextRetrieval`, as its example does it (processor and model for each
pair) and as its experts would (each image prepared once, captions in batches, padded to the longest). Images
have four sizes of COCO's, captions its lengths. Medians of alternating calls, in CPU time of the process,
divided by the number of its threads.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import (
    BertTokenizer,
    ViltConfig,
    ViltForImageAndTextRetrieval,
    ViltImageProcessorPil,
    ViltProcessor,
)

from hf_mm import MMViltForImageAndTextRetrieval, MMViltProcessor, score_pairs

SIZES = [(640, 480), (480, 640), (640, 427), (500, 375)]  # width and height in pixels
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [f"word{number}" for number in range(1000)]


def pictures(count: int) -> list[Image.Image]:
    """Noise: what is on them does not change the time."""
    random = np.random.default_rng(0)
    sizes = [SIZES[number % len(SIZES)] for number in range(count)]
    return [
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for width, height in sizes
    ]


def captions(count: int) -> list[str]:
    """Random words, in numbers that are normal with mean 11 and deviation 2.5: 13 tokens with the special."""
    random = np.random.default_rng(0)
    lengths = random.normal(11, 2.5, count).round().clip(2, 38).astype(int)
    return [" ".join(random.choice(WORDS, length)) for length in lengths]


def processor() -> ViltProcessor:
    """transformers', with a vocabulary of its own."""
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(SPECIAL + WORDS)})
    return ViltProcessor(ViltImageProcessorPil(), tokenizer)


def models() -> tuple[ViltForImageAndTextRetrieval, MMViltForImageAndTextRetrieval]:
    """The peer with random weights, and ours with the same."""
    torch.manual_seed(0)
    peer = ViltForImageAndTextRetrieval(ViltConfig()).eval()
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        return peer, MMViltForImageAndTextRetrieval.from_pretrained(folder).eval()


@torch.no_grad()
def pair_by_pair(
    peer: ViltForImageAndTextRetrieval, both: ViltProcessor, images: list[Image.Image], texts: list[str]
) -> torch.Tensor:
    """As transformers' example."""
    scores = torch.empty(len(images), len(texts))
    for row, image in enumerate(images):
        for column, text in enumerate(texts):
            scores[row, column] = peer(**both(image, text, return_tensors="pt")).logits.item()
    return scores


@torch.no_grad()
def in_batches(
    peer: ViltForImageAndTextRetrieval,
    both: ViltProcessor,
    images: list[Image.Image],
    texts: list[str],
    batch_size: int,
) -> torch.Tensor:
    """Each image with many texts at a time."""
    rows = []
    for image in images:
        seen = both.image_processor(image, return_tensors="pt")
        for first in range(0, len(texts), batch_size):
            words = both.tokenizer(texts[first : first + batch_size], padding=True, return_tensors="pt")
            count = len(words["input_ids"])
            pixels = {name: values.expand(count, *values.shape[1:]) for name, values in seen.items()}
            rows.append(peer(**words, **pixels).logits)
    return torch.cat(rows).view(len(images), len(texts))


def measure(rivals: dict[str, Callable[[], torch.Tensor]], rounds: int) -> list[dict]:
    """Time the rivals in turns; the first call of each warms it up and is compared with the first rival's."""
    outputs = {name: call() for name, call in rivals.items()}
    seconds = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, call in rivals.items():
            start = time.process_time()
            call()
            seconds[name].append((time.process_time() - start) / torch.get_num_threads())
    ours = statistics.median(seconds["hf_mm"])
    peer, *_ = outputs.values()
    return [
        {
            "rival": name,
            "pairs_per_second": peer.numel() / statistics.median(seconds[name]),
            "hf_mm_is_faster_by": statistics.median(seconds[name]) / ours,
            "apart": (outputs[name] - peer).abs().max().item(),
        }
        for name in rivals
    ]


def main() -> None:
    """Score all pairs by each rival, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    (peer, ours), both = models(), processor()
    own = MMViltProcessor(both.image_processor, both.tokenizer)
    images, texts = pictures(args.images), captions(args.texts)
    rows = measure(
        {
            "transformers, pair by pair": lambda: pair_by_pair(peer, both, images, texts),
            "transformers, in batches": lambda: in_batches(peer, both, images, texts, args.batch_size),
            "hf_mm": lambda: score_pairs(
                ours, own, images, texts, batch_size=args.batch_size, progress=False
            ),
        },
        args.rounds,
    )
    for row in rows:
        print(
            f"{row['rival']:28} {row['pairs_per_second']:7.2f} pairs/s  "
            f"hf_mm {row['hf_mm_is_faster_by']:5.2f}x  apart {row['apart']:.1e}"
        )
    if args.out:
        arguments = {name: value for name, value in vars(args).items() if name != "out"}
        versions = {"transformers": transformers.__version__, "torch": torch.__version__}
        facts = {"versions": versions, "arguments": arguments, "rivals": rows}
        args.out.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
