import itertools
import random

import pytest

from autopart.errors import InfeasibleError
from autopart.peers.balancers.solve import solve
from autopart.records.layer_graph import LayerGraph, edges
from tests.support.problems import chain_graph, layer, random_graph, value
from tests.support.seeds import seeds


def tried(graph, weights, stages):
    """The heaviest stage of all divisions into stages whose edges all go forward."""
    pairs = edges(graph)
    for homes in itertools.product(range(stages), repeat=len(weights)):
        if len(set(homes)) == stages and all(homes[u] <= homes[w] for u, w in pairs):
            yield max(
                sum(w for w, home in zip(weights, homes, strict=True) if home == stage)
                for stage in range(stages)
            )


def check(graph, weights, stages, found):
    home = {layer: stage for stage, layers in enumerate(found.stages) for layer in layers}
    assert sorted(home) == list(range(len(weights)))
    assert len(found.stages) == stages and all(found.stages)
    assert all(home[u] <= home[w] for u, w in edges(graph))
    assert found.bottleneck == max(sum(weights[at] for at in stage) for stage in found.stages)


@pytest.mark.parametrize("seed", seeds(50, 120))
def test_no_division_of_a_small_graph_is_better(seed):
    rng = random.Random(seed)
    size = rng.randint(1, 6)
    graph = random_graph(rng, size, branching=rng.random() < 0.7)
    weights = [rng.choice([0.0, 1.0, 2.5, rng.uniform(0, 9)]) for _ in range(size)]
    stages = rng.randint(1, size)
    found = solve(graph, weights, stages)
    best = min(tried(graph, weights, stages))
    assert found.bottleneck == pytest.approx(best, rel=1e-12, abs=1e-12)
    assert found.lower_bound == found.bottleneck
    check(graph, weights, stages, found)


def fan(count):
    """One layer that `count` others read."""
    layers = [layer("root"), *(layer(f"leaf{at}") for at in range(count))]
    values = tuple(value("root", la.name) for la in layers[1:])
    return LayerGraph(layers=tuple(layers), values=values)


def test_an_order_that_is_not_the_graphs_own_can_balance_better():
    found = solve(fan(4), [0.0, 5, 5, 3, 3], 2)
    assert (found.bottleneck, found.lower_bound) == (8.0, 8.0)
    own = solve(chain_graph(*(layer(f"l{at}") for at in range(5))), [0.0, 5, 5, 3, 3], 2)
    assert own.bottleneck == own.lower_bound == 10.0


@pytest.mark.slow
def test_a_graph_with_too_many_orders_is_cut_well_and_its_bound_is_honest():
    rng = random.Random(3)
    weights = [0.0, *(rng.uniform(0, 1) for _ in range(40))]
    found = solve(fan(40), weights, 3)
    assert sum(weights) / 3 == found.lower_bound <= found.bottleneck < 1.05 * found.lower_bound
    check(fan(40), weights, 3, found)


@pytest.mark.slow
def test_an_order_that_is_given_is_never_better():
    rng = random.Random(5)
    graph, weights = fan(30), [0.0, *(float(rng.randint(1, 99)) for _ in range(30))]
    given = [0, *rng.sample(range(1, 31), 30)]
    chain = solve(chain_graph(*(layer(f"l{at}") for at in given)), [weights[at] for at in given], 4)
    assert solve(graph, weights, 4, [given]).bottleneck <= chain.bottleneck


def test_layers_that_weigh_nothing_do_not_multiply_the_orders():
    """40 leaves without weight have 2^40 downsets, and the one order of the others matters."""
    graph = fan(43)
    weights = [1.0, *([0.0] * 40), 2.0, 3.0, 3.5]
    found = solve(graph, weights, 2)
    assert found.bottleneck == found.lower_bound == 5.0
    check(graph, weights, 2, found)


def test_layers_that_weigh_nothing_fill_the_stages_that_are_asked_for():
    found = solve(fan(5), [0.0] * 6, 4)
    assert found.bottleneck == 0.0
    check(fan(5), [0.0] * 6, 4, found)


def test_more_stages_than_layers_are_refused_with_the_most_that_would_do():
    with pytest.raises(
        InfeasibleError, match="7 stages cannot be made of 6 layers; ask for at most 6"
    ):
        solve(fan(5), [1.0] * 6, 7)
