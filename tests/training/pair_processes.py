"""What every process of a distributed run does; run as a program, as torchrun starts it.

    RANK=... LOCAL_RANK=... WORLD_SIZE=... MASTER_ADDR=... MASTER_PORT=... python pair_processes.py FOLDER

runs all of `CASES` and writes what it saw to FOLDER/RANK.pt.
"""

import os
import sys
from pathlib import Path

import torch
from models.clip_tiny import resnet_config, tiny_model
from pair_runs import Pairs, Recorder, after, dropping, losses, trainer

from hf_mm import EMACallback, add_lora, train_only

__all__ = ["CASES", "case_model", "case_run"]

SIGMOID = {"objective": "sigmoid"}
CACHED = {"gradient_accumulation_steps": 2}
UNEVEN = {"accelerator_config": {"even_batches": False}}
# Name: fields of the model's config, rows, settings of the run. Two processes take two rows each at a time.
CASES = {
    "softmax plain": ({}, 12, {}),
    "softmax cached": ({}, 12, CACHED),
    "softmax local": ({}, 12, CACHED | {"hooks": {"exchange": "local"}}),
    "softmax in chunks": ({}, 12, CACHED | {"hooks": {"chunk_size": 3}}),
    "softmax checkpointed": ({}, 12, CACHED | {"activation_checkpointing": True}),
    "sigmoid plain": (SIGMOID, 12, {}),
    "sigmoid ring": (SIGMOID, 12, CACHED | {"hooks": {"exchange": "ring"}}),
    "last window": ({}, 12, CACHED | {"max_steps": 2}),
    "uneven": ({}, 7, UNEVEN | {"max_steps": 2}),
    "locked": ({}, 12, CACHED),
    "adapters": ({}, 12, CACHED),
}


def case_model(name):
    """The model of a case, made the same everywhere."""
    model = tiny_model(**CASES[name][0])
    if name == "locked":
        train_only(model, ["text", "temperature"])
    if name == "adapters":
        torch.manual_seed(1)
        model = add_lora(model, 2, towers=["text", "vision"])
    return model


def case_run(name, folder, size=2, **changes):
    """Losses and gradients of a case; `size` rows at a time."""
    _, rows, settings = CASES[name]
    recorder = Recorder()
    run = trainer(
        folder, case_model(name), Pairs(rows), callbacks=[recorder],
        **({"per_device_train_batch_size": size, "learning_rate": 0.0} | settings | changes),
    )  # fmt: skip
    run.train()
    return {"losses": losses(run), "gradients": recorder.steps}


def refusal(run):
    """The words in which a run ends."""
    try:
        run.train()
    except (ValueError, FloatingPointError) as error:
        return str(error)
    return "no refusal"


def resumed(folder):
    """Whether a run that goes on from a checkpoint ends with the same weights and the same average."""
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"} | CACHED
    ends = []
    for name, seed, options in (
        ("whole", 0, {}),
        ("again", 5, {"resume_from_checkpoint": str(folder / "whole" / "checkpoint-2")}),
    ):
        average = EMACallback(0.7)
        model = tiny_model(seed, **dropping())
        run = trainer(folder / name, model, callbacks=[average], per_device_train_batch_size=2, **settings)
        ends.append((after(run, **options), average.model.state_dict()))
    return ends


def best_metric(folder):
    """What each process takes for the best metric, measured by the main one alone."""
    calls = []
    run = trainer(
        folder, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
        metric_for_best_model="recall", load_best_model_at_end=True,
        hooks={"alignment_metrics": lambda model: calls.append(model) or {"recall": 0.5}},
    )  # fmt: skip
    run.train()
    return run.state.best_metric, len(calls)


def main(folder):
    rank = os.environ["RANK"]
    found = {name: case_run(name, folder / "runs") for name in CASES}
    statistics = tiny_model(vision_config=resnet_config())
    after(trainer(folder / "runs", statistics, per_device_train_batch_size=2, **CACHED))
    spoilt = Pairs()
    spoilt.batch["pixel_values"][3] = torch.nan  # the second row of the second process
    two = {"per_device_train_batch_size": 2}
    found |= {
        "tracked": {name: value for name, value in statistics.named_buffers() if "tracked" in name},
        "unequal lengths": refusal(trainer(folder / "runs", rows=Pairs(5), **two, **UNEVEN)),
        "spoilt": refusal(trainer(folder / "runs", rows=spoilt, **two, **CACHED)),
        "resumed": resumed(folder),
        "best metric": best_metric(folder / "best"),
    }
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
