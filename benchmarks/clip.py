"""CLIP ViT-B/32 against transformers' own: the same weights and batches, in one process, taking turns.

    python benchmarks/clip.py --out clip.json

Rows: the text tower at caption lengths as in COCO and as on the web, in inference; and a whole training
step (forward, loss, backward). The peer is `transformers.CLIPModel`, as its experts call it (`padding=True`:
texts padded to the longest of the batch) and as its examples do (padded to 77). Medians of alternating calls,
in CPU time of the process, divided by the number of its threads.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from transformers import CLIPConfig, CLIPModel

from hf_mm import MMCLIPModel

END, LONGEST = 49407, 77


def lengths(kind: str, rows: int) -> torch.Tensor:
    """Tokens per caption, start and end included, at even quantiles of an assumed distribution.

    COCO's are alike: normal, mean 13, deviation 2.5. The web's are not: log-normal, median 16, mean 23, at
    most 57.
    """
    normal = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(rows) + 0.5) / rows)
    drawn = 13 + 2.5 * normal if kind == "coco" else (16 * torch.exp(0.857 * normal)).clamp(max=57)
    shuffled = drawn[torch.randperm(rows, generator=torch.Generator().manual_seed(0))]
    return shuffled.round().long().clamp(4, LONGEST)


def captions(kind: str, rows: int, length: int | None = None) -> dict[str, torch.Tensor]:
    """Random token ids, padded to the longest or to `length`."""
    counts = lengths(kind, rows)
    places = torch.arange(int(counts.max()) if length is None else length)
    ids = torch.randint(1, 49000, (rows, LONGEST), generator=torch.Generator().manual_seed(1))
    ids = ids[:, : len(places)].clone()
    ids[:, 0] = END - 1
    ids = ids.where(places < counts.unsqueeze(1) - 1, END)
    return {"input_ids": ids, "attention_mask": (places < counts.unsqueeze(1)).long()}


def models() -> tuple[CLIPModel, MMCLIPModel]:
    """The peer with random weights, and ours with the same."""
    torch.manual_seed(0)
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "patch_size": 32}
    peer = CLIPModel(CLIPConfig(vision_config=vision, text_config={"eos_token_id": END})).eval()
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        return peer, MMCLIPModel.from_pretrained(folder).eval()


def read(model: CLIPModel | MMCLIPModel, words: dict[str, torch.Tensor]) -> torch.Tensor:
    """Vectors of texts."""
    with torch.inference_mode():
        return model.get_text_features(**words).pooler_output


def step(model: CLIPModel | MMCLIPModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Loss of a batch; gradients are made and dropped."""
    loss = model(**batch, return_loss=True).loss
    loss.backward()
    model.zero_grad(set_to_none=True)
    return loss.detach()


def workloads(text_rows: int, pairs: int) -> dict[str, dict[str, Callable[[], torch.Tensor]]]:
    """Row: {rival: a call that computes}; the first rival is the peer at its best."""
    peer, ours = models()
    pixels = torch.randn(pairs, 3, 224, 224)
    rows: dict[str, dict[str, Callable[[], torch.Tensor]]] = {}
    for kind in ("web", "coco"):
        words, padded = captions(kind, text_rows), captions(kind, text_rows, LONGEST)
        rows[f"text tower, {text_rows} {kind} captions"] = {
            "transformers, padding=True": lambda words=words: read(peer, words),
            "transformers, padded to 77": lambda padded=padded: read(peer, padded),
            "hf_mm": lambda words=words: read(ours, words),
        }
    batch, padded = (captions("coco", pairs, length) | {"pixel_values": pixels} for length in (None, LONGEST))
    rows[f"training step, {pairs} coco pairs"] = {
        "transformers, padding=True": lambda: step(peer, batch),
        "transformers, padded to 77": lambda: step(peer, padded),
        "hf_mm": lambda: step(ours, batch),
    }
    return rows


def measure(rivals: dict[str, Callable[[], torch.Tensor]], rounds: int) -> list[dict]:
    """Time the rivals in turns; the first call of each warms it up and is compared with the peer's."""
    outputs = {name: call() for name, call in rivals.items()}
    seconds = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, call in rivals.items():
            start = time.process_time()
            call()
            seconds[name].append((time.process_time() - start) / torch.get_num_threads())
    peer, *_ = rivals
    return [
        {
            "rival": name,
            "milliseconds": 1000 * statistics.median(seconds[name]),
            "ratio": statistics.median(seconds[peer]) / statistics.median(seconds[name]),
            "apart": (outputs[name] - outputs[peer]).abs().max().item(),
        }
        for name in rivals
    ]


def main() -> None:
    """Run all workloads, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    table = {}
    for workload, rivals in workloads(args.texts, args.pairs).items():
        table[workload] = measure(rivals, args.rounds)
        print(workload)
        for row in table[workload]:
            print(
                f"  {row['rival']:28} {row['milliseconds']:8.0f} ms  {row['ratio']:5.2f}x  "
                f"apart {row['apart']:.1e}"
            )
    if args.out:
        versions = {"transformers": transformers.__version__, "torch": torch.__version__}
        facts = {"versions": versions, "threads": args.threads, "workloads": table}
        args.out.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
