import random

import pytest

from autopart.downsets import bits
from autopart.peers.pipedream.charged_layers import charged_layers
from autopart.peers.pipedream.downset_sums import grown_sums
from autopart.peers.pipedream.downsets import nesting
from autopart.peers.pipedream.regions import (
    RULES,
    Graph,
    around_cuts,
    ordered,
    reverse,
    split_evenly,
)
from tests.support.peers import pipedream_graphs


def some_graph(seed: int):
    rng = random.Random(seed)
    nodes = charged_layers(pipedream_graphs.random_graph(rng, 14, rng.choice([0.1, 0.3, 0.6])))
    return rng, nodes, Graph(nodes.before, nodes.after, nodes.outputs.tolist())


def is_downset(graph: Graph, mask: int) -> bool:
    return all(not graph.before[v] & ~mask for v in bits(mask))


@pytest.mark.parametrize("seed", range(40))
def test_orders_are_topological_forward_and_backward(seed: int):
    _, nodes, graph = some_graph(seed)
    everything = (1 << len(nodes.before)) - 1
    for rule in RULES:
        for directed in (graph, reverse(graph)):
            placed = 0
            for v in ordered(directed, 0, everything, rule):
                assert not directed.before[v] & ~placed
                placed |= 1 << v
            assert placed == everything


def cuts_along(rng: random.Random, graph: Graph, order: list[int]) -> list[int]:
    places = sorted(rng.sample(range(1, len(order)), min(3, len(order) - 1)))
    return [sum(1 << v for v in order[:at]) for at in [*places, len(order)]]


@pytest.mark.parametrize("seed", range(60))
def test_regions_hold_the_cuts_and_nothing_but_downsets(seed: int):
    rng, nodes, graph = some_graph(seed)
    everything = (1 << len(nodes.before)) - 1
    rule = RULES[seed % len(RULES)]
    cuts = cuts_along(rng, graph, ordered(graph, 0, everything, rng.choice(RULES)))
    downsets, pieces = around_cuts(graph, cuts, rule, limit=rng.choice([2, 10, 1000]))
    assert sorted(v for piece in pieces for v in piece) == list(range(len(nodes.before)))
    assert {0, *cuts} <= set(downsets.masks)
    assert downsets.masks[0] == 0 and downsets.masks[-1] == everything
    assert len(set(downsets.masks)) == len(downsets.masks)
    for mask, top in zip(downsets.masks, downsets.tops, strict=True):
        assert is_downset(graph, mask)
        assert top == sum(1 << v for v in bits(mask) if not graph.after[v] & mask)
    sums = grown_sums(nodes, downsets.grown, downsets.tops, pieces)
    for mask, work in zip(downsets.masks, sums.compute.tolist(), strict=True):
        assert work == pytest.approx(sum(nodes.compute[v] for v in bits(mask)), abs=1e-9)
    assert (nesting(downsets) == nesting(downsets._replace(covers=None))).all()


@pytest.mark.parametrize("seed", range(20))
def test_even_parts_are_downsets_between_their_ends(seed: int):
    _, nodes, graph = some_graph(seed)
    everything = (1 << len(nodes.before)) - 1
    parts = split_evenly(graph, nodes.compute.tolist(), 0, everything, 4, RULES[0])
    assert len(parts) <= 3
    for smaller, larger in zip([0, *parts], [*parts, everything], strict=True):
        assert smaller & ~larger == 0 and smaller != larger
        assert is_downset(graph, smaller)
