"""What processes of their own run in tests; they start anew, for a process that computed gradients must not fork."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import torch
from torch import distributed as dist
from torch import multiprocessing, nn
from training_cases import SignalAt, fast_config, tiny_structure, weights_of

from detector.data.source import load_data
from detector.distributed import joined_processes
from detector.sync_norm import synchronise_norms
from detector.train import train

# Few steps: sooner or later a rounding difference moves a point to another box, and the runs part.
CONFIG = {
    "train__epochs": 2,
    "train__batch_size": 6,
    "schedule__warmup_epochs": 0,
    "optimizer__name": "sgd",
    "optimizer__lr": 0.02,
}


def train_in_one_of_two(rank: int, port: int, data: str, out: str, options: dict) -> None:
    torch.set_num_threads(1)
    names = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    resume, stop = options.pop("resume", False), options.pop("stop", False)
    with joined_processes(os.environ, device="cpu") as processes:
        result = train(
            fast_config(**{**CONFIG, **options}),
            tiny_structure(),
            load_data(data),
            out=out,
            resume=resume,
            callbacks=[SignalAt(1)] if stop and rank == 0 else [],
            processes=processes,
        )
        assert result.ended_by == ("SIGTERM" if stop else "completed")


def run_two(data: Path, out: Path, **options) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (port, str(data), str(out), options)
    multiprocessing.start_processes(train_in_one_of_two, arguments, nprocs=2, start_method="spawn")


def assert_close(first: Path, second: Path) -> None:
    one, other = weights_of(first), weights_of(second)
    assert one.keys() == other.keys()
    for name, value in one.items():
        scale = float(value.abs().max()) + 1e-6
        assert float((value - other[name]).abs().max()) < 1e-4 * scale, name


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, eps=1e-3, momentum=0.03), nn.ReLU(), nn.Conv2d(5, 2, 1))


def make_batch() -> torch.Tensor:
    return 40 + 10 * torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def learn(network: nn.Sequential, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients and statistics after one pass; the batch counts as a sum."""
    batch = batch.requires_grad_()
    output = network(batch)
    (output * torch.arange(output[0].numel()).view_as(output[0]).sin()).sum().backward()
    found = {name: parameter.grad for name, parameter in network.named_parameters()}
    return found | dict(network.named_buffers()) | {"batch": batch.grad}


def normalise_in_one_of_two(rank: int, place: str, results) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    network = make_network().double()
    synchronise_norms(network, None)
    part = make_batch().double()[:3] if rank == 0 else make_batch().double()[3:]
    results[rank] = {name: value.numpy() for name, value in learn(network, part).items()}
    dist.destroy_process_group()
