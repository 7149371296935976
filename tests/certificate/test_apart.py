import itertools
import random

import msgspec
import numpy as np
import pytest

from autopart.bounds.of_layout import layout_bounds
from autopart.bounds.rank_assignments import assignments_of
from autopart.certificate import apart
from autopart.certificate.apart import may_be_faster_apart
from autopart.cost.cuts import all_cuts
from autopart.pricing import price
from autopart.records.cluster import num_gpus
from autopart.records.layouts import layouts_of
from autopart.records.problem import Problem
from tests.support.oracle import partitions
from tests.support.problems import random_problem
from tests.support.seeds import seeds
from tests.support.uneven_problems import PER_STAGE, random_lists


def on_nodes(rng: random.Random) -> Problem:
    """A random problem with replicas per stage on two or three nodes."""
    drawn = random_problem(rng, branching=False, tight=False)
    machine = msgspec.structs.replace(
        drawn.cluster, num_nodes=rng.choice([2, 3]), gpus_per_node=rng.choice([2, 3])
    )
    return msgspec.structs.replace(
        drawn, cluster=machine, demands=PER_STAGE, num_microbatches=rng.randint(2, 12)
    )


@pytest.mark.parametrize("seed", seeds(20, 300))
def test_nothing_is_faster_than_a_value_that_partitions_apart_reach(seed: int):
    rng = random.Random(91_000 + seed)
    asked = on_nodes(rng)
    cuts = all_cuts(asked.graph)
    for layout in layouts_of(asked, random_lists(asked, rng)):
        tree = assignments_of(asked, layout)
        assigned = tree.apart(tree.root)
        bounds = layout_bounds(*assigned, cuts)
        every = list(partitions(asked, len(layout.stage_ranks)))
        apart_steps = [price(*assigned, partition=one).prediction.step_time for one in every]
        # The fastest partition apart takes its own step, and nothing less.
        fastest = min(apart_steps)
        assert may_be_faster_apart(assigned, bounds, cuts, fastest * (1 + 1e-9))
        assert not may_be_faster_apart(assigned, bounds, cuts, fastest * (1 - 1e-9))
        for _ in range(4):
            gpus = iter(rng.sample(range(num_gpus(asked.cluster)), num_gpus(asked.cluster)))
            own = tuple(tuple(next(gpus) for _ in stage) for stage in layout.stage_ranks)
            shuffled = msgspec.structs.replace(layout, stage_ranks=own)
            step = price(asked, shuffled, rng.choice(every)).prediction.step_time
            assert may_be_faster_apart(assigned, bounds, cuts, step * (1 + 1e-9))


def test_too_many_partitions_are_left_open(monkeypatch: pytest.MonkeyPatch):
    asked = on_nodes(random.Random(3))
    layout = layouts_of(asked, (1, 1))[0]
    tree = assignments_of(asked, layout)
    assigned, cuts = tree.apart(tree.root), all_cuts(asked.graph)
    bounds = layout_bounds(*assigned, cuts)
    least = min(
        max(
            float(bound[i, j])
            for bound, (i, j) in zip(bounds.stages, itertools.pairwise(path), strict=True)
        )
        for path in bounds.paths_below(np.inf)
    )
    monkeypatch.setattr(apart, "MOST_APART", 0)
    assert may_be_faster_apart(assigned, bounds, cuts, least * (1 + 1e-9))
    assert not may_be_faster_apart(assigned, bounds, cuts, least)
