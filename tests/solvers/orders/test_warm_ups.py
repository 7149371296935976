import itertools

import pytest

from autopart.schedules.actions import format_order
from autopart.schedules.catalogue import make_schedule
from autopart.solvers.orders.action_numbers import Orders, schedule_of
from autopart.solvers.orders.order_times import OrderTimes
from autopart.solvers.orders.warm_ups import falling_warmups, near, orders_of_warmup, warmup_of
from tests.solvers.orders.test_optimizer import equal_stages


def test_with_free_sends_the_first_warm_up_is_that_of_1f1b():
    assert warmup_of(equal_stages(4, 0.0), 1.0) == (4, 3, 2, 1)
    assert warmup_of(equal_stages(4, 0.0), None) == (16,) * 4
    assert warmup_of(equal_stages(4, 0.9), 1.0)[0] > 4


def test_falling_warm_ups_fit_the_room_and_fall_by_one_or_more():
    task = equal_stages(4, 0.9, room_bytes=(60, 50, 60, 60))
    found = list(falling_warmups(task))
    assert len(found) == len(set(found)) > 2
    for limits in found:
        assert limits[0] <= 6 and limits[1] <= 5
        assert all(b < a or b == 1 for a, b in itertools.pairwise(limits))


def test_stages_that_share_ranks_have_no_falling_warm_ups():
    task = equal_stages(4, 0.0)._replace(stage_ranks=((0,), (1,), (0,), (1,)))
    assert list(falling_warmups(task)) == []


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_orders_of_1f1b_s_warm_up_are_1f1b(k: int):
    task = equal_stages(k, 0.0, num_microbatches=6)
    numbers = tuple(map(tuple, orders_of_warmup(task, [k - s for s in range(k)])))
    size = OrderTimes(task).size
    ours = schedule_of(task, Orders(numbers, (True,) * size))
    ours = tuple(format_order(order).replace("I", "B") for order in ours)
    assert ours == tuple(map(format_order, make_schedule("1f1b", task.stage_ranks, 6)))


def test_neighbours_of_a_warm_up_differ_on_one_stage_or_on_all_up_to_it():
    assert set(near((2, 1), 2)) == {(1, 1), (2, 2), (1, 1)}
    assert set(near((2, 2), 4)) == {(3, 2), (1, 2), (2, 3), (2, 1), (3, 3), (1, 1)}
