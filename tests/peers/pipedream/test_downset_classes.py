"""Downset classes and their refusals, against all downsets and the best plans of small graphs."""

import math
import random

import pytest

from autopart.peers.pipedream import bound
from autopart.peers.pipedream import solve as network_solver
from autopart.peers.pipedream.charged_layers import charged_layers
from autopart.peers.pipedream.charges import Network, least_bottleneck
from autopart.peers.pipedream.downset_classes import chains, classes, kept_downsets
from autopart.peers.pipedream.downset_classes_refutation import RelaxedStages
from autopart.peers.pipedream.downset_sums import mask_sums
from autopart.peers.pipedream.downsets import list_downsets
from autopart.peers.pipedream.solve import solve
from tests.support.peers.pipedream_graphs import net, random_graph, random_network
from tests.support.seeds import seeds

ENOUGH = 10**6


def random_case(seed: int):
    rng = random.Random(seed)
    nodes = charged_layers(random_graph(rng, 8, rng.choice([0.15, 0.3, 0.6])))
    parts = chains(nodes)
    kept = [chain for chain in range(len(parts.layers)) if rng.random() < 0.6]
    return nodes, parts, kept


def question(nodes, network: Network, kept: list[int] | None = None, *, all_sends: bool = False):
    parts = chains(nodes)
    found = classes(nodes, parts, range(len(parts.layers)) if kept is None else kept, ENOUGH)
    assert found is not None
    options = bound.options(network, all_sends=all_sends)
    total = float(nodes.compute.sum()), float(nodes.parameters.sum())
    return RelaxedStages(found, options, math.prod(network.machines), *total)


def test_a_chain_ends_where_outputs_change_in_size_or_branches_meet():
    graph = net(
        dict.fromkeys("abcdefg", 1.0),
        {"a": "b", "b": "c", "c": "de", "d": "f", "e": "f", "f": "g"},
        bytes={"a": 4, "b": 8, "c": 8, "d": 8, "e": 8, "f": 8, "g": 8},  # type: ignore[arg-type]
    )
    parts = chains(charged_layers(graph))
    assert parts.layers == [[0], [1, 2], [3], [4], [5, 6]]
    assert parts.before == [0, 0b1, 0b10, 0b10, 0b1100]
    assert parts.after == [0b10, 0b1100, 0b10000, 0b10000, 0]
    assert parts.outputs.tolist() == [4, 8, 8, 8, 8]


@pytest.mark.parametrize("seed", seeds(60, 150))
def test_the_bounds_of_a_class_hold_for_each_of_its_downsets(seed: int):
    nodes, parts, kept = random_case(seed)
    found = classes(nodes, parts, kept, ENOUGH)
    listed = kept_downsets(parts, kept, ENOUGH)
    every = list_downsets(nodes.before, nodes.after, ENOUGH)
    assert found is not None and listed is not None and every is not None
    sums = mask_sums(nodes, every.masks, every.tops)
    place = {mask: at for at, mask in enumerate(listed.masks)}
    seen: set[int] = set()
    for at, mask in enumerate(every.masks):
        begun = [mask >> parts.layers[chain][0] & 1 for chain in kept]
        row = place[sum(bit << chain for chain, bit in enumerate(begun))]
        seen.add(row)
        for (low, high), amounts in (
            (found.compute, sums.compute),
            (found.parameters, sums.parameters),
        ):
            assert low[row] - 1e-9 <= amounts[at] <= high[row] + 1e-9
        assert found.cut[row] <= sums.cut[at] + 1e-9
    assert len(seen) == len(listed.masks)


@pytest.mark.parametrize("seed", seeds(100, 300))
def test_nothing_that_can_be_kept_is_refuted(seed: int):
    rng = random.Random(seed)
    graph = random_graph(rng, 8, 0.3)
    nodes = charged_layers(graph)
    kept = [chain for chain in range(len(chains(nodes).layers)) if rng.random() < 0.6]
    machines = rng.choice([(2,), (3,), (5,), (2, 2), (3, 2)])
    network = random_network(rng, *machines, memory=seed % 5 == 0)
    all_sends = seed % 3 == 0
    best = solve(graph, network, all_sends=all_sends)
    asked = question(nodes, network, kept, all_sends=all_sends)
    assert not asked.refutes(best.objective, math.inf)


@pytest.mark.parametrize("seed", seeds(50, 100))
def test_with_every_layer_by_itself_all_is_refuted_that_cannot_be_kept(seed: int):
    rng = random.Random(seed)
    graph = random_graph(rng, 7, rng.choice([0.2, 0.5]))
    nodes = charged_layers(graph)
    nodes = nodes._replace(outputs=nodes.outputs + [0.01 * v for v in range(len(nodes.outputs))])
    if any(len(layers) > 1 for layers in chains(nodes).layers):
        pytest.skip("two layers of one output size stand in a chain")
    network = random_network(rng, rng.choice([2, 3, 5]), memory=False)
    task = network_solver.Task(nodes, network, seed % 3 == 0, math.inf)
    best, _ = network_solver._one_level(task)
    asked = question(nodes, network, all_sends=seed % 3 == 0)
    if best.value:
        assert asked.refutes(best.value * (1 - 1e-9), math.inf)
    assert not asked.refutes(best.value, math.inf)


def test_without_time_nothing_is_refuted():
    nodes = charged_layers(net({"a": 3.0, "b": 1.0}, {"a": "b"}))
    asked = question(nodes, Network((2,), (10.0,)))
    assert asked.refutes(1.0, math.inf)
    assert not asked.refutes(1.0, 0.0)


@pytest.mark.parametrize("straight", [True, False])
def test_where_transfers_hold_a_plan_up_the_bound_comes_near_it_without_all_downsets(
    straight: bool, monkeypatch: pytest.MonkeyPatch
):
    """Four branches of six layers: 2,401 downsets, and sends that rule most of the cuts out."""
    names = [f"{branch}{at}" for branch in "abcd" for at in range(6)]
    compute = {
        "in": 1.0,
        **{name: 1.0 + 0.1 * (at % 5) for at, name in enumerate(names)},
        "out": 1.0,
    }
    edges = {"in": ["a0", "b0", "c0", "d0"]}
    for branch in "abcd":
        for at in range(5):
            edges[f"{branch}{at}"] = [f"{branch}{at + 1}"]
        edges[f"{branch}5"] = ["out"]
    sizes = {"bytes": dict.fromkeys(compute, 30), "params": dict.fromkeys(compute, 9)}
    graph = net(compute, edges, **sizes)  # type: ignore[arg-type]
    network = Network((3,), (10.0,), straight=straight)
    best = solve(graph, network)
    assert best.num_downsets is not None and best.lower_bound == best.objective
    monkeypatch.setattr(network_solver, "MOST_DOWNSETS", 30)
    found = solve(graph, network)
    assert found.num_downsets is None
    assert found.objective == pytest.approx(best.objective)
    if straight:
        assert found.lower_bound == found.objective
    assert (
        1.3 * least_bottleneck(charged_layers(graph), network) < found.lower_bound <= best.objective
    )
