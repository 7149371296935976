import itertools
import random

import pytest

from autopart.cost.cuts import all_cuts, partition_of
from autopart.pricing import compile_layout, price, price_paths
from autopart.records.layouts import layouts, shapes
from autopart.records.prediction import Sync
from autopart.schedules.catalogue import make_schedule
from autopart.simulator.timeline import simulate
from tests.support.problems import random_problem
from tests.support.seeds import seeds


def some_paths(rng: random.Random, nested, num_stages: int):
    """Paths with `num_stages` stages; all of them if there are few."""
    last = len(nested) - 1
    paths = [
        (0, *inner, last)
        for inner in itertools.combinations(range(1, last), num_stages - 1)
        if all(nested[i, j] for i, j in itertools.pairwise((0, *inner, last)))
    ]
    return rng.sample(paths, min(6, len(paths)))


@pytest.mark.parametrize("seed", seeds(13, 80))
def test_many_paths_at_once_have_the_same_steps_as_each_alone(seed: int):
    rng = random.Random(seed)
    asked = random_problem(rng, branching=rng.random() < 0.5, tight=False)
    cuts = all_cuts(asked.graph)
    for shape in shapes(asked):
        paths = some_paths(rng, cuts.nested, shape[0])
        for layout in layouts(asked, *shape):
            if not paths:
                continue
            found = price_paths(asked, layout, compile_layout(layout), cuts, paths)
            alone = [price(asked, layout, partition_of(cuts, path)) for path in paths]
            assert list(found) == pytest.approx(
                [decision.prediction.step_time for decision in alone], rel=1e-12
            )


@pytest.mark.parametrize("seed", seeds(30, 60))
def test_the_step_of_one_replica_equals_the_step_of_all(seed: int):
    rng = random.Random(seed)
    asked = random_problem(rng, branching=False, tight=False)
    cuts = all_cuts(asked.graph)
    shape = rng.choice(shapes(asked))
    layout = rng.choice(layouts(asked, *shape))
    path = rng.choice(some_paths(rng, cuts.nested, shape[0]))
    decision = price(asked, layout, partition_of(cuts, path))
    timeline = simulate(
        make_schedule(layout.schedule, layout.stage_ranks, asked.num_microbatches),
        layout.stage_ranks,
        decision.prediction.stages,
        decision.prediction.syncs,
        action_overhead=asked.cluster.action_overhead,
        sends_overlap=asked.cluster.sends_overlap,
    )
    assert timeline.makespan == pytest.approx(decision.prediction.step_time, rel=1e-12)
    assert timeline.bubble == pytest.approx(decision.prediction.bubble, abs=1e-9)
    assert all(isinstance(sync, Sync) for sync in decision.prediction.syncs)
