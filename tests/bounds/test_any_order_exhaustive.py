"""Bounds under every order, against an exhaustive search that shares nothing with them."""

import itertools
import random
from collections.abc import Iterator

import numpy as np
import pytest

from autopart.bounds.any_order_partition import least_step
from autopart.bounds.any_order_paths import PathBounds
from autopart.bounds.any_order_problem import any_order_bound
from autopart.cost.cuts import all_cuts
from autopart.records.cluster import Link
from autopart.records.layouts import Layout
from autopart.records.problem import Demands, Problem
from autopart.solvers.orders.of_layout import order_problem
from tests.support.exhaustive_orders import TinyStage, shortest_step
from tests.support.problems import chain_graph, cluster, layer, problem

SIZES = [
    (2, 2, 2),
    (2, 2, 3),
    (2, 2, 4),
    (3, 2, 2),
    (3, 3, 2),
]
"""Stages, ranks and microbatches that are small enough to try all orders."""

QUICK_SEEDS, SLOW_SEEDS, SEEDS, LARGEST = 3, 6, 20, (3, 3, 2)

LONGEST = (4, (2, 2, 4))
"""The seed and size with the most orders: they take some four minutes."""


def cases() -> Iterator[object]:
    """Seeds and sizes, marked by their time."""
    for seed, size in itertools.product(range(SEEDS), SIZES):
        marks = () if seed < QUICK_SEEDS and size != LARGEST else pytest.mark.slow
        if (seed, size) == LONGEST or seed >= SLOW_SEEDS:
            marks = pytest.mark.long
        yield pytest.param(seed, size, marks=marks)


def tiny(
    rng: random.Random, count: int, num_ranks: int, microbatches: int
) -> tuple[list[TinyStage], Problem]:
    """Stages with one layer each, and the same problem with one replica."""
    send = rng.choice([0.0, 1.0, 2.0])
    stages = [
        TinyStage(rng.randint(0, 3), rng.randint(0, 3), rng.randint(0, 2), send, send)
        for _ in range(count)
    ]
    layers = (
        layer(
            f"l{i}", forward_time=s.forward, input_grad_time=s.gradient, weight_grad_time=s.weights
        )
        for i, s in enumerate(stages)
    )
    link = Link(bandwidth=1e18, latency=send)
    machine = cluster(1, num_ranks, intra_node=link, inter_node=link)
    demands = Demands(num_stages=count, num_replicas=1)
    return stages, problem(chain_graph(*layers), microbatches, cluster=machine, demands=demands)


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(("seed", "size"), list(cases()))
def test_no_order_beats_the_bounds_of_its_partition_and_of_its_problem(
    seed: int, size: tuple[int, int, int]
) -> None:
    check_bounds(seed, *size)


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_no_order_of_three_microbatches_on_three_stages_beats_the_bounds() -> None:
    # Trying all orders takes more than a minute here.
    check_bounds(5, 3, 2, 3)


def check_bounds(seed: int, count: int, num_ranks: int, microbatches: int) -> None:
    """No bound lies above the shortest step of all orders, on any ranks."""
    rng = random.Random(seed)
    stages, asked = tiny(rng, count, num_ranks, microbatches)
    cuts, steps = all_cuts(asked.graph), list[float]()
    for ranks in itertools.product(range(num_ranks), repeat=count):
        if list(dict.fromkeys(ranks)) != sorted(set(ranks)):
            continue  # Ranks are alike.
        best = shortest_step(stages, ranks, microbatches)
        placed = tuple((rank,) for rank in ranks)
        layout = Layout(schedule="custom", stage_ranks=placed, num_microbatches=microbatches)
        paths = np.arange(count + 1)[None, :]
        bound = PathBounds(asked, layout, cuts, split=True).of_groups(paths).max()
        partition = tuple((at,) for at in range(count))
        task = order_problem(asked, layout, partition, split=True)
        assert bound <= best * (1 + 1e-9)
        assert least_step(task) <= best * (1 + 1e-9)
        steps.append(best)
    assert any_order_bound(asked) <= min(steps) * (1 + 1e-9)


@pytest.mark.slow
def test_the_exhaustive_search_finds_the_step_of_1f1b_on_equal_stages() -> None:
    stages = [TinyStage(1.0, 2.0, 0.0)] * 2
    assert shortest_step(stages, (0, 1), 3) == 3 * 3 + 3
