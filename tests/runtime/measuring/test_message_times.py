import pytest

from autopart.runtime.measuring.clock import MeasuredAction
from autopart.runtime.measuring.message_times import message_times
from autopart.runtime.measuring.step_trace import StepTrace
from autopart.schedules.actions import parse_action, parse_order

SCHEDULE = (parse_order("0F0 0F1 0B0 0B1"), parse_order("1F0 1B0 1F1 1B1"))
RANKS = ((0,), (1,))


def _trace(begun: float, **slices: tuple[float, float, float]) -> StepTrace:
    spans = tuple(MeasuredAction(parse_action(name[1:]), *times) for name, times in slices.items())
    return StepTrace(spans, 0.0, 0.0, 20.0, begun)


FIRST = _trace(100.0, _0F0=(0, 0, 1.0), _0F1=(1, 1, 2.0), _0B0=(2, 6.5, 7.0), _0B1=(7, 11.0, 12.0))
SECOND = _trace(100.0, _1F0=(0, 1.25, 3.0), _1B0=(3, 3, 6.0), _1F1=(6, 6.0, 8.0), _1B1=(8, 8, 10.0))


def test_transfer_times_are_known_where_the_receiver_waited():
    first, second = message_times(SCHEDULE, RANKS, [[FIRST], [SECOND]])
    assert [(send.op, send.time, send.count) for send in first] == [("F", 0.25, 1)], "1F1 was late"
    assert [(send.op, send.time, send.count) for send in second] == [("B", 0.75, 2)]


def test_ranks_that_begin_apart_are_put_on_one_clock():
    later = SECOND._replace(begun=100.125)
    first, second = message_times(SCHEDULE, RANKS, [[FIRST], [later]])
    assert first[0].time == pytest.approx(0.375)
    assert second[0].time == pytest.approx(0.625)


def test_clocks_of_different_hosts_are_not_compared():
    elsewhere = SECOND._replace(begun=7e6)
    assert message_times(SCHEDULE, RANKS, [[FIRST], [elsewhere]])[0][0].time == 0.25


def test_moves_of_stash_are_no_transfers_of_results():
    moving = (
        parse_order("0F0 0F1 0L1 0F2 0T1 0B0 0B1 0B2"),
        parse_order("1F0 1B0 1F1 1B1 1F2 1B2"),
    )
    plain = tuple(tuple(action for action in order if action.op not in "LT") for order in moving)
    traces = [
        [
            StepTrace(
                tuple(MeasuredAction(a, at, at, at + 1.0) for at, a in enumerate(order)),
                0.0,
                0.0,
                9.0,
            )
        ]
        for order in plain
    ]
    assert message_times(moving, RANKS, traces) == message_times(plain, RANKS, traces) != ((), ())


def test_ranks_that_ran_alone_sent_nothing():
    assert message_times(SCHEDULE, RANKS, []) == ((), ())
