"""L and T in orders: what may stand where, and the programs that come of it."""

import pytest

from autopart.errors import ScheduleError
from autopart.schedules.actions import Action, Schedule, parse_order
from autopart.schedules.check import check_schedule
from autopart.schedules.encoding import encode
from autopart.schedules.in_flight import STASH, in_flight_at_each_action
from autopart.schedules.lending import partners
from autopart.schedules.messages import Receive, write_messages

LINE = [(0,), (1,)]
SECOND = "1F0 1B0 1F1 1B1 1F2 1B2"
GOOD = "0F0 0L0 0F1 0F2 0T0 0B0 0B1 0B2"
"""T runs beside 0B0 here, so it comes too late: the tests put it elsewhere."""


def orders(first: str, second: str = SECOND) -> Schedule:
    return parse_order(first), parse_order(second)


def test_stash_that_is_back_before_its_backward_passes():
    made = orders("0F0 0F1 0L1 0F2 0T1 0B0 0B1 0B2")
    check_schedule(made, LINE, 3)
    (lend, take) = encode(made, 2).moves
    assert (lend.action, lend.beside) == (Action(0, "L", 1), 2)
    assert (take.action, take.beside) == (Action(0, "T", 1), 3)


def test_stash_counts_until_the_action_beside_l_is_over_and_from_the_one_beside_t_on():
    made = orders("0F0 0L0 0F1 0F2 0F3 0T0 0F4 0B0 0B1 0B2 0B3 0B4", "1F0 1B0")
    second = parse_order(" ".join(f"1F{m} 1B{m}" for m in range(5)))
    rows = in_flight_at_each_action(encode((made[0], second), 2), LINE)[0]
    assert rows[:, STASH, 0].tolist() == [1, 2, 2, 3, 5, 5, 4, 3, 2, 1]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (GOOD, SECOND, r"rank 0 runs 0T0 too late: it must be over before 0B0"),
        ("0F0 0L0 0F1 0F2 0B0 0B1 0B2", SECOND, r"rank 0 runs 0L0 without 0T0"),
        ("0F0 0F1 0T1 0F2 0B0 0B1 0B2", SECOND, r"rank 0 runs 0T1 without 0L1"),
        ("0F0 0L1 0F1 0F2 0T1 0B0 0B1 0B2", SECOND, r"rank 0 runs 0L1 before 0F1"),
        ("0F0 0F1 0F2 0L1 0T1 0B0 0B1 0B2", SECOND, r"rank 0 moves two stashes beside one action: 0L1 and 0T1"),
        ("0F0 0F1 0T1 0F2 0L1 0B0 0B1 0B2", SECOND, r"rank 0 runs 0T1 before the action beside 0L1 is over"),
        ("0F0 0F1 0L1 0L1 0F2 0T1 0B0 0B1 0B2", SECOND, r"rank 0 runs 0L1 twice"),
        ("0F0 0F1 0F2 0B0 0B1 0B2", "1F0 1F1 1L1 1F2 1T1 1B0 1B1 1B2", r"rank 1 runs 1L1, and only the first half"),
        ("0F0 0F1 1L1 0F2 1T1 0B0 0B1 0B2", SECOND, r"rank 0 runs 1L1, and only the first half"),
        ("0F0 0F1 0F2 0B0 0B1 0B2", "1F0 1B0 0L0 1F1 1B1 1F2 1B2", r"rank 1 runs 0L0, which is not its own"),
    ],
)  # fmt: skip
def test_moves_that_cannot_be_are_named(first: str, second: str, message: str):
    with pytest.raises(ScheduleError, match=message):
        check_schedule(orders(first, second), LINE, 3)


def test_a_split_backward_takes_no_stash_back():
    first = "0F0 0F1 0L1 0F2 0T1 0I0 0W0 0I1 0W1 0I2 0W2"
    with pytest.raises(ScheduleError, match="only whole backwards take stash back"):
        check_schedule(orders(first, SECOND.replace("B", "I") + " 1W0 1W1 1W2"), LINE, 3)


def test_partners_need_as_many_ranks_and_one_stage():
    first = "0F0 0F1 0L1 0F2 0T1 0B0 0B1 0B2"
    seconds = parse_order("1F0 1B0 1F2 1B2"), parse_order("1F1 1B1")
    with pytest.raises(ScheduleError, match="its partner's stage has another number of ranks"):
        check_schedule((parse_order(first), *seconds), [(0,), (1, 2)], 3)
    both = parse_order("0F0 0F1 0L1 0F2 0T1 1F0 1B0 1F1 1B1 1F2 1B2 0B0 0B1 0B2")
    with pytest.raises(ScheduleError, match="a rank that lends has one stage"):
        check_schedule((both,), [(0,), (0,)], 3)


def test_a_program_starts_a_move_right_before_the_action_beside_it():
    program, other = write_messages(orders("0F0 0F1 0L1 0F2 0T1 0B0 0B1 0B2"), LINE)
    at = program.index(Action(0, "T", 1))
    assert program[at + 1] == Action(0, "B", 0)
    assert isinstance(program[at - 1], Receive)
    assert not any(isinstance(event, Action) and event.op in "LT" for event in other)


def test_partners_are_mirrored_stages_of_one_replica():
    assert partners([(0, 4), (1, 5), (2, 6), (3, 7)]) == {
        0: 3, 3: 0, 1: 2, 2: 1, 4: 7, 7: 4, 5: 6, 6: 5,
    }  # fmt: skip
