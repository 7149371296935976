import random

import numpy as np
import pytest

from autopart.bounds import paths_below, shape_bound, shape_bounds, stage_bounds
from autopart.cuts import Cuts, all_cuts, partition_of
from autopart.layouts import Layout, layouts, shapes
from autopart.solvers.chain import best_path
from tests.oracle import layout_stages, partitions, step_time
from tests.problems import chain_graph, cluster, layer, problem, random_problem
from tests.seeds import seeds


def smallest_bound(asked, schedule: str, num_stages: int) -> float:
    ranks = tuple((s,) for s in range(num_stages))
    layout = Layout(schedule=schedule, stage_ranks=ranks, num_microbatches=asked.num_microbatches)  # pyright: ignore
    cuts = all_cuts(asked.graph)
    best = best_path(stage_bounds(asked, layout, cuts), cuts.nested)
    assert best is not None
    return best.largest


def largest(cuts: Cuts, bounds, partition) -> float:
    """The largest bound of a partition's stages."""
    path, ahead = [0], np.zeros(cuts.ahead.shape[1], dtype=bool)
    for stage in partition:
        ahead = ahead | np.isin(np.arange(len(ahead)), stage)
        path.append(int(np.flatnonzero((cuts.ahead == ahead).all(axis=1))[0]))
    return max(b[i, j] for b, i, j in zip(bounds, path, path[1:], strict=False))


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("num_stages", [1, 2, 4])
def test_equal_stages_take_exactly_their_bound(schedule: str, num_stages: int):
    graph = chain_graph(*(layer(f"l{i}") for i in range(4)), num_bytes=0)
    asked = problem(graph, 8)
    size = 4 // num_stages
    assert smallest_bound(asked, schedule, num_stages) == pytest.approx(
        3 * size * (8 + num_stages - 1), rel=1e-12
    )


def test_one_stage_alone_is_bounded_by_its_own_work_and_update():
    graph = chain_graph(layer("a"), layer("b", update_time=0.5), num_bytes=0)
    assert smallest_bound(problem(graph, 3), "1f1b", 1) == pytest.approx(3 * 6 + 0.5, rel=1e-12)


def test_a_shape_whose_state_fits_nowhere_has_no_bound():
    state = {"param_bytes": 40, "grad_bytes": 40, "num_trainable": 10}
    graph = chain_graph(layer("a", **state), layer("b", **state), num_bytes=0)
    tight = problem(graph, 8, cluster=cluster(1, 2, memory_bytes=170))
    assert shape_bound(tight, 1, 1) is None
    assert shape_bound(tight, 2, 1) is not None


def test_an_interval_that_does_not_fit_is_excluded():
    graph = chain_graph(*(layer(f"l{i}", stash_bytes=100) for i in range(2)), num_bytes=0)
    tight = problem(graph, 8, cluster=cluster(1, 2, memory_bytes=250))
    layout = Layout(schedule="1f1b", stage_ranks=((0,), (1,)), num_microbatches=8)
    first, last = stage_bounds(tight, layout, all_cuts(graph))
    assert np.isfinite(first[0, 1]) and np.isinf(first[0, 2])
    assert np.isfinite(last[0, 2]) and np.isinf(last[1, 1])


@pytest.mark.parametrize("seed", seeds(50, 150))
def test_no_partition_is_faster_than_the_bounds_of_its_stages(seed: int):
    rng = random.Random(1000 + seed)
    asked = random_problem(rng, branching=rng.random() < 0.4, tight=rng.random() < 0.5)
    cuts = all_cuts(asked.graph)
    for shape in shapes(asked):
        quick = shape_bound(asked, *shape)
        for layout in layouts(asked, *shape):
            bounds = stage_bounds(asked, layout, cuts)
            for partition in partitions(asked, layout_stages(layout)):
                time = step_time(asked, layout, partition)
                own = largest(cuts, bounds, partition)
                if time is None:
                    assert np.isinf(own)
                else:
                    assert quick is not None and quick <= time * (1 + 1e-9)
                    assert own <= time * (1 + 1e-9)


@pytest.mark.parametrize("seed", seeds(30, 80))
def test_no_plan_of_a_branching_graph_is_faster_than_the_bound_of_its_shape(seed: int):
    asked = random_problem(random.Random(seed), branching=True, tight=seed % 2 == 0)
    bounds = shape_bounds(asked, shapes(asked))
    for shape, quick in bounds.items():
        for layout in layouts(asked, *shape):
            for partition in partitions(asked, layout_stages(layout)):
                time = step_time(asked, layout, partition)
                assert time is None or (quick is not None and quick <= time * (1 + 1e-9))


@pytest.mark.parametrize("seed", seeds(25, 60))
def test_the_partitions_below_a_value_are_all_of_them(seed: int):
    rng = np.random.default_rng(seed)
    size, stages = int(rng.integers(1, 7)), int(rng.integers(1, 4))
    bounds = [rng.integers(0, 9, (size + 1, size + 1)).astype(float) for _ in range(stages)]
    ahead = np.triu(np.ones_like(bounds[0], dtype=bool), 1)
    bounds = [np.where(ahead, b, np.inf) for b in bounds]
    graph = chain_graph(*(layer(f"l{i}") for i in range(size)))
    cuts = all_cuts(graph)
    expected = {p for p in partitions(problem(graph), stages) if largest(cuts, bounds, p) < 5}
    found = [partition_of(cuts, path) for path in paths_below(bounds, 5.0)]
    assert set(found) == expected and len(found) == len(expected)
