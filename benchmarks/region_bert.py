"""LXMERT and VisualBERT against transformers' own: the same weights and batches, in one process, in turns.

    python benchmarks/region_bert.py --out region_bert.json

Rows: 20 tokens and 36 regions of 2048 numbers. "full": every text has 20 tokens, every image 36 regions.
"mixed": questions of 7 to 20 tokens, images with 10 to 36 regions, padded to the longest. The encoder in
inference; answering, in inference and as a training step (forward, loss, backward) over 3,129 answers; a
training step of pre-training with 15 % of the words hidden. The peers are `LxmertModel`,
`LxmertForQuestionAnswering`, `LxmertForPreTraining` and their VisualBERT counterparts, with their dropout in
training. Their own weights, random ones, are loaded into ours. "packed weights" is after
`pack_for_inference`, one call.

Medians of alternating calls, in CPU time of the process, divided by the number of its threads. `apart` is the
largest difference of what comes out in inference, for training steps of the losses without dropout.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    LxmertConfig,
    LxmertForPreTraining,
    LxmertForQuestionAnswering,
    LxmertModel,
    VisualBertConfig,
    VisualBertForPreTraining,
    VisualBertForQuestionAnswering,
    VisualBertModel,
)

from hf_mm import (
    MMRegionBertForPreTraining,
    MMRegionBertForQuestionAnswering,
    MMRegionBertModel,
    pack_for_inference,
)

TOKENS, REGIONS, FEATURES, WORDS, ANSWERS = 20, 36, 2048, 30522, 3129
LENGTHS = (20, 9, 13, 8, 11, 16, 7, 12)  # of questions, in tokens
COUNTS = (36, 21, 36, 14, 30, 10, 36, 25)  # of regions
SMALL: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
FEWER: dict[str, dict[str, int]] = {
    "lxmert": {"l_layers": 2, "r_layers": 1, "x_layers": 1},
    "visualbert": {"num_hidden_layers": 2},
}
# kind: the peers' classes, and ours
KINDS: dict[str, tuple[dict[str, Any], Any]] = {
    "encoder": ({"lxmert": LxmertModel, "visualbert": VisualBertModel}, MMRegionBertModel),
    "answers": (
        {"lxmert": LxmertForQuestionAnswering, "visualbert": VisualBertForQuestionAnswering},
        MMRegionBertForQuestionAnswering,
    ),
    "training step, answers": (
        {"lxmert": LxmertForQuestionAnswering, "visualbert": VisualBertForQuestionAnswering},
        MMRegionBertForQuestionAnswering,
    ),
    "training step, masked words": (
        {"lxmert": LxmertForPreTraining, "visualbert": VisualBertForPreTraining},
        MMRegionBertForPreTraining,
    ),
}
PACKED = "hf_mm, packed weights"


def batch_of(full: bool, rows: int) -> dict[str, torch.Tensor]:
    """Texts and regions of a batch; of the words 15 % have labels."""
    generator = torch.Generator().manual_seed(0)
    lengths, counts = torch.tensor(LENGTHS[:rows]), torch.tensor(COUNTS[:rows])
    if full:
        lengths, counts = torch.full_like(lengths, TOKENS), torch.full_like(counts, REGIONS)
    real = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
    seen = torch.arange(int(counts.max())) < counts.unsqueeze(1)
    ids = torch.randint(1000, WORDS, real.shape, generator=generator) * real
    corners = torch.rand(*seen.shape, 2, 2, generator=generator).sort(dim=2).values.flatten(2)
    hidden = real & (torch.rand(real.shape, generator=generator) < 0.15)
    return {
        "input_ids": ids,
        "attention_mask": real.long(),
        "region_features": torch.randn(*seen.shape, FEATURES, generator=generator) * seen.unsqueeze(2),
        "region_boxes": corners * seen.unsqueeze(2),
        "region_mask": seen.long(),
        "words": ids.masked_fill(~hidden, -100),
        "answers": torch.randint(0, ANSWERS, (rows,), generator=generator),
    }


def inputs_of(kind: str, name: str, batch: dict[str, torch.Tensor], ours: bool) -> dict[str, Any]:
    """The columns of a batch by the names that a model has for them."""
    text = {key: batch[key] for key in ("input_ids", "attention_mask")}
    regions = {key: batch[key] for key in ("region_features", "region_boxes", "region_mask")}
    words, answers = batch["words"], batch["answers"]
    scores = torch.nn.functional.one_hot(answers, ANSWERS).float()
    labels: dict[str, Any] = {}
    if not ours and name == "lxmert":
        theirs = ("visual_feats", "visual_pos", "visual_attention_mask")
        text["token_type_ids"] = torch.zeros_like(batch["input_ids"])
        labels = {
            "training step, answers": {"labels": answers},
            "training step, masked words": {"labels": words},
        }
    elif not ours:
        theirs = ("visual_embeds", None, "visual_attention_mask")
        everywhere = torch.cat((words, torch.full_like(batch["region_mask"], -100)), dim=1)
        labels = {
            "training step, answers": {"labels": scores},
            "training step, masked words": {"labels": everywhere},
        }
    else:
        theirs = tuple(regions)
        labels = {
            "training step, answers": {"labels": answers if name == "lxmert" else scores},
            "training step, masked words": {"mlm_input_ids": batch["input_ids"], "mlm_labels": words},
        }
    named = {name: part for name, part in zip(theirs, regions.values(), strict=True) if name}
    return {**text, **named, **labels.get(kind, {})}


def peer_of(kind: str, name: str, small: bool) -> Any:
    """A model of transformers with random weights."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {**SMALL, **FEWER[name]} if small else {}
    if name == "lxmert":
        tasks: dict[str, Any] = {"task_matched": False, "task_obj_predict": False, "task_qa": False}
        tasks = tasks if kind == "training step, masked words" else {}
        config: Any = LxmertConfig(num_qa_labels=ANSWERS, visual_feat_dim=FEATURES, **tasks, **sizes)
    else:
        sizes["num_labels"] = ANSWERS
        config = VisualBertConfig(visual_embedding_dim=FEATURES, **sizes)
    return KINDS[kind][0][name](config).eval()


def ours_of(kind: str, peer: Any) -> Any:
    """Our model with the weights of the peer."""
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        model = KINDS[kind][1].from_pretrained(folder).eval()
    for weight in model.parameters():  # weights of a file are in memory only once they are touched
        weight.data = weight.data.clone()
    return model


def run(model: Any, kind: str, inputs: dict[str, Any]) -> torch.Tensor:
    """What comes out of a batch; or its loss, gradients made and dropped."""
    if "training" not in kind:
        with torch.inference_mode():
            out = model(**inputs)
        return answer_of(out)
    loss = model.train()(**inputs).loss
    loss.backward()
    model.zero_grad(set_to_none=True)
    return loss.detach()


def answer_of(out: Any) -> torch.Tensor:
    """The pooled vector or the scores of answers, under any of their names."""
    names = ("pooler_output", "pooled_output", "logits", "question_answering_score")
    return next(out[name] for name in names if out.get(name) is not None)


def first_answer(model: Any, kind: str, inputs: dict[str, Any]) -> torch.Tensor:
    """What comes out without dropout."""
    with torch.inference_mode():
        out = model.eval()(**inputs)
    return out.loss if "training" in kind else answer_of(out)


def measure(kind: str, name: str, batch: dict[str, torch.Tensor], args: argparse.Namespace) -> list[dict]:
    """Time the rivals in turns, after a call of each that warms it up and is compared with the peer's."""
    peer = peer_of(kind, name, args.small)
    rivals: dict[str, Any] = {"transformers": peer, "hf_mm": ours_of(kind, peer)}
    if "training" not in kind:
        rivals[PACKED] = pack_for_inference(ours_of(kind, peer))
    inputs = {rival: inputs_of(kind, name, batch, rival != "transformers") for rival in rivals}
    outputs = {rival: first_answer(model, kind, inputs[rival]) for rival, model in rivals.items()}
    seconds: dict[str, list[float]] = {rival: [] for rival in rivals}
    for turn in range(args.rounds + 1):
        for rival, model in rivals.items():
            start = time.process_time()
            run(model, kind, inputs[rival])
            if turn:
                seconds[rival].append((time.process_time() - start) / torch.get_num_threads())
    medians = {rival: statistics.median(taken) for rival, taken in seconds.items()}
    return [
        {
            "rival": rival,
            "milliseconds": 1000 * medians[rival],
            "faster_than_transformers": medians["transformers"] / medians[rival],
            "apart": (outputs[rival] - outputs["transformers"]).abs().max().item(),
        }
        for rival in rivals
    ]


def main() -> None:
    """Run all workloads, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=len(LENGTHS), help="texts of a batch, at most 8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", default="lxmert,visualbert", help="which of the two")
    parser.add_argument("--kinds", default=";".join(KINDS), help="which workloads, separated by ;")
    parser.add_argument("--small", action="store_true", help="tiny models, to see that this runs")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    table: dict[str, list[dict]] = {}
    for name in args.models.split(","):
        for kind in args.kinds.split(";"):
            for shape in ("full", "mixed"):
                work = f"{name}, {kind}, {shape}"
                table[work] = measure(kind, name, batch_of(shape == "full", args.rows), args)
                print(f"{work}, {args.rows} rows")
                for row in table[work]:
                    print(
                        f"  {row['rival']:24} {row['milliseconds']:8.1f} ms  "
                        f"{row['faster_than_transformers']:5.2f}x  apart {row['apart']:.1e}"
                    )
    if args.out:
        versions = {"transformers": transformers.__version__, "torch": torch.__version__}
        facts = {"versions": versions, "threads": args.threads, "rows": args.rows, "workloads": table}
        args.out.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
