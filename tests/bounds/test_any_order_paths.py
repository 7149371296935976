"""Bounds under every order for partitions side by side, against orders from the search and all orders."""

import itertools
import random

import numpy as np
import pytest

from autopart.bounds.any_order_partition import least_step
from autopart.bounds.any_order_paths import PathBounds
from autopart.cost.cuts import Cuts, all_cuts
from autopart.errors import InfeasibleError
from autopart.records.layouts import Layout, Partition
from autopart.solvers.orders.of_layout import order_problem, orders_of_layout
from tests.bounds.test_any_order_stages import some_layouts
from tests.support.oracle import layout_stages, partitions
from tests.support.orders_oracle import best_step
from tests.support.problems import chain_graph, layer, problem, random_problem
from tests.support.seeds import seeds


def path_of(cuts: Cuts, partition: Partition) -> tuple[int, ...]:
    """The cuts between the stages of a partition."""
    ahead, path = np.zeros(cuts.ahead.shape[1], dtype=bool), [0]
    for members in partition:
        ahead[list(members)] = True
        path.append(int(np.flatnonzero((cuts.ahead == ahead).all(axis=1))[0]))
    return tuple(path)


def bounds_of(asked, layout: Layout, some: list[Partition], *, split: bool) -> list[float]:
    """The bound of each partition."""
    cuts = all_cuts(asked.graph)
    paths = np.array([path_of(cuts, partition) for partition in some])
    found = PathBounds(asked, layout, cuts, split=split).of_groups(paths)
    return found.max(axis=1).tolist()


@pytest.mark.parametrize("seed", seeds(20, 60))
def test_no_order_is_faster_than_the_bound_of_its_partition(seed: int) -> None:
    rng = random.Random(4000 + seed)
    asked = random_problem(rng, branching=rng.random() < 0.4, tight=rng.random() < 0.6)
    split = rng.random() < 0.5
    for _, layout in some_layouts(asked, rng):
        some = list(itertools.islice(partitions(asked, layout_stages(layout)), 4))
        for partition, bound in zip(some, bounds_of(asked, layout, some, split=split), strict=True):
            try:
                found = orders_of_layout(asked, layout, partition, split=split, actions=6_000)
            except InfeasibleError:
                continue
            assert bound <= found.step_time * (1 + 1e-9)


@pytest.mark.parametrize("seed", seeds(8, 60))
def test_no_order_of_all_is_faster_than_the_bound_on_two_ranks(seed: int) -> None:
    rng = random.Random(5000 + seed)
    asked = random_problem(rng, branching=False, tight=rng.random() < 0.5)
    ranks = rng.choice([((0,), (1,)), ((0,), (1,), (0,)), ((0,), (1,), (1,))])
    if len(asked.graph.layers) < len(ranks) or asked.cluster.gpus_per_node < 2:
        pytest.skip("too small for this placement")
    layout = Layout(schedule="custom", stage_ranks=ranks, num_microbatches=2)
    split = len(ranks) == 2
    some = list(itertools.islice(partitions(asked, len(ranks)), 3))
    for partition, bound in zip(some, bounds_of(asked, layout, some, split=split), strict=True):
        best = best_step(order_problem(asked, layout, partition, split=split), split=split)
        assert best is None or bound <= best * (1 + 1e-9)


@pytest.mark.parametrize("placement", [(0, 1, 2, 3), (0, 1, 0, 1), (0, 1, 1, 0)])
def test_the_bound_of_one_partition_is_the_largest_bound_of_its_ranks(
    placement: tuple[int, ...],
) -> None:
    asked = problem(chain_graph(*(layer(f"l{i}") for i in range(4))), 8)
    ranks = tuple((rank,) for rank in placement)
    layout = Layout(schedule="custom", stage_ranks=ranks, num_microbatches=8)
    partition = tuple((at,) for at in range(4))
    task = order_problem(asked, layout, partition, split=True)
    assert bounds_of(asked, layout, [partition], split=True) == [pytest.approx(least_step(task))]


def test_a_rank_with_a_free_first_stage_waits_for_its_second_one() -> None:
    # The rank's first layer is free, its second one waits for the other rank: 1 s, and then 8 x 3 s.
    free = layer("a", forward_time=0.0, input_grad_time=0.0, weight_grad_time=0.0)
    graph = chain_graph(free, layer("b"), layer("c"), num_bytes=0)
    layout = Layout(schedule="custom", stage_ranks=((0,), (1,), (0,)), num_microbatches=8)
    found = bounds_of(problem(graph, 8), layout, [((0,), (1,), (2,))], split=True)
    assert found == [pytest.approx(25.0)]
