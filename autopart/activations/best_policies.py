"""The best activation policies for one partition, and its stages' totals under given policies."""

from collections.abc import Sequence
from typing import NamedTuple

from autopart.activations.changes import PolicyChanges, apply_changes
from autopart.activations.chooser import (
    StagePlace,
    beside_workspace,
    best_point,
    better_on_host,
    changes_policies,
    counts_first,
    growth_of,
    kept_bytes,
    place_of,
    shared_growth,
    shared_link,
)
from autopart.activations.frontier import frontier
from autopart.activations.points import Points
from autopart.activations.policies import (
    StagePolicies,
    chooses_by_rank,
    has_policies,
    leaves_choice,
    must_change,
    optimizer_places,
    policies_of_bits,
    policy_of,
)
from autopart.activations.rank_choices import best_choice
from autopart.activations.shared_ranks import bytes_beside, shared_ranks
from autopart.activations.stage_layers import StageLayer, StageLayers, stage_layers
from autopart.activations.state_places import (
    SteppedElements,
    points_of,
    state_places,
    with_first_place,
)
from autopart.cost.cuts import stage_totals
from autopart.cost.repeated_ties import without_repeats
from autopart.cost.stage_totals import StageTotals
from autopart.cost.tied_syncs import copies_of
from autopart.records.cluster import slowest_speed
from autopart.records.layouts import Layout, Partition, one_replica, own_microbatches
from autopart.records.problem import CLASSIC, CUSTOM, Problem, splits_backward
from autopart.schedules.actions import Schedule
from autopart.schedules.turns import in_turns


def best_policies(
    problem: Problem, layout: Layout, partition: Partition, orders: Schedule | None = None
) -> tuple[StagePolicies, ...]:
    """For each stage in a partition its layers' best policies, in its place in the layout.

    `orders` has an order for each rank of the first replica, where the layout names no schedule. Without
    them, one microbatch at a time is in flight: no order keeps less.
    """
    if not leaves_choice(problem.demands) or not has_policies(layout.schedule):
        return (StagePolicies(),) * len(partition)
    if chooses_by_rank(problem, layout):
        if layout.schedule == CUSTOM and orders is None:
            orders = in_turns(one_replica(layout).stage_ranks, 1, 1)
        return _best_of_ranks(problem, layout, partition, orders)
    return tuple(
        best_policies_of_stage(problem, layout, partition, stage) for stage in range(len(partition))
    )


def best_policies_of_stage(
    problem: Problem, layout: Layout, partition: Partition, stage: int
) -> StagePolicies:
    """The best policies for the layers of one stage that chooses alone, in its place in the layout."""
    if not leaves_choice(problem.demands) or layout.schedule not in CLASSIC:
        return StagePolicies()
    totals = stage_totals(problem.graph, partition)[stage]
    own = _PartitionStage(stage, sorted(partition[stage]))
    return _best_of_places(problem, layout, own, totals)


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


def _best_of_ranks(
    problem: Problem, layout: Layout, partition: Partition, orders: Schedule | None
) -> tuple[StagePolicies, ...]:
    """The best policies where the stages of each rank choose together."""
    all_totals = [
        with_first_place(problem, totals) for totals in stage_totals(problem.graph, partition)
    ]
    frontiers = rank_frontiers(problem, layout, partition)
    found: list[StagePolicies] = [StagePolicies()] * len(partition)
    copies = copies_of(problem.graph, partition)
    once = without_repeats(problem, layout.stage_ranks, all_totals, copies)
    elements = [
        SteppedElements(*map(int, (whole.num_trainable, own.num_trainable, own.widest_trainable)))
        for whole, own in zip(all_totals, once, strict=True)
    ]
    for rank in shared_ranks(problem, layout, orders):
        (beside,) = bytes_beside(problem, rank, [once[s] for s in rank.stages])
        count = own_microbatches(layout, rank.stages[0])
        stages = [
            points_of(
                frontiers[s],
                state_places(problem, rank, count, elements[s]),
            )
            for s in rank.stages
        ]
        chosen = best_choice(rank.moments, beside, stages)
        for stage, place in zip(rank.stages, chosen, strict=True):
            members = sorted(partition[stage])
            found[stage] = policies_at(problem, frontiers[stage], members, place)
    return tuple(found)


def rank_frontiers(problem: Problem, layout: Layout, partition: Partition) -> list[Points]:
    """Each stage's frontier with its policies, where the stages of a rank choose together."""
    growth = shared_growth(problem, split=splits_backward(layout.schedule))
    link, found = shared_link(problem), list[Points]()
    for ranks, members in zip(layout.stage_ranks, partition, strict=True):
        speed = slowest_speed(problem.cluster, ranks) if link else 1.0
        layers = stage_layers(problem.graph, problem.demands, link, speed)
        along = _along(layers, sorted(members), None)
        found.append(frontier(growth, along, with_policies=True))
    return found


def policies_at(
    problem: Problem, points: Points, members: Sequence[int], place: int
) -> StagePolicies:
    """The policies of a stage's layers at one of `points_of` its frontier."""
    assert points.chosen is not None
    state, point = divmod(place, len(points.extra_time))
    on_host = optimizer_places(problem.demands)[state]
    return policies_of_bits(members, points.chosen[point])._replace(optimizer_on_host=on_host)


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
        policies = _best_in_place(problem, layout, place, stage, placed)
        policies = policies._replace(optimizer_on_host=on_host)
        made = _totals_with(problem, layout, stage, totals, policies)
        if best is None or better_on_host(problem, layout, stage.number, best[0], made):
            best = made, policies
    assert best is not None
    return best[1]


def _best_in_place(
    problem: Problem,
    layout: Layout,
    place: StagePlace,
    stage: _PartitionStage,
    totals: StageTotals[float],
) -> StagePolicies:
    """The best policies with optimizer state where `totals` has it."""
    layers = problem.graph.layers
    kept = kept_bytes(problem, place, totals)
    must = any(must_change(layers[at], problem.demands) for at in stage.members)
    if not changes_policies(kept, must, place.limits):
        return StagePolicies()
    points = _frontier(problem, layout, place.speed, stage)
    assert points.chosen is not None
    beside = beside_workspace(problem, place, totals)
    chosen = points.chosen[best_point(points, beside, place.limits)]
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
    points = _frontier(problem, layout, speed, stage, policies)
    numbers = (getattr(points, name)[0].item() for name in PolicyChanges._fields)
    return apply_changes(placed, PolicyChanges(*numbers))


def _frontier(
    problem: Problem,
    layout: Layout,
    speed: float,
    stage: _PartitionStage,
    given: StagePolicies | None = None,
) -> Points:
    """A stage's frontier over all policies, or over the given ones."""
    layers = stage_layers(problem.graph, problem.demands, problem.cluster.host_link, speed)
    along = _along(layers, stage.members, given)
    alone = layout.schedule in CLASSIC
    growth = growth_of(problem)._replace(
        split=splits_backward(layout.schedule),
        first=alone and counts_first(problem, place_of(problem, layout, stage.number)),
    )
    return frontier(growth, along, with_policies=given is None)


def _along(
    layers: StageLayers, members: Sequence[int], given: StagePolicies | None
) -> tuple[StageLayer, ...]:
    """A stage's layers with the policies that they may have."""
    own = set(members)
    inside = [at in own for at in range(len(layers.layers))]
    return tuple(
        layers.in_stage(at, inside, None if given is None else policy_of(given, at))
        for at in members
    )
