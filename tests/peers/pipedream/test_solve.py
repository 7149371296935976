"""PipeDream's objective, one level and two: the solver against trying everything."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopart.errors import UsageError
from autopart.peers.pipedream import solve as network_solver
from autopart.peers.pipedream import two_levels
from autopart.peers.pipedream.charges import Network, NetworkStage, score
from autopart.peers.pipedream.solve import NetworkPlan, solve
from tests.support.peers.pipedream_graphs import fits, net, plans, random_graph, random_network
from tests.support.seeds import seeds

CLOSE = 1e-9


def check_plan(graph, network: Network, plan: NetworkPlan, all_sends: bool) -> None:
    """Every layer once, stages in order, machines and memory kept, and the value as scored."""
    placed = sorted(v for part in plan.stages for v in part.layers)
    assert placed == list(range(len(graph.layers)))
    place = {layer.name: at for at, layer in enumerate(graph.layers)}
    home = {v: number for number, part in enumerate(plan.stages) for v in part.layers}
    for value in graph.values:
        for reader in value.consumers:
            assert home[place[value.producer]] <= home[place[reader]]
    levels = [(plan.stages, network.machines[-1])]
    if len(network.machines) == 2:
        levels += [(part.inner, network.machines[0]) for part in plan.stages]
        for part in plan.stages:
            assert sorted(v for p in part.inner for v in p.layers) == list(part.layers)
    for parts, machines in levels:
        assert all(part.layers for part in parts)
        assert sum(part.replicas for part in parts) <= machines
        assert not network.straight or all(part.replicas == 1 for part in parts)
        assert fits(graph, network.memory_bytes, parts)
    assert plan.objective == score(graph, network, plan.stages, all_sends=all_sends)
    assert plan.lower_bound <= plan.objective


def check_best(graph, network: Network, all_sends: bool) -> None:
    found = solve(graph, network, all_sends=all_sends)
    check_plan(graph, network, found, all_sends)
    best = min(score(graph, network, plan, all_sends=all_sends) for plan in plans(graph, network))
    assert found.objective == pytest.approx(best, rel=CLOSE)
    assert found.lower_bound == found.objective


@pytest.mark.parametrize("seed", seeds(60, 150))
def test_one_level_is_the_best_of_all_plans(seed: int):
    rng = random.Random(seed)
    graph = random_graph(rng, 5, rng.choice([0.2, 0.5, 0.9]))
    network = random_network(rng, rng.randint(1, 4), memory=seed % 3 == 0)
    check_best(graph, network, all_sends=seed % 4 == 0)


@pytest.mark.parametrize("seed", seeds(50, 120))
def test_two_levels_are_the_best_of_all_plans(seed: int):
    rng = random.Random(1000 + seed)
    graph = random_graph(rng, 4, rng.choice([0.4, 0.8]))
    machines = rng.choice([(1, 2), (2, 1), (2, 2), (3, 2), (2, 3)])
    network = random_network(rng, *machines, memory=seed % 4 == 0)
    check_best(graph, network, all_sends=seed % 4 == 1)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=5),
    st.lists(st.integers(0, 20), min_size=5, max_size=5),
    st.lists(st.integers(0, 3), min_size=5, max_size=5),
    st.integers(1, 4),
    st.sampled_from([1.0, 5.0]),
    st.booleans(),
)
def test_chains_of_whole_numbers_are_cut_best(times, sizes, params, machines, bandwidth, straight):
    names = "abcde"[: len(times)]
    graph = net(
        dict(zip(names, map(float, times), strict=True)),
        dict(itertools.pairwise(names)),
        bytes=dict(zip(names, sizes, strict=False)),
        params=dict(zip(names, params, strict=False)),
    )
    check_best(graph, Network((machines,), (bandwidth,), straight), all_sends=False)


def test_a_machine_stays_idle_where_its_sends_would_cost_more_than_it_saves():
    graph = net({"a": 3.0, "b": 3.0}, {"a": "b"}, bytes={"a": 100})
    found = solve(graph, Network((2,), (10.0,), straight=True))
    assert found.objective == found.lower_bound == 6.0
    assert found.stages == (NetworkStage((0, 1), 1),)


def test_a_heavy_layer_gets_replicas_of_its_own():
    graph = net(
        {"a": 1.0, "b": 8.0, "c": 1.0}, {"a": "b", "b": "c"}, params={"a": 10**9, "c": 10**9}
    )
    found = solve(graph, Network((6,), (1e8,)))
    assert [(stage.layers, stage.replicas) for stage in found.stages] == [
        ((0,), 1),
        ((1,), 4),
        ((2,), 1),
    ]
    assert found.objective == 2.0


def test_parameters_keep_a_layer_from_having_replicas():
    heavy = net({"a": 4.0, "b": 2.0}, {"a": "b"}, bytes={"a": 1}, params={"a": 10**6})
    assert solve(heavy, Network((4,), (1e3,))).objective == 4.0


def test_zero_times_and_one_layer_are_no_trouble():
    nothing = net({"a": 0.0, "b": 0.0}, {"a": "b"}, bytes={"a": 0, "b": 0})
    assert solve(nothing, Network((3,), (1.0,))).objective == 0.0
    assert solve(nothing, Network((2, 2), (1.0, 1.0))).objective == 0.0
    one = net({"a": 2.0}, {})
    assert solve(one, Network((3,), (1.0,))).objective == pytest.approx(2 / 3)


def test_memory_of_one_machine_is_never_too_small_for_all_on_one():
    graph = net({"a": 3.0, "b": 3.0}, {"a": "b"}, params={"a": 100, "b": 100})
    tight = Network((2,), (1e9,), straight=True, memory_bytes=1.0)
    assert solve(graph, tight).objective == 6.0
    roomy = tight._replace(memory_bytes=200.0)
    assert solve(graph, roomy).objective == 3.0


def two_branches(length: int):
    """Two branches of layers that differ, between a fork and a join."""
    rng = random.Random(length)
    left = [f"l{i}" for i in range(length)]
    right = [f"r{i}" for i in range(length)]
    edges = {"fork": [left[0], right[0]]}
    for branch in (left, right):
        edges |= {u: [v] for u, v in zip(branch, [*branch[1:], "join"], strict=True)}
    compute = {v: rng.uniform(0.5, 2) for v in ["fork", *left, *right, "join"]}
    sizes = {v: rng.randrange(1, 60) for v in compute}
    params = {v: rng.randrange(20) for v in compute}
    return net(compute, edges, bytes=sizes, params=params)


NETWORKS = (
    Network((4,), (10.0,)),
    Network((5,), (60.0,), straight=True),
    Network((3,), (20.0,), memory_bytes=400.0),
    Network((3, 2), (60.0, 10.0)),
)


@pytest.mark.parametrize("network", NETWORKS)
def test_many_downsets_are_searched_level_by_level_with_the_same_answer(
    network: Network, monkeypatch: pytest.MonkeyPatch
):
    graph = two_branches(9)
    paired = solve(graph, network)
    assert paired.lower_bound == paired.objective
    monkeypatch.setattr(network_solver, "MOST_PAIRED_DOWNSETS", 20)
    monkeypatch.setattr(two_levels, "MOST_PAIRED_DOWNSETS", 20)
    levelled = solve(graph, network)
    check_plan(graph, network, levelled, all_sends=False)
    assert levelled.lower_bound <= paired.objective * (1 + CLOSE)
    if len(network.machines) == 1 and network.memory_bytes is None:
        assert levelled.objective == pytest.approx(paired.objective, rel=CLOSE)
        assert levelled.lower_bound == levelled.objective
    else:
        assert levelled.objective >= paired.objective * (1 - CLOSE)


@pytest.mark.parametrize("network", NETWORKS)
def test_too_many_downsets_leave_a_good_plan_and_an_honest_bound(
    network: Network, monkeypatch: pytest.MonkeyPatch
):
    graph = two_branches(9)
    best = solve(graph, network).objective
    monkeypatch.setattr(network_solver, "MOST_DOWNSETS", 30)
    monkeypatch.setattr(two_levels, "MOST_DOWNSETS", 30)
    found = solve(graph, network)
    check_plan(graph, network, found, all_sends=False)
    assert found.num_downsets is None
    assert found.lower_bound <= best * (1 + CLOSE)
    assert best * (1 - CLOSE) <= found.objective <= best * 1.25


def test_matrices_answer_where_bisection_leaves_a_question_open(monkeypatch: pytest.MonkeyPatch):
    networks = [
        Network((2, 3), (40.0, 20.0)),
        Network((2, 4), (1000.0, 100.0)),
        Network((2, 3), (40.0, 20.0), memory_bytes=300.0),
    ]
    graph = two_branches(4)
    by_bisection_first = [solve(graph, network) for network in networks]
    monkeypatch.setattr(two_levels, "by_bisection", lambda task, best, downsets: best)
    by_matrices = [solve(graph, network) for network in networks]
    for one, other, network in zip(by_bisection_first, by_matrices, networks, strict=True):
        check_plan(graph, network, one, all_sends=False)
        assert one.objective == pytest.approx(other.objective, rel=CLOSE)
        assert other.lower_bound == other.objective
        assert one.lower_bound == one.objective


@pytest.mark.parametrize("network", NETWORKS)
def test_without_time_there_is_a_plan_and_a_bound_below_it(network: Network):
    graph = two_branches(6)
    best = solve(graph, network)
    hurried = solve(graph, network, time_limit=0.0)
    check_plan(graph, network, hurried, all_sends=False)
    assert hurried.lower_bound <= best.objective * (1 + CLOSE)
    assert best.objective <= hurried.objective * (1 + CLOSE)


def test_more_bandwidth_and_more_machines_never_hurt():
    graph = two_branches(5)
    for straight in (True, False):
        values = [
            [solve(graph, Network((n,), (b,), straight)).objective for b in (5.0, 20.0, 1e6)]
            for n in (1, 2, 3, 5)
        ]
        for row in values:
            assert row == sorted(row, reverse=True)
        for column in zip(*values, strict=True):
            assert list(column) == sorted(column, reverse=True)


def test_a_network_that_cannot_be_meant_is_refused():
    with pytest.raises(UsageError, match="0 machines"):
        solve(net({"a": 1.0}, {}), Network((0,), (1.0,)))
