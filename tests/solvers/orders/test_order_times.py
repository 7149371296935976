import random

import pytest

from autopart.errors import ScheduleError
from autopart.schedules.actions import parse_order
from autopart.solvers.orders.action_numbers import Window, schedule_of
from autopart.solvers.orders.evaluation import Clock, fits, peak_stash
from autopart.solvers.orders.list_scheduling import Policy, list_schedule
from autopart.solvers.orders.moves import shift
from autopart.solvers.orders.order_times import OrderTimes
from tests.support.orders_oracle import PLACEMENTS, random_task
from tests.support.seeds import seeds

TIGHT = 1e-9


def random_orders(seed: int, **fields) -> tuple[random.Random, OrderTimes]:
    """Orders from list scheduling that split some stages' backwards."""
    rng = random.Random(seed)
    ranks = PLACEMENTS[rng.choice(list(PLACEMENTS))]
    m = rng.randint(2, 6)
    task = random_task(rng, len(ranks), m, split=True, room=rng.random() < 0.5, stage_ranks=ranks)
    task = task._replace(**fields)
    split = frozenset(s for s in range(len(ranks)) if rng.random() < 0.7)
    policy = Policy(tuple(rng.choice(["BFW", "BWF", "FBW"])), (m,) * len(ranks), split=split)
    times = OrderTimes(task)
    assert times.take(*times.numbers_of(list_schedule(task, policy)))
    return rng, times


def a_window(rng: random.Random, times: OrderTimes, most: int = 8) -> Window | None:
    rank = rng.choice([rank for rank, order in enumerate(times.orders) if len(order) > 1])
    source, target = rng.sample(range(len(times.orders[rank])), 2)
    return shift(times, rank, source, target) if abs(source - target) <= most else None


def simulated(times: OrderTimes) -> float | None:
    try:
        return Clock(times.task).run(schedule_of(times.task, times.current))
    except ScheduleError:
        return None


@pytest.mark.parametrize("seed", seeds(20, 200))
def test_heads_tails_and_stash_stay_right_after_each_change(seed: int):
    rng, times = random_orders(seed)
    fresh = OrderTimes(times.task)
    assert times.step == pytest.approx(simulated(times), rel=TIGHT)
    for _ in range(40):
        window = a_window(rng, times)
        if window is None:
            continue
        before = times.current
        if not times.apply(window):
            assert times.current == before
            changed = [list(order) for order in before.numbers]
            changed[window.rank][window.low : window.high] = window.actions
            assert not fresh.take(changed, before.whole)
        assert fresh.take(*times.current)
        live = [x for order in times.orders for x in order]
        for ours, new in ((times.head, fresh.head), (times.tail, fresh.tail)):
            assert [ours[x] for x in live] == pytest.approx([new[x] for x in live], abs=TIGHT)
        assert times.step == pytest.approx(simulated(times), rel=TIGHT)
        assert times.step == pytest.approx(
            max(times.head[x] + times.time[x] + times.tail[x] for x in live), rel=TIGHT
        )
        peaks = peak_stash(times.task, schedule_of(times.task, times.current))
        assert tuple(max(levels, default=0) for levels in times.levels) == peaks
        assert times.fits == fits(times.task, schedule_of(times.task, times.current))


@pytest.mark.parametrize("seed", seeds(20, 200))
def test_the_estimate_of_an_exchange_of_neighbours_is_exact_where_no_link_queues(seed: int):
    """The step after it is the estimate, or a path that the exchange does not touch."""
    _, times = random_orders(seed, room_bytes=None, sends_overlap=False)
    for rank, order in enumerate(times.orders):
        for place in range(len(order) - 1):
            window = shift(times, rank, place, place + 1)
            if window is None:
                continue
            before, step = times.current, times.step
            estimate = times.estimate(window, float("inf"))
            if times.apply(window):
                assert estimate <= times.step * (1 + TIGHT)
                assert times.step <= max(estimate, step) * (1 + TIGHT)
            times.take(*before)


def test_a_whole_backward_that_is_split_has_its_result_earlier():
    rng = random.Random(1)
    task = random_task(rng, 2, 1, split=True, room=False)._replace(syncs=[], action_overhead=0.0)
    times = OrderTimes(task)
    schedule = (parse_order("0F0 0B0"), parse_order("1F0 1B0"))
    assert times.take(*times.numbers_of(schedule))
    back = times.orders[1][1]
    window = Window(1, 1, 2, (back, back + 1), back)
    estimate = times.estimate(window, float("inf"))
    assert times.apply(window)
    assert schedule_of(task, times.current)[1] == parse_order("1F0 1I0 1W0")
    assert times.step == pytest.approx(simulated(times))
    assert times.step >= estimate * (1 - TIGHT)
    # The reverse change gives the first schedule again.
    assert times.apply(Window(1, 1, 3, (back,), back))
    assert schedule_of(task, times.current) == schedule


def test_orders_that_deadlock_are_refused_and_a_change_into_a_deadlock_changes_nothing():
    task = random_task(random.Random(2), 2, 2, split=False, room=False)
    times = OrderTimes(task)
    bad = (parse_order("0F0 0B0 0F1 0B1"), parse_order("1F1 1B1 1F0 1B0"))
    assert not times.take(*times.numbers_of(bad))
    good = (parse_order("0F0 0B0 0F1 0B1"), parse_order("1F0 1B0 1F1 1B1"))
    assert times.take(*times.numbers_of(good))
    before, step = times.current, times.step
    a, b, c, d = times.orders[1]
    assert not times.apply(Window(1, 0, 4, (c, d, a, b)))
    assert (times.current, times.step) == (before, step)
