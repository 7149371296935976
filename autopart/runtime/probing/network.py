"""Sends, collectives and compute beside them, between all ranks of several nodes.

Every measurement goes from small to large messages. It ends before a size that would take more than
the measurement's share of the time limit, or more than a part of the memory. All ranks take the
same decisions: rank 0's clock counts, and the slowest rank's time.
"""

# pyright: reportPrivateImportUsage=false

import math
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import msgspec
import torch
from torch import distributed

from autopart.errors import RunError
from autopart.records.readings import (
    CollectiveReadings,
    ComputeReadings,
    NetworkReadings,
    Reading,
    SendReadings,
)
from autopart.runtime.engine.transfers import with_other_rank
from autopart.runtime.probing.collective_calls import call_of
from autopart.runtime.probing.compute_beside import measure_compute
from autopart.runtime.probing.groups import GroupTask, SendTask, tasks
from autopart.runtime.probing.links import own_group, receive_message, send_message
from autopart.runtime.probing.memory import free_memory
from autopart.runtime.probing.ranks import Ranks
from autopart.runtime.probing.samples import reading, timed
from autopart.units import format_bytes

SIZES = (64 << 10, *(1 << power for power in range(20, 31, 2)))
"""Bytes of a message: 64 KiB, and from 1 MiB to 1 GiB by 4."""
_FEWEST, _MOST = 3, 20
"""Fewest and most repetitions with one size."""
_ENOUGH = 0.2
"""Seconds for all repetitions with one size, if they are not the fewest."""
_LONG = 5e-3
"""Seconds that a sample takes at least; shorter messages follow each other in one sample."""
_COVERS = 0.5
"""Most seconds of an all-reduce beside which compute is measured."""
_PART = 1 / 8
"""Part of a rank's free memory that a message may take."""


class TimeLimit:
    """Seconds that are left for the network, by the clock of rank 0."""

    def __init__(self, ranks: Ranks, seconds: float) -> None:
        self._ranks = ranks
        self._begin = time.monotonic()
        self.seconds = seconds

    def gone(self) -> float:
        """Return seconds since the start, the same on every rank. Every rank must call this."""
        own = time.monotonic() - self._begin
        return self._ranks.gather(own, "the time that is left")[0]


class _Share(NamedTuple):
    """A task's part of the time limit."""

    limit: TimeLimit
    until: float
    """Seconds since the start of the limit at which the task should have ended."""
    most_bytes: int


def measure_network(ranks: Ranks, seconds: float) -> NetworkReadings:
    """Measure for about so many seconds. Every rank must call this.

    Raises RunError where no time was left for a collective over nodes.
    """
    limit = TimeLimit(ranks, seconds)
    most_bytes = int(_PART * min(ranks.gather(free_memory(ranks), "the others' free memory")))
    sends: list[SendReadings] = []
    collectives: list[CollectiveReadings] = []
    left_out: list[str] = []
    todo = tasks(ranks)
    for place, task in enumerate(todo):
        gone = limit.gone()
        ranks.tell(f"{task} ({place + 1} of {len(todo)}; {gone:.0f} s of at most {seconds:.0f} s)")
        if gone >= seconds:
            left_out.append(str(task))
            continue
        # What earlier tasks have left over goes to the later ones.
        share = _Share(limit, gone + (seconds - gone) / (len(todo) - place), most_bytes)
        if isinstance(task, SendTask):
            sends.append(_sends(ranks, task, share))
        else:
            collectives.append(_collective(ranks, task, share))
    if not any(one.nodes > 1 for one in collectives):
        raise RunError(
            f"{seconds:.0f} s were too short for any collective over nodes; raise --limit"
        )
    return NetworkReadings(
        sends=tuple(sends),
        collectives=tuple(collectives),
        compute=_compute(ranks, collectives),
        took=limit.gone(),
        left_out=tuple(left_out),
    )


def _sends(ranks: Ranks, task: SendTask, share: _Share) -> SendReadings:
    pair = next((pair for pair in task.pairs if ranks.rank in pair), None)

    def prepare(size: int) -> Callable[[], object]:
        if pair is None:
            return _nothing
        message = torch.zeros(size, dtype=torch.uint8, device=ranks.device)
        return partial(_there_and_back, ranks.rank, pair, message)

    readings = _by_size(ranks, task, share, prepare)
    # One way takes half of there and back.
    halves = tuple(msgspec.structs.replace(r, time=r.time / 2) for r in readings)
    return SendReadings(path=task.path, at_once=task.at_once, readings=halves)


def _there_and_back(rank: int, pair: tuple[int, int], message: torch.Tensor) -> None:
    first, second = pair
    if rank == first:
        send_message(message, second)
        receive_message(message, second)
    else:
        receive_message(message, first)
        send_message(message, first)


def _collective(ranks: Ranks, task: GroupTask, share: _Share) -> CollectiveReadings:
    spare = tuple(set(range(ranks.size)) - {rank for group in task.groups for rank in group})
    group = own_group(ranks, [*task.groups, *([spare] if spare else [])])
    taking_part = ranks.rank not in spare

    def prepare(size: int) -> Callable[[], object]:
        if not taking_part:
            return _nothing
        run = call_of(task.collective, size, len(task.groups[0]), ranks.device, group)
        return partial(with_other_rank, run, None, str(task))

    readings = _by_size(ranks, task, share, prepare)
    distributed.destroy_process_group(group)
    return CollectiveReadings(
        collective=task.collective,
        ranks=len(task.groups[0]),
        nodes=task.nodes,
        at_once=task.at_once,
        readings=readings,
    )


def _by_size(
    ranks: Ranks,
    task: GroupTask | SendTask,
    share: _Share,
    prepare: Callable[[int], Callable[[], object]],
) -> tuple[Reading, ...]:
    """Measure size by size, while the task's time and the memory last."""
    found: list[Reading] = []
    for size in SIZES:
        if found and size > share.most_bytes:
            break
        run = prepare(size)
        run()
        (trial,) = _samples(ranks, run, 1, 1)
        runs = min(_MOST, max(1, math.ceil(_LONG / max(trial, 1e-6))))
        count = max(_FEWEST, min(_MOST, int(_ENOUGH / (runs * max(trial, 1e-6)))))
        left = share.until - share.limit.gone()
        if trial * _FEWEST > left and trial > _ENOUGH:
            # Too long to repeat: the trial is the measurement.
            found.append(reading(size, [trial]))
            break
        found.append(reading(size, _samples(ranks, run, runs, count)))
        # The next size takes about four times as long. 64 KiB alone would show no bandwidth.
        left = share.until - share.limit.gone()
        if size > SIZES[0] and 4 * trial * (2 + _FEWEST) > left:
            break
    return tuple(found)


def _samples(ranks: Ranks, run: Callable[[], object], runs: int, count: int) -> list[float]:
    """Return so many samples on the slowest rank, each the mean seconds over `runs` in a row."""
    own: list[float] = []
    for _ in range(count):
        ranks.wait("the start of a measurement")
        own.append(timed(lambda: [run() for _ in range(runs)], ranks.device) / runs)
    return [max(of_all) for of_all in zip(*ranks.gather(own, "the times of others"), strict=True)]


def _compute(ranks: Ranks, collectives: list[CollectiveReadings]) -> ComputeReadings:
    """Measure compute beside an all-reduce over all ranks, of a size that takes a while."""
    size = max(
        (
            r.num_bytes
            for one in collectives
            if (one.collective, one.ranks) == ("all_reduce", ranks.size)
            for r in one.readings
            if r.time < _COVERS
        ),
        default=SIZES[0],
    )
    ranks.tell(f"matrix products beside an all-reduce of {format_bytes(size)}")
    return measure_compute(ranks, size)


def _nothing() -> None:
    """A rank that takes no part waits for the others."""
