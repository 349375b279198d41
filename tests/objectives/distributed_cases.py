"""What every process of a distributed test does: a program, so that it can fork before it computes.

    python distributed_cases.py FOLDER

reads FOLDER/cases.pt, which has the cases of each number of processes, lets that many processes meet by a
file in FOLDER, and writes what each found to FOLDER/WORLD-RANK.pt.
"""

import sys

import torch
from torch import distributed, nn
from torch.multiprocessing import start_processes
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from hf_mm import distributed_info_nce, distributed_sigmoid_loss, info_nce, sigmoid_loss
from hf_mm.objectives.exchange import gather_features

__all__ = ["Towers", "batch", "local_part", "whole_batch"]

WIDTH = 12


class Towers(nn.Module):
    """Two towers of one layer, a temperature and a bias: the smallest model that can be aligned."""

    def __init__(self, kind: str, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.vision, self.text = nn.Linear(6, WIDTH, bias=False), nn.Linear(5, WIDTH, bias=False)
        for tower in (self.vision, self.text):
            nn.init.normal_(tower.weight, generator=generator)
        self.logit_scale = nn.Parameter(torch.tensor(1.5))
        self.logit_bias = nn.Parameter(torch.tensor(-2.0)) if kind == "sigmoid" else None
        self.to(dtype)

    def forward(self, images, texts, hard=None):
        return (
            normalize(self.vision(images), dim=-1),
            normalize(self.text(texts), dim=-1),
            None if hard is None else normalize(self.text(hard), dim=-1),
            self.logit_scale.exp(),
            None if self.logit_bias is None else self.logit_bias * 1,
        )


def batch(sizes, hard=0, dtype=torch.float32):
    """Inputs of the whole batch, in the order of the processes."""
    generator, number = torch.Generator().manual_seed(3), sum(sizes)
    inputs = [torch.randn(number, 6, generator=generator), torch.randn(number, 5, generator=generator)]
    if hard:
        inputs.append(torch.randn(number, hard, 5, generator=generator))
    return [part.to(dtype) for part in inputs]


def local_part(inputs, sizes, rank):
    first = sum(sizes[:rank])
    return [part[first : first + sizes[rank]] for part in inputs]


def loss_of(outputs, kind, options, exchange=None, group=None):
    """The loss of what `Towers` gave, of this process alone unless `exchange` is named."""
    images, texts, hard, scale, bias = outputs
    where = {} if exchange is None else {"exchange": exchange, "group": group}
    if kind == "info_nce":
        loss = info_nce if exchange is None else distributed_info_nce
        return loss(images, texts, scale, hard_negatives=hard, **options, **where)
    loss = sigmoid_loss if exchange is None else distributed_sigmoid_loss
    return loss(images, texts, scale, bias, **options, **where)


def whole_batch(case):
    """Loss and gradients of one process with everything."""
    model = Towers(case["kind"], case.get("dtype", torch.float32))
    inputs = batch(case["sizes"], case.get("hard", 0), case.get("dtype", torch.float32))
    loss = loss_of(model(*inputs), case["kind"], case["options"])
    loss.backward()
    return loss.detach(), {name: part.grad for name, part in model.named_parameters()}


def run(case, rank):
    """Loss of this process and gradients averaged by DistributedDataParallel."""
    dtype = case.get("dtype", torch.float32)
    model = DistributedDataParallel(Towers(case["kind"], dtype))
    inputs = local_part(batch(case["sizes"], case.get("hard", 0), dtype), case["sizes"], rank)
    loss = loss_of(model(*inputs), case["kind"], case["options"], case["exchange"])
    loss.backward()
    return loss.detach(), {name: part.grad for name, part in model.module.named_parameters()}


def gather(rank):
    """Rows 0.., numbered over processes; every process weighs what it gathered by its own rank + 1."""
    rows = torch.full((rank + 1, 2), float(rank)).requires_grad_()
    everyones = gather_features(rows)
    (everyones * (rank + 1)).sum().backward()
    return everyones.detach(), rows.grad


def with_nan(rank):
    """Losses when the features of process 0 have a NaN."""
    images, texts = torch.eye(3), torch.eye(3).roll(1, 0)
    if rank == 0:
        images[1, 1] = torch.nan
    return [
        *(distributed_info_nce(images, texts, 1.0, exchange=way) for way in ("gather", "local")),
        *(distributed_sigmoid_loss(images, texts, 1.0, 0.0, exchange=way) for way in ("gather", "ring")),
    ]


def error_of(call):
    try:
        call()
    except ValueError as error:
        return str(error)
    return None


def in_a_group(rank, world):
    """The last two processes are a group of their own; the others look on."""
    group = distributed.new_group([world - 2, world - 1])
    if rank < world - 2:
        return None
    sizes, place = (2, 3), rank - (world - 2)
    results = {}
    for kind, exchange in (("info_nce", "gather"), ("info_nce", "local"), ("sigmoid", "ring")):
        outputs = Towers(kind)(*local_part(batch(sizes), sizes, place))
        results[kind, exchange] = loss_of(outputs, kind, {}, exchange, group).detach()
    return results


def process(rank, world, folder, cases):
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting-{world}"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    results = {name: run(case, rank) for name, case in cases.items()}
    results["gather"] = gather(rank)
    results["nan"] = with_nan(rank)
    results["widths differ"] = error_of(lambda: gather_features(torch.zeros(2, 3 + rank)))
    results["all empty"] = error_of(
        lambda: distributed_info_nce(torch.zeros(0, 3), torch.zeros(0, 3), 1.0, exchange="local")
    )
    results["group"] = in_a_group(rank, world)
    torch.save(results, f"{folder}/{world}-{rank}.pt")
    distributed.destroy_process_group()


def main(folder):
    import torch._dynamo  # DistributedDataParallel wants it: here once for all processes

    for world, cases in torch.load(f"{folder}/cases.pt").items():
        start_processes(process, (world, folder, cases), nprocs=world, start_method="fork")


if __name__ == "__main__":
    main(sys.argv[1])
