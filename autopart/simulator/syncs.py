"""Gradient syncs after the actions, and then each rank's optimizer step.

A sync starts when all its ranks are done with their actions and their earlier syncs.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from autopart.schedules.actions import StageRanks
from autopart.simulator.costs import FloatArray, StageCosts, T_co

S = TypeVar("S", float, FloatArray)


class SyncCost(Protocol[T_co]):
    """A sync's ranks and seconds. `Sync` in a plan's prediction has them."""

    @property
    def ranks(self) -> tuple[int, ...]: ...
    @property
    def time(self) -> T_co: ...


class SyncSlice(NamedTuple):
    """A sync on one rank, in seconds since the step began."""

    sync: int
    """The sync's place in the plan's list."""
    start: float
    end: float


Slices = list[list[SyncSlice]]
"""Each rank's syncs, in order."""


def after_syncs(
    free: Sequence[S], syncs: Sequence[SyncCost[S | float]], larger: Callable[[S, S], S]
) -> list[S]:
    """When each rank's gradient syncs end.

    `free` says when each rank's last action ends. `larger` is `max` for numbers and `np.maximum`
    for arrays over partitions.
    """
    ready = list(free)
    for sync in syncs:
        # Step 1: wait for the last of the sync's ranks. Step 2: all its ranks are busy until it
        # ends.
        start = ready[sync.ranks[0]]
        for rank in sync.ranks[1:]:
            start = larger(start, ready[rank])
        for rank in sync.ranks:
            ready[rank] = start + sync.time
    return ready


def syncs_at_end(free: Sequence[float], syncs: Sequence[SyncCost[float]]) -> Slices:
    """The same as slices, for numbers."""
    slices: Slices = [[] for _ in free]
    ready = list(free)
    for place, sync in enumerate(syncs):
        start = max(ready[rank] for rank in sync.ranks)
        for rank in sync.ranks:
            ready[rank] = start + sync.time
            slices[rank].append(SyncSlice(place, start, ready[rank]))
    return slices


def add_updates(
    ends: Sequence[S], ranks: StageRanks, stages: Sequence[StageCosts[S | float]]
) -> list[S]:
    """When each rank's optimizer step ends: its stages' updates follow its syncs, one by one."""
    updated = list(ends)
    for stage, own in zip(stages, ranks, strict=True):
        for rank in own:
            updated[rank] = updated[rank] + stage.update_time
    return updated
