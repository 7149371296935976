"""Orders that take a few microbatches at a time."""

import pytest

from autopart.schedules.actions import format_order
from autopart.schedules.check import check_schedule
from autopart.schedules.in_flight import STASH, in_flight_by_rank
from autopart.schedules.turns import in_turns

ROW, LOOP, V = [[0], [1], [2]], [[0], [1], [0], [1]], [[0], [1], [1], [0]]


@pytest.mark.parametrize("ranks", [ROW, LOOP, V], ids=["row", "loop", "V"])
@pytest.mark.parametrize("together", [1, 2, 5])
def test_as_many_microbatches_are_in_flight_as_a_turn_has(ranks: list[list[int]], together: int):
    orders = in_turns(ranks, 5, together)
    check_schedule(orders, ranks, 5)
    for own in in_flight_by_rank(orders, ranks):
        assert own.counts[:, STASH].max() == together


def test_a_turn_runs_forward_on_all_stages_of_a_rank_and_then_backward():
    assert format_order(in_turns(V, 3, 2)[0]) == ("0F0 0F1 3F0 3F1 3B0 3B1 0B0 0B1 0F2 3F2 3B2 0B2")
