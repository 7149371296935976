"""Bounds of a shape: the fullest stage against every way to share layers out."""

import itertools
import random

import pytest

from autopart.bounds.of_shape import classic_shape_bounds, fullest_stage
from autopart.bounds.shared_work import shared_work_bounds
from tests.support.problems import chain_graph, cluster, layer, problem


def test_some_stage_has_as_much_work_however_layers_are_shared_out():
    rng = random.Random(5)
    attained = 0
    for _ in range(200):
        work = sorted(
            (rng.choice([0.0, 1.0, 1.0, 2.5]) for _ in range(rng.randint(1, 6))), reverse=True
        )
        k = rng.randint(1, 4)
        least = min(
            max(sum(w for w, own in zip(work, places, strict=True) if own == at) for at in range(k))
            for places in itertools.product(range(k), repeat=len(work))
        )
        assert fullest_stage(work, k) <= least
        attained += fullest_stage(work, k) == least
    assert attained > 100


@pytest.mark.parametrize(("num_layers", "most"), [(8, 1), (9, 2), (16, 2), (17, 3)])
def test_equal_layers_that_stages_do_not_divide_bound_the_shape(num_layers: int, most: int):
    graph = chain_graph(*(layer(f"l{i}") for i in range(num_layers)), num_bytes=0)
    asked = problem(graph, 64, cluster=cluster(1, 8))
    (own,) = {la.forward_time + la.input_grad_time + la.weight_grad_time for la in graph.layers}
    bound = classic_shape_bounds(asked, [(8, 1)])[8, 1]
    assert bound is not None and bound >= num_layers * own + (64 - 8) * most * own
    together = float(shared_work_bounds(asked, "1f1b", [(8, 64)])[0])
    assert (bound > 1.2 * together) == (num_layers % 8 != 0)
