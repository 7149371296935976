import itertools
import random

import msgspec
import numpy as np
import pytest

from autopart.bounds.replicas_behind import ReplicasBehind
from autopart.bounds.uneven_replicas import ReplicaBounds
from autopart.cost.cuts import all_cuts
from autopart.records.cluster import num_gpus
from autopart.records.layouts import layouts_of
from autopart.records.problem import Demands
from autopart.stopping.time_limit import OutOfTime
from tests.support.oracle import partitions, step_time
from tests.support.problems import cluster, random_problem
from tests.support.seeds import seeds


def lists_of_replicas(gpus: int, num_stages: int, most: int):
    """Every list of replicas for so many stages that has room."""
    for counts in itertools.product(range(1, most + 1), repeat=num_stages):
        if sum(counts) <= gpus:
            yield counts


@pytest.mark.parametrize("seed", seeds(30, 150))
def test_the_least_behind_is_that_over_all_replicas_and_paths(
    seed: int, monkeypatch: pytest.MonkeyPatch
):
    rng = random.Random(41_000 + seed)
    monkeypatch.setattr("autopart.bounds.replicas_behind.TOGETHER", rng.choice([1, 2, 3, 16]))
    asked = random_problem(rng, branching=rng.random() < 0.4, tight=rng.random() < 0.5)
    demanded = rng.choice([None, None, 1, 2])
    asked = msgspec.structs.replace(asked, demands=Demands(num_stages=demanded))
    bounds = ReplicaBounds(asked, all_cuts(asked.graph))
    nested, gpus = bounds.cuts.nested, num_gpus(asked.cluster)
    last, layers = len(nested) - 1, len(asked.graph.layers)
    for schedule in ("gpipe", "1f1b"):
        found = ReplicasBehind(bounds, schedule)
        expected = np.full(gpus + 1, np.inf)
        for k in [demanded] if demanded else range(1, min(layers, gpus) + 1):
            paths = [
                (0, *inner, last)
                for inner in itertools.permutations(range(1, last), k - 1)
                if all(nested[i, j] for i, j in itertools.pairwise((0, *inner, last)))
            ]
            for counts in lists_of_replicas(gpus, k, bounds.counts[-1]):
                stages = [found.stage(own, sum(counts[s + 1 :])) for s, own in enumerate(counts)]
                for path in paths:
                    pairs = zip(stages, path, path[1:], strict=False)
                    worst = max(float(stage[i, j]) for stage, i, j in pairs)
                    expected[sum(counts)] = min(expected[sum(counts)], worst)
        assert found.in_all()[1:].tolist() == expected[1:].tolist()


@pytest.mark.parametrize("demanded", [None, 2])
def test_the_least_behind_goes_on_where_time_ended(
    demanded: int | None, monkeypatch: pytest.MonkeyPatch
):
    asked = random_problem(random.Random(5), branching=False, tight=False)
    asked = msgspec.structs.replace(
        asked,
        cluster=cluster(1, 6),
        demands=Demands(num_stages=demanded),
        num_microbatches=12,
    )
    bounds = ReplicaBounds(asked, all_cuts(asked.graph))
    monkeypatch.setattr("autopart.bounds.replicas_behind.TOGETHER", 1)
    whole, calls = ReplicasBehind(bounds, "1f1b").in_all(), 0

    def ends_often():
        nonlocal calls
        calls += 1
        if calls % 9 == 0:
            raise OutOfTime

    monkeypatch.setattr("autopart.bounds.replicas_behind.check_time", ends_often)
    again, tries = ReplicasBehind(bounds, "1f1b"), 0
    while True:
        try:
            found = again.in_all()
            break
        except OutOfTime:
            tries += 1
            assert tries < 20
    assert tries > 0
    assert found.tolist() == whole.tolist()


@pytest.mark.parametrize("seed", seeds(30, 200))
def test_no_plan_on_any_ranks_is_faster_than_the_least_for_its_replicas(seed: int):
    rng = random.Random(33_000 + seed)
    asked = random_problem(rng, branching=rng.random() < 0.3, tight=False)
    more = rng.choice([3, 5, 8, 16])
    asked = msgspec.structs.replace(asked, num_microbatches=more)
    bounds = ReplicaBounds(asked, all_cuts(asked.graph))
    gpus = num_gpus(asked.cluster)
    least = {name: ReplicasBehind(bounds, name).in_all() for name in ("gpipe", "1f1b")}
    k = rng.randint(1, min(3, len(asked.graph.layers), gpus))
    for counts in lists_of_replicas(gpus, k, bounds.counts[-1]):
        for layout in layouts_of(asked, counts):
            # The same stages on ranks in any order.
            ranks = iter(rng.sample(range(gpus), gpus))
            own = tuple(tuple(next(ranks) for _ in stage) for stage in layout.stage_ranks)
            shuffled = msgspec.structs.replace(layout, stage_ranks=own)
            for partition in partitions(asked, k):
                step = step_time(asked, shuffled, partition)
                seconds = float(least[layout.schedule][sum(counts)])
                assert step is None or seconds <= step * (1 + 1e-9)
