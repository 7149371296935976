"""Values refuted for all partitions of a layout, against orders from the search and all orders."""

import itertools
import random

import msgspec
import pytest

from autopart.bounds import rank_loads
from autopart.bounds.any_order_shapes import any_order_shape_bound
from autopart.bounds.any_order_stages import stage_bounds_of_any_order
from autopart.bounds.of_layout import layout_bounds
from autopart.bounds.rank_loads import RankLoads
from autopart.cost.cuts import all_cuts
from autopart.errors import InfeasibleError
from autopart.records.cluster import num_gpus
from autopart.records.layouts import Layout
from autopart.records.problem import Problem
from autopart.solvers.orders.of_layout import order_problem, orders_of_layout
from tests.support.oracle import partitions
from tests.support.orders_oracle import best_step
from tests.support.problems import chain_graph, cluster, layer, problem, random_problem
from tests.support.seeds import seeds

ROUNDING = 1 + 1e-9

PLACEMENTS = [
    (0, 1),
    (0, 1, 2),
    (0, 1, 1, 0),
    (0, 1, 0, 1),
    (0, 1, 0, 1, 0),
    (0, 1, 2, 2, 1, 0),
    (0, 1, 2, 0, 1, 2),
]
"""The rank of each stage."""


def placed(asked: Problem, placement: tuple[int, ...]) -> Layout:
    """A layout with one replica."""
    ranks = tuple((rank,) for rank in placement)
    return Layout(schedule="custom", stage_ranks=ranks, num_microbatches=asked.num_microbatches)


def refutes(asked: Problem, layout: Layout, seconds: float, *, split: bool) -> bool:
    """Whether no partition is said to take less than so many seconds."""
    cuts = all_cuts(asked.graph)
    stages = stage_bounds_of_any_order(asked, layout, cuts, split=split)
    return RankLoads(asked, layout, cuts, split=split).refutes(seconds, stages)


def drawn(rng: random.Random) -> tuple[Problem, list[Layout]]:
    """A random problem, and the layouts that it has room for."""
    asked = random_problem(rng, branching=rng.random() < 0.3, tight=rng.random() < 0.7)
    fitting = [
        placement
        for placement in PLACEMENTS
        if len(placement) <= len(asked.graph.layers) and max(placement) < num_gpus(asked.cluster)
    ]
    return asked, [placed(asked, each) for each in fitting]


def fastest_found(asked: Problem, layout: Layout, most: int, *, split: bool) -> float:
    """The shortest step that the search for orders finds on some partitions."""
    best = float("inf")
    for partition in itertools.islice(partitions(asked, len(layout.stage_ranks)), most):
        try:
            found = orders_of_layout(asked, layout, partition, split=split, actions=6_000)
        except InfeasibleError:
            continue
        best = min(best, found.step_time)
    return best


@pytest.mark.parametrize("seed", seeds(10, 60))
def test_no_step_that_orders_reach_is_refuted(seed: int):
    rng = random.Random(7000 + seed)
    asked, layouts = drawn(rng)
    split = rng.random() < 0.6
    for layout in rng.sample(layouts, min(2, len(layouts))):
        best = fastest_found(asked, layout, 6, split=split)
        if best < float("inf"):
            assert not refutes(asked, layout, best * ROUNDING, split=split)


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(3, 60))
def test_no_step_of_all_orders_of_two_microbatches_is_refuted(seed: int):
    rng = random.Random(8000 + seed)
    asked = random_problem(rng, branching=False, tight=rng.random() < 0.7)
    ranks = rng.choice([(0, 1), (0, 1, 0), (0, 1, 1)])
    if len(asked.graph.layers) < len(ranks) or num_gpus(asked.cluster) < 2:
        pytest.skip("too small for this placement")
    asked = msgspec.structs.replace(asked, num_microbatches=2)
    layout = placed(asked, ranks)
    split = len(ranks) == 2
    steps = [
        best_step(order_problem(asked, layout, partition, split=split), split=split)
        for partition in itertools.islice(partitions(asked, len(ranks)), 4)
    ]
    best = min((step for step in steps if step is not None), default=None)
    if best is not None:
        assert not refutes(asked, layout, best * ROUNDING, split=split)


@pytest.mark.parametrize("seed", seeds(10, 40))
def test_joining_all_beginnings_refutes_no_step_either(seed: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rank_loads, "WIDTH", 3)
    rng = random.Random(9000 + seed)
    asked, layouts = drawn(rng)
    for layout in layouts[-2:]:
        best = fastest_found(asked, layout, 4, split=True)
        if best < float("inf"):
            assert not refutes(asked, layout, best * ROUNDING, split=True)


def test_layers_that_cannot_be_split_leave_no_partition_below_the_fullest_rank():
    # Nine equal layers of 3 s on two ranks: one of them has five. All work shared out says 4.5 layers.
    graph = chain_graph(*(layer(f"l{i}") for i in range(9)), num_bytes=0)
    asked = problem(graph, 8, cluster=cluster(1, 2))
    layout = placed(asked, (0, 1, 1, 0))
    shared = any_order_shape_bound(asked, (2, 1), split=True)
    each = 8 * 3.0
    assert shared < 5 * each
    assert refutes(asked, layout, 5 * each, split=True)
    assert not refutes(asked, layout, 5 * each + 3 * 9, split=True)
    bounds = layout_bounds(asked, layout, all_cuts(graph))
    assert next(bounds.paths_below(5 * each), None) is None
    assert next(bounds.paths_below(6 * each), None) is not None


def test_a_rank_with_room_for_few_microbatches_waits_for_its_first_backward():
    # Four layers of 1 s for F, I and W on two ranks in a V: each has 48 s of work. Rank 0 has room for
    # one microbatch: 2 s of F before the first gradient at 4 s, and 4 s of I and W in the last 5 s.
    layers = (layer(f"l{i}", stash_bytes=10) for i in range(4))
    graph = chain_graph(*layers, num_bytes=0)
    tight = problem(graph, 8, cluster=cluster(1, 2, memory_bytes=20))
    ample = problem(graph, 8, cluster=cluster(1, 2))
    v = (0, 1, 1, 0)
    assert refutes(tight, placed(tight, v), 50.9, split=True)
    assert not refutes(ample, placed(ample, v), 50.9, split=True)
    assert fastest_found(tight, placed(tight, v), 1, split=True) >= 51.0
