import random

import pytest

from autopart.schedules.actions import format_order, parse_order
from autopart.schedules.check import check_schedule
from autopart.solvers.orders.action_numbers import Orders, schedule_of
from autopart.solvers.orders.order_times import OrderTimes
from autopart.solvers.orders.warm_ups import orders_of_warmup
from autopart.solvers.orders.weight_filling import fill
from tests.solvers.orders.test_optimizer import equal_stages
from tests.support.orders_oracle import random_task
from tests.support.seeds import seeds

GOALS = (0.0, 10.0, float("inf"))


@pytest.mark.parametrize("seed", seeds(12, 60))
def test_filled_orders_are_complete_and_fit_where_they_exist(seed: int):
    rng = random.Random(seed)
    k, m = rng.randint(2, 4), rng.randint(1, 6)
    task = random_task(rng, k, m, split=True, room=True)
    times = OrderTimes(task)
    given = orders_of_warmup(task, [max(1, k - s) for s in range(k)])
    for goal in GOALS:
        filled = fill(times, given, goal)
        if filled is None:
            continue
        assert times.take(filled, [False] * times.size)
        check_schedule(schedule_of(task, times.current), task.stage_ranks, m)
        assert times.fits


def filled(goal: float, **fields) -> list[str]:
    """Two equal stages with 1F1B's order of F and I."""
    task = equal_stages(2, 0.0, num_microbatches=4, split=True, **fields)
    times = OrderTimes(task)
    orders = fill(times, orders_of_warmup(task, [2, 1]), goal)
    numbers = tuple(map(tuple, orders))
    return [format_order(o) for o in schedule_of(task, Orders(numbers, (False,) * times.size))]


def test_without_a_gap_all_w_stay_for_the_end_and_memory_brings_them_forward():
    late = filled(float("inf"))
    assert late[1] == "1F0 1I0 1F1 1I1 1F2 1I2 1F3 1I3 1W0 1W1 1W2 1W3"
    early = filled(float("inf"), room_bytes=(20, 10))
    assert early[1] == "1F0 1I0 1W0 1F1 1I1 1W1 1F2 1I2 1W2 1F3 1I3 1W3"


def test_a_w_as_long_as_the_idle_time_fills_it():
    first = filled(float("inf"))[0]
    assert first.index("0W0") < first.index("0I3")


def test_a_rank_without_idle_seconds_to_spend_runs_w_instead_of_waiting():
    task = equal_stages(3, 0.3, num_microbatches=6, split=True)
    times = OrderTimes(task)
    steps = {}
    for goal in (0.0, float("inf")):
        orders = fill(times, orders_of_warmup(task, [3, 2, 1]), goal)
        assert times.take(orders, [False] * times.size)
        steps[goal] = [place for place, x in enumerate(times.orders[0]) if x % 3 == 2]
    assert steps[0.0] < steps[float("inf")]


def test_orders_of_f_and_i_that_deadlock_have_no_filling():
    task = equal_stages(2, 0.0, num_microbatches=2, split=True)
    times = OrderTimes(task)
    bad = (parse_order("0F0 0I0 0F1 0I1"), parse_order("1F1 1I1 1F0 1I0"))
    assert fill(times, times.numbers_of(bad).numbers, 0.0) is None
