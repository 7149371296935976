"""A microbatch's path over all cuts, along one partition, and on any ranks."""

import itertools
import random

import pytest

from autopart.bounds.microbatch_path import LayoutPaths, path_on_any_ranks, paths_along
from autopart.cost.cuts import all_cuts
from autopart.cost.on_ranks import on_ranks
from autopart.cost.stage_times import cut_links
from autopart.pricing import predict
from autopart.records.layouts import layouts, shapes
from autopart.records.problem import Problem
from tests.bounds.test_classic_schedules import path_of
from tests.support.oracle import layout_stages, partitions
from tests.support.problems import chain_graph, cluster, layer, problem, random_problem
from tests.support.seeds import seeds

EXACT = ("forward", "backward", "receive", "send", "receive_back", "send_back")
COMPUTE = ("compute_before", "compute_beyond", "compute_after")
SENDS = ("sends_before", "sends_beyond", "sends_after")


def at(matrix: object, i: int, j: int) -> float:
    """Entry [i, j] of a matrix that may still need broadcasting."""
    rows, columns = matrix.shape  # pyright: ignore
    return matrix[min(i, rows - 1), min(j, columns - 1)]  # pyright: ignore


def drawn(seed: int, branching: bool) -> Problem:
    return random_problem(random.Random(seed), branching=branching, tight=False)


@pytest.mark.parametrize("seed", seeds(20, 60))
def test_a_path_over_all_cuts_agrees_with_each_partition_and_has_no_more_sends(seed: int):
    asked = drawn(seed, branching=seed % 2 == 0)
    cuts = all_cuts(asked.graph)
    for shape in shapes(asked):
        layout = layouts(asked, *shape)[-1]
        links = cut_links(asked.cluster, layout.stage_ranks)
        over_cuts = LayoutPaths(asked, layout, cuts, links)
        for partition in itertools.islice(partitions(asked, layout_stages(layout)), 5):
            stages, _ = predict(asked, layout, partition)
            o = asked.cluster.action_overhead
            along = paths_along(
                [stage.forward_time + o for stage in stages],
                [stage.backward_time + o for stage in stages],
                [stage.send_time for stage in stages[:-1]],
                [stage.send_back_time for stage in stages[1:]],
            )
            path = path_of(cuts, partition)
            for stage, (i, j) in enumerate(itertools.pairwise(path)):
                totals = on_ranks(cuts.totals, asked, layout, stage)
                found = over_cuts.around(stage, totals)
                any_place = path_on_any_ranks(asked, cuts, totals)
                for name in EXACT:
                    exact = getattr(along[stage], name)
                    assert at(getattr(found, name), i, j) == pytest.approx(exact, abs=1e-12)
                    assert at(getattr(any_place, name), i, j) <= exact + 1e-12
                for name in COMPUTE:
                    exact = getattr(along[stage], name)
                    assert at(getattr(found, name), i, j) == pytest.approx(exact, abs=1e-12)
                    assert at(getattr(any_place, name), i, j) <= exact + 1e-12
                for name in SENDS:
                    assert getattr(found, name) <= getattr(along[stage], name) + 1e-12


@pytest.mark.parametrize("sends_overlap", [True, False])
def test_on_the_last_stage_fill_busy_time_and_drain_add_up_to_the_whole_path(sends_overlap: bool):
    path = paths_along([1.0, 2.0, 4.0], [8.0, 16.0, 32.0], [64.0, 128.0], [256.0, 512.0])[-1]
    parts = (
        path.fill(sends_overlap=sends_overlap),
        *path.busy(sends_overlap=sends_overlap),
        path.drain(sends_overlap=sends_overlap),
    )
    assert sum(parts) == path.with_sends(path.compute) == 1023.0


def test_a_path_on_any_ranks_counts_one_action_overhead_on_each_side_with_layers():
    graph = chain_graph(*(layer(f"l{i}") for i in range(3)), num_bytes=0)
    asked = problem(graph, cluster=cluster(action_overhead=0.25))
    cuts = all_cuts(graph)
    path = path_on_any_ranks(asked, cuts, cuts.totals)
    assert at(path.compute_before, 1, 2) == 1.25
    assert at(path.compute_beyond, 1, 2) == 3.5
    assert at(path.compute_after, 1, 2) == 2.25
    assert at(path.compute_before, 0, 2) == at(path.compute_beyond, 0, 3) == 0.0
