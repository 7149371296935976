"""Bounds for any order over all cuts, against orders from the search."""

import itertools
import random

import numpy as np
import pytest

from autopart.bounds.any_order_partition import least_step
from autopart.bounds.any_order_shapes import any_order_shape_bounds
from autopart.bounds.any_order_stages import stage_bounds_of_any_order
from autopart.cost.cuts import all_cuts
from autopart.errors import InfeasibleError
from autopart.pricing import predict
from autopart.records.layouts import Layout, layouts, shapes
from autopart.records.problem import Problem
from autopart.schedules.check import check_schedule
from autopart.simulator.timeline import simulate
from autopart.solvers.orders.of_layout import order_problem, orders_of_layout
from tests.bounds.test_classic_schedules import largest
from tests.support.oracle import layout_stages, partitions
from tests.support.problems import chain_graph, layer, problem, random_problem
from tests.support.seeds import seeds

ROUNDING = 1 + 1e-9


def some_layouts(asked: Problem, rng: random.Random) -> list[tuple[int, Layout]]:
    """Some layouts with their replicas, perhaps one with several stages on the same rank."""
    found = [
        (replicas, layout)
        for stages, replicas in shapes(asked)
        for layout in layouts(asked, stages, replicas)
        if layout.schedule == "gpipe"
    ]
    if len(asked.graph.layers) > 2:
        ranks = rng.choice([((0,), (1,), (0,)), ((0,), (0,), (1,)), ((0,), (1,), (1,))])
        if asked.cluster.num_nodes * asked.cluster.gpus_per_node > 1:
            layout = Layout(
                schedule="gpipe", stage_ranks=ranks, num_microbatches=asked.num_microbatches
            )
            found.append((1, layout))
    return rng.sample(found, min(3, len(found)))


@pytest.mark.parametrize("seed", seeds(8, 60))
def test_no_order_is_faster_than_the_bounds_of_its_stages(seed: int):
    rng = random.Random(2000 + seed)
    asked = random_problem(rng, branching=rng.random() < 0.4, tight=rng.random() < 0.6)
    cuts, split = all_cuts(asked.graph), rng.random() < 0.5
    for replicas, layout in some_layouts(asked, rng):
        bounds = stage_bounds_of_any_order(asked, layout, cuts, split=split)
        ranks = len({rank for own in layout.stage_ranks for rank in own})
        shape = (ranks // replicas, replicas)
        least = any_order_shape_bounds(asked, [shape], split=split)[shape]
        for partition in itertools.islice(partitions(asked, layout_stages(layout)), 4):
            own = largest(cuts, bounds, partition)
            task = order_problem(asked, layout, partition, split=split)
            try:
                found = orders_of_layout(asked, layout, partition, split=split, actions=6_000)
            except InfeasibleError:
                assert least_step(task) == np.inf
                continue
            assert own <= found.step_time * ROUNDING
            assert least <= found.step_time * ROUNDING
            assert least_step(task) <= found.step_time * ROUNDING


@pytest.mark.parametrize("seed", seeds(20, 40))
def test_the_step_of_all_replicas_equals_the_step_of_the_ordered_replica(seed: int):
    rng = random.Random(seed)
    asked = random_problem(rng, branching=False, tight=False)
    for _, layout in some_layouts(asked, rng):
        partition = next(partitions(asked, layout_stages(layout)))
        found = orders_of_layout(asked, layout, partition, split=seed % 2 == 0, actions=4_000)
        check_schedule(found.schedule, layout.stage_ranks, layout.num_microbatches)
        stages, syncs = predict(asked, layout, partition)
        timeline = simulate(
            found.schedule,
            layout.stage_ranks,
            stages,
            syncs,
            action_overhead=asked.cluster.action_overhead,
            sends_overlap=asked.cluster.sends_overlap,
        )
        assert timeline.makespan == pytest.approx(found.step_time, rel=1e-9)


@pytest.mark.parametrize("num_stages", [1, 2, 4])
def test_equal_stages_meet_their_bound(num_stages: int):
    asked = problem(chain_graph(*(layer(f"l{i}") for i in range(4)), num_bytes=0), 8)
    ranks = tuple((s,) for s in range(num_stages))
    layout = Layout(schedule="1f1b", stage_ranks=ranks, num_microbatches=8)
    whole = stage_bounds_of_any_order(asked, layout, all_cuts(asked.graph), split=False)
    size = 4 // num_stages
    values = [whole[s][s * size, (s + 1) * size] for s in range(num_stages)]
    assert max(values) == pytest.approx(3 * size * (8 + num_stages - 1), rel=1e-12)


def test_split_backwards_and_unknown_placements_lower_the_bound():
    asked = problem(chain_graph(*(layer(f"l{i}") for i in range(4)), num_bytes=0), 8)
    ranks = ((0,), (1,))
    layout = Layout(schedule="1f1b", stage_ranks=ranks, num_microbatches=8)
    split = stage_bounds_of_any_order(asked, layout, all_cuts(asked.graph), split=True)
    # The last stage starts after 2 s and then has 48 s of work. The first starts at once.
    assert split[1][2, 4] == 50 and split[0][0, 2] == 48
    # Both ranks share 96 s. One of them waits for 1 s, and sends gradients that take 2 s.
    assert any_order_shape_bounds(asked, [(2, 1)], split=False) == {(2, 1): 49.5}


def test_a_stage_that_has_no_memory_for_one_microbatch_has_an_infinite_bound():
    graph = chain_graph(*(layer(f"l{i}", stash_bytes=1 << 39) for i in range(4)), num_bytes=0)
    asked = problem(graph, 8)
    layout = Layout(schedule="1f1b", stage_ranks=((0,), (1,)), num_microbatches=8)
    first, _ = stage_bounds_of_any_order(asked, layout, all_cuts(graph), split=False)
    assert np.isfinite(first[0, 2]) and np.isinf(first[0, 3])
    # With two layers one microbatch fits: each ends its backward before the next starts.
    assert first[0, 2] == 8 * 12
