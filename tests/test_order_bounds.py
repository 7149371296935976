"""Bounds of every order over cuts, against orders that were searched for."""

import itertools
import random

import numpy as np
import pytest

from autopart.cost import predict
from autopart.cuts import all_cuts
from autopart.errors import InfeasibleError
from autopart.layouts import Layout, layouts, shapes
from autopart.order_bounds import (
    least_step,
    least_steps_on_ranks,
    stage_bounds_of_any_order,
)
from autopart.problem import Problem
from autopart.schedule import check_schedule
from autopart.simulator import simulate
from autopart.solvers.orders import order_problem, orders_of_layout
from tests.oracle import layout_stages, partitions
from tests.problems import chain_graph, layer, problem, random_problem
from tests.seeds import seeds
from tests.test_bounds import largest

ROUNDING = 1 + 1e-9


def some_layouts(asked: Problem, rng: random.Random) -> list[tuple[int, Layout]]:
    """Layouts of the problem with their replicas, and one with several stages on a rank."""
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


@pytest.mark.parametrize("seed", seeds(25, 60))
def test_no_order_of_a_partition_is_faster_than_the_bounds_of_its_stages(seed: int):
    rng = random.Random(2000 + seed)
    asked = random_problem(rng, branching=rng.random() < 0.4, tight=rng.random() < 0.6)
    cuts, split = all_cuts(asked.graph), rng.random() < 0.5
    for replicas, layout in some_layouts(asked, rng):
        bounds = stage_bounds_of_any_order(asked, layout, cuts, split=split)
        ranks = len({rank for own in layout.stage_ranks for rank in own})
        shape = (ranks // replicas, replicas)
        least = least_steps_on_ranks(asked, [shape], split=split)[shape]
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
def test_orders_of_one_replica_are_those_of_all(seed: int):
    """The step of all replicas together, simulated, is the one of the replica that was ordered."""
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
def test_equal_stages_take_exactly_their_bound(num_stages: int):
    asked = problem(chain_graph(*(layer(f"l{i}") for i in range(4)), num_bytes=0), 8)
    ranks = tuple((s,) for s in range(num_stages))
    layout = Layout(schedule="1f1b", stage_ranks=ranks, num_microbatches=8)
    whole = stage_bounds_of_any_order(asked, layout, all_cuts(asked.graph), split=False)
    size = 4 // num_stages
    values = [whole[s][s * size, (s + 1) * size] for s in range(num_stages)]
    assert max(values) == pytest.approx(3 * size * (8 + num_stages - 1), rel=1e-12)


def test_split_backwards_and_several_stages_a_rank_have_lower_bounds():
    asked = problem(chain_graph(*(layer(f"l{i}") for i in range(4)), num_bytes=0), 8)
    ranks = ((0,), (1,))
    layout = Layout(schedule="1f1b", stage_ranks=ranks, num_microbatches=8)
    split = stage_bounds_of_any_order(asked, layout, all_cuts(asked.graph), split=True)
    # The last stage starts after 2 s and then has 48 s of work; the first waits for nothing.
    assert split[1][2, 4] == 50 and split[0][0, 2] == 48
    assert least_steps_on_ranks(asked, [(2, 1)], split=False) == {(2, 1): 48}


def test_a_stage_whose_microbatch_does_not_fit_is_excluded():
    graph = chain_graph(*(layer(f"l{i}", stash_bytes=1 << 39) for i in range(4)), num_bytes=0)
    asked = problem(graph, 8)
    layout = Layout(schedule="1f1b", stage_ranks=((0,), (1,)), num_microbatches=8)
    first, _ = stage_bounds_of_any_order(asked, layout, all_cuts(graph), split=False)
    assert np.isfinite(first[0, 2]) and np.isinf(first[0, 3])
    # Two layers leave room for one microbatch: each goes there and back before the next.
    assert first[0, 2] == 8 * 12
