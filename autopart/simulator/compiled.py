"""One schedule for many partitions at once: compiled once, then run on arrays over the partitions.

Every link has a single sender, so no time changes the order in which actions can be worked off.
They are worked off round by round (autopart/simulator/working_order.py).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from autopart.schedules.actions import StageRanks
from autopart.simulator.carried import Carried, begin_of
from autopart.simulator.clock import last_arrivals, last_ends, run
from autopart.simulator.costs import FloatArray, KindCosts, StageTimes, SyncTime, Time, kind_costs
from autopart.simulator.rendezvous import run_rendezvous_rows
from autopart.simulator.syncs import Effects, add_updates, after_syncs, effects_of
from autopart.simulator.working_order import Program, Step
from autopart.stopping.time_limit import check_time

FEW = 6
"""Up to so many partitions run faster one by one than side by side on arrays."""


class Ends(NamedTuple):
    """When actions end in seconds, arrays with shape (partitions,)."""

    free: list[FloatArray]
    """Each rank's last action."""
    watched: dict[int, FloatArray]
    """The actions beside which a sync runs."""
    links: list[FloatArray]
    """Each link's last message arrives, where sends overlap compute."""


def _one_by_one(
    program: Program,
    costs: KindCosts,
    before: Carried[FloatArray],
    effects: Effects,
    *,
    sends_overlap: bool,
    rendezvous: bool,
) -> Ends:
    """When actions end; each partition runs on plain floats."""
    rows: list[list[float]] = []
    watched: list[list[float]] = []
    links: list[list[float]] = []
    width, actions = costs.compute.shape[-1], program.actions
    for each in range(width):
        times = run(
            actions,
            KindCosts(costs.compute[:, each], costs.moving[:, each], costs.lending),
            sends_overlap=sends_overlap,
            rendezvous=rendezvous,
            effects=effects._replace(
                slowed={at: _entry(own, each) for at, own in effects.slowed.items()},
                begin={rank: _entry(own, each) for rank, own in effects.begin.items()},
                moves={at: _entry(own, each) for at, own in effects.moves.items()},
            ),
            carried=Carried(*([float(own[each]) for own in times] for times in before)),
        )
        rows.append(last_ends(actions, times))
        watched.append([times.end[at] for at in effects.slowed])
        links.append(last_arrivals(actions, times))
    columns = np.array(watched).reshape(width, -1).T
    return Ends(
        list(np.array(rows).T),
        dict(zip(effects.slowed, columns, strict=True)),
        list(np.array(links).reshape(width, -1).T),
    )


def _entry(seconds: Time, each: int) -> float:
    return float(seconds[each]) if isinstance(seconds, np.ndarray) else seconds


Rows = Callable[[Step], FloatArray]
"""Gives the seconds that one action takes, shape (partitions,)."""


def run_steps(
    program: Program, compute: Rows, moving: Rows, before: Carried[FloatArray], effects: Effects
) -> Ends:
    """When actions end, with sends that overlap compute.

    `compute` and `moving` give the seconds that an action and its send take. `before` are the times
    of the step before.
    """
    (free, link_free), watched = _begin(before, effects), dict[int, FloatArray]()
    width = len(free[0])
    slots = [np.zeros(width)] * program.num_slots
    moved = dict[int, FloatArray]()
    for step in program.steps:
        check_time()
        at, rank, _, _, slot, second, awaited, link, target = step
        # `now` is the rank's own array: it changes in place. The sums follow `clock.run`, step by
        # step.
        now = free[rank]
        if at - 1 in moved:
            np.maximum(now, moved.pop(at - 1), out=now)
        if at in effects.moves:
            moved[at] = now + effects.moves[at]
        if awaited:
            np.maximum(now, slots[slot], out=now)
        if second:
            np.maximum(now, slots[second], out=now)
        now += compute(step)
        if step.action in effects.slowed:
            now += effects.slowed[step.action]
            watched[step.action] = now.copy()
        if link is not None:
            arrival = np.maximum(now, link_free[link])
            arrival += moving(step)
            # One array serves both: neither is changed in place later.
            link_free[link] = slots[target] = arrival
    return Ends(free, watched, link_free)


def run_steps_in_turn(
    program: Program, compute: Rows, moving: Rows, before: Carried[FloatArray], effects: Effects
) -> Ends:
    """The same with sends that do not overlap: sender and receiver are both busy with them."""
    (free, links), watched = _begin(before, effects), dict[int, FloatArray]()
    width = len(free[0])
    slots = [(np.zeros(width), np.zeros(width))] * program.num_slots
    for step in program.steps:
        check_time()
        now = free[step.rank]
        read = [slots[each] for each in (step.slot, step.second) if each]
        for arrival, _ in read:
            np.maximum(now, arrival, out=now)
        for _, received in read:
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
    return Ends(free, watched, links)


def nothing_before(program: Program, width: int) -> Carried[FloatArray]:
    """All ranks and links are free at 0, for `width` partitions."""
    zeros, actions = np.zeros(width), program.actions
    return Carried([zeros] * len(actions.schedule), [zeros] * len(actions.links))


def _begin(
    before: Carried[FloatArray], effects: Effects
) -> tuple[list[FloatArray], list[FloatArray]]:
    """When each rank and each link may start, shape (partitions,). The ranks' arrays are new ones."""
    return [+each for each in begin_of(before, effects, np.maximum)], list(before.links)


Runner = Callable[[Program, Rows, Rows, Carried[FloatArray], Effects], Ends]
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
    before: Carried[FloatArray],
    effects: Effects,
    *,
    sends_overlap: bool,
) -> Ends:
    step_of = {step.action: step for step in program.steps}

    def seconds(action: int) -> FloatArray:
        own = compute(step_of[action])
        return own + effects.slowed[action] if action in effects.slowed else own

    done, watched = run_rendezvous_rows(
        program.actions,
        seconds,
        lambda action: moving(step_of[action]),
        Carried(*_begin(before, effects)),
        frozenset(effects.slowed),
        sends_overlap=sends_overlap,
    )
    return Ends(list(done.ranks), watched, list(done.links))


def run_once(
    program: Program,
    costs: KindCosts,
    before: Carried[FloatArray],
    effects: Effects,
    *,
    sends_overlap: bool,
    rendezvous: bool,
) -> Ends:
    """When actions end, for several partitions at once; `costs` have the shape (kinds, partitions).

    No time in `before` is negative where there are at most `FEW` partitions.
    """
    if costs.compute.shape[-1] <= FEW:
        return _one_by_one(
            program, costs, before, effects, sends_overlap=sends_overlap, rendezvous=rendezvous
        )
    return run_on_arrays(
        program, costs, before, effects, sends_overlap=sends_overlap, rendezvous=rendezvous
    )


def run_on_arrays(
    program: Program,
    costs: KindCosts,
    before: Carried[FloatArray],
    effects: Effects,
    *,
    sends_overlap: bool,
    rendezvous: bool,
) -> Ends:
    """The same, side by side on arrays. Times in `before` may be minus infinite."""
    compute, moving = list(costs.compute), list(costs.moving)
    runner = runner_of(sends_overlap=sends_overlap, rendezvous=rendezvous)
    return runner(
        program,
        lambda step: compute[step.row],
        lambda step: moving[step.kind],
        before,
        effects,
    )


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
    costs = kind_costs(stages, action_overhead, program.actions.pair_kinds)
    effects = effects_of(program.actions, syncs, costs.lending)
    before = nothing_before(program, costs.compute.shape[-1])
    ends = run_once(
        program, costs, before, effects, sends_overlap=sends_overlap, rendezvous=rendezvous
    )
    synced = after_syncs(ends.free, syncs, np.maximum, effects, ends.watched)
    rank_end = add_updates(synced, ranks, stages)
    return np.maximum.reduce(np.broadcast_arrays(*rank_end))
