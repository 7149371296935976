"""A schedule run on paper: when each action starts and ends, and what every rank then holds.

A rank runs its order one action after the other; an action starts when its rank is free and what
it needs has arrived. A send that overlaps compute travels on its own link, first in, first out; a
send that does not overlap keeps its sender busy after the action and its receiver busy before the
next one. After the last action come the gradient syncs, then each rank's optimizer step.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from autopart.errors import ScheduleError
from autopart.plan import Plan, StagePrediction, Sync, schedule_of, stage_ranks
from autopart.schedule import Action, Order, Schedule, StageRanks, predecessors, rank_of

BUBBLE_ROUNDING = 1e-12
"""Idle shares below this come from adding floats up in different orders."""

Time = Any
"""Seconds: a float, or a numpy array of them, one for each of several partitions."""


class Slice(NamedTuple):
    """One action on one rank; `start` and `end` in seconds from the start of the step."""

    action: Action
    start: float
    end: float


class Timeline(NamedTuple):
    """What a step looks like on every rank."""

    slices: tuple[tuple[Slice, ...], ...]
    """For each rank its actions in order; sends that do not overlap count to their action."""
    sync_end: tuple[float, ...]
    """When each rank's gradient syncs end (its last action, where it has none)."""
    rank_end: tuple[float, ...]
    """When each rank has made its optimizer step; 0 for an idle rank."""
    makespan: float
    bubble: float
    """Idle share of rank-seconds over the ranks in use: neither compute, sync, nor update."""
    in_flight: tuple[int, ...]
    """For each rank, the most microbatches past their F and before their B."""


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
    stages: Sequence[StagePrediction],
    syncs: Sequence[Sync],
    *,
    action_overhead: float,
    sends_overlap: bool,
) -> Timeline:
    """Run `schedule` on paper; raises ScheduleError, naming every blocked rank, on a deadlock."""
    program = compile_schedule(schedule, ranks)
    starts, ends, free = _run(program, stages, action_overhead, sends_overlap, max)
    slices: list[list[Slice]] = [[] for _ in schedule]
    for step, start, end in zip(program.steps, starts, ends, strict=True):
        slices[step.rank].append(Slice(step.action, start, end))
    return _timeline(slices, free, ranks, stages, syncs)


class StageTimes(NamedTuple):
    """The times of one stage that `step_times` needs: those of StagePrediction, as arrays."""

    forward_time: Time
    backward_time: Time
    send_time: Time
    send_back_time: Time
    update_time: Time


class SyncTime(NamedTuple):
    """A gradient sync whose time may be an array."""

    ranks: tuple[int, ...]
    time: Time


def step_times(
    program: "Program",
    ranks: StageRanks,
    stages: Sequence[StageTimes],
    syncs: Sequence[SyncTime],
    *,
    action_overhead: float,
    sends_overlap: bool,
) -> Time:
    """The makespans of one schedule for several partitions at once, as an array."""
    _, _, free = _run(program, stages, action_overhead, sends_overlap, np.maximum)
    rank_end = _after_syncs(free, syncs, np.maximum)
    for stage, own in zip(stages, ranks, strict=True):
        for rank in own:
            rank_end[rank] = rank_end[rank] + stage.update_time
    return np.maximum.reduce(np.broadcast_arrays(*rank_end))


class Step(NamedTuple):
    """One action, and where in the program it finds what it needs."""

    rank: int
    action: Action
    before: tuple[int, ...]
    """The steps on the same rank whose results it needs."""
    arriving: tuple[int, ...]
    """The steps on other ranks whose results it needs."""
    link: tuple[int, int] | None
    """The ranks between which its result is sent, if it is."""


class Program(NamedTuple):
    """A schedule in an order in which every action comes after all that it waits for. The order does
    not depend on any time, so one program serves every partition of a layout."""

    steps: tuple[Step, ...]
    num_ranks: int


def compile_schedule(schedule: Schedule, ranks: StageRanks) -> Program:
    """Order a schedule's actions; raises ScheduleError, naming every blocked rank, on a deadlock."""
    steps: list[Step] = []
    place: dict[Action, int] = {}
    at = [0] * len(schedule)
    waiting: dict[Action, list[int]] = {}
    ready = list(range(len(schedule)))
    while ready:
        rank = ready.pop()
        order = schedule[rank]
        while at[rank] < len(order):
            action = order[at[rank]]
            needs = predecessors(action, len(ranks))
            missing = next((needed for needed in needs if needed not in place), None)
            if missing is not None:
                waiting.setdefault(missing, []).append(rank)
                break
            steps.append(_step(rank, action, needs, ranks, place))
            place[action] = len(steps) - 1
            at[rank] += 1
            ready += waiting.pop(action, [])
    _refuse_deadlock(schedule, at)
    return Program(tuple(steps), len(schedule))


def _step(
    rank: int, action: Action, needs: Sequence[Action], ranks: StageRanks, place: dict[Action, int]
) -> Step:
    home = {needed: rank_of(ranks[needed.stage], needed.microbatch) for needed in needs}
    target = action.stage + (1 if action.op == "F" else -1)
    other = rank_of(ranks[target], action.microbatch) if 0 <= target < len(ranks) else rank
    return Step(
        rank=rank,
        action=action,
        before=tuple(place[needed] for needed in needs if home[needed] == rank),
        arriving=tuple(place[needed] for needed in needs if home[needed] != rank),
        link=(rank, other) if other != rank else None,
    )


def _refuse_deadlock(schedule: Sequence[Order], at: Sequence[int]) -> None:
    stuck = [
        f"rank {rank} on {order[done]}"
        for rank, (order, done) in enumerate(zip(schedule, at, strict=True))
        if done < len(order)
    ]
    if stuck:
        raise ScheduleError(f"the schedule deadlocks: {', '.join(stuck)}")


def _run(
    program: Program,
    stages: Sequence[StagePrediction] | Sequence[StageTimes],
    overhead: float,
    overlap: bool,
    larger: Callable[..., Time],
) -> tuple[list[Time], list[Time], list[Time]]:
    """Start and end of every step, and when each rank is free; `larger` is max, for floats or arrays."""
    compute = {
        **{(s, "F"): stage.forward_time + overhead for s, stage in enumerate(stages)},
        **{(s, "B"): stage.backward_time + overhead for s, stage in enumerate(stages)},
    }
    moving = {
        **{(s, "F"): stage.send_time for s, stage in enumerate(stages)},
        **{(s, "B"): stage.send_back_time for s, stage in enumerate(stages)},
    }
    free: list[Time] = [0.0] * program.num_ranks
    link_free: dict[tuple[int, int], Time] = {}
    starts: list[Time] = []
    ends: list[Time] = []
    arrivals: list[Time] = []
    for rank, action, before, arriving, link in program.steps:
        kind = action[:2]
        start = free[rank]
        for needed in before:
            start = larger(start, ends[needed])
        for needed in arriving:
            start = larger(start, arrivals[needed])
        end = start + compute[kind]
        if not overlap:
            for needed in arriving:
                end = end + moving[program.steps[needed].action[:2]]
        arrival = end
        if link is not None and overlap:
            arrival = larger(end, link_free.get(link, 0.0)) + moving[kind]
            link_free[link] = arrival
        elif link is not None:
            end = end + moving[kind]
        free[rank] = end
        starts.append(start)
        ends.append(end)
        arrivals.append(arrival)
    return starts, ends, free


def _after_syncs(
    free: Sequence[Time], syncs: Sequence[Sync] | Sequence[SyncTime], larger: Callable[..., Time]
) -> list[Time]:
    """When each rank has made its gradient syncs; a sync starts when all its ranks are ready."""
    ready = list(free)
    for sync in syncs:
        end = ready[sync.ranks[0]]
        for rank in sync.ranks[1:]:
            end = larger(end, ready[rank])
        for rank in sync.ranks:
            ready[rank] = end + sync.time
    return ready


def _timeline(
    slices: list[list[Slice]],
    free: Sequence[float],
    ranks: StageRanks,
    stages: Sequence[StagePrediction],
    syncs: Sequence[Sync],
) -> Timeline:
    ready = _after_syncs(free, syncs, max)
    busy = [sum(s.end - s.start for s in own) for own in slices]
    for sync in syncs:
        for rank in sync.ranks:
            busy[rank] += sync.time
    rank_end = list(ready)
    for stage, own in zip(stages, ranks, strict=True):
        for rank in own:
            rank_end[rank] += stage.update_time
            busy[rank] += stage.update_time
    makespan = max(rank_end)
    used = sum(1 for own in slices if own)
    idle = 1 - sum(busy) / (makespan * used) if makespan > 0 else 0.0
    return Timeline(
        slices=tuple(tuple(own) for own in slices),
        sync_end=tuple(ready),
        rank_end=tuple(rank_end),
        makespan=makespan,
        bubble=idle if idle > BUBBLE_ROUNDING else 0.0,
        in_flight=tuple(_in_flight([s.action for s in own]) for own in slices),
    )


def _in_flight(order: Sequence[Action]) -> int:
    held = most = 0
    for action in order:
        held += {"F": 1, "B": -1, "I": 0, "W": -1}[action.op]
        most = max(most, held)
    return most
