import itertools
import random

import pytest

from autopart.downsets import bits
from autopart.peers.pipedream.charged_layers import charged_layers
from autopart.peers.pipedream.charges import Network
from autopart.peers.pipedream.downset_sums import join_sums, mask_sums
from autopart.peers.pipedream.downsets import irreducibles, with_ahead
from autopart.peers.pipedream.incumbent import Task, on_one_machine
from autopart.peers.pipedream.many_downsets import in_regions, spanning_downsets
from autopart.peers.pipedream.solve import solve
from tests.support.peers import pipedream_graphs


def some_nodes(seed: int):
    rng = random.Random(seed)
    graph = pipedream_graphs.random_graph(rng, 9, rng.choice([0.1, 0.3, 0.6]))
    return graph, charged_layers(graph)


@pytest.mark.parametrize("seed", range(40))
def test_every_downset_is_a_union_of_irreducible_ones(seed: int):
    graph, nodes = some_nodes(seed)
    downsets = irreducibles(nodes.before, nodes.after)
    found = set(downsets.masks)
    everything = (1 << len(nodes.before)) - 1
    ahead = with_ahead(nodes.before)
    for members in pipedream_graphs.downsets(graph):
        union, common = 0, everything
        for v in range(len(nodes.before)):
            if v in members:
                assert ahead[v] in found
                union |= ahead[v]
            else:
                without = everything & ~sum(
                    1 << w for w in range(len(nodes.before)) if ahead[w] >> v & 1
                )
                assert without in found
                common &= without
        assert union == common == sum(1 << v for v in members)


@pytest.mark.parametrize("seed", range(40))
def test_unions_of_two_are_summed_up_like_any_downset(seed: int):
    _, nodes = some_nodes(seed)
    ahead = with_ahead(nodes.before)
    apart = [
        (u, v)
        for u, v in itertools.combinations(range(len(ahead)), 2)
        if not ahead[v] >> u & 1 and not ahead[u] >> v & 1
    ]
    if not apart:
        return  # every two layers of this graph are in order
    left, right = (list(side) for side in zip(*apart, strict=True))
    compute, cut = join_sums(nodes, ahead, left, right)
    masks = [ahead[u] | ahead[v] for u, v in apart]
    tops = [sum(1 << v for v in bits(mask) if not nodes.after[v] & mask) for mask in masks]
    expected = mask_sums(nodes, masks, tops)
    assert compute.tolist() == pytest.approx(expected.compute.tolist())
    assert cut.tolist() == expected.cut.tolist()
    downsets = spanning_downsets(nodes)
    assert downsets is not None
    assert {0, *ahead} <= set(downsets.masks)
    for mask in downsets.masks:
        assert all(not nodes.before[v] & ~mask for v in bits(mask))


@pytest.mark.parametrize("seed", range(25))
def test_plans_from_regions_are_real_and_often_the_best(seed: int):
    graph, nodes = some_nodes(seed)
    rng = random.Random(seed)
    network = pipedream_graphs.random_network(rng, 4, memory=False)
    task = Task(nodes, network, all_sends=False, deadline=float("inf"))
    found = in_regions(task, on_one_machine(task))
    best = solve(graph, network).objective
    assert best * (1 - 1e-9) <= found.value <= float(nodes.compute.sum()) * (1 + 1e-9)
    assert found.bound <= best * (1 + 1e-9)
    assert found.cuts[-1].ahead == (1 << len(nodes.before)) - 1
    assert sum(cut.replicas for cut in found.cuts) <= network.machines[0]
    ends = [cut.ahead for cut in found.cuts]
    assert all(a & b == a and a != b for a, b in itertools.pairwise(ends))


def test_a_plan_from_regions_follows_the_branches_that_an_order_would_mix():
    graph = pipedream_graphs.net(
        {"a": 1.0, "b": 2.0, "c": 2.0, "d": 2.0, "e": 2.0, "f": 1.0},
        {"a": ["b", "d"], "b": "c", "c": "f", "d": "e", "e": "f"},
        bytes={"a": 1, "b": 90, "c": 1, "d": 90, "e": 1},
    )
    network = Network((2,), (10.0,), straight=True)
    nodes = charged_layers(graph)
    task = Task(nodes, network, all_sends=False, deadline=float("inf"))
    assert in_regions(task, on_one_machine(task)).value == 5.0
