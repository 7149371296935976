"""What runs beside actions and behind them: gradient syncs, moves of stash, optimizer steps.

A sync follows all actions of its ranks, or has parts (autopart/cost/stage_syncs.py):

    gather   a rank's first action waits for the exposed part of its stage's gather
    early    buckets go out during the stage's last backward, and slow it down. They end the
             exposed seconds after the last backward on any of the ranks. Each rank runs one sync
             at a time; later stages go first, as their backwards end first
    late     starts when all its ranks are done with their actions and their earlier syncs

A send that does not overlap is part of its action. A bucket waits for it too.

A move of stash, L or T, starts when its rank is free for the action beside it. The action after
that one waits until the move is done (autopart/schedules/lending.py).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from autopart.schedules.actions import StageRanks
from autopart.schedules.encoding import Actions, B, W
from autopart.simulator.costs import FloatArray, PartTimes, StageCosts, T_co

S = TypeVar("S", float, FloatArray)


class SyncCost(Protocol[T_co]):
    """A sync's ranks and seconds. `Sync` in a plan's prediction has them."""

    @property
    def ranks(self) -> tuple[int, ...]: ...
    @property
    def time(self) -> T_co: ...
    @property
    def parts(self) -> PartTimes[T_co] | None: ...


class SyncSlice(NamedTuple):
    """The exposed part of a sync on one rank, in seconds since the step began."""

    sync: int
    """The sync's place in the plan's list."""
    start: float
    end: float


Slices = list[list[SyncSlice]]
"""Each rank's syncs, in order."""


class Effects(NamedTuple):
    """What syncs with parts and moves of stash do to the actions.

    Seconds are numbers, or arrays over partitions.
    """

    last: Mapping[tuple[int, int], int]
    """For a stage and a rank, the last action that makes gradients of weights."""
    is_weights: Mapping[int, bool]
    """Whether such an action is W."""
    slowed: Mapping[int, Any]
    """Seconds by which such an action takes longer beside its sync."""
    begin: Mapping[int, Any]
    """For a rank, seconds that its first action waits for weights."""
    gathers: Mapping[int, tuple[int, ...]]
    """For such a rank, the ranks whose weights it gathers."""
    moves: Mapping[int, Any]
    """For an action beside which stash moves, the seconds that the move takes."""


NO_EFFECTS = Effects({}, {}, {}, {}, {}, {})
"""All syncs follow all actions, and no stash moves."""


def effects_of(
    actions: Actions, syncs: Sequence[SyncCost[Any]], lending: Mapping[int, Any]
) -> Effects:
    """What the syncs and moves of stash do to the actions of a schedule.

    `lending` has the seconds of one move, by stage that lends.
    """
    overlapped = [(sync.parts, sync.ranks) for sync in syncs if sync.parts is not None]
    moves = {move.beside: lending[move.action.stage] for move in actions.moves}
    if not overlapped:
        return NO_EFFECTS._replace(moves=moves)
    # Step 1: the last B or W of each stage on each rank. Later numbers replace earlier ones.
    op = actions.kind % 4
    makes = np.flatnonzero((op == B) | (op == W))
    places = zip((actions.kind[makes] // 4).tolist(), actions.rank[makes].tolist(), strict=True)
    last = dict(zip(places, makes.tolist(), strict=True))
    # Step 2: the actions beside a sync.
    is_weights: dict[int, bool] = {}
    slowed: dict[int, Any] = {}
    begin: dict[int, Any] = {}
    gathers: dict[int, tuple[int, ...]] = {}
    for parts, ranks in overlapped:
        for rank in ranks:
            action = last.get((parts.stage, rank))
            if action is None:
                continue  # With more replicas than microbatches, a rank has nothing to do.
            is_weights[action] = bool(op[action] == W)
            slowed[action] = parts.slows_weights if is_weights[action] else parts.slows_backward
            # Step 3: the stage that starts on the rank waits for its weights.
            if actions.kind[actions.first[rank]] // 4 == parts.stage:
                begin[rank], gathers[rank] = parts.gather_wait, ranks
    return Effects(last, is_weights, slowed, begin, gathers, moves)


def after_syncs(
    free: Sequence[S],
    syncs: Sequence[SyncCost[S | float]],
    larger: Callable[[S, S], S],
    effects: Effects = NO_EFFECTS,
    ends: Mapping[int, S] | Sequence[S] = (),
    begun: Sequence[S] | None = None,
) -> list[S]:
    """When each rank's gradient syncs end.

    `free` says when each rank's last action ends, and `ends` when the actions in `effects` do.
    `begun` says when each rank began the step; None says at 0.
    `larger` is `max` for numbers and `np.maximum` for arrays over partitions.
    """
    ready = list(free)
    # Step 1: the buckets that go out during backwards.
    began: Sequence[Any] = [0.0] * len(ready) if begun is None else begun
    for sync, done in _early(began, syncs, larger, effects, ends):
        for rank in syncs[sync].ranks:
            ready[rank] = larger(ready[rank], done)
    # Step 2: what is left.
    for sync in syncs:
        seconds = sync.time if sync.parts is None else sync.parts.late_time
        if seconds is None:
            continue
        # Step 3: wait for the last of the sync's ranks. All its ranks are busy until it ends.
        start = ready[sync.ranks[0]]
        for rank in sync.ranks[1:]:
            start = larger(start, ready[rank])
        for rank in sync.ranks:
            ready[rank] = start + seconds
    return ready


def _early(
    began: Sequence[Any],
    syncs: Sequence[SyncCost[Any]],
    larger: Callable[[Any, Any], Any],
    effects: Effects,
    ends: Mapping[int, Any] | Sequence[Any],
) -> list[tuple[int, Any]]:
    """The syncs with buckets during backwards, by their place, and when the last bucket ends."""
    found: list[tuple[int, Any]] = []
    if effects is NO_EFFECTS:
        return found
    busy: list[Any] = list(began)
    overlapped = [(s.parts, at) for at, s in enumerate(syncs) if s.parts is not None]
    for parts, at in sorted(overlapped, key=lambda pair: -pair[0].stage):
        if isinstance(parts.early_time, float) and parts.early_time == 0.0:
            continue
        done: Any = busy[syncs[at].ranks[0]]
        for rank in syncs[at].ranks:
            done = larger(done, busy[rank] + parts.early_time)
            action = effects.last.get((parts.stage, rank))
            if action is not None:
                after = parts.after_backward
                if effects.is_weights[action]:
                    after = parts.after_weights
                done = larger(done, ends[action] + after)
        for rank in syncs[at].ranks:
            busy[rank] = done
        found.append((at, done))
    return found


def sync_slices(
    free: Sequence[float],
    syncs: Sequence[SyncCost[float]],
    effects: Effects = NO_EFFECTS,
    ends: Sequence[float] = (),
) -> Slices:
    """The same as slices of their exposed parts, for numbers."""
    slices: Slices = [[] for _ in free]
    ready = list(free)
    for place, done in _early([0.0] * len(ready), syncs, max, effects, ends):
        for rank in syncs[place].ranks:
            if done > ready[rank]:
                slices[rank].append(SyncSlice(place, ready[rank], done))
                ready[rank] = done
    for place, sync in enumerate(syncs):
        seconds = sync.time if sync.parts is None else sync.parts.late_time
        if seconds is None:
            continue
        start = max(ready[rank] for rank in sync.ranks)
        for rank in sync.ranks:
            ready[rank] = start + seconds
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
