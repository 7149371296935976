"""Splits of dnn-partitioning instances against trying everything, and against the published answers."""

import itertools
import math
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autopart.errors import AutopartError, InfeasibleError
from autopart.peers.dnn_partitioning import contiguous_division, downset_dp, downset_search
from autopart.peers.dnn_partitioning.charges import DnnInstance, check_split
from autopart.peers.dnn_partitioning.file import read
from autopart.peers.dnn_partitioning.solve import solve
from tests.support.peers.dnn_instances import (
    instance,
    node,
    random_instance,
    smallest_largest_charge,
)
from tests.support.shared_data import DATA, needs_data, published

INPUTS = DATA / "dnn-partitioning" / "throughput-inputs"
RUNS = published("dnn-partitioning")
OPTIMA = {
    run["instance"]: run["max_load"]
    for run in RUNS
    if run["mode"] in ("dp", "dp_lean") and run["max_load"] is not None
}


def check_against_trying(problem: DnnInstance) -> bool:
    """Whether there is a split; the solver must agree with a trial of every split."""
    expected = smallest_largest_charge(problem, contiguous=True)
    if expected is None:
        with pytest.raises(InfeasibleError):
            solve(problem)
        return False
    found = solve(problem)
    assert check_split(problem, found.stages, contiguous=True) == found.objective
    assert found.objective == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert found.lower_bound == found.objective
    return True


@pytest.mark.slow
@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
@example(36310)  # One node, which no accelerator runs.
def test_the_split_is_the_best_of_all_contiguous_splits(seed: int):
    check_against_trying(random_instance(random.Random(seed), most_groups=4))


@pytest.mark.slow
def test_hundreds_of_random_instances_are_solved_to_optimality():
    rng = random.Random(11)
    feasible = [check_against_trying(random_instance(rng, most_groups=4)) for _ in range(250)]
    assert 25 < feasible.count(False) < 125


@pytest.mark.slow
def test_large_searches_give_the_same_answers(monkeypatch: pytest.MonkeyPatch):
    """Each constant that only matters with many downsets is set so that few are many."""
    few = {"FEW_DOWNSETS": 1, "EASY_PAIRS": 0, "NEAR": 2, "FARTHEST": 8}
    for name, value in few.items():
        monkeypatch.setattr(contiguous_division, name, value)
    monkeypatch.setattr(downset_search, "FLAGS", 32)
    for name, value in {"MANY": 0, "BLOCK": 2, "TILE": 3}.items():
        monkeypatch.setattr(downset_dp, name, value)
    rng = random.Random(12)
    assert sum(check_against_trying(random_instance(rng, most_groups=4)) for _ in range(120)) > 60


@pytest.mark.slow
def test_latencies_that_stand_for_never_take_no_precision_away():
    rng = random.Random(13)
    for _ in range(80):
        problem = random_instance(rng, most_groups=4)
        nodes = [
            n._replace(
                cpu_latency=1e9 if rng.random() < 0.3 else n.cpu_latency,
                accelerator_latency=1e9 if rng.random() < 0.2 else n.accelerator_latency,
            )
            for n in problem.nodes
        ]
        check_against_trying(problem._replace(nodes=tuple(nodes)))


def test_idle_nodes_stand_where_they_cost_nothing():
    """Node 2 takes no time; it would split the costly output of node 1 wherever it stands alone."""
    net = instance(
        [node(1, 4.0), node(2, 0.0), node(3, 5.0), node(4, 0.0)],
        {(1, 2): 3.0, (2, 3): 0.5, (4, 3): 0.0},
    )
    found = solve(net)
    assert found.objective == 5.5
    assert {s.nodes for s in found.stages} == {(1, 2), (3, 4)}


def test_a_cpu_may_stand_between_accelerators():
    chain = instance(
        [node(1, 8.0), node(2, 1.0, cpu_latency=2.0), node(3, 8.0)],
        {(1, 2): 0.5, (2, 3): 0.5},
        2,
        1,
    )
    found = solve(chain)
    assert [(s.kind, s.nodes) for s in found.stages] == [
        ("accelerator", (1,)),
        ("cpu", (2,)),
        ("accelerator", (3,)),
    ]
    assert found.objective == found.lower_bound == 8.5


def test_devices_may_stay_idle():
    found = solve(instance([node(1, 3.0), node(2, 1.0)], {(1, 2): 5.0}, accelerators=4))
    assert found.objective == 4.0
    assert len(found.stages) == 1


def test_nothing_takes_any_time():
    found = solve(instance([node(1, 0.0), node(2, 0.0)], {(1, 2): 1.0}))
    assert found.objective == found.lower_bound == 0.0


def test_memory_that_idle_nodes_fill_is_reckoned_with():
    """Node 2 takes no time but room: with node 1 it does not fit, so that the transfer is paid."""
    net = instance(
        [node(1, 4.0, size=3.0), node(2, 0.0, size=2.0), node(3, 4.0, size=2.0)],
        {(1, 2): 1.0, (2, 3): 0.25},
        size_limit=4.0,
    )
    found = solve(net)
    assert found.objective == found.lower_bound == 5.0
    assert {s.nodes for s in found.stages} == {(1,), (2, 3)}


def test_infeasible_says_the_least_memory_that_would_do():
    net = instance([node(k, 1.0, size=3.0) for k in range(5)], {(0, 1): 1.0, (1, 2): 1.0}, 2)
    with pytest.raises(InfeasibleError, match=r"the least that would do is 9 bytes") as caught:
        solve(net._replace(size_limit=8.0))
    assert "2 accelerators with 8 bytes each" in str(caught.value)
    assert solve(net._replace(size_limit=9.0)).lower_bound > 0


def test_a_node_that_no_device_can_run_is_named():
    unable = instance([node(1), node(2, on_accelerator=False)], {})
    with pytest.raises(InfeasibleError, match="node 2 cannot run on an accelerator"):
        solve(unable)
    with pytest.raises(InfeasibleError, match="neither accelerators nor CPUs"):
        solve(unable._replace(num_accelerators=0))


def _grid(chains: int, length: int, seed: int, accelerators: int) -> DnnInstance:
    """Parallel chains from one node to another: (length + 1) ** chains downsets and two."""
    rng = random.Random(seed)
    first, last = 0, chains * length + 1
    nodes = [node(k, rng.uniform(0.5, 2.0)) for k in range(last + 1)]
    cost = [rng.uniform(0.05, 0.6) for _ in nodes]
    edges: dict[tuple[int, int], float] = {}
    for chain in range(chains):
        path = [first, *range(1 + chain * length, 1 + (chain + 1) * length), last]
        edges |= {(u, v): cost[u] for u, v in itertools.pairwise(path)}
    return instance(nodes, edges, accelerators, 1)


@pytest.mark.slow
@pytest.mark.usefixtures("processor_clock")
def test_a_time_limit_gives_a_split_and_an_honest_bound():
    problem = _grid(6, 10, 5, 8)  # 1,771,563 downsets
    found = solve(problem, time_limit=1.0)
    assert check_split(problem, found.stages, contiguous=True) == found.objective
    work = math.fsum(n.accelerator_latency for n in problem.nodes)
    assert 0 < found.lower_bound <= found.objective < work / 8 * 1.3
    assert found.lower_bound >= work / (8 + 0.1) * (1 - 1e-9)


@pytest.mark.slow
def test_ten_thousand_downsets_take_moments():
    problem = _grid(4, 9, 1, 5)
    found = solve(problem)
    assert found.lower_bound == found.objective
    assert "10002 downsets" in found.proof


@pytest.mark.usefixtures("processor_clock")
@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_without_contiguity_bounds_hold_and_nothing_gets_worse(seed: int):
    problem = random_instance(random.Random(seed), most_groups=4)
    expected = smallest_largest_charge(problem, contiguous=False)
    try:
        found = solve(problem, contiguous=False, time_limit=0.1)
    except InfeasibleError:
        assert expected is None
        return
    except AutopartError as error:
        assert "none was ruled out" in str(error) and not problem.num_cpus
        return
    assert expected is not None
    assert check_split(problem, found.stages, contiguous=False) == found.objective
    contiguous = smallest_largest_charge(problem, contiguous=True)
    most = math.inf if contiguous is None else contiguous
    assert expected * (1 - 1e-9) <= found.objective <= most * (1 + 1e-9)
    assert found.lower_bound <= expected * (1 + 1e-9)


@pytest.mark.usefixtures("processor_clock")
def test_without_contiguity_two_pieces_on_a_device_can_be_better():
    chain = instance([node(1, 5.0), node(2, 8.0), node(3, 3.0)], {(1, 2): 0.25, (2, 3): 0.25}, 2)
    assert solve(chain).objective == 11.25
    found = solve(chain, contiguous=False, time_limit=1.0)
    assert found.objective == 8.5
    assert {s.nodes for s in found.stages} == {(1, 3), (2,)}


@pytest.mark.slow
@pytest.mark.usefixtures("processor_clock")
def test_without_contiguity_more_may_fit():
    """Sizes 3, 2 and 2, 1 in a chain fit into 4 and 4 only if the ends share a device."""
    sizes = {1: 3.0, 2: 2.0, 3: 2.0, 4: 1.0}
    chain = instance(
        [node(k, 1.0, size=size) for k, size in sizes.items()],
        {(1, 2): 0.5, (2, 3): 0.5, (3, 4): 0.5},
        size_limit=4.0,
    )
    with pytest.raises(InfeasibleError, match="the least that would do is 5 bytes"):
        solve(chain)
    found = solve(chain, contiguous=False, time_limit=1.0)
    assert {s.nodes for s in found.stages} == {(1, 4), (2, 3)}
    with pytest.raises(InfeasibleError, match="at least 4 are needed"):
        solve(chain._replace(size_limit=3.5), contiguous=False)


@needs_data
@pytest.mark.parametrize("name", sorted(OPTIMA))
def test_the_published_optimum_is_reached_and_proven(name: str):
    problem = read(INPUTS / f"{name}.json")
    found = solve(problem)
    assert check_split(problem, found.stages, contiguous=True) == found.objective
    assert found.objective == pytest.approx(OPTIMA[name], rel=1e-9)
    assert found.lower_bound == found.objective


@pytest.mark.slow
@pytest.mark.usefixtures("processor_clock")
@needs_data
@pytest.mark.parametrize(
    ("name", "at_most"),
    [("LayerGraphs/bert24_training", 39.9432), ("OperatorGraphs/bert_l-3_inference", 27.5741)],
)
def test_without_contiguity_the_published_local_search_is_beaten(name: str, at_most: float):
    problem = read(INPUTS / f"{name}.json")
    found = solve(problem, contiguous=False, time_limit=4.0)
    assert check_split(problem, found.stages, contiguous=False) == found.objective
    assert found.lower_bound <= found.objective < at_most
    assert found.objective < OPTIMA[name] * 0.97
