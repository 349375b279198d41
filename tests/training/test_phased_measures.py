"""What is measured while a phased run goes on: of the averages, beside the seconds of training alone."""

import json
import random
import time

import numpy as np
import pytest
import torch
from phased_tiny import TinyGAN, run_of, weights
from torch.testing import assert_close
from transformers import TrainerCallback

from hf_mm import DivergedError
from hf_mm.training.phased_meter import TrainingClock

NAP_S = 0.2


def length_of(saved):
    """Of the weights of the pipeline; whoever measures may draw, and takes his time."""
    torch.rand(3), np.random.rand(3), random.random()
    time.sleep(NAP_S)
    return {"length": sum(weight.norm().item() for weight in saved.model.parameters())}


def read(folder):
    return [json.loads(line) for line in (folder / "measures.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    run = run_of(folder, options={"measure": length_of, "measure_steps": 2}, max_steps=5)
    return folder, run, run.train()


def test_the_averages_are_measured_every_so_many_steps_and_at_the_end(measured):
    folder, run, _ = measured
    found = read(folder)
    assert [entry["step"] for entry in found] == [2, 4, 5]
    with run.averages_applied():
        last = sum(weight.norm().item() for weight in run.objective.generator.parameters())
    assert found[-1]["length"] == pytest.approx(last, rel=1e-6)
    logged = [entry for entry in run.state.log_history if "length" in entry]
    assert [{**entry, "epoch": 0} for entry in found] == [{**entry, "epoch": 0} for entry in logged]


def test_seconds_are_those_of_training_alone(measured):
    folder, _, metrics = measured
    seconds = [entry["train_seconds"] for entry in read(folder)]
    assert 0 < seconds[0] < seconds[1] < seconds[2] == metrics["train_seconds"]
    assert metrics["train_seconds"] < metrics["train_runtime"] - 3 * NAP_S
    assert metrics["train_images_per_second"] == pytest.approx(
        5 * 4 / seconds[2], rel=0.05
    )  # to milliseconds
    assert "train_generator_loss" in metrics


def test_nothing_counts_after_the_last_measurement():
    clock = TrainingClock(torch.device("cpu"))
    clock.go()
    with clock.paused(ends=True):
        told = clock.seconds
    time.sleep(NAP_S)
    clock.stop()
    assert clock.seconds == told > 0


def test_measuring_disturbs_nothing(measured, tmp_path):
    _, run, _ = measured
    plain = run_of(tmp_path, max_steps=5)
    plain.train()
    assert_close(weights(run), weights(plain), rtol=0, atol=0)


def test_a_resumed_run_keeps_what_was_measured_and_counts_on(measured, tmp_path):
    folder, whole, _ = measured
    options = {"measure": length_of, "measure_steps": 2}
    run = run_of(tmp_path, TinyGAN(seed=1), options=options, max_steps=5)
    metrics = run.train(resume_from_checkpoint=folder / "checkpoint-2")
    assert_close(weights(run), weights(whole), rtol=0, atol=0)
    first, *others = read(tmp_path)
    assert first == read(folder)[0]
    assert [entry["length"] for entry in others] == [entry["length"] for entry in read(folder)[1:]]
    assert first["train_seconds"] < others[0]["train_seconds"] < others[1]["train_seconds"]
    assert others[1]["train_seconds"] == metrics["train_seconds"]


class Enough(TrainerCallback):
    """Ends a run by what was measured."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        control.should_training_stop = "length" in (logs or {})


def test_a_callback_may_end_the_run_by_what_was_measured(tmp_path):
    options = {"measure": lambda saved: {"length": 1}, "measure_steps": 3, "callbacks": [Enough()]}
    run = run_of(tmp_path, options=options)
    run.train()
    assert run.state.global_step == 3


def test_measures_that_cannot_be_taken_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`measure_steps`=3 without a `measure`; give both, or neither"):
        run_of(tmp_path, options={"measure_steps": 3})
    with pytest.raises(ValueError, match="`measure_steps`=-1 must be 0 or more"):
        run_of(tmp_path, options={"measure": length_of, "measure_steps": -1})
    cases = [
        (TypeError, [0.5], r"`measure` must give numbers by name, got \[0\.5\]"),
        (TypeError, {"length": "long"}, "`measure` must give numbers by name, got {'length': 'long'}"),
        (ValueError, {"step": 1}, "`measure` gives 'step', which the run itself counts; call it otherwise"),
        (DivergedError, {"length": float("nan")}, "Step 2: the measure 'length' is nan. No checkpoint was"),
    ]
    for error, found, message in cases:
        run = run_of(tmp_path, options={"measure": lambda _, x=found: x, "measure_steps": 2})
        with pytest.raises(error, match=message):
            run.train()
