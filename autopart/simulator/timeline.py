"""A step's timeline: when each action, sync and optimizer step starts and ends."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from autopart.records.plan import Plan, schedule_of, stage_ranks
from autopart.records.prediction import StateActions
from autopart.records.shown import html_of
from autopart.schedules.actions import Action, Schedule, StageRanks, paired_forwards
from autopart.schedules.encoding import OPS, Actions, B, F, W, encode
from autopart.simulator.clock import Times, last_ends, run
from autopart.simulator.costs import StageCosts, exposed_seconds, kind_costs, messages_of
from autopart.simulator.syncs import (
    Slices,
    SyncCost,
    SyncSlice,
    add_updates,
    effects_of,
    sync_slices,
)

BUBBLE_ROUNDING = 1e-12
"""Idle shares below this are rounding: floats were added up in different orders."""


class Slice(NamedTuple):
    """One action on one rank, in seconds since the step began."""

    action: Action
    start: float
    end: float


class RankSpan(NamedTuple):
    """One action on one rank, or an overlapped pair, in seconds since the step began."""

    actions: tuple[Action, ...]
    start: float
    end: float

    @property
    def name(self) -> str:
        """The action, such as `0F1`, or the pair, such as `0F1;3B0`."""
        return ";".join(map(str, self.actions))

    @property
    def op(self) -> str:
        """The op's letter; FB for a pair."""
        return "".join(action.op for action in self.actions)


class Timeline(NamedTuple):
    """One step on every rank, in seconds since it began."""

    actions: Actions
    times: Times
    syncs: tuple[tuple[SyncSlice, ...], ...]
    """Each rank's gradient syncs, in order."""
    sync_end: tuple[float, ...]
    """When each rank's gradient syncs end; when its last action ends where it has no sync."""
    rank_end: tuple[float, ...]
    """When each rank's optimizer step ends; 0 for an idle rank."""
    makespan: float
    """When the last rank's optimizer step ends."""
    bubble: float
    """Idle share of rank-seconds, over the ranks in use: no compute, no sync, no update."""
    in_flight: tuple[int, ...]
    """The most microbatches in flight on each rank: past F, with B or W not ended."""
    exposed: tuple[float, ...] = ()
    """For each action the seconds of gathers and reductions that compute does not hide, drawn at the end of its compute.

    Empty without sharded state. An overlapped pair's stand with its forward."""
    around_update: tuple[tuple[float, float], ...] = ()
    """For each rank the seconds of reductions right before its optimizer step, and of gathers right behind it. Empty too."""

    def _repr_html_(self) -> str:
        """The timeline in a notebook."""
        return html_of(self)

    @property
    def slices(self) -> tuple[tuple[Slice, ...], ...]:
        """Each rank's actions in order. A send that does not overlap is part of its action."""
        return tuple(rank_slices(self, rank) for rank in range(len(self.actions.schedule)))


def rank_slices(timeline: Timeline, rank: int) -> tuple[Slice, ...]:
    """The actions on one rank, in order. Both actions of an overlapped pair have all its time."""
    first, stop = timeline.actions.first[rank : rank + 2]
    order = timeline.actions.schedule[rank]
    starts, ends = list(timeline.times.start[first:stop]), list(timeline.times.end[first:stop])
    for forward in paired_forwards(order):
        starts[forward + 1], ends[forward] = starts[forward], ends[forward + 1]
    return tuple(map(Slice, order, starts, ends))


def optimizer_span(timeline: Timeline, rank: int) -> tuple[float, float]:
    """When one rank's optimizer step starts and ends, without gathers and reductions around it."""
    before, behind = timeline.around_update[rank] if timeline.around_update else (0.0, 0.0)
    return timeline.sync_end[rank] + before, timeline.rank_end[rank] - behind


def rank_spans(timeline: Timeline, rank: int) -> tuple[RankSpan, ...]:
    """The actions and overlapped pairs on one rank, in order. They do not overlap."""
    slices = rank_slices(timeline, rank)
    pairs = paired_forwards(timeline.actions.schedule[rank])
    begins, ends = frozenset(pairs), frozenset(at + 1 for at in pairs)
    return tuple(
        RankSpan(
            tuple(own.action for own in slices[at : at + 1 + (at in begins)]), one.start, one.end
        )
        for at, one in enumerate(slices)
        if at not in ends
    )


def used_ranks(timeline: Timeline) -> list[int]:
    """The ranks that have actions."""
    return [rank for rank, order in enumerate(timeline.actions.schedule) if order]


def simulate_plan(plan: Plan) -> Timeline:
    """Run the plan's orders on paper, with the stage times in its prediction."""
    predicted = plan.prediction
    found = simulate_with(plan, predicted.stages, predicted.syncs, plan.cluster.action_overhead)
    states = [stage.state for stage in predicted.stages]
    if not any(isinstance(state, StateActions) for state in states):
        return found
    return found._replace(
        exposed=_exposed(found.actions, states),
        around_update=_around_update(states, stage_ranks(plan), len(found.rank_end)),
    )


States = Sequence[StateActions | msgspec.UnsetType]
"""The gathers and reductions of each stage."""


def _exposed(actions: Actions, states: States) -> tuple[float, ...]:
    by_kind = [exposed_seconds(messages_of(state, op)) for state in states for op in OPS]
    found = np.array(by_kind)[actions.kind]
    found[actions.pairs] += found[actions.pairs + 1]
    found[actions.pairs + 1] = 0.0
    return tuple(found.tolist())


def _around_update(
    states: States, ranks: StageRanks, num_ranks: int
) -> tuple[tuple[float, float], ...]:
    before, behind = [0.0] * num_ranks, [0.0] * num_ranks
    for state, own in zip(states, ranks, strict=True):
        if not isinstance(state, StateActions):
            continue
        for rank in own:
            before[rank] += state.step.reduction_time
            behind[rank] += state.step.gather_time
    return tuple(zip(before, behind, strict=True))


def simulate_with(
    plan: Plan,
    stages: Sequence[StageCosts[float]],
    syncs: Sequence[SyncCost[float]],
    action_overhead: float,
) -> Timeline:
    """Run the plan's orders on paper, with other seconds than those in its prediction."""
    return simulate(
        schedule_of(plan),
        stage_ranks(plan),
        stages,
        syncs,
        action_overhead=action_overhead,
        sends_overlap=plan.cluster.sends_overlap,
        rendezvous=plan.cluster.sends == "rendezvous",
    )


def simulate(
    schedule: Schedule,
    ranks: StageRanks,
    stages: Sequence[StageCosts[float]],
    syncs: Sequence[SyncCost[float]],
    *,
    action_overhead: float,
    sends_overlap: bool,
    rendezvous: bool = False,
) -> Timeline:
    """Run `schedule` on paper; raises ScheduleError, naming the blocked ranks, on a deadlock.

    `ranks` has the ranks for each stage. `action_overhead` is each action's fixed cost in seconds.
    """
    actions = encode(schedule, len(ranks))
    costs = kind_costs(stages, action_overhead, actions.pair_kinds)
    effects = effects_of(actions, syncs, costs.lending)
    times = run(actions, costs, sends_overlap=sends_overlap, rendezvous=rendezvous, effects=effects)
    free = last_ends(actions, times)
    slices = sync_slices(free, syncs, effects, times.end)
    return _timeline(actions, times, free, slices, ranks, stages)


def _timeline(
    actions: Actions,
    times: Times,
    free: Sequence[float],
    syncs: Slices,
    ranks: StageRanks,
    stages: Sequence[StageCosts[float]],
) -> Timeline:
    sync_end = [
        max([end, *(s.end for s in own[-1:])]) for end, own in zip(free, syncs, strict=True)
    ]
    rank_end = add_updates(sync_end, ranks, stages)
    makespan = max(rank_end)
    # A used rank is busy with its actions, its syncs and its update. The bubble is the rest.
    busy = sum(busy_times(actions, times)) + sum(map(sync_time, syncs))
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
    """The seconds that each rank's actions take."""
    spent = np.asarray(times.end) - np.asarray(times.start)
    return [float(own.sum()) for own in np.split(spent, actions.first[1:-1])]


def sync_time(syncs: Sequence[SyncSlice]) -> float:
    """The seconds that one rank's syncs take."""
    return sum(sync.end - sync.start for sync in syncs)


def _in_flight(actions: Actions) -> list[int]:
    # F begins a microbatch on its stage. B, or W where the backward is split, ends it.
    change = np.zeros(actions.num_actions, dtype=int)
    op = actions.kind % 4
    change[op == F] = 1
    change[(op == B) | (op == W)] = -1
    by_rank = np.split(change, actions.first[1:-1])
    return [int(np.cumsum(own).max(initial=0)) for own in by_rank]
