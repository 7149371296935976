import random

import pytest

from autopart.bounds.any_order_partition import least_step
from autopart.schedules.actions import parse_order
from autopart.schedules.check import check_schedule
from autopart.solvers.orders.action_numbers import NumberedActions, schedule_of
from autopart.solvers.orders.effort import Effort
from autopart.solvers.orders.evaluation import Clock, fits
from autopart.solvers.orders.list_scheduling import Policy, list_schedule
from autopart.solvers.orders.tabu_search import TabuSearch
from tests.solvers.orders.test_optimizer import equal_stages
from tests.support.orders_oracle import PLACEMENTS, random_task
from tests.support.seeds import seeds


def search_from(task, schedule, seed: int = 0) -> TabuSearch:
    return TabuSearch(task, NumberedActions(task).numbers_of(schedule), seed)


def test_the_search_improves_a_bad_order_up_to_the_bound():
    task = equal_stages(2, 0.0, num_microbatches=4)
    bad = (
        parse_order("0F0 0B0 0F1 0B1 0F2 0B2 0F3 0B3"),
        parse_order("1F0 1B0 1F1 1B1 1F2 1B2 1F3 1B3"),
    )
    search = search_from(task, bad)
    assert search.step == 24.0
    search.run(200, least_step(task), Effort())
    assert search.step == least_step(task) == 15.0


@pytest.mark.parametrize("seed", seeds(4, 60))
def test_the_best_order_of_a_search_is_complete_fits_and_has_its_step(seed: int):
    rng = random.Random(seed)
    ranks = PLACEMENTS[rng.choice(list(PLACEMENTS))]
    m = rng.randint(2, 6)
    task = random_task(rng, len(ranks), m, split=True, room=True, stage_ranks=ranks)
    split = frozenset(s for s in range(len(ranks)) if rng.random() < 0.5)
    start = list_schedule(task, Policy(tuple("BWF"), (m,) * len(ranks), split=split))
    search = search_from(task, start, seed)
    begun = search.step
    search.run(300, 0.0, Effort())
    best = schedule_of(task, search.best)
    check_schedule(best, ranks, m)
    assert fits(task, best)
    assert search.step == pytest.approx(Clock(task).run(best), rel=1e-9)
    assert search.step <= begun


@pytest.mark.slow
def test_equal_seeds_and_rounds_give_equal_orders_and_no_effort_gives_the_start():
    task = random_task(random.Random(7), 4, 6, split=True, room=True)
    start = list_schedule(task, Policy(tuple("BWF"), (6,) * 4, split=frozenset(range(4))))
    first, second, idle = (search_from(task, start, 3) for _ in range(3))
    first.run(200, 0.0, Effort())
    second.run(100, 0.0, Effort())
    second.run(100, 0.0, Effort())
    idle.run(200, 0.0, Effort(actions=0))
    assert first.best == second.best
    assert schedule_of(task, idle.best) == start
    assert first.rounds == 200 and idle.rounds == 0


@pytest.mark.slow
def test_a_search_is_stale_after_many_rounds_without_a_better_step():
    task = equal_stages(2, 0.0, num_microbatches=2)
    search = search_from(task, list_schedule(task, Policy(tuple("BF"), (2, 1))))
    assert not search.is_stale(0.0)
    search.run(10_000, 0.0, Effort())
    assert search.is_stale(0.0)
