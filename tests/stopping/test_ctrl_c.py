"""Ctrl-C during a search."""

import signal
import time

import pytest

from autopart.stopping.ctrl_c import stop_on_interrupt
from autopart.stopping.time_limit import (
    GRACE,
    OutOfTime,
    check_time,
    deadline_in,
    passed,
    time_left,
)


def test_the_first_ctrl_c_passes_every_deadline_and_the_second_raises(
    monkeypatch: pytest.MonkeyPatch,
):
    now = time.perf_counter()
    monkeypatch.setattr(time, "perf_counter", lambda: now)
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
