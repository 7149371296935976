"""Overlapped pairs in orders: their words, their rules, and the messages around them."""

import pytest

from autopart.errors import ScheduleError
from autopart.schedules.actions import (
    Action,
    PairedForward,
    count_actions,
    format_order,
    has_pairs,
    parse_order,
    with_pairs,
    without_pairs,
)
from autopart.schedules.check import check_schedule
from autopart.schedules.messages import Receive, Send, write_messages
from autopart.schedules.torch_names import csv_of

TEXT = "0F0 0F1 0F2 (0F3;0B0)OVERLAP_F_B 0B1 0B2 0B3"


def test_a_pair_is_one_word_and_two_actions():
    order = parse_order(TEXT)
    assert order[3:5] == (Action(0, "F", 3), Action(0, "B", 0))
    assert isinstance(order[3], PairedForward) and not isinstance(order[4], PairedForward)
    assert format_order(order) == TEXT
    assert len(order) == count_actions(TEXT) == 8
    assert csv_of((order,)) == TEXT.replace(" ", ",") + "\n"
    assert format_order(without_pairs(order)) == "0F0 0F1 0F2 0F3 0B0 0B1 0B2 0B3"
    assert format_order(with_pairs(without_pairs(order), 3)) == TEXT


@pytest.mark.parametrize(
    "word",
    [
        "(0F1;0I0)OVERLAP_F_B",
        "(0B0;0F1)OVERLAP_F_B",
        "(0F1)OVERLAP_F_B",
        "0F1OVERLAP_F_B",
        "(0F1;0B0;0W0)OVERLAP_F_B",
        "OVERLAP_F_B",
    ],
)
def test_another_word_is_refused_with_an_example(word: str):
    with pytest.raises(ScheduleError, match=r"no overlapped pair; write .*\(0F1;3B0\)OVERLAP_F_B"):
        parse_order(f"0F0 {word}")


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("0F0 (0F1;0B1)OVERLAP_F_B 0B0", "runs 0F1 as an overlapped pair, and no whole backward"),
        ("0F0 (0F1;0B0)OVERLAP_F_B (0F1;0B1)OVERLAP_F_B", "rank 0 runs 0F1 twice"),
    ],
)
def test_a_pair_that_no_rank_can_run_is_refused(order: str, message: str):
    with pytest.raises(ScheduleError, match=message):
        check_schedule((parse_order(order),), [(0,)], 2)


def test_pairs_that_wait_for_each_other_deadlock_where_the_same_actions_in_turn_do_not():
    orders = tuple(parse_order(f"{s}F0 ({s}F1;{s}B0)OVERLAP_F_B {s}B1") for s in (0, 1))
    check_schedule(tuple(map(without_pairs, orders)), [(0,), (1,)], 2)
    with pytest.raises(ScheduleError, match="deadlocks: rank 0 on 0F1, rank 1 on 1F1"):
        check_schedule(orders, [(0,), (1,)], 2)


def test_both_inputs_of_a_pair_are_received_before_it_and_both_results_sent_behind_it():
    orders = (
        parse_order(TEXT),
        parse_order("1F0 (1F1;1B0)OVERLAP_F_B (1F2;1B1)OVERLAP_F_B (1F3;1B2)OVERLAP_F_B 1B3"),
    )
    assert has_pairs(orders)
    first, second = write_messages(orders, [(0,), (1,)])
    pair = first.index(Action(0, "F", 3))
    assert isinstance(first[pair], PairedForward)
    assert Receive(Action(0, "B", 0), 1) in first[:pair]
    # The forward runs both, so its result may go out at once.
    assert first[pair + 1 : pair + 3] == (Send(Action(0, "F", 3), 1), Action(0, "B", 0))
    middle = second.index(Action(1, "F", 2))
    assert Receive(Action(1, "F", 2), 0) in second[:middle]
