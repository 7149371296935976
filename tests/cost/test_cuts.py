import itertools
import random

import msgspec
import numpy as np
import pytest

from autopart.cost.cuts import all_cuts, cuts_along, partition_of, stage_totals
from autopart.records.layer_graph import LayerGraph, SplitBackward, TiedParameter, edges
from tests.support import stage_totals_oracle
from tests.support.problems import (
    chain_graph,
    gradients_there,
    layer,
    random_graph,
    tied_sums_made,
    value,
)
from tests.support.seeds import seeds


def test_a_chain_has_a_cut_between_any_two_neighbours():
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


def test_beyond_the_limit_only_prefixes_of_the_topological_order_are_cuts():
    cuts = all_cuts(LayerGraph(layers=tuple(layer(f"l{i}") for i in range(12))), most=100)
    assert not cuts.complete
    assert len(cuts.ahead) == 13 and cuts.nested[0, 12]


@pytest.mark.parametrize("seed", range(40))
def test_the_cuts_are_the_downsets(seed: int):
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


@pytest.mark.parametrize("seed", seeds(66, 200))
def test_totals_between_cuts_equal_plain_sums_over_layers(seed: int):
    """Pairs of cuts, and stages in a partition, against the oracle that goes through sets of layers."""
    rng = random.Random(seed)
    graph = random_graph(rng, rng.randint(1, 8), branching=rng.random() < 0.5)
    if seed % 4 == 0 and len(graph.layers) > 1:
        graph = with_split_backward(rng, graph)
    cuts = all_cuts(graph)
    path = [0]
    while path[-1] != len(cuts.ahead) - 1:
        path.append(int(rng.choice(np.flatnonzero(cuts.nested[path[-1]]))))
    matrices = cuts.totals
    partition = partition_of(cuts, path)
    expected = stage_totals_oracle.stage_totals(graph, partition)
    # Plans print these seconds, so they equal the oracle to the last bit.
    assert stage_totals(graph, partition) == expected
    for (i, j), totals in zip(itertools.pairwise(path), expected, strict=True):
        for field, number in totals._asdict().items():
            if field == "received":
                found = [field_[i, 0] for field_ in matrices.received]
            elif field == "sent":
                found = [field_[0, j] for field_ in matrices.sent]
            else:
                found = getattr(matrices, field)[i, j]
            assert found == pytest.approx(number, rel=1e-12, abs=1e-12), (field, i, j)


def with_split_backward(rng: random.Random, graph: LayerGraph) -> LayerGraph:
    """The graph with random bytes for split backwards, and a parameter that layers share."""
    layers = tuple(
        msgspec.structs.replace(
            la,
            split_backward=SplitBackward(
                **{name: rng.randint(0, 30) for name in SplitBackward.__struct_fields__}
            ),
        )
        for la in graph.layers
    )
    sizes = {"param_bytes": 40, "grad_bytes": 40, "num_trainable": 10}
    shared = tuple(la.name for la in rng.sample(layers, min(3, len(layers))))
    tied = TiedParameter(name="shared", layers=shared, **sizes)
    return msgspec.structs.replace(graph, layers=layers, tied=(*graph.tied, tied))


def most_by_definition(graph: LayerGraph, members: list[int]) -> tuple[int, int]:
    """The workspaces in B and in I: each layer's need after later layers have run."""
    in_b, in_i, there = [0], [0], gradients_there(graph, members)
    for at in members:
        la, behind = graph.layers[at], [graph.layers[j] for j in members if j > at]
        assert la.split_backward is not None
        waits = sum(
            tied.grad_bytes
            for tied in graph.tied
            for j in members
            if j > at
            and graph.layers[j].name in tied.layers
            and any(graph.layers[u].name in tied.layers for u in members if u < j)
        )
        whole, half = la.workspace_bytes, la.split_backward.input_grad_workspace_bytes
        if la.backward_workspace_bytes is not None:
            beside = there[at] + tied_sums_made(graph, members, at)
            whole = max(whole, la.backward_workspace_bytes + beside)
            half += there[at]
        in_b.append(whole + waits - sum(other.stash_bytes for other in behind))
        left = sum(
            o.split_backward.waiting_bytes - o.stash_bytes for o in behind if o.split_backward
        )
        in_i.append(half + left)
    whole = sum(
        la.split_backward.waiting_bytes - la.stash_bytes
        for la in (graph.layers[j] for j in members)
        if la.split_backward
    )
    return max(in_b), max(*in_i, whole)


@pytest.mark.parametrize("seed", range(30))
def test_workspaces_and_bytes_for_w_equal_their_definition(seed: int):
    rng = random.Random(seed)
    graph = random_graph(rng, rng.randint(2, 6), branching=seed % 2 == 0)
    graph = with_split_backward(rng, graph) if seed % 3 else graph
    cuts = all_cuts(graph)
    for i, j in itertools.combinations(range(len(cuts.ahead)), 2):
        if not cuts.nested[i, j]:
            continue
        path = list(dict.fromkeys((0, i, j, len(cuts.ahead) - 1)))
        partition = partition_of(cuts, path)
        place = path.index(i)
        totals = stage_totals(graph, partition)[place]
        for name in ("workspace", "waiting", "input_grad_workspace", "weight_grad_workspace"):
            assert getattr(cuts.totals, f"{name}_bytes")[i, j] == getattr(totals, f"{name}_bytes")
        if seed % 3:
            members = sorted(partition[place])
            found = totals.workspace_bytes, totals.input_grad_workspace_bytes
            assert found == most_by_definition(graph, members)


def test_two_gradients_for_a_tied_parameter_and_their_sum_are_there_at_once():
    layers = tuple(layer(name, backward_workspace_bytes=10, num_trainable=5) for name in "abc")
    sizes = {"param_bytes": 10, "grad_bytes": 10, "num_trainable": 5}
    tied = TiedParameter(name="t", layers=("a", "c"), **sizes)
    graph = LayerGraph(layers=layers, values=(value("a", "b"), value("b", "c")), tied=(tied,))
    without = msgspec.structs.replace(graph, tied=())
    most, alone = (stage_totals(g, ((0, 1, 2),))[0] for g in (graph, without))
    assert most.workspace_bytes - alone.workspace_bytes == 10 + 10, (
        "c's gradient waits, and the sum"
    )
    assert most.input_grad_workspace_bytes == alone.input_grad_workspace_bytes, "W sums in place"
    first, _ = stage_totals(graph, ((0, 1), (2,)))
    assert first.workspace_bytes == stage_totals(without, ((0, 1), (2,)))[0].workspace_bytes


def test_a_gradient_from_the_next_stage_lies_in_the_receive_buffer_only():
    layers = tuple(layer(name, backward_workspace_bytes=1) for name in "abc")
    values = (value("a", "b", bytes=10), value("b", "c", bytes=20), value("a", "c", bytes=100))
    graph = LayerGraph(layers=layers, values=values)
    (whole,) = stage_totals(graph, ((0, 1, 2),))
    assert whole.workspace_bytes == 1 + 20 + 100, "while b runs"
    first, _ = stage_totals(graph, ((0, 1), (2,)))
    assert (first.workspace_bytes, first.sent.grad_bytes) == (1 + 10, 20 + 100)
    through = stage_totals(graph, ((0,), (1,), (2,)))
    assert [totals.relayed_grad_bytes for totals in through] == [0, 100, 0]


@pytest.mark.parametrize("seed", range(20))
def test_the_cuts_along_a_partition_have_its_stages_with_the_totals_of_all_cuts(seed: int):
    rng = random.Random(seed)
    graph = random_graph(rng, rng.randint(1, 6), branching=True)
    cuts = all_cuts(graph)
    # A random path over all cuts, from the first to the last.
    path = [0]
    while path[-1] != len(cuts.nested) - 1:
        path.append(int(rng.choice(np.flatnonzero(cuts.nested[path[-1]]))))
    partition = partition_of(cuts, path)
    own = cuts_along(graph, partition)
    assert partition_of(own, range(len(path))) == partition
    assert np.array_equal(own.ahead, cuts.ahead[path]) and not own.complete
    assert np.array_equal(own.nested, cuts.nested[np.ix_(path, path)])
    for field in ("forward_time", "stash_bytes", "workspace_bytes", "num_trainable"):
        whole, part = getattr(cuts.totals, field), getattr(own.totals, field)
        inside = own.nested
        assert part[inside] == pytest.approx(whole[np.ix_(path, path)][inside], rel=1e-12)
