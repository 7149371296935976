"""The ways of the layers of one partition: those that are best on their ranks, and what they make of the stages."""

from collections.abc import Sequence

import numpy as np

from autopart.cluster import host_share, slowest_speed
from autopart.cost.rank_bytes import limits_of, memory, total
from autopart.frontier import Growth, Points, best_point, frontier, treat
from autopart.layouts import Layout
from autopart.problem import Problem
from autopart.stage_load import Partition, StageLoad, stage_loads
from autopart.ways import (
    StageWays,
    Steps,
    allowed_ways,
    can_treat,
    leaves_choice,
    way_of,
    ways_of_bits,
)


def best_ways(problem: Problem, layout: Layout, partition: Partition) -> tuple[StageWays, ...]:
    """For each stage of a partition the ways of its layers that are best there."""
    if not leaves_choice(problem.demands) or not can_treat(layout.schedule):
        return (StageWays(),) * len(partition)
    return tuple(
        _best_ways(problem, layout, stage, sorted(partition[stage]), load)
        for stage, load in enumerate(stage_loads(problem.graph, partition))
    )


def _best_ways(
    problem: Problem, layout: Layout, stage: int, members: Sequence[int], load: StageLoad
) -> StageWays:
    limits, layers = limits_of(problem, layout, stage), problem.graph.layers
    kept = total(memory(load, problem, len(layout.stage_ranks[stage]), limits.held))
    may_keep = all("keep" in allowed_ways(layers[at], problem.demands) for at in members)
    if may_keep and kept <= limits.device_bytes:
        return StageWays()
    points = _frontier(problem, layout, stage, members)
    assert points.chosen is not None
    chosen = points.chosen[best_point(points, kept - load.workspace_bytes, limits)]
    return ways_of_bits(members, chosen)


def _frontier(
    problem: Problem,
    layout: Layout,
    stage: int,
    members: Sequence[int],
    given: StageWays | None = None,
) -> Points:
    """The frontier of stage `stage` with the layers at `members`; the one point of the given ways."""
    inside = np.zeros(len(problem.graph.layers), dtype=bool)
    inside[list(members)] = True
    speed = slowest_speed(problem.cluster, layout.stage_ranks[stage])
    steps = Steps(problem.graph, problem.demands, problem.cluster.host_link, speed)
    along = [steps.step(at, inside, given and way_of(given, at)) for at in members]
    growth = Growth(hosted=host_share(problem.cluster) is not None)
    return frontier(growth, along, None if given else members)


def treated_stages(
    problem: Problem, layout: Layout, partition: Partition, ways: Sequence[StageWays]
) -> list[StageLoad]:
    """The loads of the stages of a partition whose layers go the given ways."""
    loads = list(stage_loads(problem.graph, partition))
    for stage, own in enumerate(ways):
        if any(own):
            points = _frontier(problem, layout, stage, sorted(partition[stage]), own)
            loads[stage] = treat(loads[stage], points, 0)
    return loads
