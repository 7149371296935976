import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopart.cost import interval_loads
from autopart.problem import Layout
from autopart.solvers import chain, parameters, uniform
from tests.problems import chain_graph, cluster, layer, problem


def all_cuts(size: int, stages: int):
    for inner in itertools.combinations(range(1, size), stages - 1):
        yield list(itertools.pairwise([0, *inner, size]))


@given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_the_cut_is_the_best_of_all_cuts(size: int, stages: int, seed: int):
    rng = np.random.default_rng(seed)
    costs = [rng.integers(0, 6, (size + 1, size + 1)).astype(float) for _ in range(stages)]
    for cost in costs:
        cost[rng.random(cost.shape) < 0.2] = np.inf
    found = chain.cut_chain(costs)
    tried = [
        max(c[i, j] for c, (i, j) in zip(costs, cut, strict=True)) for cut in all_cuts(size, stages)
    ]
    best = min(tried, default=np.inf)
    if found is None:
        assert best == np.inf
        return
    assert found.largest == best
    spans = [(stage[0], stage[-1] + 1) for stage in found.partition]
    assert max(c[i, j] for c, (i, j) in zip(costs, spans, strict=True)) == best
    assert list(itertools.chain(*found.partition)) == list(range(size))


def test_more_stages_than_layers_have_no_cut():
    assert chain.cut_chain([np.zeros((3, 3))] * 3) is None


def test_a_heavy_head_gets_a_stage_with_fewer_layers():
    layers = [layer(f"l{i}") for i in range(6)] + [layer("head", forward_time=3.0)]
    asked = problem(chain_graph(*layers), 16)
    layout = Layout(schedule="1f1b", stage_ranks=((0,), (1,)), microbatches=16)
    found = chain.solve(asked, layout, interval_loads(asked.graph))
    assert ((0, 1, 2, 3), (4, 5, 6)) in found


def test_memory_pushes_layers_off_the_first_stage():
    layers = [layer(f"l{i}", stash_bytes=100) for i in range(6)]
    tight = problem(chain_graph(*layers, num_bytes=0), 8, cluster=cluster(memory_bytes=420))
    layout = Layout(schedule="1f1b", stage_ranks=((0,), (1,)), microbatches=8)
    loads = interval_loads(tight.graph)
    assert set(chain.solve(tight, layout, loads)) == {((0, 1), (2, 3, 4, 5))}
    assert chain.least_memory(tight, layout, loads) == 400


def test_nothing_is_proposed_where_nothing_fits():
    layers = [layer(f"l{i}", stash_bytes=100) for i in range(2)]
    tight = problem(chain_graph(*layers), 8, cluster=cluster(memory_bytes=150))
    layout = Layout(schedule="gpipe", stage_ranks=((0,), (1,)), microbatches=8)
    assert chain.solve(tight, layout, interval_loads(tight.graph)) == []


@pytest.mark.parametrize(("layers", "stages"), [(1, 1), (7, 3), (8, 4), (5, 5)])
def test_uniform_stages_differ_by_at_most_one_layer(layers: int, stages: int):
    cut = uniform.solve(layers, stages)
    sizes = [len(stage) for stage in cut]
    assert max(sizes) - min(sizes) <= 1
    assert list(itertools.chain(*cut)) == list(range(layers))


def test_balanced_parameters_look_at_nothing_else():
    sizes = [100, 10, 10, 10, 90]
    layers = [layer(f"l{i}", param_bytes=size, forward_time=i) for i, size in enumerate(sizes)]
    weights = interval_loads(chain_graph(*layers)).weight_bytes
    cut = parameters.solve(weights, 2)
    assert max(sum(sizes[at] for at in stage) for stage in cut) == 110
