"""Ranks in a probe: their places, their agreement, and their waits for each other."""

# pyright: reportPrivateImportUsage=false

import os
import socket
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import distributed

from autopart.errors import RunError, UsageError
from autopart.runtime.engine.failures import LostRank
from autopart.runtime.engine.gloo_threads import let_compute_go_first
from autopart.runtime.engine.transfers import with_other_rank
from autopart.runtime.host_allocator import keep_freed_memory
from autopart.runtime.job.meeting import find_store, meet
from autopart.runtime.job.rank import place_of
from autopart.runtime.job.training import Place
from autopart.runtime.job.world import World
from autopart.runtime.probing.watch import Watch, board_of, watched
from autopart.text import counted

T = TypeVar("T")

LONGEST_PROBE = 10.0
"""Limit for a whole probe without the network, in multiples of the timeout for one wait."""


class ProbeSettings(NamedTuple):
    """What the user asked for, alike on all ranks."""

    device: str | None
    threads: int
    timeout: float
    """Seconds for one wait on another rank."""
    network: bool | None
    """Whether sends and collectives between all ranks are measured; None where nodes are several."""
    limit: float
    """Seconds for them."""


def longest(asked: ProbeSettings) -> float:
    """Return the seconds after which a probe is given up."""
    return LONGEST_PROBE * asked.timeout + (0.0 if asked.network is False else 2 * asked.limit)


@dataclass(frozen=True, slots=True)
class Ranks:
    """This rank among all ranks. Rank r sits on node r // per_node."""

    rank: int
    size: int
    per_node: int
    device: torch.device
    backend: str
    tell: Callable[[str], None] = lambda line: None
    """Tells what this rank does now: in its notes, and to the user on rank 0."""

    @property
    def node(self) -> int:
        """Node on which this rank sits."""
        return self.rank // self.per_node

    @property
    def num_nodes(self) -> int:
        """How many nodes have ranks."""
        return self.size // self.per_node

    def wait(self, waiting_for: str) -> None:
        """Wait until all ranks are here. Raises LostRank where one is gone or late."""
        # A number on the CPU goes over gloo, also where the ranks have GPUs.
        meet_all = partial(distributed.all_reduce, torch.zeros(1))
        with_other_rank(meet_all, None, waiting_for)

    def gather(self, value: T, waiting_for: str) -> list[T]:
        """Return every rank's value on every rank. Raises LostRank where one is gone or late."""
        everyone: list[Any] = [None] * self.size
        with_other_rank(partial(distributed.all_gather_object, everyone, value), None, waiting_for)
        return everyone


@contextmanager
def joined(world: World, asked: ProbeSettings) -> Generator[Ranks]:
    """Join the ranks that torchrun or `probe_cluster` started.

    Each wait for another rank lasts at most `asked.timeout` seconds, and the whole probe at most
    `longest` ones. Then this process ends. Raises RunError where a rank is gone, which it names, or
    ranks were started differently; UsageError where a device is missing.
    """
    end = threading.Timer(longest(asked), _give_up, (world.rank, longest(asked)))
    end.daemon = True
    end.start()
    place = place_of(asked.device, world)
    store = find_store(world, asked.timeout)
    with watched(world) as watch, lost_ranks_reported(world.rank):
        ranks = _met(world, place, asked.timeout, store, watch)
        check_alike(ranks)
        yield ranks
        ranks.wait("the end of the probe")
    distributed.destroy_process_group()
    end.cancel()


def _met(
    world: World, place: Place, timeout: float, store: distributed.Store, watch: Watch
) -> Ranks:
    watch.beat()
    meet(board_of(store, world), timeout)
    begin = partial(
        distributed.init_process_group,
        "cpu:gloo,cuda:nccl" if place.backend == "nccl" else "gloo",
        store=distributed.PrefixStore(f"autopart/probe/{world.attempt}", store),
        rank=world.rank,
        world_size=world.size,
        timeout=timedelta(seconds=timeout),
    )
    with_other_rank(begin, None, "meeting the others")
    keep_freed_memory(place.device)
    let_compute_go_first()

    def tell(line: str) -> None:
        watch.doing(line)
        if world.rank == 0:
            sys.stderr.write(f"probe: {line}\n")
            sys.stderr.flush()

    ranks = Ranks(world.rank, world.size, world.local_size, place.device, place.backend, tell)
    watch.hosts = ranks.gather(socket.gethostname(), "the hosts of other ranks")
    return ranks


@contextmanager
def lost_ranks_reported(rank: int) -> Generator[None]:
    """Raise RunError, which names both ranks, where one is gone or late."""
    try:
        yield
    except LostRank as error:
        lost = "another rank" if error.other_rank is None else f"rank {error.other_rank}"
        raise RunError(
            f"rank {rank} lost {lost} in {error}; check that all ranks run and reach each other, or "
            "raise --timeout"
        ) from error


def check_alike(ranks: Ranks) -> None:
    """Raise RunError where ranks were started differently, UsageError where there is only one.

    Every rank must call this.
    """
    mine = {
        "torch": str(torch.__version__),
        "device": ranks.device.type,
        "number of ranks on its node": str(ranks.per_node),
    }
    for rank, theirs in enumerate(ranks.gather(mine, "the comparison of versions and devices")):
        for name, value in theirs.items():
            if value != mine[name]:
                raise RunError(
                    f"rank {rank} has another {name} than rank {ranks.rank}: {value} instead of "
                    f"{mine[name]}; start all ranks alike"
                )
    if ranks.size < 2:
        raise UsageError(
            "one rank has nobody to send to; start at least 2: --ranks 2, or torchrun "
            "--nproc-per-node 2 -m autopart probe"
        )
    if ranks.size % ranks.per_node:
        raise RunError(
            f"{counted(ranks.size, 'rank does', 'ranks do')} not divide evenly over nodes of {ranks.per_node}; start as many "
            "on each"
        )


def _give_up(rank: int, seconds: float) -> None:
    """End the process. The wait may be inside torch, which no exception reaches."""
    sys.stderr.write(
        f"error: rank {rank}: the probe did not end within {seconds:.0f} s; check that all ranks were "
        "started, or raise --timeout\n"
    )
    sys.stderr.flush()
    os._exit(1)
