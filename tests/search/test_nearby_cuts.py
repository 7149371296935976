"""Cuts near a partition's own make better plans where a graph has too many cuts to list."""

import itertools
import random
from unittest import mock

import numpy as np
import pytest

from autopart import Plan, solve
from autopart.cost.cuts import all_cuts, partition_of
from autopart.pricing import price
from autopart.records.layer_graph import LayerGraph, edges
from autopart.records.layouts import layouts
from autopart.records.problem import Problem
from autopart.search import every_assignment, nearby_cuts
from tests.support.problems import cluster, layer, profile, random_graph, value
from tests.support.seeds import seeds


def branches(seed: int) -> LayerGraph:
    """Five branches of three layers between a first and a last layer, with random seconds."""
    rng = random.Random(seed)
    rows = [[f"b{branch}.{at}" for at in range(3)] for branch in range(5)]
    names = ["first", *(name for row in rows for name in row), "last"]
    layers = tuple(
        layer(name, forward_time=rng.uniform(0.5, 1.5), input_grad_time=1.0, weight_grad_time=0.5)
        for name in names
    )
    values = [value("first", *(row[0] for row in rows))]
    values += [value(a, b) for row in rows for a, b in itertools.pairwise([*row, "last"])]
    return LayerGraph(layers=layers, values=tuple(values))


def best_step(graph: LayerGraph, plan: Plan) -> float:
    """The shortest step of all partitions in two stages."""
    asked = Problem(
        graph=graph,
        cluster=plan.cluster,
        microbatch_size=1,
        num_microbatches=8,
        demands=plan.demands,
    )
    (layout,) = layouts(asked, 2, 1)
    cuts = all_cuts(graph, 2000)
    assert cuts.complete
    last = len(cuts.ahead) - 1
    return min(
        price(asked, layout, partition_of(cuts, (0, at, last))).prediction.step_time
        for at in range(1, last)
    )


@pytest.mark.parametrize("seed", seeds(1, 12))
def test_the_best_of_all_cuts_is_nearly_found(seed: int):
    graph = branches(seed)

    def solved() -> Plan:
        given = profile(graph)
        return solve(
            given, cluster(1, 2), num_microbatches=8, num_stages=2, schedule="1f1b", solver="dp"
        )

    plan = solved()
    with mock.patch.object(every_assignment, "improve_nearby"):
        before = solved()
    best = best_step(graph, plan)
    assert plan.prediction.step_time == pytest.approx(best, rel=3e-3)
    assert plan.prediction.step_time < before.prediction.step_time


@pytest.mark.parametrize("seed", seeds(10, 60))
def test_near_cuts_are_downsets_and_few_and_have_the_partition(seed: int):
    rng = random.Random(seed)
    graph = random_graph(rng, rng.randint(4, 9), branching=True)
    n = len(graph.layers)
    at = sorted(rng.sample(range(1, n), 2))
    partition = tuple(tuple(range(a, b)) for a, b in zip([0, *at], [*at, n], strict=True))
    with mock.patch.object(nearby_cuts, "MOST_LISTED", 8):
        cuts = nearby_cuts._cuts_near(graph, partition)  # pyright: ignore
    assert len(cuts.ahead) <= 8 + 4 and not cuts.complete
    rows = [tuple(row) for row in cuts.ahead.tolist()]
    assert len(set(rows)) == len(rows)
    assert (np.diff(cuts.ahead.sum(axis=1)) >= 0).all()
    for size in (0, *at, n):
        assert tuple(place < size for place in range(n)) in rows
    for row in rows:
        assert all(row[u] or not row[w] for u, w in edges(graph))
