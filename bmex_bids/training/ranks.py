"""Several processes that train one network, as PyTorch's own launcher (torchrun) starts them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

__all__ = ["ALONE", "Ranks", "gathered", "joined", "meet", "shared"]

PATIENCE = timedelta(days=7)  # while the first process prepares the samples


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Attributes:
        rank: number of this process; the one of number 0 writes.
        world: how many there are.
        device: of this process, None where it is free.
    """

    rank: int = 0
    world: int = 1
    device: str | None = None


ALONE = Ranks()


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the processes that torchrun started; alone without it.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``; each process of a machine takes its own GPU.
    """
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield ALONE
        return
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        own = f"cuda:{dist.get_node_local_rank()}" if cuda else "cpu"
        if cuda:
            torch.cuda.set_device(own)
        yield Ranks(dist.get_rank(), dist.get_world_size(), own)
    finally:
        dist.destroy_process_group()


def shared(network: nn.Module, ranks: Ranks) -> nn.Module:
    """The network whose gradients are the mean over all processes."""
    if ranks.world == 1:
        return network
    device = torch.device(ranks.device or "cpu")
    return nn.parallel.DistributedDataParallel(
        network, device_ids=[device] if device.type == "cuda" else None
    )


def gathered(own: object, ranks: Ranks) -> list[object]:
    """What every process has, in the order of their numbers; empty but in the first."""
    if ranks.world == 1:
        return [own]
    parts: list[object] | None = [None] * ranks.world if ranks.rank == 0 else None
    dist.gather_object(own, parts)
    return parts or []


def meet(ranks: Ranks) -> None:
    """Wait until every process is here."""
    if ranks.world > 1:
        dist.all_reduce(torch.zeros(1))  # on the CPU, whatever the device
