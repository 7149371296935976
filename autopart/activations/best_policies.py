"""The best activation policies for one partition, and its stages' totals under given policies."""

from collections.abc import Sequence
from typing import NamedTuple

from autopart.activations.changes import PolicyChanges, apply_changes
from autopart.activations.chooser import (
    StagePlace,
    best_point,
    better_on_host,
    changes_policies,
    growth_of,
    kept_bytes,
    place_of,
)
from autopart.activations.frontier import Points, frontier
from autopart.activations.policies import (
    StagePolicies,
    can_have_policies,
    leaves_choice,
    must_change,
    optimizer_places,
    policies_of_bits,
    policy_of,
)
from autopart.activations.stage_layers import stage_layers
from autopart.cost.cuts import stage_totals
from autopart.cost.stage_totals import StageTotals
from autopart.records.cluster import slowest_speed
from autopart.records.layouts import Layout, Partition
from autopart.records.problem import Problem


def best_policies(
    problem: Problem, layout: Layout, partition: Partition
) -> tuple[StagePolicies, ...]:
    """For each stage in a partition its layers' best policies, in its place in the layout."""
    if not leaves_choice(problem.demands) or not can_have_policies(layout.schedule):
        return (StagePolicies(),) * len(partition)
    all_totals = stage_totals(problem.graph, partition)
    return tuple(
        _best_of_places(problem, layout, _PartitionStage(number, sorted(members)), totals)
        for number, (members, totals) in enumerate(zip(partition, all_totals, strict=True))
    )


def totals_with_policies(
    problem: Problem, layout: Layout, partition: Partition, policies: Sequence[StagePolicies]
) -> list[StageTotals[float]]:
    """The totals for each stage in a partition under given policies."""
    return [
        _totals_with(problem, layout, _PartitionStage(number, sorted(members)), totals, own)
        for number, (members, totals, own) in enumerate(
            zip(partition, stage_totals(problem.graph, partition), policies, strict=True)
        )
    ]


class _PartitionStage(NamedTuple):
    """One stage in a partition."""

    number: int
    members: Sequence[int]
    """Its layers' positions, in the order of execution."""


def _best_of_places(
    problem: Problem, layout: Layout, stage: _PartitionStage, totals: StageTotals[float]
) -> StagePolicies:
    """The best policies, with optimizer state in the better place."""
    best: tuple[StageTotals[float], StagePolicies] | None = None
    place = place_of(problem, layout, stage.number)
    for on_host in optimizer_places(problem.demands):
        placed = totals._replace(optimizer_on_host=int(on_host))
        policies = _best_in_place(problem, place, stage, placed)
        policies = policies._replace(optimizer_on_host=on_host)
        made = _totals_with(problem, layout, stage, totals, policies)
        if best is None or better_on_host(problem, layout, stage.number, best[0], made):
            best = made, policies
    assert best is not None
    return best[1]


def _best_in_place(
    problem: Problem, place: StagePlace, stage: _PartitionStage, totals: StageTotals[float]
) -> StagePolicies:
    """The best policies with optimizer state where `totals` has it."""
    layers = problem.graph.layers
    kept = kept_bytes(problem, place, totals)
    must = any(must_change(layers[at], problem.demands) for at in stage.members)
    if not changes_policies(kept, must, place.limits):
        return StagePolicies()
    points = _frontier(problem, place.speed, stage)
    assert points.chosen is not None
    chosen = points.chosen[best_point(points, kept - totals.workspace_bytes, place.limits)]
    return policies_of_bits(stage.members, chosen)


def _totals_with(
    problem: Problem,
    layout: Layout,
    stage: _PartitionStage,
    totals: StageTotals[float],
    policies: StagePolicies,
) -> StageTotals[float]:
    placed = totals._replace(optimizer_on_host=int(policies.optimizer_on_host))
    if policies.keeps_all:
        return placed
    # Given policies make a frontier with one point.
    speed = slowest_speed(problem.cluster, layout.stage_ranks[stage.number])
    points = _frontier(problem, speed, stage, policies)
    numbers = (getattr(points, name)[0].item() for name in PolicyChanges._fields)
    return apply_changes(placed, PolicyChanges(*numbers))


def _frontier(
    problem: Problem, speed: float, stage: _PartitionStage, given: StagePolicies | None = None
) -> Points:
    """A stage's frontier over all policies, or over the given ones."""
    layers = stage_layers(problem.graph, problem.demands, problem.cluster.host_link, speed)
    own = set(stage.members)
    inside = [at in own for at in range(len(problem.graph.layers))]
    along = tuple(
        layers.in_stage(at, inside, None if given is None else policy_of(given, at))
        for at in stage.members
    )
    return frontier(growth_of(problem), along, with_policies=given is None)
