import itertools
import random

import pytest

from autopart.errors import UsageError
from autopart.peers.pipedream import downset_sums
from autopart.peers.pipedream.charged_layers import charged_layers
from autopart.peers.pipedream.charges import (
    Network,
    NetworkStage,
    busy_time,
    check_network,
    least_bottleneck,
    score,
    transfer_time,
)
from autopart.peers.pipedream.downset_sums import grown_sums
from tests.support.peers.pipedream_graphs import downsets, net, plans, random_graph, random_network

CHAIN = net(
    {"a": 4.0, "b": 2.0, "c": 6.0},
    {"a": "b", "b": "c"},
    bytes={"a": 100, "b": 50, "c": 7},
    params={"a": 10, "b": 20, "c": 40},
)
DIAMOND = net(
    {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0},
    {"a": "bc", "b": "d", "c": "d"},
    bytes={"a": 1, "b": 10, "c": 100, "d": 1000},
)


def one_level(bandwidth=10.0, machines=4, **more):
    return Network((machines,), (bandwidth,), **more)


def test_the_sync_of_replicas_is_divided_by_their_number_twice():
    whole = [NetworkStage((0, 1, 2), 4)]
    expected = (12.0 + 4 * (3 / 4) * 70 / 10) / 4
    assert score(CHAIN, one_level(), whole, all_sends=False) == pytest.approx(expected, rel=1e-12)


def test_a_cut_is_charged_to_both_ends_but_not_to_the_first_stage():
    plan = [NetworkStage((0,), 1), NetworkStage((1, 2), 3)]
    wide = net(
        {"a": 4.0, "b": 2.0, "c": 6.0}, {"a": "b", "b": "c"}, bytes={"a": 1000, "b": 50, "c": 7}
    )
    received = 2 * 1000 / (10 * 3)
    assert score(wide, one_level(), plan, all_sends=False) == pytest.approx(received, rel=1e-12)
    assert score(wide, one_level(), plan, all_sends=True) == 2 * 1000 / 10


def test_the_last_stage_sends_nothing_and_a_middle_one_sends_at_its_own_replicas():
    plan = [NetworkStage((0,), 4), NetworkStage((1,), 1), NetworkStage((2,), 4)]
    sums = 2 * 100 / 10, 2 * 50 / 10
    assert score(CHAIN, one_level(), plan, all_sends=True) == max(sums)


def test_without_a_compression_ratio_transfers_are_free_and_with_one_they_shrink():
    plan = [NetworkStage((0,), 1), NetworkStage((1, 2), 1)]
    assert score(CHAIN, one_level(compression=None), plan, all_sends=True) == 8.0
    assert score(CHAIN, one_level(compression=2.0), plan, all_sends=False) == 2 * 100 / 10 / 2


def cut_of(graph, *layers):
    nodes = charged_layers(graph)
    grown, tops = [], [0]
    for at, v in enumerate(layers):
        grown.append((at, v))
        tops.append(tops[-1] & ~nodes.before[v] | 1 << v)
    return grown_sums(nodes, grown, tops).cut[-1]


def test_a_layer_read_on_both_sides_of_a_cut_is_charged_with_the_last_ones():
    assert cut_of(DIAMOND, 0) == 1
    assert cut_of(DIAMOND, 0, 1) == 10 + 1
    assert cut_of(DIAMOND, 0, 2) == 100 + 1


def test_where_branches_meet_more_is_charged_than_crosses_the_cut():
    # Nothing of a crosses the cut behind b and c, but b is not ahead of its reader c.
    assert cut_of(DIAMOND, 0, 1, 2) == 10 + 100 + 1
    assert cut_of(DIAMOND, 0, 1, 2, 3) == 1000


def cut_in_sets(graph, ahead):
    """out(D) as defined in charges.py, with sets."""
    place = {layer.name: at for at, layer in enumerate(graph.layers)}
    readers = {at: set() for at in place.values()}
    size = {at: layer.stash_bytes for at, layer in enumerate(graph.layers)}
    for value in graph.values:
        readers[place[value.producer]] = {place[c] for c in value.consumers}
        size[place[value.producer]] = value.bytes

    def ahead_of(v):
        found = {u for u in readers if v in readers[u]}
        return found.union(*map(ahead_of, found))

    tops = {v for v in ahead if not readers[v] & ahead}
    extra = {u for a in tops for u in ahead_of(a) if readers[u] - ahead_of(a) - {a}}
    return sum(size[v] for v in tops | extra)


@pytest.mark.parametrize("seed", range(30))
def test_cuts_of_random_graphs_follow_their_definition(seed: int):
    graph = random_graph(random.Random(seed), 7, 0.4)
    for ahead in downsets(graph):
        if ahead:
            assert cut_of(graph, *sorted(ahead)) == cut_in_sets(graph, ahead)


def test_a_node_of_two_levels_is_a_pipeline_and_the_first_shares_its_sync():
    network = Network((2, 2), (10.0, 5.0))
    inner = (NetworkStage((0,), 1), NetworkStage((1,), 1))
    plan = [NetworkStage((0, 1), 1, inner), NetworkStage((2,), 1, (NetworkStage((2,), 2),))]
    first = max(4.0, 2.0, 2 * 100 / 10, 2 * 50 / 10)  # b receives from a, and sends within the node
    second = max((6.0 + 4 / 2 * 40 / 10) / 2, 2 * 50 / 5)
    assert score(CHAIN, network, plan, all_sends=False) == max(first, second)
    together = [NetworkStage((0, 1, 2), 2, (NetworkStage((0, 1, 2), 2),))]
    inside = (12.0 + 4 / 2 * 70 / 10) / 2
    expected = (inside + 4 / 2 * 70 / 5 / 2) / 2
    assert score(CHAIN, network, together, all_sends=False) == pytest.approx(expected, rel=1e-12)


def test_a_later_stage_of_the_outer_level_pays_for_its_whole_sync():
    network = Network((2, 3), (10.0, 5.0), compression=None)
    plan = [
        NetworkStage((0,), 1, (NetworkStage((0,), 1),)),
        NetworkStage((1, 2), 2, (NetworkStage((1, 2), 1),)),
    ]
    expected = (8.0 + 4 / 2 * 60 / 5) / 2
    assert score(CHAIN, network, plan, all_sends=False) == pytest.approx(expected, rel=1e-12)


def test_a_pipeline_of_one_stage_sends_nothing_within_its_node():
    network = Network((2, 2), (0.5, 1e9))
    plan = [
        NetworkStage((0,), 1, (NetworkStage((0,), 1),)),
        NetworkStage((1, 2), 1, (NetworkStage((1, 2), 1),)),
    ]
    assert score(CHAIN, network, plan, all_sends=True) == 8.0


@pytest.mark.parametrize("seed", range(40))
def test_no_plan_is_below_the_simple_bound(seed: int):
    rng = random.Random(seed)
    graph = random_graph(rng, 4, 0.5)
    network = random_network(rng, *rng.choice([(1,), (3,), (2, 2)]), memory=False)
    low = least_bottleneck(charged_layers(graph), network)
    for plan in itertools.islice(plans(graph, network), 400):
        assert score(graph, network, plan, all_sends=False) >= low * (1 - 1e-12)


def test_times_work_on_numbers_as_on_arrays():
    assert busy_time(8.0, 0.0, 2, 1.0) == 4.0
    assert transfer_time(30.0, 3, 10.0, 1.0) == 2.0


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Network((2, 2, 2), (1.0, 1.0, 1.0)), "3 machine counts"),
        (Network((2, 2), (1.0,)), "2 machine counts and 1 bandwidths"),
        (Network((0,), (1.0,)), "0 machines"),
        (Network((2,), (0.0,)), "a bandwidth of 0"),
        (Network((2,), (float("nan"),)), "a bandwidth of nan"),
        (Network((2,), (1.0,), compression=0.0), "a compression ratio of 0"),
        (Network((2,), (1.0,), memory_bytes=-1.0), "a memory of -1"),
    ],
)
def test_a_network_with_numbers_out_of_range_is_refused(network: Network, words: str):
    with pytest.raises(UsageError, match=words):
        check_network(network)


@pytest.mark.parametrize("seed", range(10))
def test_many_cuts_are_summed_up_like_few(seed: int, monkeypatch: pytest.MonkeyPatch):
    graph = random_graph(random.Random(seed), 20, 0.3)
    nodes = charged_layers(graph)
    grown, tops = [], [0]
    for at in range(len(nodes.before)):
        grown.append((at, at))
        tops.append(tops[-1] & ~nodes.before[at] | 1 << at)
    few = grown_sums(nodes, grown, tops)
    monkeypatch.setattr(downset_sums, "MANY", 0)
    many = grown_sums(nodes, grown, tops)
    assert few.cut.tolist() == many.cut.tolist()
