import random

import pytest

from autopart.bounds import lower_bound, shape_bounds
from autopart.errors import InfeasibleError
from autopart.problem import Demands, layouts, shapes
from tests.oracle import layout_stages, partitions, step_time
from tests.problems import chain_graph, cluster, layer, problem, random_problem


def test_the_bound_of_equal_stages_is_their_step():
    graph = chain_graph(*(layer(f"l{i}") for i in range(4)), num_bytes=0)
    asked = problem(graph, 8, demands=Demands(num_stages=4, num_replicas=1))
    assert lower_bound(asked) == pytest.approx(3 * (8 + 4 - 1), rel=1e-12)


def test_one_stage_alone_is_bounded_by_its_own_work():
    graph = chain_graph(layer("a"), layer("b", update_time=0.5), num_bytes=0)
    asked = problem(graph, 3, cluster=cluster(1, 1))
    assert lower_bound(asked) == pytest.approx(3 * 6 + 0.5, rel=1e-12)


def test_a_shape_that_cannot_fit_has_no_bound():
    graph = chain_graph(*(layer(f"l{i}", stash_bytes=100) for i in range(2)), num_bytes=0)
    tight = problem(graph, 8, cluster=cluster(1, 2, memory_bytes=200))
    assert (1, 1) in shape_bounds(tight) and (2, 1) in shape_bounds(tight)
    tighter = problem(graph, 8, cluster=cluster(1, 2, memory_bytes=199))
    assert shape_bounds(tighter) == {}
    with pytest.raises(InfeasibleError, match="fits into memory"):
        lower_bound(tighter)


@pytest.mark.parametrize("seed", range(150))
def test_no_plan_of_a_shape_beats_the_bound_of_that_shape(seed: int):
    rng = random.Random(1000 + seed)
    asked = random_problem(rng, branching=rng.random() < 0.5, tight=rng.random() < 0.5)
    bounds = shape_bounds(asked)
    for shape in shapes(asked):
        times = [
            time
            for layout in layouts(asked, *shape)
            for partition in partitions(asked, layout_stages(layout))
            if (time := step_time(asked, layout, partition)) is not None
        ]
        if times:
            assert bounds[shape] <= min(times) * (1 + 1e-9)
