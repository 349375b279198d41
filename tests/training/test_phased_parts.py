"""Parts of phased training: which rows a step takes, what is measured, what is seen to be broken."""

import pytest
import torch

from hf_mm import DivergedError
from hf_mm.training.phased_batches import StepBatches
from hf_mm.training.phased_meter import FiniteWatch, RunningMeans


def test_epochs_are_permutations_joined_end_to_end():
    batches = list(StepBatches(rows=10, batch_size=4, parts=1, steps=(0, 10), seed=0))
    assert all(len(batch) == 4 for batch in batches)
    stream = [row for batch in batches for row in batch]
    epochs = [stream[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_run_that_begins_later_takes_the_rows_that_would_have_come():
    settings = {"rows": 7, "batch_size": 2, "parts": 3, "seed": 5}
    whole = list(StepBatches(steps=(0, 9), **settings))
    later = StepBatches(steps=(4, 9), **settings)
    assert list(later) == whole[12:]
    assert len(later) == 15
    assert list(StepBatches(steps=(0, 9), **{**settings, "seed": 6})) != whole


def test_processes_share_the_rows_of_one_large_batch():
    whole = list(StepBatches(rows=5, batch_size=6, parts=2, steps=(0, 4), seed=0))
    parts = [list(StepBatches(5, 3, 2, (0, 4), 0, process, 2)) for process in (0, 1)]
    assert [one + other for one, other in zip(*parts, strict=True)] == whole
    assert StepBatches(5, 3, 2, (0, 4), 0, 1, 2).rows_per_step == 12


def test_more_rows_may_be_asked_for_than_there_are():
    (batch,) = StepBatches(rows=3, batch_size=8, parts=1, steps=(0, 1), seed=0)
    assert sorted(batch[:3]) == sorted(batch[3:6]) == [0, 1, 2]


def test_means_count_a_number_where_it_was_given():
    means = RunningMeans()
    means.add({"loss": torch.tensor(1.0, requires_grad=True), "late": 2})
    means.add({"loss": torch.tensor(4.0)})
    assert means.read(torch.device("cpu")) == {"loss": 2.5, "late": 2.0}
    again = RunningMeans()
    again.load_state_dict(means.state_dict())
    again.add({"loss": 1.0})
    assert again.read(torch.device("cpu")) == {"loss": 2.0, "late": 2.0}
    means.clear()
    assert means.read(torch.device("cpu")) == {}


def test_on_an_accelerator_the_earliest_fault_is_found_when_it_is_looked_for():
    watch = FiniteWatch(torch.device("cuda"))  # the kind of device decides, not where the numbers are
    for step, (loss, norm) in enumerate(
        [(1.0, 1.0), (1.0, torch.inf), (torch.nan, 1.0), (1.0, 1.0)], start=1
    ):
        watch.look(step, "loss of phase 'a'", torch.tensor(loss))
        watch.look(step, "gradient of phase 'a'", torch.tensor(norm))
    with pytest.raises(DivergedError, match="Step 2: the gradient of phase 'a' is not finite"):
        watch.check()
    watch.look(5, "loss of phase 'a'", torch.tensor(1.0))
    watch.check()


def test_on_the_cpu_a_fault_is_found_at_once():
    watch = FiniteWatch(torch.device("cpu"))
    watch.look(1, "loss of phase 'a'", torch.tensor(1e30))
    with pytest.raises(DivergedError, match="Step 2: the loss of phase 'a' is -inf"):
        watch.look(2, "loss of phase 'a'", torch.tensor(-torch.inf))
