import itertools
import random

import numpy as np
import pytest

from autopart.bounds.open_replicas import all_open_counts
from autopart.bounds.open_stages import OpenStages
from autopart.bounds.uneven_replicas import ReplicaBounds
from autopart.bounds.waiting_replicas import at_first_cut, behind_stage
from autopart.cost.cuts import all_cuts
from autopart.pricing import price
from autopart.records.layouts import Layout, layouts_of
from autopart.records.problem import Demands
from tests.support.problems import chain_graph, cluster, layer, problem
from tests.support.seeds import seeds
from tests.support.uneven_problems import (
    random_lists,
    random_path,
    stages_along,
    uneven_problem,
)


def leaves_open(bounds: ReplicaBounds, layout: Layout, path: tuple[int, ...], value: float) -> bool:
    """Whether bounds leave the partition along a path over the cuts open below a value."""
    below = OpenStages(bounds, layout.schedule, value)
    counts = [len(ranks) for ranks in layout.stage_ranks]
    waiting = at_first_cut(len(bounds.cuts.nested), max(counts))
    for at, (count, (i, j)) in enumerate(zip(counts, itertools.pairwise(path), strict=True)):
        here = np.arange(len(bounds.cuts.nested)) == i
        behind = sum(counts[at + 1 :])
        only = np.arange(len(here)) == j
        starts, may = below.starting_at(here, only, count, behind, waiting)
        if not may.any():
            return False
        waiting = behind_stage(waiting, below.seconds(count), starts, may, count, behind)
    return True


@pytest.mark.parametrize("seed", seeds(50, 3500, slow=125))
def test_no_partition_is_faster_than_its_replicas_waiting_says(seed: int):
    rng = random.Random(seed)
    asked = uneven_problem(rng)
    cuts = all_cuts(asked.graph)
    bounds = ReplicaBounds(asked, cuts)
    for layout in layouts_of(asked, random_lists(asked, rng)):
        path = random_path(cuts, len(layout.stage_ranks), rng)
        if path is None:
            continue
        stages = stages_along(cuts, path)
        step = price(asked, layout, stages).prediction.step_time
        assert leaves_open(bounds, layout, path, step * (1 + 1e-9))


def test_stages_whose_replicas_do_not_match_are_known_to_wait():
    # 13 and 20 ranks keep 52 and 20 microbatches in flight: 32 for the work of 33 ranks.
    asked = problem(
        chain_graph(*(layer(f"l{at}") for at in range(64))),
        num_microbatches=640,
        cluster=cluster(1, 64),
        demands=Demands(replicas_per_stage=True, schedules=("1f1b",)),
    )
    counts = (17, 13, 20, 14)
    [layout] = layouts_of(asked, counts)
    ends = tuple(itertools.accumulate(counts, initial=0))
    partition = tuple(tuple(range(i, j)) for i, j in itertools.pairwise(ends))
    step = price(asked, layout, partition).prediction.step_time
    bounds = ReplicaBounds(asked, all_cuts(asked.graph))
    alone = max(
        float(bounds.bound("1f1b", count, 1.0, sum(counts[at + 1 :]))[ends[at], ends[at + 1]])
        for at, count in enumerate(counts)
    )
    assert leaves_open(bounds, layout, ends, step * (1 + 1e-9))
    assert not leaves_open(bounds, layout, ends, alone * 1.02)
    assert step > alone * 1.03


def test_fewer_lists_of_replicas_are_open_than_without_waiting(monkeypatch: pytest.MonkeyPatch):
    asked = problem(
        chain_graph(*(layer(f"l{at}") for at in range(6))),
        num_microbatches=24,
        cluster=cluster(1, 6),
        demands=Demands(replicas_per_stage=True, num_stages=3, schedules=("1f1b",)),
    )
    bounds = ReplicaBounds(asked, all_cuts(asked.graph))
    waiting = set(all_open_counts(bounds, 100.0))
    monkeypatch.setattr("autopart.bounds.open_replicas.MOST_WAITING", 0)
    alone = set(all_open_counts(bounds, 100.0))
    assert waiting < alone
