"""Groups of ranks that links join, against joining ranks microbatch by microbatch."""

import itertools
import math
import random

import networkx as nx
import pytest

from autopart.bounds.rank_groups import Inside, RankGroups
from tests.support.seeds import seeds


def joined(places: list[tuple[int, ...]], inside: Inside) -> set[frozenset[int]]:
    graph: nx.Graph[int] = nx.Graph()
    graph.add_nodes_from(rank for ranks in places for rank in ranks)
    for at in inside.syncs:
        graph.add_edges_from(itertools.pairwise(places[at]))
    for a, b in inside.tied:
        graph.add_edges_from(itertools.pairwise((*places[a], *places[b])))
    for a, b in inside.cuts:
        for m in range(math.lcm(len(places[a]), len(places[b]))):
            graph.add_edge(places[a][m % len(places[a])], places[b][m % len(places[b])])
    return {frozenset(group) for group in nx.connected_components(graph)}


@pytest.mark.parametrize("seed", seeds(60, 400))
def test_groups_are_the_ranks_that_links_join(seed: int):
    rng = random.Random(seed)
    equal = rng.choice([None, 1, 2, 3, 5])
    counts = [equal or rng.randint(1, 5) for _ in range(rng.randint(1, 5))]
    ends = [0, *itertools.accumulate(counts)]
    places = [tuple(range(a, b)) for a, b in itertools.pairwise(ends)]
    pairs = list(itertools.combinations(range(len(places)), 2))
    inside = Inside(
        cuts=frozenset(pair for pair in pairs if pair[1] == pair[0] + 1 and rng.random() < 0.6),
        syncs=frozenset(at for at in range(len(places)) if counts[at] > 1 and rng.random() < 0.4),
        tied=frozenset(pair for pair in pairs if rng.random() < 0.1),
    )
    groups = RankGroups(places).of(inside)
    assert {frozenset(group) for group in groups} == joined(places, inside)
    assert sum(map(len, groups)) == sum(counts)
