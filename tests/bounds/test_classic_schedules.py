import random

import numpy as np
import pytest

from autopart.bounds.classic_schedules import stage_bounds
from autopart.bounds.of_shape import classic_shape_bounds
from autopart.bounds.open_paths import paths_below
from autopart.cost.cuts import Cuts, all_cuts, partition_of
from autopart.records.layouts import Layout, layouts, shapes
from autopart.solvers.cuts_dp import best_path
from tests.support.oracle import layout_stages, partitions, step_time
from tests.support.problems import chain_graph, cluster, layer, problem, random_problem
from tests.support.seeds import seeds


def smallest_bound(asked, schedule: str, num_stages: int) -> float:
    ranks = tuple((s,) for s in range(num_stages))
    layout = Layout(schedule=schedule, stage_ranks=ranks, num_microbatches=asked.num_microbatches)  # pyright: ignore
    cuts = all_cuts(asked.graph)
    best = best_path(stage_bounds(asked, layout, cuts), cuts.nested)
    assert best is not None
    return best.largest


def path_of(cuts: Cuts, partition) -> list[int]:
    """The cuts before, between and after a partition's stages."""
    path, ahead = [0], np.zeros(cuts.ahead.shape[1], dtype=bool)
    for stage in partition:
        ahead = ahead | np.isin(np.arange(len(ahead)), stage)
        path.append(int(np.flatnonzero((cuts.ahead == ahead).all(axis=1))[0]))
    return path


def largest(cuts: Cuts, bounds, partition) -> float:
    """The largest bound over a partition's stages."""
    path = path_of(cuts, partition)
    return max(b[i, j] for b, i, j in zip(bounds, path, path[1:], strict=False))


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("num_stages", [1, 2, 4])
def test_equal_stages_meet_their_bound(schedule: str, num_stages: int):
    graph = chain_graph(*(layer(f"l{i}") for i in range(4)), num_bytes=0)
    asked = problem(graph, 8)
    size = 4 // num_stages
    assert smallest_bound(asked, schedule, num_stages) == pytest.approx(
        3 * size * (8 + num_stages - 1), rel=1e-12
    )


def test_the_bound_of_a_single_stage_is_its_work_and_update():
    graph = chain_graph(layer("a"), layer("b", update_time=0.5), num_bytes=0)
    assert smallest_bound(problem(graph, 3), "1f1b", 1) == pytest.approx(3 * 6 + 0.5, rel=1e-12)


def test_a_shape_without_memory_for_its_state_has_no_bound():
    state = {"param_bytes": 40, "grad_bytes": 40, "num_trainable": 10}
    graph = chain_graph(layer("a", **state), layer("b", **state), num_bytes=0)
    tight = problem(graph, 8, cluster=cluster(1, 2, memory_bytes=170))
    bounds = classic_shape_bounds(tight, [(1, 1), (2, 1)])
    assert bounds[1, 1] is None and bounds[2, 1] is not None


def test_a_stage_that_does_not_fit_has_an_infinite_bound():
    graph = chain_graph(*(layer(f"l{i}", stash_bytes=100) for i in range(2)), num_bytes=0)
    tight = problem(graph, 8, cluster=cluster(1, 2, memory_bytes=250))
    layout = Layout(schedule="1f1b", stage_ranks=((0,), (1,)), num_microbatches=8)
    first, last = stage_bounds(tight, layout, all_cuts(graph))
    assert np.isfinite(first[0, 1]) and np.isinf(first[0, 2])
    assert np.isfinite(last[0, 2]) and np.isinf(last[1, 1])


@pytest.mark.parametrize("seed", seeds(16, 150))
def test_no_partition_is_faster_than_the_bounds_of_its_stages(seed: int):
    rng = random.Random(1000 + seed)
    asked = random_problem(rng, branching=rng.random() < 0.4, tight=rng.random() < 0.5)
    cuts = all_cuts(asked.graph)
    for shape, quick in classic_shape_bounds(asked, shapes(asked)).items():
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


@pytest.mark.parametrize("seed", seeds(30, 80, slow=35))
def test_no_plan_for_a_branching_graph_is_faster_than_the_bound_of_its_shape(seed: int):
    asked = random_problem(random.Random(seed), branching=True, tight=seed % 2 == 0)
    bounds = classic_shape_bounds(asked, shapes(asked))
    for shape, quick in bounds.items():
        for layout in layouts(asked, *shape):
            for partition in partitions(asked, layout_stages(layout)):
                time = step_time(asked, layout, partition)
                assert time is None or (quick is not None and quick <= time * (1 + 1e-9))


@pytest.mark.parametrize("seed", seeds(25, 60))
def test_the_list_of_partitions_below_a_value_is_complete(seed: int):
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
