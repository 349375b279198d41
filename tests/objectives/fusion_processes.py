"""What each process of the test of fusion objectives does: a program, so that it forks before it computes.

    python fusion_processes.py FOLDER

lets two processes meet by a file in FOLDER, computes every objective with every share of the batch, and
writes what each process found to FOLDER/RANK.pt.
"""

import sys
from importlib import import_module
from itertools import product

import torch
from torch import distributed, nn
from torch.multiprocessing import start_processes
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from hf_mm.objectives.answers import answer_loss
from hf_mm.objectives.batch_mean import items_per_process
from hf_mm.objectives.exchange import gather_features
from hf_mm.objectives.hard_negatives import distributed_hard_negatives
from hf_mm.objectives.language_modeling import next_token_loss
from hf_mm.objectives.masked_image import masked_pixel_loss
from hf_mm.objectives.masked_language import masked_token_loss
from hf_mm.objectives.masked_patches import masked_colour_loss
from hf_mm.objectives.masked_regions import (
    masked_feature_smooth_l1,
    masked_region_classification,
    masked_region_kl,
    masked_region_regression,
)
from hf_mm.objectives.matching import matching_loss, ranking_loss
from hf_mm.objectives.optimal_transport import word_patch_alignment_loss

__all__ = ["OUTPUTS", "ROWS", "SIZES", "alone"]

SIZES = {"equal": (4, 4), "unequal": (5, 3), "one empty": (8, 0)}
ROWS, WORDS, PATCHES, WIDTH, VOCABULARY = 8, 6, 7, 12, 11
OUTPUTS = {
    "masked words": VOCABULARY,
    "next words": VOCABULARY,
    "masked colours": 768,
    "masked pixels": 4,
    "region features": 4,
    "smooth region features": 4,
    "region classes": 5,
    "region distributions": 5,
    "scored answers": 5,
    "right answers": 5,
    "matching": 2,
    "matching of hard negatives": 2,
    "ranking": 1,
    "alignment": 0,
}  # numbers that the head of each objective gives


class Fusion(nn.Module):
    """One layer for words, one for patches, the head of one objective, and its loss."""

    def __init__(self, objective: str) -> None:
        super().__init__()
        chance = torch.Generator().manual_seed(7)
        self.objective = objective
        self.words, self.patches = nn.Linear(5, WIDTH), nn.Linear(6, WIDTH)
        if objective != "alignment":
            biased = objective != "ranking"  # what raises all scores alike changes nothing
            self.head = nn.Linear(WIDTH, OUTPUTS[objective], bias=biased)
        for weight in self.parameters():
            nn.init.normal_(weight, generator=chance)

    def states(self, rows):
        """Words and patches that have seen each other."""
        words, patches = self.words(rows["words"]), self.patches(rows["patches"])
        seen = [part.mean(1, keepdim=True) for part in (patches, words)]
        return (words * seen[0]).tanh(), (patches * seen[1]).tanh()

    def forward(self, rows, items=None):
        words, patches = self.states(rows)
        match self.objective:
            case "masked words":
                return masked_token_loss(words, self.head, rows["word_labels"], items)
            case "next words":
                return next_token_loss(self.head(words), rows["word_labels"], num_items_in_batch=items)
            case "masked colours":
                hidden = rows["hidden"]
                return masked_colour_loss(self.head(patches[hidden]), rows["colours"][hidden], items)
            case "masked pixels":
                return masked_pixel_loss(
                    self.head(patches), rows["pixels"], rows["hidden"], num_items_in_batch=items
                )
            case "region features":
                hidden = rows["hidden"]
                return masked_region_regression(self.head(patches[hidden]), rows["pixels"][hidden], items)
            case "smooth region features":
                counted = rows["hidden"].flatten()
                given, wanted = self.head(patches).flatten(0, 1), rows["pixels"].flatten(0, 1)
                return masked_feature_smooth_l1(given, wanted, items, counted)
            case "region classes":
                labels = rows["region_labels"].masked_fill(~rows["hidden"], -100)
                return masked_region_classification(self.head(patches).flatten(0, 1), labels.flatten(), items)
            case "region distributions":
                hidden = rows["hidden"]
                return masked_region_kl(self.head(patches[hidden]), rows["region_scores"][hidden], items)
            case "scored answers":
                return answer_loss(self.head(words[:, 0]), rows["region_scores"][:, 0], items)
            case "right answers":
                return answer_loss(self.head(words[:, 0]), rows["match_labels"], items)
            case "matching":
                return matching_loss(self.head(words[:, 0]), rows["match_labels"], items)
            case "ranking":
                return ranking_loss(self.head(patches).squeeze(2), rows["candidates"], items)
            case "alignment":
                masks = rows["word_mask"], rows["patch_mask"]
                return word_patch_alignment_loss(
                    words, patches, *masks, rows["matched"], num_items_in_batch=items
                )
        return self.hard_matching(rows, items)

    def hard_matching(self, rows, items):
        """True pairs, images with hard texts, texts with hard images."""
        features = [normalize(part.mean(1), dim=-1) for part in self.states(rows)]
        rank = distributed.get_rank() if distributed.is_initialized() else 0
        chance = torch.Generator().manual_seed(5 + rank)  # of the first process that of one alone
        texts, images = distributed_hard_negatives(
            *features[::-1], 3.0, groups=rows["groups"], generator=chance
        )
        everyones = {name: gather_features(rows[name]) for name in ("words", "patches")}
        pairs = {
            "words": torch.cat([rows["words"], everyones["words"][texts], rows["words"]]),
            "patches": torch.cat([rows["patches"], rows["patches"], everyones["patches"][images]]),
        }
        labels = torch.tensor([1, 0, 0]).repeat_interleave(len(texts))
        return matching_loss(self.head(self.states(pairs)[0][:, 0]), labels, items)


def batch():
    """The rows of all processes, in their order."""
    draw = torch.Generator().manual_seed(3)
    labels = torch.randint(0, VOCABULARY, (ROWS, WORDS), generator=draw)
    kept = torch.rand(ROWS, WORDS, generator=draw) < 0.6
    kept[0] = True  # nothing is hidden in this row
    lengths = torch.randint(0, WORDS, (ROWS, 1), generator=draw)
    return {
        "words": torch.randn(ROWS, WORDS, 5, generator=draw),
        "patches": torch.randn(ROWS, PATCHES, 6, generator=draw),
        "word_labels": labels.masked_fill(kept, -100),
        "match_labels": torch.tensor([1, 0, -100, 0, 1, 1, -100, 0]),
        "matched": torch.rand(ROWS, generator=draw) < 0.5,
        "word_mask": torch.arange(WORDS) < lengths,
        "patch_mask": torch.rand(ROWS, PATCHES, generator=draw) < 0.8,
        "candidates": torch.rand(ROWS, PATCHES, generator=draw) < 0.8,
        "hidden": torch.rand(ROWS, PATCHES, generator=draw) < 0.3,
        "colours": torch.randint(0, 256, (ROWS, PATCHES, 3), generator=draw),
        "pixels": torch.rand(ROWS, PATCHES, 4, generator=draw),
        "groups": torch.tensor([0, 1, 2, 1, 3, 0, 4, 5]),
        "region_labels": torch.randint(0, 5, (ROWS, PATCHES), generator=draw),
        "region_scores": torch.randn(ROWS, PATCHES, 5, generator=draw).softmax(2),
    }


def cut(rows, first, last):
    return {name: part[first:last] for name, part in rows.items()}


def counted(objective, rows):
    """How many items of the objective these rows have."""
    match objective:
        case "masked words":
            return (rows["word_labels"] != -100).sum()
        case "next words":
            return (rows["word_labels"][:, 1:] != -100).sum()
        case "masked colours" | "masked pixels" | "region features" | "smooth region features":
            return rows["hidden"].sum()
        case "region classes" | "region distributions":
            return rows["hidden"].sum()
        case "scored answers":
            return torch.tensor(rows["region_scores"][:, 0].numel())  # as Trainer counts labels
        case "matching" | "right answers":
            return (rows["match_labels"] != -100).sum()
        case "ranking":
            return rows["candidates"][:, 0].sum()
        case "matching of hard negatives":
            return torch.tensor(3 * len(rows["words"]))
    return torch.tensor(len(rows["words"]))


def alone(objective):
    """Loss and gradients of one process with the whole batch in one step."""
    model = Fusion(objective)
    loss = model(batch())
    loss.backward()
    return loss.detach(), {name: part.grad for name, part in model.named_parameters()}


def together(objective, sizes, rank):
    """Loss of this process, in two accumulated steps, and gradients averaged over processes."""
    first = sum(sizes[:rank])
    rows = cut(batch(), first, first + sizes[rank])
    model = DistributedDataParallel(Fusion(objective))
    items = items_per_process(counted(objective, rows))
    if objective == "matching of hard negatives":  # a negative may be any row of the batch: one step
        loss = model(rows, items)
        loss.backward()
        return loss.detach(), {name: part.grad for name, part in model.module.named_parameters()}
    half = sizes[rank] // 2
    with model.no_sync():
        start = model(cut(rows, 0, half), items)
        start.backward()
    end = model(cut(rows, half, sizes[rank]), items)
    end.backward()
    return (start + end).detach(), {name: part.grad for name, part in model.module.named_parameters()}


def process(rank, folder):
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    results = {
        (objective, share): together(objective, SIZES[share], rank)
        for objective, share in product(OUTPUTS, SIZES)
    }
    results["items"] = items_per_process(torch.tensor([3 * rank, 4]))
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def main(folder):
    import_module("torch._dynamo")  # DistributedDataParallel wants it: here once for both processes
    start_processes(process, (folder,), nprocs=2, start_method="fork")


if __name__ == "__main__":
    main(sys.argv[1])
