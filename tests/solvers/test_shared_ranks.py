import random

import pytest

from autopart.cost.cuts import all_cuts, partition_of
from autopart.errors import InfeasibleError
from autopart.pricing import most_bytes, price
from autopart.records.layouts import Layout, has_virtual_stages, layouts
from autopart.records.problem import Demands, Problem
from autopart.search.planner import solve
from autopart.solvers.shared_ranks import leanest_path
from tests.support.oracle import partitions
from tests.support.problems import cluster, problem, profile, random_graph
from tests.support.seeds import seeds

SCHEDULES = ("interleaved-1f1b", "looped-bfs", "zbv", "v-min", "interleaved-zb")


@pytest.mark.parametrize("seed", seeds(quick=12, total=80))
def test_no_partition_has_fewer_bytes_on_its_fullest_rank(seed: int):
    rng = random.Random(seed)
    graph = random_graph(rng, rng.randint(4, 6), branching=rng.random() < 0.4)
    asked = problem(
        graph, cluster=cluster(1, 2), demands=Demands(schedules=(rng.choice(SCHEDULES),))
    )
    for layout in filter(has_virtual_stages, layouts(asked, 2, 1)):
        path = leanest_path(asked, layout, all_cuts(graph))
        every = [_bytes(asked, layout, one) for one in partitions(asked, len(layout.stage_ranks))]
        assert (path is None) == (not every)
        if path is not None:
            assert _bytes(asked, layout, partition_of(all_cuts(graph), path)) == min(every)


def _bytes(asked: Problem, layout: Layout, partition: tuple[tuple[int, ...], ...]) -> int:
    return most_bytes(price(asked, layout, partition))


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(quick=6, total=40))
def test_a_plan_is_found_with_the_least_memory_and_with_no_byte_less(seed: int):
    rng = random.Random(seed)
    graph = random_graph(rng, rng.randint(4, 6), branching=False)
    name = rng.choice(SCHEDULES)
    asked = problem(graph, cluster=cluster(1, 2), demands=Demands(schedules=(name,)))
    least = min(
        _bytes(asked, layout, partition)
        for layout in filter(has_virtual_stages, layouts(asked, 2, 1))
        for partition in partitions(asked, len(layout.stage_ranks))
    )
    words = {"num_microbatches": 4, "schedule": name, "num_replicas": 1}
    enough = cluster(1, 2, memory_bytes=least)
    found = solve(profile(graph), enough, **words)  # pyright: ignore
    assert max(found.prediction.rank_peak_bytes) == least
    too_small = cluster(1, 2, memory_bytes=least - 1)
    with pytest.raises(InfeasibleError) as error:
        solve(profile(graph), too_small, **words)  # pyright: ignore
    assert error.value.least_bytes == least
