"""One schedule for many partitions at once: compiled once, then run on arrays over the partitions.

Every link has a single sender, so no time changes the order in which actions can be worked off.
They are worked off round by round (`rounds`). A result for another rank lies in a slot until it is
read. The slot is then free for a later result, so few arrays stay in the processor's cache.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from autopart.schedules.actions import Schedule, StageRanks
from autopart.schedules.encoding import Actions, encode
from autopart.schedules.rounds import work_order
from autopart.simulator.clock import last_ends, run
from autopart.simulator.costs import FloatArray, KindCosts, StageTimes, SyncTime, Time, kind_costs
from autopart.simulator.syncs import add_updates, after_syncs
from autopart.stopping.time_limit import check_time

FEW = 6
"""Up to so many partitions run faster one by one than side by side on arrays."""

EMPTY_SLOT = 0
"""The slot that actions without an awaited result read. It is always 0."""


class Step(NamedTuple):
    """One action in working order, with its places in a run's arrays."""

    action: int
    """The action's number in the schedule."""
    rank: int
    kind: int
    """4 x stage + op."""
    slot: int
    """The slot with the awaited result."""
    awaited: bool
    """Whether the action awaits another rank."""
    link: int | None
    """The link that carries the result; None where no other rank needs it."""
    target: int
    """The slot that takes the result."""


class Program(NamedTuple):
    """A schedule in an order in which each action follows those that it waits for."""

    actions: Actions
    steps: tuple[Step, ...]
    num_slots: int

    @property
    def num_actions(self) -> int:
        """Actions on all ranks."""
        return len(self.steps)


def compile_schedule(
    schedule: Schedule, ranks: StageRanks, pipeline_starts: Sequence[int] = (0,)
) -> Program:
    """Put a schedule's actions in working order.

    Raises ScheduleError, naming every blocked rank, on a deadlock.
    """
    actions = encode(schedule, len(ranks), pipeline_starts)
    order = work_order(actions)
    steps, num_slots = _steps(actions, order)
    return Program(actions, steps, num_slots)


def _steps(actions: Actions, order: Sequence[int]) -> tuple[tuple[Step, ...], int]:
    """The actions in `order` with slots for their results, and how many slots there are."""
    needs, kinds = actions.need.tolist(), actions.kind.tolist()
    links, ranks = actions.link.tolist(), actions.rank.tolist()
    slot = [EMPTY_SLOT] * (actions.num_actions + 1)
    fresh, unused = itertools.count(EMPTY_SLOT + 1), list[int]()
    steps: list[Step] = []
    for i in order:
        # Step 1: read the awaited result, which frees its slot.
        need, link = needs[i], links[i]
        read = slot[need]
        if read != EMPTY_SLOT:
            unused.append(read)
        # Step 2: give the result a slot if another rank awaits it. Freed slots come first.
        if link >= 0:
            slot[i] = unused.pop() if unused else next(fresh)
        sent = link if link >= 0 else None
        steps.append(Step(i, ranks[i], kinds[i], read, need < actions.num_actions, sent, slot[i]))
    return tuple(steps), next(fresh)


def _one_by_one(program: Program, costs: KindCosts, *, sends_overlap: bool) -> list[FloatArray]:
    """When each rank's last action ends; each partition runs on plain floats."""
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


Rows = Callable[[Step], FloatArray]
"""Gives the seconds that one action takes, shape (partitions,)."""


def run_steps(program: Program, compute: Rows, moving: Rows, width: int) -> list[FloatArray]:
    """When each rank's last action ends, with sends that overlap compute.

    `compute` and `moving` give the seconds that an action and its send take. There are `width`
    partitions. Each result has shape (partitions,).
    """
    free = [np.zeros(width) for _ in range(len(program.actions.schedule))]
    link_free = [np.zeros(width)] * len(program.actions.links)
    slots = [np.zeros(width)] * program.num_slots
    for step in program.steps:
        check_time()
        _, rank, _, slot, awaited, link, target = step
        # `now` is the rank's own array: it changes in place. The sums follow `clock.run`, step by
        # step.
        now = free[rank]
        if awaited:
            np.maximum(now, slots[slot], out=now)
        now += compute(step)
        if link is not None:
            arrival = np.maximum(now, link_free[link])
            arrival += moving(step)
            # One array serves both: neither is changed in place later.
            link_free[link] = slots[target] = arrival
    return free


def run_steps_in_turn(
    program: Program, compute: Rows, moving: Rows, width: int
) -> list[FloatArray]:
    """The same with sends that do not overlap: sender and receiver are both busy with them."""
    free = [np.zeros(width) for _ in range(len(program.actions.schedule))]
    slots = [(np.zeros(width), np.zeros(width))] * program.num_slots
    for step in program.steps:
        check_time()
        now = free[step.rank]
        if step.awaited:
            arrival, received = slots[step.slot]
            np.maximum(now, arrival, out=now)
            now += received
        now += compute(step)
        # The receiver needs two arrays: when the result is made, and how long receiving it takes.
        if step.link is not None:
            sent = moving(step)
            slots[step.target] = now.copy(), sent
            now += sent
    return free


def step_times(
    program: Program,
    ranks: StageRanks,
    stages: Sequence[StageTimes[Time]],
    syncs: Sequence[SyncTime[Time]],
    *,
    action_overhead: float,
    sends_overlap: bool,
) -> FloatArray:
    """One schedule's makespans for several partitions at once, in seconds, shape (partitions,)."""
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
