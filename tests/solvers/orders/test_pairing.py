"""Pairs chosen one by one: never a longer step, and the pairs that help."""

import math
import random

import pytest

from autopart.schedules.actions import Schedule, has_pairs, without_pairs
from autopart.schedules.catalogue import make_schedule
from autopart.schedules.check import check_schedule
from autopart.simulator.costs import StageTimes
from autopart.simulator.timeline import simulate
from autopart.solvers.orders.pairing import with_best_pairs
from tests.support.seeds import seeds

LINE = [(0,), (1,), (2,)]


def step_of(schedule: Schedule, stages: list[StageTimes[float]]) -> float:
    return simulate(schedule, LINE, stages, (), action_overhead=0.0, sends_overlap=True).makespan


def equal_stages(saving: float) -> list[StageTimes[float]]:
    return [StageTimes(1.0, 2.0, 0.0, 0.0, 0.0, pair_saving=saving)] * 3


def test_pairs_are_chosen_where_they_save_and_parted_where_they_only_wait():
    eager = make_schedule("eager-1f1b", LINE, 9)
    saves, nothing = equal_stages(1.0), equal_stages(0.0)
    before = step_of(eager, saves)
    paired, step = with_best_pairs(eager, lambda own: step_of(own, saves), math.inf, 10_000)
    assert has_pairs(paired) and step == step_of(paired, saves) < before
    # Pairs that save nothing only delay both results.
    slow = make_schedule("paired-1f1b", LINE, 3)
    parted, step = with_best_pairs(slow, lambda own: step_of(own, nothing), math.inf, 10_000)
    assert step <= step_of(tuple(map(without_pairs, slow)), nothing)
    check_schedule(parted, LINE, 3)


@pytest.mark.parametrize("seed", seeds(6, 30))
def test_the_step_never_becomes_longer_and_the_orders_stay_complete(seed: int):
    rng = random.Random(seed)
    name, count = (
        rng.choice(["gpipe", "1f1b", "eager-1f1b", "paired-1f1b", "zb-h1"]),
        rng.randint(3, 8),
    )
    stages: list[StageTimes[float]] = []
    for _ in LINE:
        forward, backward = rng.uniform(1, 2), rng.uniform(1, 4)
        saving = rng.random() * min(forward, backward)
        sends = rng.uniform(0, 1), rng.uniform(0, 1)
        stages.append(StageTimes(forward, backward, *sends, 0.0, backward / 2, pair_saving=saving))
    start = make_schedule(name, LINE, count)
    tries = rng.choice([0, 3, 5_000])
    found, step = with_best_pairs(start, lambda own: step_of(own, stages), math.inf, tries)
    assert step == step_of(found, stages) <= step_of(start, stages)
    check_schedule(found, LINE, count)
    if not tries:
        assert found == start
