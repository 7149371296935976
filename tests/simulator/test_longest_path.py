"""The simulator against another computation: longest paths in a graph of events."""

import graphlib
import itertools
import random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from msgspec import UnsetType

from autopart.schedules.actions import Action, Op, PairedForward, rank_of
from autopart.simulator.compiled import step_times
from autopart.simulator.costs import StageTimes, SyncTime
from autopart.simulator.timeline import rank_slices
from autopart.simulator.working_order import compile_schedule
from tests.support.seeds import seeds
from tests.support.steps import Step, home, needs, random_step

Event = tuple[str, Action]


def longest_paths(step: Step) -> dict[Event, float]:
    """The longest path to each event.

    A rank comes to an action ("next"). The action starts ("start"), has its result ("result"), leaves
    its rank free ("free"), and has its result on the next rank ("there"). A move of stash beside it is
    over ("moved").
    """
    arcs = _arcs(step)
    when: dict[Event, float] = {}
    graph = {event: [source for source, _ in into] for event, into in arcs.items()}
    for event in graphlib.TopologicalSorter(graph).static_order():
        when[event] = max((when[source] + length for source, length in arcs[event]), default=0.0)
    return when


def _arcs(step: Step) -> dict[Event, list[tuple[Event, float]]]:
    every = {action for order in step.schedule for action in order}
    begins: dict[tuple[int, int], tuple[Op, ...]] = {
        (a.stage, a.microbatch): (a.op,) for a in every if a.op in "BI"
    }
    arcs: dict[Event, list[tuple[Event, float]]] = {}
    last_on: dict[tuple[int, int], Action] = {}
    for rank, order in enumerate(step.schedule):
        computing = [action for action in order if action.op not in "LT"]
        moving = {after: move for move, after in itertools.pairwise(order) if move.op in "LT"}
        arcs |= _turns(step, computing, moving)
        for at, action in enumerate(computing):
            before = computing[at - 1] if at else None
            # An overlapped pair awaits both its inputs at its forward, and takes all its time there.
            paired, second = isinstance(action, PairedForward), isinstance(before, PairedForward)
            inputs = needs(action, len(step.ranks), begins)
            if paired:
                inputs += needs(computing[at + 1], len(step.ranks), begins)
            if second:
                inputs = []
            remote = [n for n in inputs if home(step.ranks, n) != rank]
            target = _receiver(step, action, every)
            sends = target is not None and target != rank
            arcs["start", action] = [
                (("next", action), 0.0),
                *((("there", n), 0.0) for n in remote),
            ]
            received = 0.0 if step.overlap else sum(_send(step, n) for n in remote)
            compute = _compute(step, action)
            if paired:
                compute = _pair(step, action, computing[at + 1])
            elif second:
                compute = 0.0
            arcs["result", action] = [(("start", action), compute + received)]
            send = _send(step, action) if sends else 0.0
            busy, beside = (0.0, send) if step.overlap else (send, 0.0)
            arcs["free", action] = [(("result", action), busy)]
            arcs["there", action] = [(("result", action), beside)]
            if sends and step.overlap:
                if (rank, target) in last_on:
                    arcs["there", action].append((("there", last_on[rank, target]), send))
                last_on[rank, target] = action
    return arcs


def _turns(
    step: Step, computing: list[Action], moving: dict[Action, Action]
) -> dict[Event, list[tuple[Event, float]]]:
    """When a rank comes to each action, and when the move of stash beside it is over."""
    arcs: dict[Event, list[tuple[Event, float]]] = {}
    for before, action in itertools.pairwise([None, *computing]):
        arcs["next", action] = [(("free", before), 0.0)] if before else []
        if before in moving:
            arcs["next", action].append((("moved", before), 0.0))
        if action in moving:
            arcs["moved", action] = [(("next", action), step.stages[action.stage].lend_time)]
    return arcs


def _receiver(step: Step, action: Action, every: set[Action]) -> int | None:
    s, op, m = action
    if op == "W":
        return None
    ahead = s + 1 if op == "F" else s - 1
    if not 0 <= ahead < len(step.ranks):
        return None
    return rank_of(step.ranks[ahead], m)


def _compute(step: Step, action: Action) -> float:
    cost = step.stages[action.stage]
    split = {"I": cost.backward_time - cost.weight_grad_time, "W": cost.weight_grad_time}
    times = {"F": cost.forward_time, "B": cost.backward_time, **split}
    return step.overhead + times[action.op]


def _pair(step: Step, forward: Action, backward: Action) -> float:
    one, other = step.stages[forward.stage], step.stages[backward.stage]
    saved = sorted([one.pair_saving, other.pair_saving])[0]
    return one.forward_time + step.overhead + other.backward_time + step.overhead - saved


def _send(step: Step, action: Action) -> float:
    cost = step.stages[action.stage]
    return cost.send_time if action.op == "F" else cost.send_back_time


@pytest.mark.slow
@pytest.mark.parametrize("part", seeds(6, 20))
def test_every_action_starts_and_ends_at_the_longest_path_to_it(part: int):
    for seed in range(100 * part, 100 * part + 100):
        step = random_step(random.Random(seed))
        expected = longest_paths(step)
        timeline = step.simulate()
        for rank in range(len(step.schedule)):
            order = step.schedule[rank]
            for at, slice_ in enumerate(rank_slices(timeline, rank)):
                # Both actions of a pair have the time of the pair.
                after = at and isinstance(order[at - 1], PairedForward)
                begun = order[at - 1] if after else slice_.action
                ended = order[at + 1] if isinstance(order[at], PairedForward) else slice_.action
                found = (slice_.start, slice_.end)
                assert found == (
                    expected["start", begun],
                    expected["free", ended],
                ), f"{step.name}, seed {seed}, {slice_.action}"


def _scaled(seconds: float | UnsetType, scales: npt.NDArray[np.int64]) -> Any:
    return seconds if isinstance(seconds, UnsetType) else seconds * scales


@pytest.mark.parametrize("seed", seeds(50, 150))
@pytest.mark.parametrize("width", [1, 9])
def test_many_partitions_at_once_take_as_long_as_each_alone(seed: int, width: int):
    rng = random.Random(seed)
    step = random_step(rng)
    program = compile_schedule(step.schedule, step.ranks)
    scales = np.arange(1, width + 1)
    stages = [
        StageTimes(**{name: _scaled(getattr(cost, name), scales) for name in StageTimes._fields})
        for cost in step.stages
    ]
    times = step_times(
        program,
        step.ranks,
        stages,
        [SyncTime(sync.ranks, sync.time * scales) for sync in step.syncs],
        action_overhead=0.0,
        sends_overlap=step.overlap,
    )
    alone = step._replace(overhead=0).simulate().makespan
    assert times.tolist() == [alone * scale for scale in scales]
