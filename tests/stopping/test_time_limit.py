"""Deadlines and their grace."""

import pytest

from autopart.stopping import time_limit
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
    time_left,
)


def test_without_a_limit_nothing_is_dropped():
    check_time()
    assert not passed(float("inf"))
    assert time_left(float("inf")) == float("inf")


def test_a_computation_is_dropped_a_grace_behind_its_deadline(monkeypatch: pytest.MonkeyPatch):
    now = time_limit.time.perf_counter()
    monkeypatch.setattr(time_limit.time, "perf_counter", lambda: now)
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


def test_a_step_that_outlasts_the_limit_or_the_memory_is_not_begun():
    check_room(MOST_ACTIONS * 1000)  # nothing is limited here
    with limited(deadline_in(1000)):
        check_room(MOST_ACTIONS)
        with pytest.raises(OutOfTime):
            check_room(MOST_ACTIONS + 1)
    with limited(deadline_in(0)), pytest.raises(OutOfTime):
        check_room(round(2 * GRACE / SECONDS_PER_ACTION))
