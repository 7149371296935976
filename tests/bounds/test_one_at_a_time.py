"""The bound under GEMS, against every partition of random chains."""

import itertools
import random

import pytest

from autopart.bounds.of_layout import layout_bounds
from autopart.cost.cuts import all_cuts
from autopart.pricing import price
from autopart.records.layouts import Layout
from autopart.records.problem import Problem
from autopart.schedules.placements import mirrored
from tests.support.problems import chain_graph, cluster, layer, problem, random_graph
from tests.support.seeds import seeds


def gems_on(asked: Problem, pairs: list[range]) -> Layout:
    return Layout(
        schedule="gems", stage_ranks=mirrored(pairs), num_microbatches=asked.num_microbatches
    )


def bounds_and_steps(asked: Problem, layout: Layout) -> list[tuple[float, float]]:
    """For every partition of a chain the bound of its last stage, and its step."""
    count, stages = len(asked.graph.layers), len(layout.stage_ranks)
    last = layout_bounds(asked, layout, all_cuts(asked.graph)).stages[-1]
    found: list[tuple[float, float]] = []
    for ends in itertools.combinations(range(1, count), stages - 1):
        edges = (0, *ends, count)
        partition = tuple(tuple(range(a, b)) for a, b in itertools.pairwise(edges))
        step = price(asked, layout, partition).prediction.step_time
        found.append((float(last[ends[-1], count]), step))
    return found


@pytest.mark.parametrize("microbatches", [2, 4, 10])
def test_equal_stages_take_nearly_as_long_as_the_bound_says(microbatches: int):
    graph = chain_graph(*(layer(f"l{at}") for at in range(4)))
    asked = problem(graph, microbatches, cluster=cluster(1, 4))
    ((bound, step),) = bounds_and_steps(asked, gems_on(asked, [range(4)]))
    assert 0.97 * step <= bound <= step * (1 + 1e-9)


@pytest.mark.parametrize("seed", seeds(10, 60))
def test_no_partition_of_a_chain_is_faster_than_the_bound(seed: int):
    rng = random.Random(seed)
    graph = random_graph(rng, 6, branching=False)
    pairs = rng.choice([[range(2)], [range(4)], [range(2), range(2, 4)]])
    asked = problem(graph, 4 * rng.randint(1, 3), cluster=cluster(1, 4))
    ratios = [bound / step for bound, step in bounds_and_steps(asked, gems_on(asked, pairs))]
    # No rank of a pipeline has more than a part of the work, so bounds of single ranks are far lower.
    assert 0.6 < max(ratios) <= 1 + 1e-9
