"""One schedule for many partitions at once: compiled once, then run on arrays over the partitions.

Every link has a single sender, so no time changes the order in which actions can be worked off.
They are worked off round by round (`rounds`). A result for another rank lies in a slot until it is
read. The slot is then free for a later result, so few arrays stay in the processor's cache.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from autopart.schedules.actions import Schedule, StageRanks
from autopart.schedules.encoding import Actions, encode
from autopart.schedules.rounds import work_order
from autopart.simulator.clock import last_ends, run
from autopart.simulator.costs import FloatArray, KindCosts, StageTimes, SyncTime, Time, kind_costs
from autopart.simulator.rendezvous import run_rendezvous_rows
from autopart.simulator.syncs import Effects, add_updates, after_syncs, effects_of
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


def compile_schedule(schedule: Schedule, ranks: StageRanks) -> Program:
    """Put a schedule's actions in working order.

    Raises ScheduleError, naming every blocked rank, on a deadlock.
    """
    actions = encode(schedule, len(ranks))
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


class Ends(NamedTuple):
    """When actions end in seconds, arrays with shape (partitions,)."""

    free: list[FloatArray]
    """Each rank's last action."""
    watched: dict[int, FloatArray]
    """The actions beside which a sync runs."""


def _one_by_one(
    program: Program, costs: KindCosts, effects: Effects, *, sends_overlap: bool, rendezvous: bool
) -> Ends:
    """When actions end; each partition runs on plain floats."""
    rows: list[list[float]] = []
    watched: list[list[float]] = []
    width = costs.compute.shape[-1]
    for each in range(width):
        times = run(
            program.actions,
            KindCosts(costs.compute[:, each], costs.moving[:, each]),
            sends_overlap=sends_overlap,
            rendezvous=rendezvous,
            effects=effects._replace(
                slowed={at: _entry(own, each) for at, own in effects.slowed.items()},
                begin={rank: _entry(own, each) for rank, own in effects.begin.items()},
            ),
        )
        rows.append(last_ends(program.actions, times))
        watched.append([times.end[at] for at in effects.slowed])
    columns = np.array(watched).reshape(width, -1).T
    return Ends(list(np.array(rows).T), dict(zip(effects.slowed, columns, strict=True)))


def _entry(seconds: Time, each: int) -> float:
    return float(seconds[each]) if isinstance(seconds, np.ndarray) else seconds


Rows = Callable[[Step], FloatArray]
"""Gives the seconds that one action takes, shape (partitions,)."""


def run_steps(program: Program, compute: Rows, moving: Rows, width: int, effects: Effects) -> Ends:
    """When actions end, with sends that overlap compute.

    `compute` and `moving` give the seconds that an action and its send take. There are `width`
    partitions.
    """
    free, watched = _begin(program, width, effects), dict[int, FloatArray]()
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
        if step.action in effects.slowed:
            now += effects.slowed[step.action]
            watched[step.action] = now.copy()
        if link is not None:
            arrival = np.maximum(now, link_free[link])
            arrival += moving(step)
            # One array serves both: neither is changed in place later.
            link_free[link] = slots[target] = arrival
    return Ends(free, watched)


def run_steps_in_turn(
    program: Program, compute: Rows, moving: Rows, width: int, effects: Effects
) -> Ends:
    """The same with sends that do not overlap: sender and receiver are both busy with them."""
    free, watched = _begin(program, width, effects), dict[int, FloatArray]()
    slots = [(np.zeros(width), np.zeros(width))] * program.num_slots
    for step in program.steps:
        check_time()
        now = free[step.rank]
        if step.awaited:
            arrival, received = slots[step.slot]
            np.maximum(now, arrival, out=now)
            now += received
        now += compute(step)
        beside = step.action in effects.slowed
        if beside:
            now += effects.slowed[step.action]
        # The receiver needs two arrays: when the result is made, and how long receiving it takes.
        if step.link is not None:
            sent = moving(step)
            slots[step.target] = now.copy(), sent
            now += sent
        if beside:
            watched[step.action] = now.copy()
    return Ends(free, watched)


def _begin(program: Program, width: int, effects: Effects) -> list[FloatArray]:
    """When each rank may start, shape (partitions,)."""
    ranks = range(len(program.actions.schedule))
    return [np.zeros(width) + effects.begin.get(rank, 0.0) for rank in ranks]


Runner = Callable[[Program, Rows, Rows, int, Effects], Ends]
"""Gives when actions end: `run_steps` or one with the same parameters."""


def runner_of(*, sends_overlap: bool, rendezvous: bool) -> Runner:
    """The function that runs many partitions at once under such sends."""
    if rendezvous:
        return partial(_run_steps_rendezvous, sends_overlap=sends_overlap)
    return run_steps if sends_overlap else run_steps_in_turn


def _run_steps_rendezvous(
    program: Program,
    compute: Rows,
    moving: Rows,
    width: int,
    effects: Effects,
    *,
    sends_overlap: bool,
) -> Ends:
    step_of = {step.action: step for step in program.steps}

    def seconds(action: int) -> FloatArray:
        own = compute(step_of[action])
        return own + effects.slowed[action] if action in effects.slowed else own

    free, watched = run_rendezvous_rows(
        program.actions,
        seconds,
        lambda action: moving(step_of[action]),
        _begin(program, width, effects),
        frozenset(effects.slowed),
        sends_overlap=sends_overlap,
    )
    return Ends(free, watched)


def step_times(
    program: Program,
    ranks: StageRanks,
    stages: Sequence[StageTimes[Time]],
    syncs: Sequence[SyncTime[Time]],
    *,
    action_overhead: float,
    sends_overlap: bool,
    rendezvous: bool = False,
) -> FloatArray:
    """One schedule's makespans for several partitions at once, in seconds, shape (partitions,).

    Raises ScheduleError where rendezvous sends deadlock.
    """
    costs, effects = kind_costs(stages, action_overhead), effects_of(program.actions, syncs)
    if costs.compute.shape[-1] <= FEW:
        ends = _one_by_one(
            program, costs, effects, sends_overlap=sends_overlap, rendezvous=rendezvous
        )
    else:
        compute, moving = list(costs.compute), list(costs.moving)
        runner = runner_of(sends_overlap=sends_overlap, rendezvous=rendezvous)
        ends = runner(
            program,
            lambda step: compute[step.kind],
            lambda step: moving[step.kind],
            costs.compute.shape[-1],
            effects,
        )
    synced = after_syncs(ends.free, syncs, np.maximum, effects, ends.watched)
    rank_end = add_updates(synced, ranks, stages)
    return np.maximum.reduce(np.broadcast_arrays(*rank_end))
