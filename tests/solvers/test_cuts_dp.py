import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopart.cost.cuts import all_cuts, partition_of
from autopart.records.layouts import Layout
from autopart.solvers import cuts_dp
from tests.support.problems import chain_graph, cluster, layer, problem


def all_partitions(size: int, stages: int):
    for inner in itertools.combinations(range(1, size), stages - 1):
        yield list(itertools.pairwise([0, *inner, size]))


@pytest.mark.slow
@given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_the_partition_is_the_best_of_all_partitions(size: int, stages: int, seed: int):
    rng = np.random.default_rng(seed)
    costs = [rng.integers(0, 6, (size + 1, size + 1)).astype(float) for _ in range(stages)]
    for cost in costs:
        cost[rng.random(cost.shape) < 0.2] = np.inf
    nested = np.triu(np.ones((size + 1, size + 1), dtype=bool), 1)
    found = cuts_dp.best_path(costs, nested)
    tried = [
        max(c[i, j] for c, (i, j) in zip(costs, cut, strict=True))
        for cut in all_partitions(size, stages)
    ]
    best = min(tried, default=np.inf)
    if found is None:
        assert best == np.inf
        return
    assert found.largest == best
    spans = list(itertools.pairwise(found.path))
    assert max(c[i, j] for c, (i, j) in zip(costs, spans, strict=True)) == best
    assert (found.path[0], found.path[-1]) == (0, size)


def test_more_stages_than_layers_have_no_partition():
    assert (
        cuts_dp.best_path([np.zeros((3, 3))] * 3, np.triu(np.ones((3, 3), dtype=bool), 1)) is None
    )


def proposed(asked, layout):
    cuts = all_cuts(asked.graph)
    return [partition_of(cuts, path) for path in cuts_dp.solve(asked, layout, cuts)]


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
    assert cuts_dp.least_memory(tight, layout, all_cuts(tight.graph)) == (400, (0, 2, 6))


def test_without_a_partition_that_fits_there_is_no_proposal():
    layers = [layer(f"l{i}", stash_bytes=100) for i in range(2)]
    tight = problem(chain_graph(*layers), 8, cluster=cluster(memory_bytes=150))
    layout = Layout(schedule="gpipe", stage_ranks=((0,), (1,)), num_microbatches=8)
    assert proposed(tight, layout) == []
