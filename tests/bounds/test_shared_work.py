import random

import msgspec
import pytest

from autopart.bounds.shared_work import cheapest_cut, shared_work_bounds
from autopart.records.cluster import Link
from autopart.records.layouts import layouts, shapes
from autopart.schedules.actions import microbatches_per_replica
from tests.support.oracle import layout_stages, partitions, step_time
from tests.support.problems import chain_graph, cluster, layer, problem, random_problem
from tests.support.seeds import seeds


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("num_stages", [1, 2, 4, 8])
def test_equal_stages_attain_the_bound_of_all_stages_together(schedule: str, num_stages: int):
    graph = chain_graph(*(layer(f"l{i}") for i in range(8)), num_bytes=0)
    asked = problem(graph, 16, cluster=cluster(1, 8))
    bound = shared_work_bounds(asked, schedule, [(num_stages, 16)])
    expected = 24 * (16 + num_stages - 1) / num_stages
    assert bound.tolist() == pytest.approx([expected], rel=1e-11)


@pytest.mark.parametrize("seed", seeds(13, 300))
def test_no_plan_is_faster_than_the_bound_of_all_stages_together(seed: int):
    rng = random.Random(90_000 + seed)
    asked = random_problem(rng, branching=rng.random() < 0.3, tight=False)
    more = asked.num_microbatches * rng.choice([1, 2, 4])
    asked = msgspec.structs.replace(asked, num_microbatches=more)
    for shape in shapes(asked):
        own = microbatches_per_replica(more, shape[1])
        for layout in layouts(asked, *shape):
            bound = float(shared_work_bounds(asked, layout.schedule, [(shape[0], own)])[0])
            steps = [
                step_time(asked, layout, partition)
                for partition in partitions(asked, layout_stages(layout))
            ]
            assert all(step is None or bound <= step * (1 + 1e-9) for step in steps)


def test_more_microbatches_or_fewer_stages_never_lower_the_bound():
    asked = problem(chain_graph(*(layer(f"l{i}") for i in range(6))), 8, cluster=cluster(1, 6))
    for schedule in ("gpipe", "1f1b"):
        pairs = [(k, m) for k in range(1, 7) for m in range(1, 12)]
        found = shared_work_bounds(asked, schedule, pairs).tolist()
        bounds = dict(zip(pairs, found, strict=True))
        assert all(bounds[k, m] <= bounds[k, m + 1] for k, m in pairs if m < 11)


def test_the_cheapest_cut_takes_the_better_link_and_needs_a_connected_graph():
    graph = chain_graph(layer("a"), layer("b"), layer("c"), num_bytes=40)
    links = {
        "intra_node": Link(bandwidth=10.0, latency=1.0),
        "inter_node": Link(bandwidth=20.0, latency=0.5),
    }
    machines = {nodes: cluster(nodes, 2, **links) for nodes in (1, 2)}
    # There and back, each with its latency.
    assert cheapest_cut(graph, machines[1]) == 2 * (1.0 + 4.0)
    assert cheapest_cut(graph, machines[2]) == 2 * (0.5 + 2.0)
    apart = msgspec.structs.replace(graph, values=graph.values[:1])
    assert cheapest_cut(apart, machines[1]) == 0.0
