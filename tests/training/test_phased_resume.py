"""A phased run that is stopped goes on bit for bit, wherever it stopped, and its checkpoints are whole."""

import os
import random
import shutil
import signal

import numpy as np
import pytest
import torch
from fresh_forks import FRESH_FORKS
from phased_tiny import TinyGAN, rows, run_of, weights
from torch.testing import assert_close

from hf_mm import PixelCollator, RandomViews, last_checkpoint


class Drawing:
    """Views from the sources of chance of the process itself: torch's, numpy's and Python's."""

    def __call__(self, found):
        batch = PixelCollator()(found)
        pixels = RandomViews()(batch["pixel_values"]) + random.random() * 0.1
        return {**batch, "pixel_values": pixels * float(np.random.uniform(0.9, 1.0))}


CASES = {
    "in the middle of an epoch": {"save_steps": 4},
    "after the first step": {"save_steps": 1, "save_total_limit": 6},
    "a phase that starts late": {"save_steps": 2, "objective": {"late": 3}},
    "accumulated in half precision": {"save_steps": 4, "bf16": True, "gradient_accumulation_steps": 2},
    "chance of the process": {"save_steps": 4, "collator": Drawing()},
    "workers": {"save_steps": 4, "dataloader_num_workers": 2},
    "another schedule": {"save_steps": 4, "lr_scheduler_type": "cosine", "optim": "rmsprop"},
}


def finished(run, **options):
    """Weights, averages and losses of a whole run."""
    run.train(**options)
    losses = [
        {name: value for name, value in entry.items() if "second" not in name} for entry in history(run)
    ]
    return {**weights(run), "losses": losses}


def history(run):
    return run.state.log_history


def disturb():
    torch.rand(5)
    np.random.rand(5)
    random.random()


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_ends_bit_for_bit_as_one_that_was_not_stopped(tmp_path, name):
    changes = dict(CASES[name])
    options = changes.pop("objective", {})
    given = {"logging_steps": 1, "collator": changes.pop("collator", None), **changes}
    whole = finished(run_of(tmp_path, TinyGAN(**options), **given))
    checkpoint = tmp_path / f"checkpoint-{changes['save_steps']}"
    run = run_of(tmp_path, TinyGAN(seed=1, **options), **given)
    disturb()
    found = finished(run, resume_from_checkpoint=checkpoint)
    assert_close(found, whole, rtol=0, atol=0)
    assert len(found["losses"]) == 6
    assert not torch.equal(found["own"]["generator.0.weight"], found["averages"]["generator.0.weight"])


def test_the_first_log_of_a_resumed_run_has_the_steps_before_it_too(tmp_path):
    whole = finished(run_of(tmp_path, logging_steps=3))
    run = run_of(tmp_path, TinyGAN(seed=1), logging_steps=3)
    found = finished(run, resume_from_checkpoint=tmp_path / "checkpoint-2")
    assert [entry["step"] for entry in found["losses"]] == [3, 6]
    assert found["losses"] == whole["losses"]


def test_previews_of_a_resumed_run_are_the_same(tmp_path):
    options = {"preview_steps": 3}
    run_of(tmp_path, options=options).train()
    picture = (tmp_path / "previews" / "step-6.png").read_bytes()
    (tmp_path / "previews" / "step-6.png").unlink()
    run_of(tmp_path, TinyGAN(seed=1), options=options).train(resume_from_checkpoint=tmp_path / "checkpoint-2")
    assert (tmp_path / "previews" / "step-6.png").read_bytes() == picture


class Killed(TinyGAN):
    """Its process is killed from outside, as far as it can tell, in the generator's phase of a step."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def loss(self, batch, phase):
        if self.step == self.at and phase == "generator":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(batch, phase)


def killed_in_a_step(folder):
    run_of(folder, Killed(5)).train()


def killed_while_saving(folder):
    written, save = [], torch.save

    def save_or_die(value, path, **options):
        written.append(path)
        if len(written) == 9:  # six files of the first checkpoint, then the third of the second
            path.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        save(value, path, **options)

    torch.save = save_or_die
    run_of(folder).train()


@pytest.mark.parametrize(("kill", "left"), [(killed_in_a_step, 4), (killed_while_saving, 2)])
def test_a_killed_run_goes_on_from_its_last_whole_checkpoint(tmp_path, kill, left):
    whole = finished(run_of(tmp_path / "whole"))
    process = FRESH_FORKS.Process(target=kill, args=(tmp_path / "killed",))
    process.start()
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL
    assert last_checkpoint(tmp_path / "killed") == str(tmp_path / "killed" / f"checkpoint-{left}")
    half = list((tmp_path / "killed").glob("_unfinished-*"))
    assert len(half) == (kill is killed_while_saving)
    run = run_of(tmp_path / "killed", TinyGAN(seed=1))
    assert_close(finished(run, resume_from_checkpoint=True), whole, rtol=0, atol=0)
    assert not list((tmp_path / "killed").glob("_unfinished-*"))


@pytest.mark.parametrize("way", ["call", "argument"])
def test_last_is_the_last_checkpoint_or_the_beginning(tmp_path, way):
    argument = {"resume_from_checkpoint": "last"}
    settings, call = ({}, argument) if way == "call" else (argument, {})
    begun = run_of(tmp_path, **settings)
    whole = finished(begun, **call)  # there is no checkpoint yet
    assert begun.state.global_step == 6
    shutil.rmtree(tmp_path / "checkpoint-6")
    run = run_of(tmp_path, TinyGAN(seed=1), **settings)
    assert_close(finished(run, **call), whole, rtol=0, atol=0)


def test_old_checkpoints_are_deleted(tmp_path):
    run_of(tmp_path, save_steps=1, save_total_limit=2).train()
    assert {path.name for path in tmp_path.glob("*-*")} == {"checkpoint-5", "checkpoint-6"}


def test_a_checkpoint_of_an_earlier_run_is_replaced(tmp_path):
    run_of(tmp_path, TinyGAN(seed=1), save_steps=6).train()
    run = run_of(tmp_path, save_steps=6)
    run.train()
    saved = torch.load(tmp_path / "checkpoint-6" / "objective.pt")
    assert_close(saved, run.objective.state_dict(), rtol=0, atol=0)
    assert {path.name for path in tmp_path.glob("*-*")} == {"checkpoint-6"}


def test_checkpoints_of_other_runs_are_refused(tmp_path):
    run_of(tmp_path).train()
    last = tmp_path / "checkpoint-6"
    cases = [
        (
            {"per_device_train_batch_size": 2},
            r"it would see other rows\. Give it the same data, seed and rows",
        ),
        ({"data": rows(10)}, r"a run with \{'rows': 11, .*\}, this one has \{'rows': 10, "),
        ({"data_seed": 7}, "it would see other rows"),
        (
            {"options": {"ema_decay": None}},
            r"The checkpoint has averages of \['generator'\], this run keeps .*\[\];",
        ),
    ]
    for changes, message in cases:
        with pytest.raises(ValueError, match=message):
            run_of(tmp_path, **changes).train(resume_from_checkpoint=last)
    single = TinyGAN()
    single.phases = ("generator",)
    with pytest.raises(
        ValueError, match=r"phases \['discriminator', 'generator'\], this run \['generator'\]; go"
    ):
        run_of(tmp_path, single).train(resume_from_checkpoint=last)
    processes = torch.load(last / "processes.pt")
    torch.save(processes * 2, last / "processes.pt")
    with pytest.raises(
        ValueError, match="was written by 2 processes, this run has 1; start as many, or draws"
    ):
        run_of(tmp_path).train(resume_from_checkpoint=last)


def test_what_is_no_checkpoint_is_said(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="has no checkpoint to go on from; train without `resume_from"
    ):
        run_of(tmp_path).train(resume_from_checkpoint=True)
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"is no checkpoint of a phased run: it has no trainer_state\.json"
    ):
        run_of(tmp_path).train(resume_from_checkpoint=tmp_path / "checkpoint-3")
