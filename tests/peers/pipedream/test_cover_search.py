"""Searches along covers and along one order, against the search over all pairs of downsets."""

import random

import numpy as np
import pytest

from autopart.peers.pipedream.charge_arrays import level_costs
from autopart.peers.pipedream.charged_layers import charged_layers
from autopart.peers.pipedream.cover_search import CoverSearch
from autopart.peers.pipedream.downset_sums import grown_sums
from autopart.peers.pipedream.downsets import list_downsets, nesting, prefixes
from autopart.peers.pipedream.pair_seconds import PairSeconds
from autopart.peers.pipedream.prefix_search import PrefixSearch
from autopart.solvers.fewest_ranks import (
    bottleneck,
    fewest_ranks,
)
from tests.support.peers import pipedream_graphs
from tests.support.seeds import seeds


def costs_of(seed: int, most_layers: int, density: float, *, memory: bool = False):
    rng = random.Random(seed)
    graph = pipedream_graphs.random_graph(rng, most_layers, density)
    network = pipedream_graphs.random_network(rng, rng.randint(1, 6), memory=memory)
    nodes = charged_layers(graph)
    downsets = list_downsets(nodes.before, nodes.after, 10**6)
    assert downsets is not None

    def costs(some):
        sums = grown_sums(nodes, some.grown, some.tops)
        return level_costs(sums, network, all_sends=seed % 3 == 0)

    return nodes, downsets, costs, network.machines[0]


@pytest.mark.parametrize("seed", seeds(20, 60))
def test_the_search_along_covers_equals_the_search_over_all_pairs(seed: int):
    _, downsets, costs, machines = costs_of(seed, 9, random.Random(seed).choice([0.1, 0.3, 0.7]))
    by_pairs = PairSeconds(costs(downsets), nesting(downsets))
    by_levels = CoverSearch(downsets, by_pairs.costs, machines)
    for limit in np.geomspace(0.2, 60, 25).tolist():
        one, other = fewest_ranks(by_pairs, limit, machines), by_levels(limit)
        assert (one is None) == (other is None)
        if other is not None:
            assert bottleneck(by_pairs.seconds_of, other) <= limit
            assert sum(by_pairs.ranks[stage.choice] for stage in other) <= machines
            assert all(by_pairs.nested[stage.end, stage.start] for stage in other)


@pytest.mark.parametrize("seed", range(60))
def test_the_search_along_an_order_equals_the_search_over_all_pairs(seed: int):
    nodes, _, costs, machines = costs_of(seed, 12, 0.3, memory=seed % 2 == 0)
    along = prefixes(nodes.before, range(len(nodes.before)))
    by_pairs = PairSeconds(costs(along), nesting(along))
    by_order = PrefixSearch(by_pairs.costs, machines)
    for limit in np.geomspace(0.2, 60, 25).tolist():
        one, other = fewest_ranks(by_pairs, limit, machines), by_order(limit)
        assert (one is None) == (other is None)
        if other is not None:
            assert bottleneck(by_pairs.seconds_of, other) <= limit * (1 + 1e-12)
            later = 0
            for stage in reversed(other):
                assert by_pairs.costs.fits(stage, later)
                later += by_pairs.ranks[stage.choice]
            assert later <= machines
