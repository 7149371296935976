"""One step on paper: when each action starts and ends, and what every rank then holds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autopart.plan import Plan, schedule_of, stage_ranks
from autopart.schedule import Action, Schedule, StageRanks
from autopart.simulator.actions import Actions, B, F, W, encode
from autopart.simulator.clock import Times, last_ends, run
from autopart.simulator.contention import HostTraffic, Shared, run_shared
from autopart.simulator.costs import StageCosts, kind_costs
from autopart.simulator.syncs import (
    Buckets,
    Slices,
    SyncCost,
    SyncSlice,
    add_updates,
    syncs_at_end,
    syncs_in_buckets,
)

BUBBLE_ROUNDING = 1e-12
"""Idle shares below this come from adding floats up in different orders."""


class Slice(NamedTuple):
    """One action on one rank; `start` and `end` in seconds from the start of the step."""

    action: Action
    start: float
    end: float


class Timeline(NamedTuple):
    """What a step looks like on every rank."""

    actions: Actions
    times: Times
    syncs: tuple[tuple[SyncSlice, ...], ...]
    """For each rank its gradient syncs in order; parts of one, where they run in buckets."""
    sync_end: tuple[float, ...]
    """When each rank's gradient syncs end (its last action, where it has none)."""
    rank_end: tuple[float, ...]
    """When each rank has made its optimizer step; 0 for an idle rank."""
    makespan: float
    bubble: float
    """Idle share of rank-seconds over the ranks in use: neither compute, sync, nor update."""
    in_flight: tuple[int, ...]
    """For each rank, the most microbatches past their F and before their B (their W, where the
    backward is split)."""

    @property
    def slices(self) -> tuple[tuple[Slice, ...], ...]:
        """For each rank its actions in order; sends that do not overlap count to their action."""
        return tuple(rank_slices(self, rank) for rank in range(len(self.actions.schedule)))


def rank_slices(timeline: Timeline, rank: int) -> tuple[Slice, ...]:
    """The actions of one rank in order."""
    first, stop = timeline.actions.first[rank : rank + 2]
    order = timeline.actions.schedule[rank]
    starts, ends = timeline.times.start[first:stop], timeline.times.end[first:stop]
    return tuple(map(Slice, order, starts, ends))


def used_ranks(timeline: Timeline) -> list[int]:
    """The ranks that have actions."""
    return [rank for rank, order in enumerate(timeline.actions.schedule) if order]


def simulate_plan(plan: Plan) -> Timeline:
    """Run the plan's orders on paper with the stage times that the plan carries."""
    return simulate(
        schedule_of(plan),
        stage_ranks(plan),
        plan.prediction.stages,
        plan.prediction.syncs,
        action_overhead=plan.cluster.action_overhead,
        sends_overlap=plan.cluster.sends_overlap,
    )


def simulate(
    schedule: Schedule,
    ranks: StageRanks,
    stages: Sequence[StageCosts],
    syncs: Sequence[SyncCost],
    *,
    action_overhead: float,
    sends_overlap: bool,
    pipeline_starts: Sequence[int] = (0,),
    buckets: Buckets | None = None,
    shared: Shared | None = None,
    host: Sequence[HostTraffic] | None = None,
) -> Timeline:
    """Run `schedule` on paper; raises ScheduleError, naming every blocked rank, on a deadlock.

    `pipeline_starts` are the stages that begin a pipeline. Without `buckets` gradients are synced
    after a rank's last action; without `shared` each pair of ranks and direction has a link of its
    own; without `host`, for each stage, nothing is offloaded.
    """
    actions = encode(schedule, len(ranks), pipeline_starts)
    costs = kind_costs(stages, action_overhead)
    if shared is None and host is None:
        times = run(actions, costs, sends_overlap=sends_overlap)
    else:
        times = run_shared(actions, costs, sends_overlap=sends_overlap, shared=shared, host=host)
    free = last_ends(actions, times)
    made = (
        syncs_in_buckets(actions, times, syncs, buckets) if buckets else syncs_at_end(free, syncs)
    )
    return _timeline(actions, times, free, made, ranks, stages)


def _timeline(
    actions: Actions,
    times: Times,
    free: Sequence[float],
    syncs: Slices,
    ranks: StageRanks,
    stages: Sequence[StageCosts],
) -> Timeline:
    sync_end = [
        max([end, *(s.end for s in own[-1:])]) for end, own in zip(free, syncs, strict=True)
    ]
    rank_end = add_updates(sync_end, ranks, stages)
    makespan = max(rank_end)
    busy = sum(busy_times(actions, times)) + sum(
        exposed_time(own, end) for end, own in zip(free, syncs, strict=True)
    )
    busy += sum(end - ready for ready, end in zip(sync_end, rank_end, strict=True))
    used = sum(1 for order in actions.schedule if order)
    idle = 1 - busy / (makespan * used) if makespan > 0 else 0.0
    return Timeline(
        actions=actions,
        times=times,
        syncs=tuple(map(tuple, syncs)),
        sync_end=tuple(sync_end),
        rank_end=tuple(rank_end),
        makespan=makespan,
        bubble=idle if idle > BUBBLE_ROUNDING else 0.0,
        in_flight=tuple(_in_flight(actions)),
    )


def busy_times(actions: Actions, times: Times) -> list[float]:
    """Seconds of each rank's actions."""
    spent = np.asarray(times.end) - np.asarray(times.start)
    return [float(own.sum()) for own in np.split(spent, actions.first[1:-1])]


def exposed_time(syncs: Sequence[SyncSlice], free: float) -> float:
    """Seconds of a rank's syncs after its last action, which ends at `free`."""
    return sum(max(0.0, s.end - max(s.start, free)) for s in syncs)


def _in_flight(actions: Actions) -> list[int]:
    change = np.zeros(actions.num_actions, dtype=int)
    op = actions.kind % 4
    change[op == F] = 1
    change[(op == B) | (op == W)] = -1
    pieces = np.split(np.asarray(change), actions.first[1:-1])
    return [int(np.cumsum(piece).max(initial=0)) for piece in pieces]
