"""Free replicas per stage: each way of searching against trying everything, and against each other."""

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopart.cluster import Link, num_gpus
from autopart.cost import all_reduce_time, busy_time, gradient_bytes, memory, total, traffic_times
from autopart.cuts import all_cuts
from autopart.errors import InfeasibleError
from autopart.loads.pipedream import nodes_of, state_sums
from autopart.problem import Demands
from autopart.solvers import replicated_stages
from autopart.solvers.replication.downsets import (
    LevelProbe,
    PairLoads,
    downsets,
    nesting,
    prefixes,
)
from autopart.solvers.replication.dual import Found, Stage, bottleneck, fewest_machines, tighten
from autopart.solvers.replication.matrices import MatrixLoads, MatrixMemory
from autopart.solvers.replication.order import OrderProbe
from autopart.solvers.replication.pipedream_costs import level_costs
from autopart.stage_load import stage_loads
from tests import pipedream_graphs
from tests.oracle import partitions
from tests.problems import chain_graph, cluster, layer, problem, random_problem


def ways(size: int, machines, most: int):
    """Every path of stages from state 0 to the last with at most `most` machines."""

    def further(at: int, left: int):
        if at == size - 1:
            yield ()
            return
        for end in range(at + 1, size):
            for choice, taken in enumerate(machines):
                if taken <= left:
                    for rest in further(end, left - taken):
                        yield (Stage(at, end, choice), *rest)

    return further(0, most)


def memory_kept(loads: MatrixLoads, stages) -> bool:
    if loads.memory is None:
        return True
    later = 0
    for stage in reversed(stages):
        at = stage.start, stage.end
        held = loads.memory.held(stage.choice, later)
        fixed = np.broadcast_to(loads.memory.fixed[stage.choice], loads.memory.stash.shape)[at]
        if fixed + held * loads.memory.stash[at] > loads.memory.limit:
            return False
        later += loads.machines[stage.choice]
    return True


def random_matrices(rng: np.random.Generator, size: int, with_memory: bool) -> MatrixLoads:
    machines = sorted(rng.choice([1, 2, 3, 5], size=rng.integers(1, 4), replace=False).tolist())
    loads = [rng.integers(0, 9, (size, size)).astype(float) for _ in machines]
    for load in loads:
        load[rng.random(load.shape) < 0.15] = np.inf
        load[np.tril_indices(size)] = np.inf
    memory = None
    if with_memory:
        stash = rng.integers(0, 5, (size, size)).astype(float)

        def held(choice: int, later: int) -> int:
            return -(-later // machines[choice]) + 1

        fixed = [rng.integers(0, 4, (size, size)).astype(float) for _ in machines]
        memory = MatrixMemory(fixed, stash, held, float(rng.integers(4, 16)))
    return MatrixLoads(machines, loads, np.zeros(size), memory)


@settings(max_examples=150, deadline=None)
@given(st.integers(2, 6), st.integers(1, 6), st.integers(0, 2**32 - 1), st.booleans())
def test_any_loads_at_all_get_the_best_of_all_stages(
    size: int, machines: int, seed: int, with_memory: bool
):
    loads = random_matrices(np.random.default_rng(seed), size, with_memory)
    found = tighten(
        lambda limit: fewest_machines(loads, limit, machines),
        lambda stages: bottleneck(loads, stages),
        None,
        0.0,
        100.0,
    )
    tried = [
        bottleneck(loads, way)
        for way in ways(size, loads.machines, machines)
        if memory_kept(loads, way)
    ]
    best = min(tried, default=math.inf)
    if found is None:
        assert best == math.inf
        return
    assert found.bottleneck == found.lower_bound == pytest.approx(best, abs=1e-12)
    assert sum(loads.machines[stage.choice] for stage in found.stages) <= machines
    assert memory_kept(loads, found.stages)


def test_the_fewest_machines_are_taken_for_a_bottleneck():
    load = np.full((4, 4), np.inf)
    load[0, 1], load[1, 2], load[2, 3], load[0, 3] = 1.0, 1.0, 1.0, 2.0
    loads = MatrixLoads([1], [load], np.zeros(4))
    assert fewest_machines(loads, 1.0, 3) == (Stage(0, 1, 0), Stage(1, 2, 0), Stage(2, 3, 0))
    assert fewest_machines(loads, 1.0, 2) is None
    assert fewest_machines(loads, 2.0, 3) == (Stage(0, 3, 0),)


def test_a_plan_that_turns_out_to_be_none_ends_the_search_without_a_claim():
    probed: list[float] = []

    def probe(limit: float):
        probed.append(limit)
        return (Stage(0, 1, 0),)

    known: Found[Stage] = Found(4.0, 1.0, ())
    assert tighten(probe, lambda stages: None, known, 1.0, 4.0) == Found(4.0, 1.0, ())
    assert len(probed) == 1


def costs_of(seed: int, most_layers: int, density: float, *, memory: bool = False):
    rng = random.Random(seed)
    graph = pipedream_graphs.random_graph(rng, most_layers, density)
    network = pipedream_graphs.random_network(rng, rng.randint(1, 6), memory=memory)
    nodes = nodes_of(graph)
    states = downsets(nodes.before, nodes.after, 10**6)
    assert states is not None

    def costs(some):
        sums = state_sums(nodes, some.grown, some.tops)
        return level_costs(sums, network, all_sends=seed % 3 == 0)

    return nodes, states, costs, network.machines[0]


@pytest.mark.parametrize("seed", range(60))
def test_searching_level_by_level_is_searching_all_pairs(seed: int):
    _, states, costs, machines = costs_of(seed, 9, random.Random(seed).choice([0.1, 0.3, 0.7]))
    by_pairs = PairLoads(costs(states), nesting(states))
    by_levels = LevelProbe(states, by_pairs.costs, machines)
    for limit in np.geomspace(0.2, 60, 25).tolist():
        one, other = fewest_machines(by_pairs, limit, machines), by_levels(limit)
        assert (one is None) == (other is None)
        if other is not None:
            assert bottleneck(by_pairs, other) <= limit
            assert sum(by_pairs.machines[stage.choice] for stage in other) <= machines
            assert all(by_pairs.nested[stage.end, stage.start] for stage in other)


@pytest.mark.parametrize("seed", range(60))
def test_one_state_for_each_count_is_enough_along_an_order(seed: int):
    nodes, _, costs, machines = costs_of(seed, 12, 0.3, memory=seed % 2 == 0)
    along = prefixes(nodes.before, range(len(nodes.before)))
    by_pairs = PairLoads(costs(along), nesting(along))
    by_order = OrderProbe(by_pairs.costs, machines)
    for limit in np.geomspace(0.2, 60, 25).tolist():
        one, other = fewest_machines(by_pairs, limit, machines), by_order(limit)
        assert (one is None) == (other is None)
        if other is not None:
            assert bottleneck(by_pairs, other) <= limit * (1 + 1e-12)
            later = 0
            for stage in reversed(other):
                assert by_pairs.costs.fits(stage, later)
                later += by_pairs.machines[stage.choice]
            assert later <= machines


@pytest.mark.parametrize("seed", range(30))
def test_downsets_are_listed_once_each_with_their_covers(seed: int):
    rng = random.Random(seed)
    graph = pipedream_graphs.random_graph(rng, 7, rng.choice([0.0, 0.3, 0.8]))
    nodes = nodes_of(graph)
    states = downsets(nodes.before, nodes.after, 10**6)
    assert states is not None and states.covers is not None
    expected = {sum(1 << v for v in ahead) for ahead in pipedream_graphs.downsets(graph)}
    assert set(states.masks) == expected and len(states.masks) == len(expected)
    pairs = {(states.masks[a], states.masks[b]) for a, b in zip(*states.covers, strict=True)}
    assert pairs == {
        (a, b)
        for a, b in itertools.permutations(expected, 2)
        if a & b == a and (b - a).bit_count() == 1
    }
    inside = nesting(states)
    assert (nesting(states._replace(covers=None)) == inside).all()
    for end, start in itertools.product(range(len(expected)), repeat=2):
        a, b = states.masks[start], states.masks[end]
        assert inside[end, start] == (a & b == a and a != b)
    assert downsets(nodes.before, nodes.after, len(expected) - 1) is None


def own_load(problem, link: Link, load, replicas: int) -> float:
    """The load of solvers/replicated_stages.py, for one stage and in plain numbers."""
    m, own = problem.num_microbatches, math.ceil(problem.num_microbatches / replicas)
    busy = own * busy_time(load, problem.cluster, link, link)
    training = problem.training
    sharing = replicas if training.zero1 else 1
    moved = gradient_bytes(load, training)
    if training.zero1:
        moved = (moved + load.grad_bytes) / 2
    busy += load.update_time / sharing + all_reduce_time(link, moved, replicas)
    sends = own * (sum(traffic_times(load.received, link)) + sum(traffic_times(load.sent, link)))
    return max(busy, sends if problem.cluster.sends_overlap else 0.0) / m


def own_best(problem, link: Link) -> float:
    """The smallest bottleneck of all partitions and replicas that fit."""
    m, ranks = problem.num_microbatches, num_gpus(problem.cluster)
    best = math.inf
    for stages in range(1, min(len(problem.graph.layers), ranks) + 1):
        for partition in partitions(problem, stages):
            loads = stage_loads(problem.graph, partition)
            for counts in itertools.product(range(1, min(ranks, m) + 1), repeat=stages):
                if sum(counts) > ranks:
                    continue
                later, fits = 0, True
                for load, r in zip(reversed(loads), reversed(counts), strict=True):
                    own = math.ceil(m / r)
                    held = min(math.ceil(later / r) + 1, own)
                    if "1f1b" not in problem.demands.schedules:
                        held = own
                    fits &= total(memory(load, problem, r, held)) <= problem.cluster.memory_bytes
                    later += r
                if fits:
                    pairs = zip(loads, counts, strict=True)
                    best = min(best, max(own_load(problem, link, la, r) for la, r in pairs))
    return best


@pytest.mark.parametrize("seed", range(80))
def test_our_own_cost_model_gets_the_best_replicas_too(seed: int):
    rng = random.Random(seed)
    asked = random_problem(rng, branching=seed % 2 == 0, tight=seed % 3 == 0)
    if seed % 5 == 0:
        asked = problem(
            asked.graph,
            asked.num_microbatches,
            cluster=asked.cluster,
            demands=Demands(schedules=("gpipe",)),
        )
    one_node = asked.cluster.num_nodes == 1
    link = asked.cluster.intra_node if one_node else asked.cluster.inter_node
    best = own_best(asked, link)
    try:
        found = replicated_stages.solve(asked)
    except InfeasibleError:
        assert best == math.inf
        return
    assert found.complete
    assert found.bottleneck == found.lower_bound == pytest.approx(best, rel=1e-9)
    loads = stage_loads(asked.graph, found.partition)
    again = max(own_load(asked, link, la, r) for la, r in zip(loads, found.replicas, strict=True))
    assert again == pytest.approx(found.bottleneck, rel=1e-9)
    assert sum(found.replicas) <= num_gpus(asked.cluster)


def test_a_heavy_layer_gets_ranks_in_proportion():
    graph = chain_graph(layer("a"), layer("b", forward_time=7.0), layer("c"), num_bytes=0)
    asked = problem(graph, 12, cluster=cluster(gpus_per_node=5))
    found = replicated_stages.solve(asked)
    assert found.bottleneck == pytest.approx(3.0, rel=1e-6)
    assert sum(found.replicas) == 5


def test_too_little_memory_names_the_least_that_would_do():
    graph = chain_graph(layer("a", stash_bytes=100), layer("b", stash_bytes=60), num_bytes=0)
    tight = problem(graph, 4, cluster=cluster(gpus_per_node=2, memory_bytes=50))
    with pytest.raises(InfeasibleError, match="the least that would do is 160 B"):
        replicated_stages.solve(tight)
    enough = problem(graph, 4, cluster=cluster(gpus_per_node=2, memory_bytes=160))
    assert replicated_stages.solve(enough).bottleneck > 0


def test_cuts_that_are_not_all_are_said_to_be_so():
    graph = chain_graph(*(layer(f"l{i}") for i in range(4)))
    asked = problem(graph, 8)
    found = replicated_stages.solve(asked, all_cuts(graph), link=Link(bandwidth=1.0))
    assert found.complete
    some = all_cuts(graph)._replace(complete=False)
    assert not replicated_stages.solve(asked, some).complete
