"""The ranks of a probe: who they are, that they belong together, and how they keep in step."""

# pyright: reportPrivateImportUsage=false

import os
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
from torch import distributed

from autopart.errors import RunError, UsageError
from autopart.runtime.execution.faults import LostPeer
from autopart.runtime.execution.gloo_threads import let_compute_go_first
from autopart.runtime.execution.rank import CONNECT_SECONDS, World, place_of
from autopart.runtime.execution.training import Place
from autopart.runtime.execution.transfers import carried
from autopart.runtime.host_allocator import keep_freed_memory

T = TypeVar("T")

LONGEST_PROBE = 10.0
"""A whole probe may take this many times the timeout of a single wait."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This rank among all of them; rank r sits on node r // per_node."""

    rank: int
    size: int
    per_node: int
    device: torch.device
    backend: str

    @property
    def node(self) -> int:
        """The node that this rank sits on."""
        return self.rank // self.per_node

    @property
    def num_nodes(self) -> int:
        """The nodes of all ranks."""
        return self.size // self.per_node

    def wait(self, what: str) -> None:
        """Until all ranks are here; raises LostPeer where one is gone or late."""
        self.gather(None, what)

    def gather(self, value: T, what: str) -> list[T]:
        """Every rank's value, on every rank; raises LostPeer where one is gone or late."""
        everyone: list[Any] = [None] * self.size
        carried(partial(distributed.all_gather_object, everyone, value), None, what)
        return everyone


@contextmanager
def joined(world: World, device: str | None, timeout: float) -> Generator[Ranks]:
    """The ranks that torchrun, or `probe_cluster`, started. Each wait for another rank lasts at most
    `timeout` seconds, the whole probe `LONGEST_PROBE` times as long; then this process ends.

    Raises RunError where the ranks were started differently, UsageError where a device is missing.
    """
    end = threading.Timer(LONGEST_PROBE * timeout, _give_up, (world.rank, LONGEST_PROBE * timeout))
    end.daemon = True
    end.start()
    with said_of_lost_ranks(world.rank):
        ranks = _met(world, place_of(device, world), timeout)
        check_alike(ranks)
        yield ranks
        ranks.wait("the end of the probe")
    distributed.destroy_process_group()
    end.cancel()


def _met(world: World, place: Place, timeout: float) -> Ranks:
    wait = timedelta(seconds=CONNECT_SECONDS)
    meetings = distributed.rendezvous("env://", timeout=wait)
    store, _, _ = carried(partial(next, iter(meetings)), None, "meeting the others")
    begin = partial(
        distributed.init_process_group,
        "cpu:gloo,cuda:nccl" if place.backend == "nccl" else "gloo",
        store=distributed.PrefixStore(f"autopart/probe/{world.attempt}", store),
        rank=world.rank,
        world_size=world.size,
        timeout=timedelta(seconds=timeout),
    )
    carried(begin, None, "meeting the others")
    keep_freed_memory(place.device)
    let_compute_go_first()
    return Ranks(world.rank, world.size, world.local_size, place.device, place.backend)


@contextmanager
def said_of_lost_ranks(rank: int) -> Generator[None]:
    """Raise RunError, in words that say who missed whom, where a rank is gone or late."""
    try:
        yield
    except LostPeer as error:
        lost = "another rank" if error.peer is None else f"rank {error.peer}"
        raise RunError(
            f"rank {rank} lost {lost} in {error}; see that all ranks run and reach each other, or "
            "raise --timeout"
        ) from error


def check_alike(ranks: Ranks) -> None:
    """Raise RunError where ranks were started differently, UsageError where there is but one. Every
    rank must call this."""
    mine = {
        "torch": str(torch.__version__),
        "device": ranks.device.type,
        "number of ranks on its node": str(ranks.per_node),
    }
    for rank, theirs in enumerate(ranks.gather(mine, "the comparison of versions and devices")):
        for what, value in theirs.items():
            if value != mine[what]:
                raise RunError(
                    f"rank {rank} has another {what} than rank {ranks.rank}: {value} instead of "
                    f"{mine[what]}; start all ranks alike"
                )
    if ranks.size < 2:
        raise UsageError(
            "one rank has nobody to send to; start at least 2: --ranks 2, or torchrun "
            "--nproc-per-node 2 -m autopart probe"
        )
    if ranks.size % ranks.per_node:
        raise RunError(
            f"{ranks.size} ranks do not divide evenly over nodes of {ranks.per_node}; start as many "
            "on each"
        )


def _give_up(rank: int, seconds: float) -> None:
    """The wait may be inside torch, which no exception reaches."""
    sys.stderr.write(
        f"error: rank {rank}: the probe did not end within {seconds:.0f} s; see that all ranks were "
        "started, or raise --timeout\n"
    )
    sys.stderr.flush()
    os._exit(1)
