"""Likely assignments: valid ranks, each once, and nodes that change at cheap cuts."""

import random

import pytest

from autopart.records.cluster import Link, num_gpus
from autopart.records.layouts import layouts, layouts_of, nodes_and_gpus
from autopart.search.likely_assignments import likely_layouts
from tests.support.problems import chain_graph, cluster, layer, problem, value
from tests.support.seeds import seeds


@pytest.mark.parametrize("seed", seeds(30, 200))
def test_each_likely_assignment_is_listed_once_with_ranks_that_exist(seed: int):
    rng = random.Random(seed)
    asked = problem(
        chain_graph(*(layer(f"l{i}") for i in range(4))),
        cluster=cluster(rng.randint(2, 4), rng.randint(1, 4)),
    )
    counts = [rng.choice([1, 1, 2, 3]) for _ in range(rng.randint(1, 4))]
    if sum(counts) > num_gpus(asked.cluster):
        return
    layout = layouts_of(asked, counts)[0]
    partition = tuple(
        (at,) if at < len(counts) - 1 else tuple(range(at, 4)) for at in range(len(counts))
    )
    found = likely_layouts(asked, layout, partition)
    assert found[0] == layout
    kinds = [nodes_and_gpus(asked.cluster, one.stage_ranks) for one in found]
    assert len(set(kinds)) == len(kinds)
    for one in found:
        ranks = [rank for own in one.stage_ranks for rank in own]
        assert len(set(ranks)) == len(ranks) and max(ranks) < num_gpus(asked.cluster)
        assert [len(own) for own in one.stage_ranks] == counts


def test_nodes_change_at_the_cheap_cut_of_a_partition():
    graph = chain_graph(*(layer(name) for name in "abc"))
    values = (value("a", "b", bytes=1000), value("b", "c", bytes=10))
    asked = problem(
        type(graph)(layers=graph.layers, values=values),
        cluster=cluster(2, 2, intra_node=Link(bandwidth=1e3), inter_node=Link(bandwidth=10.0)),
    )
    layout = layouts(asked, 3, 1)[0]
    nodes = [
        tuple(own[0] // 2 for own in one.stage_ranks)
        for one in likely_layouts(asked, layout, ((0,), (1,), (2,)))
    ]
    assert (0, 0, 1) in nodes
