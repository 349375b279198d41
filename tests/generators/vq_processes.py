"""Two processes of gloo that learn one codebook; see `test_vq_in_processes.py`."""

import sys

import torch
from torch import distributed
from torch.multiprocessing import start_processes

from hf_mm.generators.autoencoder.quantisers import MovingAverageQuantiser
from hf_mm.objectives.quantisation import random_vectors, sum_over_processes

CASES = {
    "averages": {"restart_threshold": 0.0, "kmeans_iterations": 0},
    "averages of length 1": {"restart_threshold": 0.0, "kmeans_iterations": 0, "l2_normalized": True},
    "start": {"restart_threshold": 0.0, "kmeans_iterations": 3},
    "start and restarts": {"restart_threshold": 0.5, "kmeans_iterations": 3},
    "start from few vectors": {"restart_threshold": 0.5, "kmeans_iterations": 3, "num_codes": 200},
}
SHARES = (slice(0, 3), slice(3, 4))  # pictures of each process: unequal


def batch(step):
    return torch.randn(4, 4, 5, 5, generator=torch.Generator().manual_seed(step))


def vectors(pictures):
    """(N, 4), 25 of each picture."""
    return batch(0)[pictures].movedim(1, -1).flatten(0, 2)


def learnt(name, pictures):
    """The codebook and its averages after three batches of these pictures."""
    torch.manual_seed(0)
    model = MovingAverageQuantiser(**{"num_codes": 12, "width": 4, "decay": 0.8} | CASES[name]).train()
    with torch.no_grad():
        model.embedding.weight.copy_(torch.randn_like(model.embedding.weight))
        model.embedding.weight.copy_(model.codes())
    if distributed.is_initialized():
        torch.manual_seed(10 + distributed.get_rank())  # as each process has its own in training
    for step in range(3):
        model(batch(step)[pictures])
    return model.state_dict()


def process(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {name: learnt(name, SHARES[rank]) for name in CASES}
    found["drawn"] = sum_over_processes(random_vectors(vectors(SHARES[rank]), 100))
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    start_processes(process, (sys.argv[1],), nprocs=2, start_method="fork")
