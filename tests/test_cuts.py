import itertools
import random

import msgspec
import numpy as np
import pytest

from autopart.cuts import all_cuts, partition_of
from autopart.graph import Halves, LayerGraph, TiedParameter, edges
from autopart.stage_load import stage_loads
from tests.problems import chain_graph, gradients_there, layer, random_graph, value


def test_a_chain_has_a_cut_between_all_neighbours():
    cuts = all_cuts(chain_graph(layer("a"), layer("b"), layer("c")))
    assert cuts.complete
    assert cuts.ahead.astype(int).tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert cuts.nested.tolist() == np.triu(np.ones((4, 4)), 1).astype(bool).tolist()


def test_two_branches_can_be_cut_in_either_order():
    layers = (layer("a"), layer("left"), layer("right"), layer("join"))
    values = (value("a", "left", "right"), value("left", "join"), value("right", "join"))
    cuts = all_cuts(LayerGraph(layers=layers, values=values))
    assert len(cuts.ahead) == 6
    left, right = (cuts.ahead.tolist().index([True, l, not l, False]) for l in (True, False))
    assert not cuts.nested[left, right] and not cuts.nested[right, left]


def test_past_the_limit_only_the_prefixes_of_the_order_are_listed():
    cuts = all_cuts(LayerGraph(layers=tuple(layer(f"l{i}") for i in range(12))), most=100)
    assert not cuts.complete
    assert len(cuts.ahead) == 13 and cuts.nested[0, 12]


@pytest.mark.parametrize("seed", range(40))
def test_the_cuts_are_all_downsets(seed: int):
    rng = random.Random(seed)
    graph = random_graph(rng, rng.randint(1, 7), branching=True)
    n, pairs = len(graph.layers), edges(graph)
    expected = {
        marks
        for marks in itertools.product([False, True], repeat=n)
        if all(marks[u] or not marks[w] for u, w in pairs)
    }
    found = [tuple(row) for row in all_cuts(graph).ahead.tolist()]
    assert set(found) == expected and len(found) == len(expected)


@pytest.mark.parametrize("seed", range(200))
def test_the_load_between_two_cuts_is_the_load_of_the_same_stage(seed: int):
    rng = random.Random(seed)
    graph = random_graph(rng, rng.randint(1, 8), branching=rng.random() < 0.5)
    cuts = all_cuts(graph)
    path = [0]
    while path[-1] != len(cuts.ahead) - 1:
        path.append(int(rng.choice(np.flatnonzero(cuts.nested[path[-1]]))))
    matrices = cuts.loads
    for (i, j), load in zip(
        itertools.pairwise(path), stage_loads(graph, partition_of(cuts, path)), strict=True
    ):
        for field, number in load._asdict().items():
            if field == "received":
                found = [what[i, 0] for what in matrices.received]
            elif field == "sent":
                found = [what[0, j] for what in matrices.sent]
            else:
                found = getattr(matrices, field)[i, j]
            assert found == pytest.approx(number, rel=1e-12, abs=1e-12), (field, i, j)


def with_halves(rng: random.Random, graph: LayerGraph) -> LayerGraph:
    """The graph with drawn bytes of split backwards, and a parameter that two layers share."""
    layers = tuple(
        msgspec.structs.replace(
            la, halves=Halves(**{name: rng.randint(0, 30) for name in Halves.__struct_fields__})
        )
        for la in graph.layers
    )
    sizes = {"param_bytes": 40, "grad_bytes": 40, "num_trainable": 10}
    shared = tuple(la.name for la in rng.sample(layers, min(3, len(layers))))
    tied = TiedParameter(name="shared", layers=shared, **sizes)
    return msgspec.structs.replace(graph, layers=layers, tied=(*graph.tied, tied))


def most_by_definition(graph: LayerGraph, members: list[int]) -> tuple[int, int]:
    """The transients of B and of I: what each layer needs while those behind it have run."""
    in_b, in_i, there = [0], [0], gradients_there(graph, members)
    for at in members:
        la, behind = graph.layers[at], [graph.layers[j] for j in members if j > at]
        assert la.halves is not None
        waits = sum(
            tied.grad_bytes
            for tied in graph.tied
            for j in members
            if j > at
            and graph.layers[j].name in tied.layers
            and any(graph.layers[u].name in tied.layers for u in members if u < j)
        )
        whole, half = la.workspace_bytes, la.halves.input_grad_workspace_bytes
        if la.backward_workspace_bytes is not None:
            whole = max(whole, la.backward_workspace_bytes + there[at])
            half += there[at]
        in_b.append(whole + waits - sum(other.stash_bytes for other in behind))
        left = sum(o.halves.waiting_bytes - o.stash_bytes for o in behind if o.halves)
        in_i.append(half + left)
    whole = sum(
        la.halves.waiting_bytes - la.stash_bytes
        for la in (graph.layers[j] for j in members)
        if la.halves
    )
    return max(in_b), max(*in_i, whole)


@pytest.mark.parametrize("seed", range(30))
def test_transients_and_what_waits_for_w_are_those_of_the_same_stage(seed: int):
    rng = random.Random(seed)
    graph = random_graph(rng, rng.randint(2, 6), branching=seed % 2 == 0)
    graph = with_halves(rng, graph) if seed % 3 else graph
    cuts = all_cuts(graph)
    for i, j in itertools.combinations(range(len(cuts.ahead)), 2):
        if not cuts.nested[i, j]:
            continue
        path = list(dict.fromkeys((0, i, j, len(cuts.ahead) - 1)))
        partition = partition_of(cuts, path)
        place = path.index(i)
        load = stage_loads(graph, partition)[place]
        for name in ("workspace", "waiting", "input_grad_workspace", "weight_grad_workspace"):
            assert getattr(cuts.loads, f"{name}_bytes")[i, j] == getattr(load, f"{name}_bytes")
        if seed % 3:
            members = sorted(partition[place])
            found = load.workspace_bytes, load.input_grad_workspace_bytes
            assert found == most_by_definition(graph, members)


def test_a_skip_over_the_cut_lies_in_the_receive_buffer_alone():
    layers = tuple(layer(name, backward_workspace_bytes=1) for name in "abc")
    values = (value("a", "b", bytes=10), value("b", "c", bytes=20), value("a", "c", bytes=100))
    graph = LayerGraph(layers=layers, values=values)
    (whole,) = stage_loads(graph, ((0, 1, 2),))
    assert whole.workspace_bytes == 1 + 20 + 100, "while b runs"
    first, _ = stage_loads(graph, ((0, 1), (2,)))
    assert (first.workspace_bytes, first.sent.grad_bytes) == (1 + 10, 20 + 100)
    through = stage_loads(graph, ((0,), (1,), (2,)))
    assert [load.relayed_grad_bytes for load in through] == [0, 100, 0]
