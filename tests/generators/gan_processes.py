"""What each process of a GAN's training does: a program, so that it forks before it computes.

    python gan_processes.py FOLDER

trains in two processes and writes the weights of each to FOLDER/RANK.pt.
"""

import faulthandler
import os
import socket
import sys
from importlib import import_module
from pathlib import Path

import torch
from generators.gan_tiny import discriminator, generator
from torch.multiprocessing import start_processes
from transformers import TrainingArguments

from hf_mm import GANObjective, PhasedTrainer, PixelRows

__all__ = ["LIMIT_S", "gan_run"]

LIMIT_S = 120


class Repeatable(GANObjective):
    """Noise that follows from the picture, so that it is the same wherever the row lies."""

    def draw_latents(self, batch):
        return batch["pixel_values"][:, 0, :5, 0] * 2


def gan_run(folder, size):
    """Weights, averages and logs after three steps of 4 rows in all."""
    source = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (11, 1, 8, 8), generator=source, dtype=torch.uint8)
    rows = PixelRows(pixels, torch.arange(11) % 3, ("bag", "shoe", "hat"))
    nets = generator(num_classes=3), discriminator(num_classes=3)
    learner = Repeatable(*nets, gamma=1.0, gamma_end=0.2, gamma_steps=3)
    args = TrainingArguments(
        str(folder),
        max_steps=3,
        per_device_train_batch_size=size,
        logging_steps=1,
        save_strategy="no",
        max_grad_norm=0.5,
        optim="sgd",  # Adam divides tiny gradients by themselves and would show their last digits
        learning_rate=0.05,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    trainer = PhasedTrainer(learner, args, rows, ema_decay=0.5, preview_count=0)
    trainer.train()
    with trainer.averages_applied():
        averages = {name: value.clone() for name, value in learner.generator.state_dict().items()}
    names = ("discriminator_loss", "generator_loss", "lead", "r1", "r2")
    return {
        "weights": learner.state_dict(),
        "averages": averages,
        "logs": [{name: entry[name] for name in names} for entry in trainer.state.log_history],
    }


def process(rank, folder, port):
    torch.set_num_threads(1)
    meeting = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in ({"RANK": rank, "LOCAL_RANK": rank} | meeting).items()}
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    torch.save(gan_run(folder / "together", 2), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    import_module("torch._dynamo")  # here once for both processes
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    start_processes(process, (Path(sys.argv[1]), address[1]), nprocs=2, start_method="fork")
