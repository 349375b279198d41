"""Two and three gloo processes give the loss and the gradients of one with the whole batch."""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from objectives.distributed_cases import whole_batch
from torch.testing import assert_close

from hf_mm import distributed_info_nce, distributed_sigmoid_loss, info_nce, sigmoid_loss
from hf_mm.objectives.exchange import gather_features

SIZES = {
    "equal": {2: (4, 4), 3: (3, 3, 3)},
    "unequal": {2: (5, 2), 3: (1, 4, 2)},
    "one empty": {2: (4, 0), 3: (3, 0, 2)},
}
WORLDS = (2, 3)


def cases(world):
    """Name: what the processes shall compute."""
    found = {}

    def add(kind, exchange, sizes, extra="", **more):
        options = more.pop("options", {})
        found[f"{kind} {exchange} {sizes}{extra}"] = {
            "kind": kind, "exchange": exchange, "sizes": SIZES[sizes][world], "options": options, **more
        }  # fmt: skip

    exchanges = (("info_nce", "gather"), ("info_nce", "local"), ("sigmoid", "gather"), ("sigmoid", "ring"))
    for (kind, exchange), sizes, chunk_size in product(exchanges, SIZES, (None, 2)):
        add(
            kind,
            exchange,
            sizes,
            f" in chunks of {chunk_size}" * bool(chunk_size),
            options={"chunk_size": chunk_size},
        )
    for kind, exchange in exchanges:
        add(kind, exchange, "unequal", " euclidean", options={"similarity": "euclidean", "chunk_size": 3})
        add(kind, exchange, "unequal", " bfloat16", dtype=torch.bfloat16, options={"chunk_size": 3})
    for exchange, chunk_size in product(("gather", "local"), (None, 2)):
        everything = {"label_smoothing": 0.2, "chunk_size": chunk_size}
        add("info_nce", exchange, "unequal", f" smooth, hard {chunk_size}", hard=3, options=everything)
    return found


NAMES = list(cases(2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all processes of all cases, forked from one, left what they found."""
    folder = tmp_path_factory.mktemp("processes")
    torch.save({world: cases(world) for world in WORLDS}, folder / "cases.pt")
    program = Path(__file__).with_name("distributed_cases.py")
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, str(program), str(folder)], env=env, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return folder


@pytest.fixture(scope="module", params=WORLDS, ids=[f"{world} processes" for world in WORLDS])
def results(request, folder):
    """What each process found."""
    return [torch.load(folder / f"{request.param}-{rank}.pt") for rank in range(request.param)]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_processes_together_are_one_with_the_whole_batch(results, name):
    """The value of each (with "local" their mean), the gradients as DistributedDataParallel averages them."""
    case = cases(len(results))[name]
    loss, gradients = whole_batch(case)
    # bfloat16 weights: their gradients carry three digits, however exact the loss is.
    tolerance = {"rtol": 2e-2, "atol": 2e-3} if "dtype" in case else {"rtol": 1e-5, "atol": 1e-5}
    losses = torch.stack([found[name][0] for found in results])
    if case["exchange"] == "local":
        losses = losses.mean(0, keepdim=True)
    for value in losses:
        assert_close(value, loss, rtol=1e-5, atol=1e-5)
    for found in results:
        assert found[name][1].keys() == gradients.keys()
        for parameter, expected in gradients.items():
            assert expected.abs().max() > 1e-3
            assert_close(found[name][1][parameter], expected, **tolerance)


@pytest.mark.slow
def test_gathered_rows_keep_the_order_of_processes_and_their_gradients_add_up(results):
    world = len(results)
    expected = torch.cat([torch.full((rank + 1, 2), float(rank)) for rank in range(world)])
    for rank, found in enumerate(results):
        rows, gradient = found["gather"]
        assert_close(rows, expected, rtol=0, atol=0)
        assert_close(gradient, torch.full((rank + 1, 2), float(sum(range(1, world + 1)))), rtol=0, atol=0)


@pytest.mark.slow
def test_features_of_unequal_width_are_refused_on_every_process(results):
    for rank, found in enumerate(results):
        other = 1 if rank == 0 else 0
        assert found["widths differ"] == (
            f"Process {other} has features of shape (2, {3 + other}), this one (2, {3 + rank}); "
            "only the number of rows may differ."
        )


@pytest.mark.slow
def test_nan_on_one_process_is_seen_by_all(results):
    """So that all stop at the same step, and none waits for the others."""
    for found in results:
        assert all(loss.isnan() for loss in found["nan"])


@pytest.mark.slow
def test_a_batch_empty_on_all_processes_is_refused(results):
    assert {found["all empty"] for found in results} == {"No process has any pairs; skip empty batches."}


@pytest.mark.slow
def test_a_group_of_processes_can_share_a_batch_of_its_own(results):
    """The group's ranks differ from those of the world when there are three."""
    losses = [found["group"] for found in results[-2:]]
    for kind in ("info_nce", "sigmoid"):
        expected, _ = whole_batch({"kind": kind, "sizes": (2, 3), "options": {}})
        for (found_kind, exchange), _ in losses[0].items():
            if found_kind == kind:
                values = torch.stack([found[kind, exchange] for found in losses])
                assert_close(values.mean(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("exchange", ["gather", "local"])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_without_processes_info_nce_is_its_distributed_form(exchange, chunk_size):
    images, texts = torch.eye(5), torch.eye(5).roll(1, 0) + 0.1
    alone = info_nce(images, texts, 3.0)
    loss = distributed_info_nce(images, texts, 3.0, chunk_size=chunk_size, exchange=exchange)
    assert_close(loss, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("exchange", ["gather", "ring"])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_without_processes_the_sigmoid_loss_is_its_distributed_form(exchange, chunk_size):
    images, texts = torch.eye(5).requires_grad_(), torch.eye(5).roll(1, 0) + 0.1
    alone = sigmoid_loss(images, texts, 3.0, -1.0)
    loss = distributed_sigmoid_loss(images, texts, 3.0, -1.0, chunk_size=chunk_size, exchange=exchange)
    assert_close(loss, alone, rtol=1e-5, atol=1e-6)
    assert_close(torch.autograd.grad(loss, images), torch.autograd.grad(alone, images), rtol=1e-5, atol=1e-6)


def test_without_processes_features_come_back_as_they_are():
    features = torch.ones(2, 3)
    assert gather_features(features) is features


def test_an_unknown_exchange_is_refused():
    features = torch.eye(3)
    with pytest.raises(ValueError, match="`exchange` must be 'gather' or 'local', got 'ring'"):
        distributed_info_nce(features, features, 1.0, exchange="ring")
    with pytest.raises(ValueError, match="`exchange` must be 'gather' or 'ring', got 'local'"):
        distributed_sigmoid_loss(features, features, 1.0, 0.0, exchange="local")
