import math
import random

import pytest

from autopart.bounds.any_order_partition import OrderProblem, least_step
from autopart.schedules.check import check_schedule
from autopart.simulator.costs import StageTimes
from autopart.solvers.orders.action_numbers import schedule_of
from autopart.solvers.orders.effort import Effort
from autopart.solvers.orders.evaluation import Clock, fits
from autopart.solvers.orders.optimizer import optimize_orders
from autopart.solvers.orders.order_times import OrderTimes
from autopart.solvers.orders.target_times import TargetSearch
from tests.support.orders_oracle import PLACEMENTS, random_task
from tests.support.seeds import seeds

ROUNDING = 1 + 1e-9


def searched(task: OrderProblem, changes: int) -> TargetSearch:
    search = TargetSearch(OrderTimes(task), Effort())
    search.run(changes, least_step(task))
    return search


@pytest.mark.parametrize("seed", seeds(30, 300))
def test_lists_are_complete_fit_and_take_their_step_as_the_simulator_has_it(seed: int):
    """On any placement, with and without room, with sends of both kinds."""
    rng = random.Random(seed)
    ranks, m, room = rng.choice(list(PLACEMENTS.values())), rng.randint(1, 6), rng.random() < 0.6
    split = rng.random() < 0.5
    task = random_task(rng, len(ranks), m, split=split, room=room, stage_ranks=ranks)
    found = searched(task, 40)
    schedule = schedule_of(task, found.orders)
    check_schedule(schedule, task.stage_ranks, m)
    assert fits(task, schedule)
    step = Clock(task).run(schedule)
    # A list may hold forwards back for memory. The simulator runs its orders without delay.
    assert least_step(task) <= step * ROUNDING
    assert step <= found.step * ROUNDING
    if task.sends_overlap and not room:
        assert step == pytest.approx(found.step, rel=1e-9)


def uneven(stage_ranks: tuple[tuple[int, ...], ...], seconds: tuple[float, ...]) -> OrderProblem:
    """Stages with equal seconds for F, I and W."""
    return OrderProblem(
        stages=[StageTimes(f, 2 * f, 0.0, 0.0, 0.0, f) for f in seconds],
        stage_ranks=stage_ranks,
        num_microbatches=8,
        split=True,
    )


@pytest.mark.slow
def test_ranks_with_stages_of_any_lengths_stay_busy():
    """Four ranks with four stages each, of lengths like gnmt's; other starts end 14 % higher."""
    wave = ((0,), (1,), (2,), (3,), (3,), (2,), (1,), (0,))
    seconds = (0.1, 5.3, 3.2, 0.1, 0.1, 2.5, 2.6, 0.1, 4.5, 3.3, 3.1, 0.1, 3.1, 0.1, 0.1, 5.6)
    task = uneven(wave * 2, seconds)
    found = optimize_orders(task, actions=60_000)
    assert found.origin.startswith("target times")
    assert found.step_time <= least_step(task) * ROUNDING


def test_equal_problems_have_equal_lists_and_the_effort_ends_them():
    task = uneven(((0,), (1,), (0,), (1,)), (0.3, 1.0, 1.2, 0.4))
    assert searched(task, 100).orders == searched(task, 100).orders
    effort = Effort(math.inf, 1.0)
    search = TargetSearch(OrderTimes(task), effort)
    assert effort.is_over
    assert search.step < math.inf
