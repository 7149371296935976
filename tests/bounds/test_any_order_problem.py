"""The bound over every order for a whole problem, against all orders of tiny problems."""

import itertools
import random
from collections.abc import Iterator

import pytest

from autopart.bounds.any_order_problem import any_order_bound
from autopart.bounds.any_order_shapes import any_order_shape_bound, any_order_shape_bounds
from autopart.records.cluster import Link, num_gpus
from autopart.records.layouts import Layout, StageRanks
from autopart.records.problem import Demands, Problem
from autopart.solvers.orders.of_layout import order_problem
from tests.support.oracle import partitions
from tests.support.orders_oracle import best_step
from tests.support.problems import chain_graph, cluster, layer, problem, random_graph
from tests.support.seeds import seeds


def tiny_problem(rng: random.Random) -> Problem:
    """Up to three layers on two GPUs, on one node or two, with two microbatches."""
    graph = random_graph(rng, rng.randint(1, 3), branching=rng.random() < 0.4)
    nodes = rng.choice([1, 2])
    return problem(
        graph,
        num_microbatches=2,
        cluster=cluster(
            nodes,
            2 // nodes,
            intra_node=Link(
                bandwidth=rng.choice([50.0, 1000.0]), all_reduce_factor=rng.choice([1.0, 0.5])
            ),
            inter_node=Link(bandwidth=rng.choice([20.0, 500.0]), latency=rng.choice([0.0, 0.2])),
            action_overhead=rng.choice([0.0, 0.1]),
            sends_overlap=rng.random() < 0.5,
        ),
    )


def every_placement(asked: Problem) -> Iterator[tuple[int, StageRanks]]:
    """Each number of stages with each rank for each stage, and with all GPUs for each stage."""
    gpus = num_gpus(asked.cluster)
    for k in range(1, len(asked.graph.layers) + 1):
        for ranks in itertools.product(range(gpus), repeat=k):
            yield k, tuple((rank,) for rank in ranks)
        if asked.num_microbatches % gpus == 0:
            yield k, (tuple(range(gpus)),) * k


def shortest_step(asked: Problem, *, most_actions: int) -> float:
    """The shortest step over all placements, partitions and orders of few actions."""
    steps = [float("inf")]
    for k, ranks in every_placement(asked):
        for split in (False, True):
            if k * asked.num_microbatches * (3 if split else 2) > most_actions:
                continue
            layout = Layout(
                schedule="custom", stage_ranks=ranks, num_microbatches=asked.num_microbatches
            )
            for partition in partitions(asked, k):
                task = order_problem(asked, layout, partition, split=split)
                found = best_step(task, split=split)
                steps += [found] if found is not None else []
    return min(steps)


@pytest.mark.parametrize("seed", seeds(6, 60))
def test_no_order_on_any_placement_is_faster_than_the_bound(seed: int) -> None:
    asked = tiny_problem(random.Random(seed))
    assert any_order_bound(asked) <= shortest_step(asked, most_actions=9) * (1 + 1e-9)


def test_ranks_that_start_late_and_updates_raise_the_mean_over_all_ranks() -> None:
    graph = chain_graph(*(layer(f"l{i}", update_time=0.5) for i in range(8)), num_bytes=0)
    asked = problem(graph, 8)
    # Four ranks have 8 x 24 s of work and 4 s of updates. They start after 0, 1, 2 and 3 s.
    assert any_order_shape_bounds(asked, [(4, 1)], split=True)[4, 1] == (192 + 4 + 6) / 4
    assert any_order_bound(asked) == 50.5


def test_six_equal_layers_on_four_ranks_leave_two_on_one_rank() -> None:
    asked = problem(chain_graph(*(layer(f"l{i}") for i in range(6)), num_bytes=0), 8)
    # The ranks start after 0, 1, 2 and 3 s at least, so the first two take two layers each.
    assert any_order_shape_bound(asked, (4, 1), split=True) == pytest.approx(1 + 8 * 6)


def test_gradients_return_to_the_first_stage_after_the_last_work_of_deep_ranks() -> None:
    graph = chain_graph(*(layer(f"l{i}", weight_grad_time=0.0) for i in range(4)), num_bytes=0)
    asked = problem(graph, 8)
    # The last of four ranks waits for 3 s, works for 16 s, and its gradients need 3 s more.
    assert any_order_shape_bound(asked, (4, 1), split=True) == pytest.approx(22)


def test_each_rank_further_down_a_chain_waits_for_one_more_send() -> None:
    links = Link(bandwidth=8.0), Link(bandwidth=8.0)
    machine = cluster(1, 4, intra_node=links[0], inter_node=links[1])
    graph = chain_graph(*(layer(f"l{i}", weight_grad_time=0.0) for i in range(4)))
    asked = problem(graph, 8, cluster=machine)
    assert any_order_shape_bound(asked, (4, 1), split=True) == pytest.approx(22 + 3 + 3)


def test_a_named_number_of_stages_limits_the_ranks() -> None:
    graph = chain_graph(*(layer(f"l{i}") for i in range(4)), num_bytes=0)
    demands = Demands(num_stages=2, num_replicas=1)
    asked = problem(graph, 8, demands=demands)
    # Two layers on each of two ranks, and one of them starts after 1 s.
    assert any_order_bound(asked) == pytest.approx(48 + 1)


def test_stages_with_replicas_of_their_own_share_all_gpus() -> None:
    graph = chain_graph(*(layer(f"l{i}") for i in range(4)), num_bytes=0)
    asked = problem(graph, 8, demands=Demands(replicas_per_stage=True))
    assert any_order_bound(asked) == 24
