"""What comes after the actions: gradient syncs, and each rank's optimizer step.

At the end of the step, a sync starts when all its ranks have done their actions and the syncs before.
In buckets, it runs beside the last backwards, as all-reduces of equal parts: part i of n may start
when each of its ranks has done i/n of the last action that adds to these gradients (a B, or a W), for
they become final evenly. All ranks take the parts in one order, that in which they may start.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from autopart.schedule import StageRanks
from autopart.simulator.actions import Actions, B, W
from autopart.simulator.clock import Times
from autopart.simulator.costs import StageCosts, Time


class SyncCost(Protocol):
    """What the simulator reads of a sync, as plan.Sync has it."""

    @property
    def ranks(self) -> tuple[int, ...]: ...
    @property
    def time(self) -> Time: ...


class Buckets(NamedTuple):
    """Syncs that run in parts beside the last backwards."""

    parts: int
    """Equal parts of each sync, 1 or more."""
    stages: tuple[tuple[int, ...], ...]
    """For each sync the stages whose gradients it sums."""


class SyncSlice(NamedTuple):
    """A sync, or a part of it, on one rank; seconds from the start of the step."""

    sync: int
    """Its place in the plan's syncs."""
    start: float
    end: float


Slices = list[list[SyncSlice]]
"""For each rank its syncs, in order."""


def after_syncs(
    free: Sequence[Time], syncs: Sequence[SyncCost], larger: Callable[..., Time]
) -> list[Time]:
    """When each rank has made its gradient syncs, all at the end; `larger` is max, for floats or
    arrays."""
    ready = list(free)
    for sync in syncs:
        start = ready[sync.ranks[0]]
        for rank in sync.ranks[1:]:
            start = larger(start, ready[rank])
        for rank in sync.ranks:
            ready[rank] = start + sync.time
    return ready


def syncs_at_end(free: Sequence[float], syncs: Sequence[SyncCost]) -> Slices:
    """The same as slices."""
    slices: Slices = [[] for _ in free]
    ready = list(free)
    for place, sync in enumerate(syncs):
        start = max(ready[rank] for rank in sync.ranks)
        for rank in sync.ranks:
            ready[rank] = start + sync.time
            slices[rank].append(SyncSlice(place, start, ready[rank]))
    return slices


def syncs_in_buckets(
    actions: Actions, times: Times, syncs: Sequence[SyncCost], buckets: Buckets
) -> Slices:
    """The parts of every sync, beside the last backwards."""
    parts: list[tuple[float, int]] = []
    for place, (sync, stages) in enumerate(zip(syncs, buckets.stages, strict=True)):
        spans = [_last_gradient(actions, times, rank, stages) for rank in sync.ranks]
        for done in range(1, buckets.parts + 1):
            share = done / buckets.parts
            parts.append((max(s + (e - s) * share for s, e in spans), place))
    slices: Slices = [[] for _ in actions.schedule]
    ready = [0.0] * len(slices)
    for may_start, place in sorted(parts):
        ranks = syncs[place].ranks
        start = max(may_start, *(ready[rank] for rank in ranks))
        for rank in ranks:
            ready[rank] = start + syncs[place].time / buckets.parts
            slices[rank].append(SyncSlice(place, start, ready[rank]))
    return slices


def _last_gradient(
    actions: Actions, times: Times, rank: int, stages: Sequence[int]
) -> tuple[float, float]:
    """Start and end of the last action of `rank` that adds to the gradients of `stages`."""
    first, stop = actions.first[rank], actions.first[rank + 1]
    kinds = actions.kind[first:stop]
    adding = np.isin(kinds // 4, stages) & np.isin(kinds % 4, (B, W))
    found = np.flatnonzero(adding)
    if not len(found):
        return 0.0, 0.0
    last = first + int(found[-1])
    return times.start[last], times.end[last]


def add_updates(
    ends: Sequence[Time], ranks: StageRanks, stages: Sequence[StageCosts]
) -> list[Time]:
    """`ends` and the optimizer steps of the stages on each rank."""
    updated = list(ends)
    for stage, own in zip(stages, ranks, strict=True):
        for rank in own:
            updated[rank] = updated[rank] + stage.update_time
    return updated
