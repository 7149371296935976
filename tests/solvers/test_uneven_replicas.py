"""A number of replicas for each stage, against trying everything."""

import dataclasses
import itertools
import math
import random

import pytest

from autopart.cost.cuts import all_cuts, stage_totals
from autopart.cost.memory import memory, total
from autopart.cost.stage_times import busy_time, traffic_times
from autopart.cost.stage_totals import StageTotals
from autopart.cost.syncs import all_reduce_time, gradient_bytes
from autopart.errors import InfeasibleError
from autopart.records.cluster import Link, num_gpus
from autopart.records.layouts import Partition
from autopart.records.problem import Demands
from autopart.solvers import uneven_replicas
from tests.support.oracle import partitions
from tests.support.problems import chain_graph, cluster, layer, problem, random_problem
from tests.support.seeds import seeds


def alone(problem, partition: Partition) -> list[StageTotals]:
    """Each stage's totals without parameters that other stages have too: all holders sum these."""
    found: list[StageTotals] = []
    names = [{problem.graph.layers[place].name for place in stage} for stage in partition]
    for own, totals in zip(names, stage_totals(problem.graph, partition), strict=True):
        for tied in problem.graph.tied:
            if own & set(tied.layers) and not set(tied.layers) <= own:
                totals = totals._replace(
                    grad_bytes=totals.grad_bytes - tied.grad_bytes,
                    num_trainable=totals.num_trainable - tied.num_trainable,
                )
        found.append(totals)
    return found


def own_seconds(problem, link: Link, totals, synced, replicas: int) -> float:
    """Seconds of one stage as in solvers/uneven_replicas.py, in plain numbers.

    Its own sync has the parameters in `synced`.
    """
    m, own = problem.num_microbatches, math.ceil(problem.num_microbatches / replicas)
    busy = own * busy_time(totals, problem.cluster, link, link)
    training = problem.training
    sharing = replicas if training.zero1 else 1
    moved = gradient_bytes(synced, training)
    if training.zero1:
        moved = (moved + synced.grad_bytes) / 2
    busy += totals.update_time / sharing + all_reduce_time(link, moved, replicas)
    sends = own * (
        sum(traffic_times(totals.received, link)) + sum(traffic_times(totals.sent, link))
    )
    return max(busy, sends if problem.cluster.sends_overlap else 0.0) / m


def own_best(problem, link: Link) -> float:
    """The smallest bottleneck over all partitions and replicas that fit."""
    m, ranks = problem.num_microbatches, num_gpus(problem.cluster)
    best = math.inf
    for stages in range(1, min(len(problem.graph.layers), ranks) + 1):
        for partition in partitions(problem, stages):
            stages_totals = stage_totals(problem.graph, partition)
            synced = alone(problem, partition)
            for counts in itertools.product(range(1, min(ranks, m) + 1), repeat=stages):
                if sum(counts) > ranks:
                    continue
                later, fits = 0, True
                for totals, r in zip(reversed(stages_totals), reversed(counts), strict=True):
                    own = math.ceil(m / r)
                    in_flight = min(math.ceil(later / r) + 1, own)
                    if "1f1b" not in problem.demands.schedules:
                        in_flight = own
                    fits &= (
                        total(memory(totals, problem, r, in_flight)) <= problem.cluster.memory_bytes
                    )
                    later += r
                if fits:
                    each = zip(stages_totals, synced, counts, strict=True)
                    best = min(best, max(own_seconds(problem, link, *one) for one in each))
    return best


@pytest.mark.parametrize("seed", seeds(26, 80))
def test_the_bottleneck_and_its_bound_equal_trying_everything(seed: int):
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
        found = uneven_replicas.solve(asked)
    except InfeasibleError:
        assert best == math.inf
        return
    assert found.complete
    assert found.bottleneck == found.lower_bound == pytest.approx(best, rel=1e-9)
    found_totals = stage_totals(asked.graph, found.partition)
    again = max(
        own_seconds(asked, link, *one)
        for one in zip(found_totals, alone(asked, found.partition), found.replicas, strict=True)
    )
    assert again == pytest.approx(found.bottleneck, rel=1e-9)
    assert sum(found.replicas) <= num_gpus(asked.cluster)


def test_a_heavy_layer_gets_ranks_in_proportion_to_its_time():
    graph = chain_graph(layer("a"), layer("b", forward_time=7.0), layer("c"), num_bytes=0)
    asked = problem(graph, 12, cluster=cluster(gpus_per_node=5))
    found = uneven_replicas.solve(asked)
    assert found.bottleneck == pytest.approx(3.0, rel=1e-6)
    assert sum(found.replicas) == 5


def test_the_infeasible_message_names_the_least_memory_and_it_suffices():
    graph = chain_graph(layer("a", stash_bytes=100), layer("b", stash_bytes=60), num_bytes=0)
    tight = problem(graph, 4, cluster=cluster(gpus_per_node=2, memory_bytes=50))
    with pytest.raises(InfeasibleError, match="the least that would do is 160 B"):
        uneven_replicas.solve(tight)
    enough = problem(graph, 4, cluster=cluster(gpus_per_node=2, memory_bytes=160))
    assert uneven_replicas.solve(enough).bottleneck > 0


def test_an_incomplete_list_of_cuts_gives_an_incomplete_answer():
    graph = chain_graph(*(layer(f"l{i}") for i in range(4)))
    asked = problem(graph, 8)
    found = uneven_replicas.solve(asked, all_cuts(graph), link=Link(bandwidth=1.0))
    assert found.complete
    some = dataclasses.replace(all_cuts(graph), complete=False)
    assert not uneven_replicas.solve(asked, some).complete
