"""WPipe's order against its rule, played as a list of actions."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopart.schedules.asynchronous_kind import Setting
from autopart.schedules.check import check_schedule
from autopart.schedules.named.asynchronous import WPIPE
from autopart.schedules.named.wpipe import most_in_flight, wpipe_orders


@pytest.mark.slow
@given(st.integers(1, 5), st.integers(0, 6), st.integers(1, 4))
def test_the_first_group_is_one_update_behind_and_the_second_none(
    ranks: int, more: int, updates: int
):
    n, count = 2 * ranks + more, (2 * ranks + more) * updates
    orders = wpipe_orders(ranks, n, updates)
    check_schedule(orders, [[s % ranks] for s in range(2 * ranks)], count)
    for rank, order in enumerate(orders):
        for stage, delay in ((rank, 1), (rank + ranks, 0)):
            own = [action for action in order if action.stage == stage]
            back = flying = most = 0
            for action in own:
                if action.op == "B":
                    back, flying = back + 1, flying - 1
                    continue
                flying += 1
                most = max(most, flying)
                # All updates but the last `delay` before the microbatch's own are done.
                assert back >= n * (action.microbatch // n - delay)
            assert most <= most_in_flight(2 * ranks, stage)
            assert delay == WPIPE.forward_delay(Setting(2 * ranks, n), stage)


@pytest.mark.parametrize(("ranks", "n", "slots"), [(1, 2, 8), (2, 4, 16), (4, 8, 33), (4, 12, 48)])
def test_equal_stages_leave_hardly_any_rank_idle(ranks: int, n: int, slots: int):
    """A batch has 4 n actions on each rank."""
    ends = [slots_of(ranks, n, updates) for updates in (6, 7, 8, 9, 10, 11, 12)]
    assert [later - earlier for earlier, later in pairwise(ends)] == [slots] * 6


def slots_of(ranks: int, n: int, updates: int) -> int:
    """Slots of one action in the whole run."""
    end: dict[tuple[str, int, int], int] = {}
    free, at = [0] * ranks, [0] * ranks
    orders = wpipe_orders(ranks, n, updates)
    while any(at[r] < len(order) for r, order in enumerate(orders)):
        for r, order in enumerate(orders):
            while at[r] < len(order):
                stage, op, m = order[at[r]]
                if op == "F":
                    need = ("F", stage - 1, m)
                else:
                    need = ("F", stage, m) if stage == 2 * ranks - 1 else ("B", stage + 1, m)
                if need[1] >= 0 and need not in end:
                    break
                free[r] = end[op, stage, m] = max(free[r], end.get(need, 0)) + 1
                at[r] += 1
    return max(free)
