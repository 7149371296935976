"""One schedule for many partitions at once: compiled once, then run on arrays, one entry a partition.

The order in which actions are worked off does not depend on any time. A wave holds actions none of
which waits for another, at most one a rank; results on their way to another rank lie in slots, which
are used again once they have been read.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from autopart.schedule import Schedule, StageRanks
from autopart.simulator.actions import Actions, Array, encode, refuse_deadlock
from autopart.simulator.clock import last_ends, run
from autopart.simulator.costs import KindCosts, StageTimes, SyncTime, Time, kind_costs
from autopart.simulator.syncs import add_updates, after_syncs

FEW = 6
"""Up to so many partitions are faster one by one than side by side on arrays."""

EMPTY_SLOT = 0
"""The slot of actions that await nothing: it always holds 0."""


class Step(NamedTuple):
    """One action in the order of work; places are into the arrays of one run."""

    action: int
    """Its number in the schedule."""
    rank: int
    kind: int
    slot: int
    """Where what it awaits lies."""
    awaited: bool
    """Whether it awaits another rank."""
    link: int | None
    """Where its result is sent."""
    target: int
    """The slot that its result goes to."""


class Program(NamedTuple):
    """A schedule in an order in which every action comes after all that it waits for."""

    actions: Actions
    steps: tuple[Step, ...]
    num_slots: int

    @property
    def num_actions(self) -> int:
        """Actions of all ranks."""
        return len(self.steps)


def compile_schedule(
    schedule: Schedule, ranks: StageRanks, pipeline_starts: Sequence[int] = (0,)
) -> Program:
    """Order a schedule's actions; raises ScheduleError, naming every blocked rank, on a deadlock."""
    actions = encode(schedule, len(ranks), pipeline_starts)
    order = work_order(actions)
    steps, num_slots = _steps(actions, order)
    return Program(actions, steps, num_slots)


def work_order(actions: Actions) -> list[int]:
    """The actions, wave after wave."""
    return np.argsort(rounds(actions), kind="stable").tolist()


def rounds(actions: Actions) -> Array:
    """The wave of each action: the round in which it runs where all ranks start an action together, each
    when what it needs was done in rounds before. Raises ScheduleError on a deadlock."""
    needs = actions.need.tolist()
    wave = [0] * actions.num_actions + [0, 0]
    known = [False] * actions.num_actions + [True, False]
    at, stops = list(actions.first[:-1]), actions.first[1:]
    waiting = [-1] * (actions.num_actions + 2)
    last = [0] * len(at)
    ranks = list(range(len(at)))
    while ranks:
        rank = ranks.pop()
        now = last[rank]
        while at[rank] < stops[rank]:
            i = at[rank]
            need = needs[i]
            if not known[need]:
                waiting[need] = rank
                break
            now = 1 + (now if now > wave[need] else wave[need])
            wave[i], known[i] = now, True
            at[rank] += 1
            if waiting[i] >= 0:
                ranks.append(waiting[i])
        last[rank] = now
    refuse_deadlock(actions.schedule, [a - f for a, f in zip(at, actions.first, strict=False)])
    return np.array(wave[: actions.num_actions])


def _steps(actions: Actions, order: Sequence[int]) -> tuple[tuple[Step, ...], int]:
    """The actions in `order` with slots for what they send, and how many slots that takes."""
    needs, kinds = actions.need.tolist(), actions.kind.tolist()
    links, ranks = actions.link.tolist(), actions.rank.tolist()
    slot = [EMPTY_SLOT] * (actions.num_actions + 1)
    fresh, unused = itertools.count(EMPTY_SLOT + 1), list[int]()
    steps: list[Step] = []
    for i in order:
        need, link = needs[i], links[i]
        read = slot[need]
        if read != EMPTY_SLOT:
            unused.append(read)
        if link >= 0:
            slot[i] = unused.pop() if unused else next(fresh)
        sent = link if link >= 0 else None
        steps.append(Step(i, ranks[i], kinds[i], read, need < actions.num_actions, sent, slot[i]))
    return tuple(steps), next(fresh)


def _one_by_one(program: Program, costs: KindCosts, *, sends_overlap: bool) -> list[Array]:
    """When each rank has done its last action, each partition on plain floats."""
    rows = [
        last_ends(
            program.actions,
            run(
                program.actions,
                KindCosts(costs.compute[:, each], costs.moving[:, each]),
                sends_overlap=sends_overlap,
            ),
        )
        for each in range(costs.compute.shape[-1])
    ]
    return list(np.array(rows).T)


Rows = Callable[[Step], Array]
"""Seconds of a step, one entry a partition."""


def run_steps(program: Program, compute: Rows, moving: Rows, width: int) -> list[Array]:
    """When each rank has done its last action, with sends that run beside compute."""
    free = [np.zeros(width) for _ in range(len(program.actions.schedule))]
    link_free = [np.zeros(width)] * len(program.actions.links)
    slots = [np.zeros(width)] * program.num_slots
    for step in program.steps:
        _, rank, _, slot, awaited, link, target = step
        now = free[rank]
        if awaited:
            np.maximum(now, slots[slot], out=now)
        now += compute(step)
        if link is not None:
            arrival = np.maximum(now, link_free[link])
            arrival += moving(step)
            link_free[link] = slots[target] = arrival
    return free


def run_steps_in_turn(program: Program, compute: Rows, moving: Rows, width: int) -> list[Array]:
    """The same with sends that keep their sender busy after, and their receiver before an action."""
    free = [np.zeros(width) for _ in range(len(program.actions.schedule))]
    slots = [(np.zeros(width), np.zeros(width))] * program.num_slots
    for step in program.steps:
        now = free[step.rank]
        if step.awaited:
            arrival, received = slots[step.slot]
            np.maximum(now, arrival, out=now)
            now += received
        now += compute(step)
        if step.link is not None:
            sent = moving(step)
            slots[step.target] = now.copy(), sent
            now += sent
    return free


def step_times(
    program: Program,
    ranks: StageRanks,
    stages: Sequence[StageTimes],
    syncs: Sequence[SyncTime],
    *,
    action_overhead: float,
    sends_overlap: bool,
) -> Time:
    """The makespans of one schedule for several partitions at once, as an array."""
    costs = kind_costs(stages, action_overhead)
    if costs.compute.shape[-1] <= FEW:
        free = _one_by_one(program, costs, sends_overlap=sends_overlap)
    else:
        compute, moving = list(costs.compute), list(costs.moving)
        runner = run_steps if sends_overlap else run_steps_in_turn
        free = runner(
            program,
            lambda step: compute[step.kind],
            lambda step: moving[step.kind],
            costs.compute.shape[-1],
        )
    rank_end = add_updates(after_syncs(free, syncs, np.maximum), ranks, stages)
    return np.maximum.reduce(np.broadcast_arrays(*rank_end))
