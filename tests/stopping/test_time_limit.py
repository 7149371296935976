"""Deadlines, their grace, and Ctrl-C."""

import signal
import time

import pytest

from autopart.stopping.time_limit import (
    GRACE,
    MOST_ACTIONS,
    SECONDS_PER_ACTION,
    OutOfTime,
    check_room,
    check_time,
    deadline_in,
    limited,
    passed,
    stop_on_interrupt,
    time_left,
)


def test_without_a_limit_nothing_is_dropped():
    check_time()
    assert not passed(float("inf"))
    assert time_left(float("inf")) == float("inf")


def test_a_computation_is_dropped_a_grace_behind_its_deadline():
    with limited(deadline_in(-GRACE / 2)):
        check_time()
    with limited(deadline_in(-2 * GRACE)), pytest.raises(OutOfTime):
        check_time()
    check_time()


def test_an_inner_limit_cannot_outlast_an_outer_one():
    with limited(deadline_in(-2 * GRACE)), limited(deadline_in(60)), pytest.raises(OutOfTime):
        check_time()


def test_an_inner_limit_ends_with_its_block():
    with limited(deadline_in(60)):
        with limited(deadline_in(-2 * GRACE)), pytest.raises(OutOfTime):
            check_time()
        check_time()


def test_the_first_ctrl_c_passes_every_deadline_and_the_second_raises():
    with stop_on_interrupt() as interrupt:
        assert not interrupt.asked
        assert not passed(deadline_in(60))
        signal.raise_signal(signal.SIGINT)
        assert interrupt.asked
        assert passed(deadline_in(60))
        assert time_left(deadline_in(60)) == 0.0
        check_time()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert not passed(deadline_in(60))


def test_after_ctrl_c_and_its_grace_computations_are_dropped():
    with stop_on_interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        interrupt.asked_at = time.perf_counter() - 2 * GRACE
        with pytest.raises(OutOfTime):
            check_time()


def test_a_handler_of_the_program_stays_in_place():
    seen: list[int] = []

    def ours(number: int, _frame: object) -> None:
        seen.append(number)

    before = signal.signal(signal.SIGINT, ours)
    try:
        with stop_on_interrupt() as interrupt:
            signal.raise_signal(signal.SIGINT)
            assert not interrupt.asked
        assert seen == [signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) is ours
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_inner_search_shares_the_interrupt_of_the_outer_one():
    with stop_on_interrupt() as outer:
        with stop_on_interrupt() as inner:
            assert inner is outer
        signal.raise_signal(signal.SIGINT)
        assert outer.asked
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_step_that_outlasts_the_limit_or_the_memory_is_not_begun():
    check_room(MOST_ACTIONS * 1000)  # nothing is limited here
    with limited(deadline_in(1000)):
        check_room(MOST_ACTIONS)
        with pytest.raises(OutOfTime):
            check_room(MOST_ACTIONS + 1)
    with limited(deadline_in(0)), pytest.raises(OutOfTime):
        check_room(round(2 * GRACE / SECONDS_PER_ACTION))
