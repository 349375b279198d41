"""Runs in a process of their own, which tell how many pages are fetched anew for what was freed before.

    python heap_process.py FOLDER

Prints for each trainer how many pages of 200 MB that were freed just before, in a step and after the run.
"""

import resource
import sys

import torch
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from hf_mm import MeasuringTrainer, PhasedObjective, PhasedTrainer


class Model(PhasedObjective):
    """One weight."""

    phases = ("only",)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, values, labels=None):
        return {"loss": (self.weight * values).mean()}

    def phase_parameters(self, phase):
        return [self.weight]

    def loss(self, batch, phase):
        return self.forward(batch["values"])["loss"], {}

    def pipeline(self):
        raise AssertionError("nothing is saved here")


def fetched():
    """Page faults of writing 200 MB, which are free again afterwards."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(2**19) for _ in range(100)]
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    del held
    return faults


class Probe(TrainerCallback):
    """Looks in the middle of a run."""

    faults = None

    def on_step_end(self, args, state, control, **kwargs):
        fetched()
        self.faults = fetched()


def main():
    options = TrainingArguments(
        sys.argv[1],
        max_steps=2,
        per_device_train_batch_size=1,
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        report_to="none",
    )
    rows = [{"values": torch.ones(4)} for _ in range(4)]
    for kind in ("phased", "measuring"):
        probe = Probe()
        if kind == "phased":
            PhasedTrainer(Model(), options, rows, preview_count=0, callbacks=[probe]).train()
        else:
            MeasuringTrainer(Model(), options, train_dataset=rows, callbacks=[probe]).train()
        sys.stdout.write(f"faults {kind} {probe.faults} {fetched()}\n")


if __name__ == "__main__":
    main()
