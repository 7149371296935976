"""Partitions for own orders, against all partitions of small problems."""

import random

import pytest

from autopart.cost.cuts import all_cuts, partition_of
from autopart.records.layouts import Layout
from autopart.schedules.placements import loop, wave
from autopart.solvers.own_partitions import best_paths, near_paths
from tests.bounds.test_any_order_paths import bounds_of
from tests.support.oracle import partitions
from tests.support.problems import chain_graph, cluster, layer, problem
from tests.support.seeds import seeds


@pytest.mark.parametrize("seed", seeds(6, 40))
def test_the_first_path_has_the_smallest_bound_of_all_partitions(seed: int) -> None:
    rng = random.Random(seed)
    count = rng.randint(4, 8)
    layers = (
        layer(f"l{i}", forward_time=rng.uniform(0, 2), input_grad_time=rng.uniform(0, 2))
        for i in range(count)
    )
    asked = problem(chain_graph(*layers, num_bytes=0), 6, cluster=cluster(1, 2))
    placement = rng.choice([loop, wave])(2, 2)
    ranks = tuple((rank,) for rank in placement)
    layout = Layout(schedule="custom", stage_ranks=ranks, num_microbatches=6)
    every = list(partitions(asked, 4))
    least = min(bounds_of(asked, layout, every, split=True))
    found = best_paths(asked, layout, all_cuts(asked.graph), most=3)
    assert found[0][0] == pytest.approx(least)
    assert [bound for bound, _ in found] == sorted(bound for bound, _ in found)
    for bound, path in found:
        partition = partition_of(all_cuts(asked.graph), path)
        assert bounds_of(asked, layout, [partition], split=True) == [pytest.approx(bound)]


def test_more_stages_than_layers_have_no_path() -> None:
    asked = problem(chain_graph(layer("a"), layer("b")), 4)
    layout = Layout(schedule="custom", stage_ranks=((0,), (1,), (0,)), num_microbatches=4)
    assert best_paths(asked, layout, all_cuts(asked.graph), most=3) == []


def test_neighbours_move_one_cut_or_several_in_a_row() -> None:
    cuts = all_cuts(chain_graph(*(layer(f"l{i}") for i in range(5))))
    near = set(near_paths(cuts, (0, 1, 3, 5)))
    assert near == {(0, 2, 3, 5), (0, 1, 2, 5), (0, 1, 4, 5), (0, 2, 4, 5)}
