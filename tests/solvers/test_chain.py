import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopart.cuts import all_cuts, partition_of
from autopart.layouts import Layout
from autopart.solvers import chain, parameters, uniform
from tests.problems import chain_graph, cluster, layer, problem


def all_ways(size: int, stages: int):
    for inner in itertools.combinations(range(1, size), stages - 1):
        yield list(itertools.pairwise([0, *inner, size]))


@given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_the_cut_is_the_best_of_all_cuts(size: int, stages: int, seed: int):
    rng = np.random.default_rng(seed)
    costs = [rng.integers(0, 6, (size + 1, size + 1)).astype(float) for _ in range(stages)]
    for cost in costs:
        cost[rng.random(cost.shape) < 0.2] = np.inf
    nested = np.triu(np.ones((size + 1, size + 1), dtype=bool), 1)
    found = chain.best_path(costs, nested)
    tried = [
        max(c[i, j] for c, (i, j) in zip(costs, cut, strict=True)) for cut in all_ways(size, stages)
    ]
    best = min(tried, default=np.inf)
    if found is None:
        assert best == np.inf
        return
    assert found.largest == best
    spans = list(itertools.pairwise(found.path))
    assert max(c[i, j] for c, (i, j) in zip(costs, spans, strict=True)) == best
    assert (found.path[0], found.path[-1]) == (0, size)


def test_more_stages_than_layers_have_no_cut():
    assert chain.best_path([np.zeros((3, 3))] * 3, np.triu(np.ones((3, 3), dtype=bool), 1)) is None


def proposed(asked, layout):
    cuts = all_cuts(asked.graph)
    return [partition_of(cuts, path) for path in chain.solve(asked, layout, cuts)]


def test_a_heavy_head_gets_a_stage_with_fewer_layers():
    layers = [layer(f"l{i}") for i in range(6)] + [layer("head", forward_time=3.0)]
    asked = problem(chain_graph(*layers), 16)
    layout = Layout(schedule="1f1b", stage_ranks=((0,), (1,)), num_microbatches=16)
    assert ((0, 1, 2, 3), (4, 5, 6)) in proposed(asked, layout)


def test_memory_pushes_layers_off_the_first_stage():
    layers = [layer(f"l{i}", stash_bytes=100) for i in range(6)]
    tight = problem(chain_graph(*layers, num_bytes=0), 8, cluster=cluster(memory_bytes=420))
    layout = Layout(schedule="1f1b", stage_ranks=((0,), (1,)), num_microbatches=8)
    assert set(proposed(tight, layout)) == {((0, 1), (2, 3, 4, 5))}
    assert chain.least_memory(tight, layout, all_cuts(tight.graph)) == (0, 2, 6)


def test_nothing_is_proposed_where_nothing_fits():
    layers = [layer(f"l{i}", stash_bytes=100) for i in range(2)]
    tight = problem(chain_graph(*layers), 8, cluster=cluster(memory_bytes=150))
    layout = Layout(schedule="gpipe", stage_ranks=((0,), (1,)), num_microbatches=8)
    assert proposed(tight, layout) == []


@pytest.mark.parametrize(("layers", "stages"), [(1, 1), (7, 3), (8, 4), (5, 5)])
def test_uniform_stages_differ_by_at_most_one_layer(layers: int, stages: int):
    cut = uniform.solve(layers, stages)
    sizes = [len(stage) for stage in cut]
    assert max(sizes) - min(sizes) <= 1
    assert list(itertools.chain(*cut)) == list(range(layers))


def test_balanced_parameters_look_at_nothing_else():
    sizes = [100, 10, 10, 10, 90]
    layers = [layer(f"l{i}", param_bytes=size, forward_time=i) for i, size in enumerate(sizes)]
    cut = parameters.solve(all_cuts(chain_graph(*layers)), 2)
    assert max(sum(sizes[at] for at in stage) for stage in cut) == 110
