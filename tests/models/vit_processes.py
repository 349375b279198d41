"""Two processes, each with half of the rows: a program, so that it forks before it computes.

    python vit_processes.py FOLDER

FOLDER/model holds a model, FOLDER/rows.pt the rows of both; the gradients that each process has after the
backward pass are written to FOLDER/RANK.pt. An alarm ends a process that waits for the other in vain.
"""

import signal
import sys
from importlib import import_module
from pathlib import Path

import torch
from torch.multiprocessing import start_processes

from hf_mm.models.vit.modeling_vit import MMViTForImageClassification

LIMIT_S = 120


def process(rank, folder):
    signal.alarm(LIMIT_S)
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    rows = torch.load(folder / "rows.pt")
    model = MMViTForImageClassification.from_pretrained(folder / "model").train()
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    parallel(**{name: value[rank : rank + 1] for name, value in rows.items()}).loss.backward()
    torch.save([weight.grad for weight in model.parameters()], folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def main(folder):
    import_module("torch._dynamo")  # DistributedDataParallel wants it: here once for both processes
    start_processes(process, (folder,), nprocs=2, start_method="fork")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
