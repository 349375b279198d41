"""What each process of a phased training does: a program, so that it forks before it computes.

    python phased_processes.py FOLDER

lets two processes meet at a free port, trains in them, and writes what each found to FOLDER/RANK.pt. An alarm
ends a process that waits for the other in vain.
"""

import faulthandler
import os
import socket
import sys
from importlib import import_module
from pathlib import Path

import torch
from phased_tiny import TinyGAN, rows, run_of, weights
from torch import nn
from torch.multiprocessing import start_processes

from hf_mm import DivergedError, PhasedObjective, PixelCollator

__all__ = ["LIMIT_S", "Penalised", "equal_run"]

LIMIT_S = 120


class Penalised(PhasedObjective):
    """Two phases without chance, with a gradient penalty and a model that only some rows need."""

    phases = ("discriminator", "generator")
    averaged = ("generator",)

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.generator = nn.ModuleDict({"all": nn.Linear(16, 16), "some": nn.Linear(16, 16)})
        self.discriminator = nn.Sequential(nn.Linear(16, 8), nn.Softplus(), nn.Linear(8, 1))

    def phase_parameters(self, phase):
        return list(getattr(self, phase).parameters())

    def drawn(self, real, classes):
        fake = self.generator["all"](real)
        some = classes == 1
        if some.any():
            fake = fake.index_add(0, some.nonzero()[:, 0], self.generator["some"](real[some]))
        return fake

    def loss(self, batch, phase):
        real = batch["pixel_values"].flatten(1)
        fake = self.drawn(real, batch["class_labels"])
        if phase == "generator":
            return nn.functional.softplus(-self.discriminator(fake)).mean(), {"largest": fake.detach().mean()}
        real = real.detach().requires_grad_()
        logits = self.discriminator(real)
        (slopes,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
        loss = nn.functional.softplus(self.discriminator(fake.detach()) - logits).mean()
        return loss + slopes.square().sum(1).mean(), {}

    def pipeline(self):
        return self.generator


class Spoilt(TinyGAN):
    """In one process a loss is not a number."""

    def loss(self, batch, phase):
        loss, logs = super().loss(batch, phase)
        if self.step == 3 and os.environ["RANK"] == "1":
            loss = loss * torch.nan
        return loss, logs


def equal_run(folder, size=2, seed=0, **changes):
    """A run that draws nothing: weights, averages and losses."""
    run = run_of(
        folder,
        Penalised(seed),
        rows(11),
        PixelCollator(),
        {"preview_count": 0},
        per_device_train_batch_size=size,
        max_grad_norm=0.5,
        **changes,
    )
    run.train()
    names = ("generator_loss", "discriminator_loss", "largest", "discriminator_grad_norm")
    return {
        **weights(run),
        "logs": [{name: entry[name] for name in names} for entry in run.state.log_history],
    }


def chance_run(folder, seed, **resume):
    """A run with dropout, noise and views."""
    run = run_of(folder, TinyGAN(seed=seed), max_steps=5)
    torch.rand(3 + seed)
    run.train(**resume)
    return {**weights(run), "seen": [total for *_, total in run.objective.seen]}


def stopped_run(folder):
    try:
        run_of(folder, Spoilt(), save_steps=1).train()
    except DivergedError as error:
        return str(error)
    return "not stopped"


def process(rank, folder, port):
    torch.set_num_threads(1)
    meeting = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in ({"RANK": rank, "LOCAL_RANK": rank} | meeting).items()}
    resume = {"resume_from_checkpoint": folder / "chance" / "checkpoint-2"}
    cases = {
        "equal": lambda: equal_run(folder / "equal", seed=rank),  # the weights of the first process count
        "accumulated": lambda: equal_run(folder / "accumulated", gradient_accumulation_steps=2),
        "chance": lambda: chance_run(folder / "chance", rank),
        "resumed": lambda: chance_run(folder / "chance", 2, **resume),
        "stopped": lambda: stopped_run(folder / "stopped"),
        "files": lambda: sorted(path.name for path in (folder / "stopped").glob("*-*")),
    }
    found = {}
    for name, case in cases.items():
        faulthandler.dump_traceback_later(LIMIT_S, exit=True)
        found[name] = case()
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def main(folder):
    import_module("torch._dynamo")  # here once for both processes
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(process, (folder, port), nprocs=2, start_method="fork")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
