"""The ways of the layers of one partition: those that are best on their ranks, and what they make of the stages."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autopart.cluster import host_share, slowest_speed
from autopart.cost.links import host_way
from autopart.cost.on_ranks import on_ranks
from autopart.cost.rank_bytes import fits_on_ranks, in_flight, limits_of, memory, total
from autopart.frontier import (
    Growth,
    Points,
    best_point,
    choice_at,
    frontier,
    most_points,
    treat,
)
from autopart.layouts import Layout, own_microbatches
from autopart.problem import Problem
from autopart.stage_load import Number, Partition, StageLoad, stage_loads
from autopart.ways import (
    StageWays,
    Steps,
    allowed_ways,
    can_treat,
    leaves_choice,
    places_of_state,
    way_of,
    ways_of_bits,
)

NEGLIGIBLE = 1e-9
"""A share of seconds within which two sums in different order may differ."""


def best_ways(problem: Problem, layout: Layout, partition: Partition) -> tuple[StageWays, ...]:
    """For each stage of a partition the ways of its layers that are best there."""
    if not leaves_choice(problem.demands) or not can_treat(layout.schedule):
        return (StageWays(),) * len(partition)
    return tuple(
        _best_place(problem, layout, stage, load)
        for stage, load in zip(
            _stages(problem, layout, partition),
            stage_loads(problem.graph, partition),
            strict=True,
        )
    )


class _Stage(NamedTuple):
    """A stage of a partition."""

    number: int
    members: Sequence[int]
    """The positions of its layers, in the order of execution."""
    steps: Steps
    """All layers as steps of a stage on its ranks."""


def _stages(problem: Problem, layout: Layout, partition: Partition) -> list[_Stage]:
    """Those on ranks of one speed share their steps."""
    speeds = [slowest_speed(problem.cluster, ranks) for ranks in layout.stage_ranks]
    made = {
        speed: Steps(problem.graph, problem.demands, host_way(problem.cluster.host_link, speed))
        for speed in set(speeds)
    }
    return [
        _Stage(number, sorted(members), made[speed])
        for number, (members, speed) in enumerate(zip(partition, speeds, strict=True))
    ]


def _best_place(problem: Problem, layout: Layout, stage: _Stage, load: StageLoad) -> StageWays:
    """The best ways, with the optimizer's state where that is best."""
    best: tuple[StageLoad, StageWays] | None = None
    for on_host in places_of_state(problem.demands):
        there = load._replace(optimizer_on_host=int(on_host))
        ways = _best_ways(problem, layout, stage, there)._replace(optimizer_on_host=on_host)
        made = _treated(problem, stage, load, ways)
        if best is None or better_on_host(problem, layout, stage.number, best[0], made):
            best = made, ways
    assert best is not None
    return best[1]


def better_on_host(
    problem: Problem, layout: Layout, stage: int, device: StageLoad, host: StageLoad
) -> Number:
    """Whether a stage's optimizer state had better lie on the host, when the loads are the best of either
    place: it fits there alone, or the step keeps its rank busy for less with it there; of two that do not
    fit, the one with fewer bytes. In loads that may be matrices."""
    replicas, held = len(layout.stage_ranks[stage]), in_flight(layout, stage)
    (here, busy), (there, busy_there) = (
        (fits_on_ranks(load, problem, layout, stage), _busy(problem, layout, stage, load))
        for load in (device, host)
    )
    fewer = total(memory(host, problem, replicas, held)) < total(
        memory(device, problem, replicas, held)
    )
    shorter = busy_there < busy * (1 - NEGLIGIBLE)
    return np.where(np.asarray(here | there), there & (~np.asarray(here) | shorter), fewer)


def _busy(problem: Problem, layout: Layout, stage: int, load: StageLoad) -> Number:
    """Seconds of a step that a rank of the stage computes and updates."""
    placed = on_ranks(load, problem, layout, stage)
    once = placed.forward_time + placed.backward_time
    return own_microbatches(layout, stage) * once + placed.update_time


def _best_ways(problem: Problem, layout: Layout, stage: _Stage, load: StageLoad) -> StageWays:
    limits, layers = limits_of(problem, layout, stage.number), problem.graph.layers
    replicas = len(layout.stage_ranks[stage.number])
    kept = total(memory(load, problem, replicas, limits.held))
    may_keep = all("keep" in allowed_ways(layers[at], problem.demands) for at in stage.members)
    if may_keep and kept <= limits.device_bytes:
        return StageWays()
    points = _frontier(problem, stage)
    assert points.chosen is not None
    chosen = points.chosen[best_point(points, kept - load.workspace_bytes, limits)]
    return ways_of_bits(stage.members, chosen)


def _frontier(problem: Problem, stage: _Stage, given: StageWays | None = None) -> Points:
    """The frontier of a stage; the one point of the given ways."""
    own = set(stage.members)
    inside = [at in own for at in range(len(problem.graph.layers))]
    along = tuple(stage.steps.step(at, inside, given and way_of(given, at)) for at in stage.members)
    growth = Growth(
        hosted=host_share(problem.cluster) is not None,
        most_points=most_points(problem.graph.layers),
    )
    return frontier(growth, along, with_choice=given is None)


def treated_stages(
    problem: Problem, layout: Layout, partition: Partition, ways: Sequence[StageWays]
) -> list[StageLoad]:
    """The loads of the stages of a partition whose layers go the given ways."""
    stages, loads = _stages(problem, layout, partition), stage_loads(problem.graph, partition)
    return [
        _treated(problem, stage, load, own)
        for stage, load, own in zip(stages, loads, ways, strict=True)
    ]


def _treated(problem: Problem, stage: _Stage, load: StageLoad, ways: StageWays) -> StageLoad:
    placed = load._replace(optimizer_on_host=int(ways.optimizer_on_host))
    if not (ways.recompute or ways.selective or ways.offload):
        return placed
    return treat(placed, choice_at(_frontier(problem, stage, ways), 0))
