import random
import time

import msgspec
import pytest

from autopart.bounds.any_order_partition import least_step
from autopart.cost.cuts import partition_keeps_pins, partition_of
from autopart.records.layouts import layouts
from autopart.records.problem import CUSTOM, SCHEDULES, Demands, Problem
from autopart.search.aimed_partitions import GLANCE, Candidate, aimed_partitions
from autopart.search.layout_search import LayoutSearch
from autopart.search.objectives import Path
from autopart.solvers.orders.effort import Effort
from autopart.solvers.orders.evaluation import Clock, fits
from autopart.solvers.orders.of_layout import order_problem
from autopart.solvers.orders.order_times import OrderTimes
from autopart.solvers.orders.target_times import TargetSearch
from autopart.solvers.own_partitions import best_paths
from tests.support.problems import chain_graph, cluster, layer, problem
from tests.support.seeds import seeds

ROUNDING = 1 + 1e-9


def uneven_problem(seed: int) -> Problem:
    """Twelve layers with uneven seconds on three ranks; layers 3 and 4 stay together."""
    rng = random.Random(seed)
    layers = [
        layer(f"l{i}", forward_time=f, input_grad_time=f, weight_grad_time=f)
        for i, f in enumerate(rng.choice((0.1, 1.0, 2.0)) * rng.uniform(0.5, 2) for _ in range(12))
    ]
    demands = Demands(schedules=SCHEDULES, num_replicas=1, same_stage=(("l3", "l4"),))
    asked = problem(chain_graph(*layers), num_microbatches=6, cluster=cluster(1, 3))
    return msgspec.structs.replace(asked, demands=demands)


def candidates(found: LayoutSearch) -> list[tuple[Candidate, Path]]:
    """The partition with the smallest bound on each placement with two stages on each rank."""
    return [
        (Candidate(bound, layout, partition_of(found.cuts, path)), path)
        for layout in layouts(found.problem, 3, 1)
        if layout.schedule == CUSTOM and len(layout.stage_ranks) == 6
        for bound, path in best_paths(found.problem, layout, found.cuts, most=1)
    ]


def step_of(found: LayoutSearch, candidate: Candidate) -> float:
    """The step of a candidate's orders, which must fit."""
    task = order_problem(found.problem, candidate.layout, candidate.partition, split=True)
    assert candidate.known.given is not None
    assert fits(task, candidate.known.given.schedule)
    step = Clock(task).run(candidate.known.given.schedule)
    assert candidate.bound == pytest.approx(least_step(task))
    assert candidate.bound <= step * ROUNDING
    return step


def listed(found: LayoutSearch, candidate: Candidate) -> float:
    """The step of lists by target times on a candidate's own partition."""
    task = order_problem(found.problem, candidate.layout, candidate.partition, split=True)
    search = TargetSearch(OrderTimes(task), Effort(actions=GLANCE))
    search.run(GLANCE, candidate.bound)
    return search.step * ROUNDING


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(1, 6))
def test_aimed_partitions_are_no_slower_than_those_with_the_smallest_bounds(seed: int):
    """Each keeps layers together, and each has orders that fit and start a search."""
    found = LayoutSearch(uneven_problem(seed), "auto")
    given = candidates(found)
    until = time.perf_counter() + 1e6
    aimed = aimed_partitions(found, given, until, 3)
    assert 0 < len(aimed) <= 3
    assert min(step_of(found, each) for each in aimed) <= min(
        listed(found, candidate) for candidate, _ in given
    )
    graph, demands = found.problem.graph, found.problem.demands
    assert all(partition_keeps_pins(each.partition, graph, demands) for each in aimed)


def test_without_time_no_partition_is_aimed():
    found = LayoutSearch(uneven_problem(0), "auto")
    assert aimed_partitions(found, candidates(found), time.perf_counter() - 1.0, 3) == []
